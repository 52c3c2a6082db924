"""Tells from two configs whether a VLM's decoder and a text LM are relatives.

Shapes do not tell: aya-expanse-8b (Cohere v1, another `logit_scale` and rope theta) has the shapes
of the Aya Vision 8B decoder, and a merge of the two is garbage.
Compares what the weights mean; names and shapes are `tensor_table`'s job, weights `distance`'s.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MAX_SHOWN_CHARS = 80

# What transformers assumes when config.json leaves a key out: hub configs of VLMs often hold only
# what differs. Contract: equal to the defaults of the config classes, by test_relatives.py.
_COHERE: dict[str, Any] = {
    "hidden_size": 8192,
    "intermediate_size": 22528,
    "num_hidden_layers": 40,
    "num_attention_heads": 64,
    "hidden_act": "silu",
    "layer_norm_eps": 1e-5,
    "attention_bias": False,
    "logit_scale": 0.0625,
    "tie_word_embeddings": True,
}
_LLAMA: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "mlp_bias": False,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
_MISTRAL: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "sliding_window": 4096,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
_QWEN3: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "head_dim": 128,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "use_sliding_window": False,
    "max_window_layers": 28,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
_GEMMA3: dict[str, Any] = {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "use_bidirectional_attention": False,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10000.0,
    "tie_word_embeddings": True,
}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "cohere2": {**_COHERE, "rope_theta": 10000.0, "sliding_window": 4096},
    "cohere": {**_COHERE, "rope_theta": 500000.0, "use_qk_norm": False},
    "llama": _LLAMA,
    "mistral": _MISTRAL,
    "qwen3": _QWEN3,
    "gemma3_text": _GEMMA3,
}
# Every how many layers one attends to all, where a config does not list them: `layer_types`.
PATTERNS: Mapping[str, int] = {"cohere2": 4, "gemma3_text": 6}
_OF_ROPE = ("rope_theta", "rope_local_base_freq")
VLM_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "aya_vision": {"text_model_type": "cohere2", "tie_word_embeddings": True},
    "cohere2_vision": {"text_model_type": "cohere2", "tie_word_embeddings": True},
    "llava": {"text_model_type": "llama", "tie_word_embeddings": False},
}


@dataclass(frozen=True)
class Difference:
    """One setting in which the VLM's decoder and the text LM differ."""

    key: str
    vlm: Any
    text: Any

    def __str__(self) -> str:
        return f"{self.key}: vlm {_shorten(self.vlm)}, text {_shorten(self.text)}"


def decoder_config(vlm_config: Mapping[str, Any]) -> dict[str, Any]:
    """The VLM's `text_config`, with its `model_type` filled in."""
    default = VLM_DEFAULTS[str(vlm_config["model_type"])]["text_model_type"]
    return {"model_type": default, **(vlm_config.get("text_config") or {})}


def is_tied_by_config(config: Mapping[str, Any]) -> bool:
    """Whether the config ties `lm_head` to `embed_tokens`.

    VLM files state it at the top level, in `text_config`, or (old ones) in neither.
    """
    model_type = str(config.get("model_type"))
    stated = [config.get("tie_word_embeddings")]
    stated.append((config.get("text_config") or {}).get("tie_word_embeddings"))
    if all(value is None for value in stated):
        defaults = VLM_DEFAULTS.get(model_type) or DEFAULTS.get(model_type) or {}
        return bool(defaults.get("tie_word_embeddings"))
    return any(stated)


def find_differences(
    vlm_config: Mapping[str, Any], text_config: Mapping[str, Any]
) -> list[Difference]:
    """Every setting that gives the same weights another meaning in the two models."""
    vlm = _describe(decoder_config(vlm_config))
    vlm["tie_word_embeddings"] = is_tied_by_config(vlm_config)
    text = _describe(text_config)
    keys = list(dict.fromkeys([*vlm, *text]))
    return [
        Difference(key, vlm.get(key), text.get(key))
        for key in keys
        if vlm.get(key) != text.get(key)
    ]


def _describe(config: Mapping[str, Any]) -> dict[str, Any]:
    """The compared settings of one text config, absent ones filled with their defaults."""
    model_type = str(config.get("model_type"))
    defaults = DEFAULTS.get(model_type, {})
    facts: dict[str, Any] = {"model_type": model_type}
    facts |= {
        key: config[key] if config.get(key) is not None else default
        for key, default in defaults.items()
        if key not in _OF_ROPE
    }
    heads = facts.get("num_attention_heads")
    kv_heads = config.get("num_key_value_heads") or facts.get("num_key_value_heads")
    facts["num_key_value_heads"] = kv_heads or heads
    if heads:
        head_dim = config.get("head_dim") or facts.get("head_dim")
        facts["head_dim"] = head_dim or facts["hidden_size"] // heads
    facts["rope_parameters"] = _describe_ropes(config, defaults)
    if model_type in PATTERNS:
        facts["layer_types"] = config.get("layer_types") or _expand_pattern(config, facts)
    return facts


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
    theta = stated.pop("rope_theta", None) or config.get("rope_theta") or default_theta
    return {"rope_theta": theta, "rope_type": stated.pop("rope_type", kind or "default"), **stated}


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
