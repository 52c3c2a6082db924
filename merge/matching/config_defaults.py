"""What transformers assumes when config.json leaves a key out, and what it lets stand for another.

Hub configs of VLMs often hold only what differs. Tables only; `relatives` reads them. Contract:
equal to the defaults of transformers' config classes, by test_config_defaults.py.
"""

from collections.abc import Mapping
from typing import Any

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
_QWEN2: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "use_sliding_window": False,
    "max_window_layers": 28,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
_QWEN3: dict[str, Any] = {**_QWEN2, "head_dim": 128, "attention_bias": False}
_QWEN2_VL: dict[str, Any] = {
    "hidden_size": 8192,
    "intermediate_size": 29568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "use_sliding_window": False,
    "max_window_layers": 80,
    "rope_theta": 1_000_000.0,
}
_QWEN3_VL: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "head_dim": 128,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "rope_theta": 500_000.0,
}
_GEMMA: dict[str, Any] = {
    "hidden_size": 3072,
    "intermediate_size": 24576,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "use_bidirectional_attention": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}
_GEMMA2: dict[str, Any] = {
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
    "final_logit_softcapping": 30.0,
    "attn_logit_softcapping": 50.0,
    "use_bidirectional_attention": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}
_GEMMA3: dict[str, Any] = {
    **_GEMMA2,
    "final_logit_softcapping": None,
    "attn_logit_softcapping": None,
    "use_bidirectional_attention": False,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10000.0,
}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "cohere2": {**_COHERE, "rope_theta": 10000.0, "sliding_window": 4096},
    "cohere": {**_COHERE, "rope_theta": 500000.0, "use_qk_norm": False},
    "llama": _LLAMA,
    "mistral": _MISTRAL,
    "qwen2": _QWEN2,
    "qwen3": _QWEN3,
    "gemma": _GEMMA,
    "gemma2": _GEMMA2,
    "gemma3_text": _GEMMA3,
    "qwen2_vl_text": _QWEN2_VL,
    "qwen2_5_vl_text": _QWEN2_VL,
    "qwen3_vl_text": _QWEN3_VL,
}
# Keys whose null says "none"; the null of any other key is as good as leaving it out.
MAY_BE_NULL = ("sliding_window", "final_logit_softcapping", "attn_logit_softcapping")
# Every how many layers one attends to all, where a config does not list them: `layer_types`.
PATTERNS: Mapping[str, int] = {"cohere2": 4, "gemma2": 2, "gemma3_text": 6}
# Types whose layers from `max_window_layers` on slide, if `use_sliding_window`; Qwen 3 VL never.
WINDOWED = ("qwen2", "qwen3", "qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text")
WINDOWED_SLIDING_WINDOW = 4096
# Gemma's first files say `gelu` and mean its approximation, as the class does.
SAME_VALUES: Mapping[tuple[str, str, Any], Any] = {
    ("gemma", "hidden_act", "gelu"): "gelu_pytorch_tanh"
}

# Decoders with a type of their own whose text LM is another type. On text the two are one: mrope
# gives each position three indices, which are equal outside pictures, and equal ones turn as the
# plain rope does, whichever frequencies `mrope_section` gives to which index. Proven in logits, to
# the last bit, by tests/merge/test_families.py. These keys, and the type `mrope`, are not compared.
TEXT_LM_OF: Mapping[str, str] = {
    "qwen2_vl_text": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen3_vl_text": "qwen3",
}
MROPE_KEYS = ("mrope_section", "mrope_interleaved")
# Settings that belong to the VLM, whatever its text LM has. PaliGemma reads picture and prompt in
# both directions, and its answer (token_type_ids of 1) as the text LM does.
SETTINGS_OF_VLM: Mapping[str, tuple[str, ...]] = {"paligemma": ("use_bidirectional_attention",)}

VLM_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "aya_vision": {"text_model_type": "cohere2", "tie_word_embeddings": True},
    "cohere2_vision": {"text_model_type": "cohere2", "tie_word_embeddings": True},
    "llava": {"text_model_type": "llama", "tie_word_embeddings": False},
    "llava_next": {"text_model_type": "llama", "tie_word_embeddings": False},
    "llava_onevision": {"text_model_type": "qwen2", "tie_word_embeddings": False},
    "gemma3": {"text_model_type": "gemma3_text", "tie_word_embeddings": True},
    "mistral3": {"text_model_type": "mistral", "tie_word_embeddings": True},
    "internvl": {"text_model_type": "qwen2", "tie_word_embeddings": True},
    "paligemma": {"text_model_type": "gemma", "tie_word_embeddings": True},
    "qwen2_vl": {"text_model_type": "qwen2_vl_text", "tie_word_embeddings": False},
    "qwen2_5_vl": {"text_model_type": "qwen2_5_vl_text", "tie_word_embeddings": False},
    "qwen3_vl": {"text_model_type": "qwen3_vl_text", "tie_word_embeddings": False},
    "idefics3": {"text_model_type": "llama", "tie_word_embeddings": False},
    "smolvlm": {"text_model_type": "llama", "tie_word_embeddings": False},
}
# These have one decoder class, whatever `text_config.model_type` says (Qwen's early files: the
# VLM's own type).
ONE_TEXT_TYPE = ("gemma3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl")
# Configs before 4.52 have the decoder's settings beside the VLM's, and no `text_config`.
FLAT_CONFIGS = ("qwen2_vl", "qwen2_5_vl")
# The decoder of a VLM whose config.json has no `text_config`, where it is not its class's default.
TEXT_CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "mistral3": {
        "head_dim": 128,
        "hidden_size": 5120,
        "intermediate_size": 32768,
        "num_attention_heads": 32,
        "num_hidden_layers": 40,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1_000_000_000.0,
        "sliding_window": None,
    },
    "paligemma": {
        "hidden_size": 2048,
        "num_hidden_layers": 18,
        "intermediate_size": 16384,
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
    },
    "idefics3": {"rms_norm_eps": 1e-5},
    "smolvlm": {"rms_norm_eps": 1e-5},
}
