"""Tells from two configs whether a VLM's decoder and a text LM are relatives.

Shapes do not tell: aya-expanse-8b (Cohere v1, another `logit_scale` and rope theta) has the shapes
of the Aya Vision 8B decoder, and a merge of the two is garbage.
Compares what the weights mean; names and shapes are `tensor_table`'s job, weights `distance`'s.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from merge.matching.config_defaults import (
    DEFAULTS,
    FLAT_CONFIGS,
    MAY_BE_NULL,
    MROPE_KEYS,
    ONE_TEXT_TYPE,
    PATTERNS,
    SAME_VALUES,
    SETTINGS_OF_VLM,
    TEXT_CONFIGS,
    TEXT_LM_OF,
    VLM_DEFAULTS,
    WINDOWED,
    WINDOWED_SLIDING_WINDOW,
)

MAX_SHOWN_CHARS = 80
_OF_ROPE = ("rope_theta", "rope_local_base_freq")
_OF_WINDOWS = ("use_sliding_window", "max_window_layers")
_SCALED_ROPES = ("llama3", "yarn", "longrope")


@dataclass(frozen=True)
class Difference:
    """One setting in which the VLM's decoder and the text LM differ."""

    key: str
    vlm: Any
    text: Any

    def __str__(self) -> str:
        return f"{self.key}: vlm {_shorten(self.vlm)}, text {_shorten(self.text)}"


def decoder_config(vlm_config: Mapping[str, Any]) -> dict[str, Any]:
    """The VLM's `text_config`, with its `model_type` filled in; of old Qwen files the top level."""
    vlm_type = str(vlm_config["model_type"])
    default = VLM_DEFAULTS[vlm_type]["text_model_type"]
    stated = vlm_config.get("text_config")
    if not stated and vlm_type in FLAT_CONFIGS:
        stated = vlm_config
    config = {"model_type": default, **(stated or TEXT_CONFIGS.get(vlm_type, {}))}
    if vlm_type in ONE_TEXT_TYPE:
        config["model_type"] = default
    return config


def is_tied_by_config(config: Mapping[str, Any]) -> bool | None:
    """Whether the config ties `lm_head` to `embed_tokens`; None where only the weights can tell.

    VLM files state it at the top level, in `text_config`, or (old ones) in neither. transformers 4
    went by the decoder, 5 goes by the top level: where the two differ, stated or by default, no
    answer is right for both (Mistral Small 3.1 says nothing, has a head of its own, and its
    classes' defaults are tied and untied).
    """
    model_type = str(config.get("model_type"))
    places = (config, config.get("text_config") or {})
    stated = {place["tie_word_embeddings"] for place in places if _has_tie(place)}
    if not stated:
        stated = {_default_tie(model_type)}
        if model_type in VLM_DEFAULTS:
            text_type = decoder_config(config)["model_type"]
            stated.add(_default_tie(TEXT_LM_OF.get(text_type, text_type)))
    return bool(stated.pop()) if len(stated) == 1 else None


def find_differences(
    vlm_config: Mapping[str, Any], text_config: Mapping[str, Any]
) -> list[Difference]:
    """Every setting that gives the same weights another meaning in the two models."""
    vlm, text = _describe(decoder_config(vlm_config)), _describe(text_config)
    ignored = SETTINGS_OF_VLM.get(str(vlm_config["model_type"]), ())
    keys = [key for key in dict.fromkeys([*vlm, *text]) if key not in ignored]
    # A head of its own can take a tied text LM's, which is its embedding; not the other way.
    vlm_tied, text_tied = is_tied_by_config(vlm_config), is_tied_by_config(text_config)
    if vlm_tied and text_tied is False:
        keys.append("tie_word_embeddings")
        vlm["tie_word_embeddings"], text["tie_word_embeddings"] = vlm_tied, text_tied
    return [
        Difference(key, vlm.get(key), text.get(key))
        for key in keys
        if vlm.get(key) != text.get(key)
    ]


def _has_tie(config: Mapping[str, Any]) -> bool:
    return config.get("tie_word_embeddings") is not None


def _default_tie(model_type: str) -> bool:
    """What transformers assumes of a model type."""
    defaults = VLM_DEFAULTS.get(model_type) or DEFAULTS.get(model_type) or {}
    return bool(defaults.get("tie_word_embeddings"))


def _describe(config: Mapping[str, Any]) -> dict[str, Any]:
    """The compared settings of one text config, absent ones filled with their defaults."""
    own_type = str(config.get("model_type"))
    defaults = DEFAULTS.get(own_type, {})
    facts: dict[str, Any] = {"model_type": TEXT_LM_OF.get(own_type, own_type)}
    facts |= {
        key: _value(own_type, config, key, default)
        for key, default in defaults.items()
        if key not in (*_OF_ROPE, *_OF_WINDOWS, "tie_word_embeddings")
    }
    heads = facts.get("num_attention_heads")
    kv_heads = config.get("num_key_value_heads") or facts.get("num_key_value_heads")
    facts["num_key_value_heads"] = kv_heads or heads
    if heads:
        head_dim = config.get("head_dim") or facts.get("head_dim")
        facts["head_dim"] = head_dim or facts["hidden_size"] // heads
    facts["rope_parameters"] = _describe_ropes(config, defaults)
    if own_type in PATTERNS:
        facts["layer_types"] = config.get("layer_types") or _expand_pattern(config, facts)
    if own_type in WINDOWED:
        facts |= _describe_windows(config, defaults, facts["num_hidden_layers"])
    return facts


def _value(model_type: str, config: Mapping[str, Any], key: str, default: Any) -> Any:
    """One setting as transformers reads it."""
    value = config.get(key)
    if value is None and not (key in config and key in MAY_BE_NULL):
        value = default
    if key == "use_bidirectional_attention":
        return bool(value)
    return SAME_VALUES.get((model_type, key, value), value) if isinstance(value, str) else value


def _describe_windows(
    config: Mapping[str, Any], defaults: Mapping[str, Any], num_layers: int
) -> dict[str, Any]:
    """Sliding window and layer types of Qwen, whose windows are off unless a switch is on."""
    uses = config.get("use_sliding_window") and "use_sliding_window" in defaults
    window = config.get("sliding_window", WINDOWED_SLIDING_WINDOW) if uses else None
    first = config.get("max_window_layers", defaults.get("max_window_layers"))
    types = [
        "sliding_attention" if window is not None and layer >= first else "full_attention"
        for layer in range(num_layers)
    ]
    return {"sliding_window": window, "layer_types": config.get("layer_types") or types}


def _describe_ropes(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Rope settings; of Gemma 3 those of either kind of layer, of which the local has its own."""
    local = defaults.get("rope_local_base_freq")
    if local is None:
        return _describe_rope(config, defaults.get("rope_theta"))
    stated = config.get("rope_parameters") or {}
    full = {"rope_parameters": stated["full_attention"]} if stated else config
    old = {"rope_theta": config.get("rope_local_base_freq")}
    sliding = {"rope_parameters": stated["sliding_attention"]} if stated else old
    return {
        "full_attention": _describe_rope(full, defaults["rope_theta"]),
        "sliding_attention": _describe_rope(sliding, local),
    }


def _describe_rope(config: Mapping[str, Any], default_theta: float | None) -> dict[str, Any]:
    """Rope settings in the form of transformers 5, from either form.

    4.x files have `rope_theta` and `rope_scaling`, 5.x files `rope_parameters`.
    """
    stated = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    kind = stated.pop("type", None)
    kind = stated.pop("rope_type", None) or kind or "default"
    theta = stated.pop("rope_theta", None) or config.get("rope_theta") or default_theta
    if kind in _SCALED_ROPES:
        stated.setdefault("original_max_position_embeddings", config.get("max_position_embeddings"))
    rest = {key: value for key, value in stated.items() if key not in MROPE_KEYS}
    return {"rope_theta": theta, "rope_type": "default" if kind == "mrope" else kind, **rest}


def _expand_pattern(config: Mapping[str, Any], facts: Mapping[str, Any]) -> list[str]:
    """`layer_types` from `sliding_window_pattern` (files before 4.53), as the classes do."""
    pattern = config.get("sliding_window_pattern") or PATTERNS[facts["model_type"]]
    return [
        "full_attention" if (layer + 1) % pattern == 0 else "sliding_attention"
        for layer in range(facts["num_hidden_layers"])
    ]


def _shorten(value: Any) -> str:
    """A value for a message, cut to a readable length."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN_CHARS else text[: MAX_SHOWN_CHARS - 3] + "..."
