"""merge.matching.config_defaults against the config classes of transformers."""

import pytest
from transformers import AutoConfig

from merge.matching.config_defaults import (
    DEFAULTS,
    FLAT_CONFIGS,
    ONE_TEXT_TYPE,
    PATTERNS,
    SAME_VALUES,
    TEXT_CONFIGS,
    TEXT_LM_OF,
    VLM_DEFAULTS,
    WINDOWED,
    WINDOWED_SLIDING_WINDOW,
)
from merge.matching.relatives import decoder_config, find_differences
from train.model.parts import TEXT_MODEL_TYPES, VLM_MODEL_TYPES


@pytest.mark.parametrize("model_type", DEFAULTS)
def test_defaults_are_those_of_the_config_class(model_type):
    config = AutoConfig.for_model(model_type).to_dict()
    ropes = config["rope_parameters"]
    config["rope_theta"] = ropes.get("full_attention", ropes)["rope_theta"]
    config["rope_local_base_freq"] = ropes.get("sliding_attention", ropes)["rope_theta"]
    assert {key: config[key] for key in DEFAULTS[model_type]} == dict(DEFAULTS[model_type])


@pytest.mark.parametrize("model_type", TEXT_MODEL_TYPES)
def test_a_config_that_says_all_equals_one_that_says_nothing(model_type):
    config = AutoConfig.for_model(model_type).to_dict()
    vlm = {"model_type": "llava", "text_config": config, "tie_word_embeddings": None}
    assert find_differences(vlm, {"model_type": model_type}) == []
    assert find_differences(vlm | {"text_config": {"model_type": model_type}}, config) == []


@pytest.mark.parametrize("model_type", VLM_DEFAULTS)
def test_vlm_defaults_are_those_of_the_config_class(model_type):
    config = AutoConfig.for_model(model_type)
    defaults = VLM_DEFAULTS[model_type]
    assert config.text_config.model_type == defaults["text_model_type"]
    assert config.tie_word_embeddings == defaults["tie_word_embeddings"]


@pytest.mark.parametrize("model_type", VLM_DEFAULTS)
def test_a_vlm_without_text_config_has_the_decoder_of_its_class(model_type):
    whole = AutoConfig.for_model(model_type).text_config.to_dict()
    if model_type not in FLAT_CONFIGS:
        whole["model_type"] = TEXT_LM_OF.get(whole["model_type"], whole["model_type"])
        assert find_differences({"model_type": model_type}, whole) == []
    assert set(TEXT_CONFIGS) <= set(VLM_DEFAULTS)


@pytest.mark.parametrize("model_type", ONE_TEXT_TYPE)
def test_one_decoder_class_whatever_the_config_says(model_type):
    said = {"model_type": model_type, "text_config": {"model_type": model_type}}
    config = AutoConfig.for_model(**said)
    assert decoder_config(said)["model_type"] == type(config.text_config).model_type


@pytest.mark.parametrize("model_type", PATTERNS)
def test_patterns(model_type):
    types = AutoConfig.for_model(model_type, num_hidden_layers=12).layer_types
    full = [layer + 1 for layer, kind in enumerate(types) if kind == "full_attention"]
    assert full[0] == PATTERNS[model_type]


@pytest.mark.parametrize("model_type", [kind for kind in WINDOWED if kind != "qwen3_vl_text"])
def test_windows(model_type):
    config = AutoConfig.for_model(model_type, use_sliding_window=True, max_window_layers=2)
    assert config.sliding_window == WINDOWED_SLIDING_WINDOW
    assert config.layer_types[:3] == ["full_attention"] * 2 + ["sliding_attention"]


def test_same_values():
    for (model_type, key, value), meant in SAME_VALUES.items():
        assert getattr(AutoConfig.for_model(model_type, **{key: value}), key) == meant


def test_every_mapped_model_type_has_defaults():
    assert DEFAULTS.keys() == TEXT_MODEL_TYPES.keys() | TEXT_LM_OF.keys()
    assert set(TEXT_LM_OF.values()) <= set(TEXT_MODEL_TYPES)
    assert VLM_DEFAULTS.keys() == VLM_MODEL_TYPES.keys()
