"""merge.matching.relatives: configs of both file generations, and the defaults they leave out."""

import json

import pytest
from transformers import AutoConfig

from merge.matching.relatives import DEFAULTS, VLM_DEFAULTS, find_differences, is_tied_by_config
from train.model.parts import TEXT_MODEL_TYPES, VLM_MODEL_TYPES


@pytest.fixture
def configs(bf16_pair):
    folders = (bf16_pair.vlm, bf16_pair.text)
    return [json.loads((folder / "config.json").read_text()) for folder in folders]


def differing(vlm, text):
    return [difference.key for difference in find_differences(vlm, text)]


def as_before_5(config):
    """The same config as transformers 4.5x wrote it."""
    old = dict(config) | {"rope_theta": 50000, "rope_scaling": None, "sliding_window_pattern": 4}
    for key in ("rope_parameters", "layer_types", "num_key_value_heads", "head_dim"):
        old.pop(key)
    return old | {"num_key_value_heads": config["num_key_value_heads"]}


def test_relatives_in_both_generations(configs):
    vlm, text = configs
    assert differing(vlm, text) == []
    assert differing(vlm, as_before_5(text)) == []
    old = {**vlm, "text_config": as_before_5(vlm["text_config"]), "tie_word_embeddings": None}
    assert differing(old, text) == []


@pytest.mark.parametrize(
    ("change", "keys"),
    [
        ({"logit_scale": 0.125}, ["logit_scale"]),
        ({"rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}}, ["rope_parameters"]),
        ({"layer_types": ["full_attention"] * 4}, ["layer_types"]),
        ({"sliding_window": 16}, ["sliding_window"]),
        ({"tie_word_embeddings": False}, ["tie_word_embeddings"]),
        ({"hidden_size": 64, "num_hidden_layers": 2}, ["hidden_size", "num_hidden_layers"]),
    ],
)
def test_each_difference_is_told(configs, change, keys):
    vlm, text = configs
    assert differing(vlm, text | change) == keys


def test_aya_expanse_is_a_stranger(configs):
    """FACTS: same shapes as the Aya Vision decoder, another architecture."""
    vlm, text = configs
    stranger = as_before_5(text) | {"model_type": "cohere", "logit_scale": 0.125, "rope_theta": 1e4}
    found = differing(vlm, stranger)
    assert {"model_type", "logit_scale", "rope_parameters", "layer_types"} <= set(found)


def test_long_values_are_cut(configs):
    vlm, text = configs
    long = find_differences(vlm, text | {"layer_types": ["full_attention"] * 40})[0]
    assert len(str(long)) < 220 and "..." in str(long)


@pytest.mark.parametrize("model_type", DEFAULTS)
def test_defaults_are_those_of_the_config_class(model_type):
    config = AutoConfig.for_model(model_type).to_dict()
    ropes = config["rope_parameters"]
    config["rope_theta"] = ropes.get("full_attention", ropes)["rope_theta"]
    config["rope_local_base_freq"] = ropes.get("sliding_attention", ropes)["rope_theta"]
    assert {key: config[key] for key in DEFAULTS[model_type]} == dict(DEFAULTS[model_type])
    assert find_differences(
        {"model_type": "llava", "text_config": config, "tie_word_embeddings": None},
        {"model_type": model_type},
    ) == []  # fmt: skip


def test_gemma_3_of_both_generations():
    """Its two ropes: `rope_theta` and `rope_local_base_freq` in files before 5."""
    new = AutoConfig.for_model("gemma3_text").to_dict()
    old = {"model_type": "gemma3_text", "rope_theta": 1e6, "rope_local_base_freq": 1e4,
           "rope_scaling": None, "sliding_window_pattern": 6}  # fmt: skip
    vlm = {"model_type": "aya_vision", "text_config": new}
    assert differing(vlm, old) == []
    for changed in ({"rope_local_base_freq": 2e4}, {"rope_theta": 1e4},
                    {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}}):  # fmt: skip
        assert differing(vlm, old | changed) == ["rope_parameters"]
    assert differing(vlm, old | {"sliding_window_pattern": 4}) == ["layer_types"]


@pytest.mark.parametrize("model_type", VLM_DEFAULTS)
def test_vlm_defaults_are_those_of_the_config_class(model_type):
    config = AutoConfig.for_model(model_type)
    defaults = VLM_DEFAULTS[model_type]
    assert config.text_config.model_type == defaults["text_model_type"]
    assert config.tie_word_embeddings == defaults["tie_word_embeddings"]


def test_every_mapped_model_type_has_defaults():
    assert DEFAULTS.keys() == TEXT_MODEL_TYPES.keys()
    assert VLM_DEFAULTS.keys() == VLM_MODEL_TYPES.keys()


def test_tied_by_default():
    assert is_tied_by_config({"model_type": "aya_vision"})
    assert not is_tied_by_config({"model_type": "llama"})
    assert not is_tied_by_config({"model_type": "cohere2", "tie_word_embeddings": False})
