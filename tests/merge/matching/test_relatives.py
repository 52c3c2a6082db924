"""merge.matching.relatives: configs of both file generations, relatives and strangers."""

import json
from copy import deepcopy

import pytest
from transformers import AutoConfig

from merge.matching.relatives import find_differences, is_tied_by_config


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


OLD_QWEN = {
    "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 96, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "max_window_layers": 3,
    "sliding_window": 32768, "use_sliding_window": False, "tie_word_embeddings": False,
}  # fmt: skip


def test_qwen_2_5_vl_of_every_generation():
    """Flat before 4.52, then with a `text_config` of a type of its own; its text LM is Qwen 2.5."""
    text = {"model_type": "qwen2", **OLD_QWEN, "max_window_layers": 28, "hidden_act": "silu"}
    scaling = {"type": "mrope", "mrope_section": [16, 24, 24]}
    flat = {"model_type": "qwen2_5_vl", **OLD_QWEN, "rope_scaling": scaling, "vision_config": {}}
    both = {"type": "default", "rope_type": "default", "mrope_section": [16, 24, 24]}
    nested = {
        "model_type": "qwen2_5_vl",
        "text_config": {"model_type": "qwen2_5_vl_text", **OLD_QWEN, "rope_scaling": both},
    }
    own_name = {
        "model_type": "qwen2_5_vl",
        "text_config": {**nested["text_config"], "model_type": "qwen2_5_vl"},
    }
    new = {"model_type": "qwen2_5_vl", "text_config": AutoConfig.for_model(
        "qwen2_5_vl_text", **OLD_QWEN, rope_scaling=dict(scaling)).to_dict()}  # fmt: skip
    for vlm in (flat, nested, own_name, new):
        assert differing(vlm, text) == []
        assert differing(vlm, text | {"rope_theta": 1e4}) == ["rope_parameters"]
        assert differing(vlm, text | {"model_type": "llama"})[0] == "model_type"
    slides = text | {"use_sliding_window": True, "max_window_layers": 2}
    assert differing(new, slides) == ["sliding_window", "layer_types"]


def test_qwen_3_vl_is_qwen_3_with_three_positions():
    settings = dict(hidden_size=64, num_hidden_layers=3, num_attention_heads=4, rope_theta=5e6)
    scaling = {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"}
    vlm = {"model_type": "qwen3_vl", "text_config": settings | {"rope_scaling": scaling}}
    assert differing(vlm, {"model_type": "qwen3", **settings}) == []
    assert differing(vlm, {"model_type": "qwen3", **settings, "rope_theta": 1e6}) == [
        "rope_parameters"
    ]


def test_scaled_rope_of_both_generations():
    """transformers 5 fills in the length that the scaling starts from."""
    old = {"model_type": "llama", "rope_theta": 1e4, "max_position_embeddings": 512,
           "rope_scaling": {"type": "yarn", "factor": 4.0}}  # fmt: skip
    new = AutoConfig.for_model(**deepcopy(old)).to_dict()  # it writes into what it is given
    assert new["rope_parameters"]["original_max_position_embeddings"] == 512
    assert differing({"model_type": "llava", "text_config": old}, new) == []


def test_null_is_none_where_it_can_be():
    vlm = {"model_type": "mistral3", "text_config": {"model_type": "mistral"}}
    text = {"model_type": "mistral"}
    assert differing(vlm, text) == []
    assert differing(vlm, text | {"sliding_window": None}) == ["sliding_window"]
    assert differing(vlm, text | {"rms_norm_eps": None}) == []


def test_pali_gemma_reads_its_prompt_in_both_directions():
    """A setting of the VLM; between other models it is a difference."""
    gemma = {"model_type": "gemma", "hidden_act": "gelu"}
    config = AutoConfig.for_model("paligemma", text_config={"model_type": "gemma"}).to_dict()
    assert config["text_config"]["use_bidirectional_attention"]
    assert differing(config, gemma) == []
    graft = {"model_type": "llava", "text_config": config["text_config"]}
    assert differing(graft, gemma) == ["use_bidirectional_attention"]


def test_tied_by_default():
    assert is_tied_by_config({"model_type": "aya_vision"})
    assert is_tied_by_config({"model_type": "llama"}) is False
    assert is_tied_by_config({"model_type": "llava", "text_config": {}}) is False
    assert is_tied_by_config({"model_type": "cohere2", "tie_word_embeddings": False}) is False


def test_who_ties_where_two_places_differ():
    """Mistral Small 3.1 states nothing, and its classes' defaults differ: the weights tell."""
    assert is_tied_by_config({"model_type": "mistral3", "text_config": {}}) is None
    stated = {"model_type": "mistral3", "text_config": {"tie_word_embeddings": False}}
    assert is_tied_by_config(stated) is False
    assert is_tied_by_config(stated | {"tie_word_embeddings": True}) is None
    text = {"model_type": "mistral", "tie_word_embeddings": False}
    assert "tie_word_embeddings" not in differing(stated, text)
    untied = {"model_type": "llava", "tie_word_embeddings": False}
    assert differing(untied, {"model_type": "llama", "tie_word_embeddings": True}) == []
