"""Pico VLMs and text LMs of every family that merges, made by their real transformers classes.

Beside tests/merge/, as tests/train/model/test_parts.py needs them too. Layouts are in
tests/merge/family_pico.py.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

VOCABULARY = 64
TEXT: dict[str, Any] = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
WINDOW = dict(sliding_window=8)
# What makes a text LM differ from another of its size: each is lost by a merge that mixes them up.
TEXT_CHANGES: dict[str, dict[str, Any]] = {
    "cohere2": WINDOW | dict(logit_scale=0.25),
    "cohere": dict(logit_scale=0.125),
    "llama": dict(rms_norm_eps=1e-5),
    "mistral": WINDOW | dict(head_dim=16),
    "qwen2": dict(rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
    "qwen3": dict(head_dim=16, rope_parameters={"rope_type": "default", "rope_theta": 5e5}),
    "gemma": dict(head_dim=16),
    "gemma2": WINDOW | dict(head_dim=16, query_pre_attn_scalar=16),
    "gemma3_text": WINDOW | dict(head_dim=16, query_pre_attn_scalar=16, sliding_window_pattern=2),
}
SIGLIP: dict[str, Any] = dict(
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=2,
    image_size=8,
    patch_size=2,
)
QWEN_VISION: dict[str, Any] = dict(
    depth=2, hidden_size=16, intermediate_size=24, num_heads=2, patch_size=2, out_hidden_size=32
)


@dataclass(frozen=True)
class Family:
    """A VLM type: what it is built of, its special tokens' ids, and what its names are in memory.

    `projector` are prefixes of names in memory; what is left of the model beside the decoder is
    the tower's.
    """

    text: str
    vision: str
    vision_changes: dict[str, Any] = field(default_factory=lambda: SIGLIP)
    tokens: dict[str, int] = field(default_factory=lambda: {"image_token_index": 5})
    changes: dict[str, Any] = field(default_factory=dict)
    mrope: dict[str, Any] = field(default_factory=dict)
    tied: bool = False
    decoder: str = "model.language_model."
    projector: tuple[str, ...] = ("model.multi_modal_projector.",)

    @property
    def rows(self) -> list[int]:
        """The rows that only the VLM has trained."""
        return sorted(self.tokens.values())


QWEN_TOKENS = dict(
    image_token_id=5, video_token_id=6, vision_start_token_id=8, vision_end_token_id=9
)
LLAVA_PROJECTOR = ("model.multi_modal_projector.", "model.image_newline")
FAMILIES: dict[str, Family] = {
    "aya_vision": Family(
        "cohere2", "siglip_vision_model", tied=True, changes=dict(alignment_intermediate_size=16)
    ),
    "cohere2_vision": Family(
        "cohere2",
        "siglip_vision_model",
        tokens={"image_token_id": 5},
        tied=True,
        changes=dict(alignment_intermediate_size=16),
    ),
    "llava": Family("llama", "clip_vision_model"),
    "llava_next": Family("mistral", "clip_vision_model", projector=LLAVA_PROJECTOR),
    "llava_onevision": Family(
        "qwen2",
        "siglip_vision_model",
        tokens={"image_token_index": 5, "video_token_index": 6},
        projector=LLAVA_PROJECTOR,
    ),
    "gemma3": Family(
        "gemma3_text",
        "siglip_vision_model",
        tokens={"image_token_index": 5, "boi_token_index": 8, "eoi_token_index": 9},
        changes=dict(mm_tokens_per_image=4),
        tied=True,
    ),
    "mistral3": Family("mistral", "pixtral", vision_changes=SIGLIP | dict(head_dim=8)),
    "internvl": Family(
        "qwen2",
        "internvl_vision",
        vision_changes=SIGLIP | dict(image_size=[8, 8], patch_size=[2, 2]),
        tokens={"image_token_id": 5},
        tied=True,
    ),
    "paligemma": Family(
        "gemma",
        "siglip_vision_model",
        vision_changes=SIGLIP | dict(vision_use_head=False),
        changes=dict(projection_dim=32, hidden_size=32, vocab_size=VOCABULARY),
        tied=True,
    ),
    "qwen2_vl": Family(
        "qwen2",
        "qwen2_vl_vision",
        vision_changes=dict(
            depth=2, embed_dim=16, hidden_size=32, num_heads=2, patch_size=2, mlp_ratio=2
        ),
        tokens=QWEN_TOKENS,
        mrope={"mrope_section": [2, 1, 1]},
        tied=True,
        projector=("model.visual.merger.",),
    ),
    "qwen2_5_vl": Family(
        "qwen2",
        "qwen2_5_vl_vision",
        vision_changes=QWEN_VISION | dict(fullatt_block_indexes=[1], window_size=8),
        tokens=QWEN_TOKENS,
        mrope={"mrope_section": [2, 1, 1]},
        projector=("model.visual.merger.",),
    ),
    "qwen3_vl": Family(
        "qwen3",
        "qwen3_vl_vision",
        vision_changes=QWEN_VISION | dict(deepstack_visual_indexes=[0], num_position_embeddings=16),
        tokens=QWEN_TOKENS,
        mrope={"mrope_section": [4, 2, 2], "mrope_interleaved": True},
        projector=("model.visual.merger.", "model.visual.deepstack_merger_list."),
    ),
    "idefics3": Family(
        "llama",
        "idefics3_vision",
        tokens={"image_token_id": 5},
        decoder="model.text_model.",
        projector=("model.connector.",),
    ),
    "smolvlm": Family(
        "llama",
        "smolvlm_vision",
        tokens={"image_token_id": 5},
        tied=True,
        decoder="model.text_model.",
        projector=("model.connector.",),
    ),
}
# The decoder's type where a VLM has one of its own.
DECODER_TYPES = {
    "qwen2_vl": "qwen2_vl_text",
    "qwen2_5_vl": "qwen2_5_vl_text",
    "qwen3_vl": "qwen3_vl_text",
}


def make_text(model_type: str, *, tied: bool = False, **changes: Any) -> Any:
    """A text LM of the real class, every weight random."""
    torch.manual_seed(0)
    settings = TEXT | TEXT_CHANGES[model_type] | dict(tie_word_embeddings=tied) | changes
    config = AutoConfig.for_model(model_type, **settings)
    return _shake(AutoModelForCausalLM.from_config(config)).eval()


def make_vlm(model_type: str, text: Any, *, delta: float = 0.2) -> Any:
    """A VLM of the real class whose decoder is that of `text` and some noise."""
    torch.manual_seed(1)
    model = _shake(AutoModelForImageTextToText.from_config(vlm_config(model_type, text))).eval()
    own = model.get_decoder() if hasattr(model, "get_decoder") else model.model.language_model
    with torch.no_grad():
        for name, weight in own.named_parameters():
            start = text.model.get_parameter(name)
            weight.copy_(start + delta * start.std() * torch.randn_like(start))
        if not model.config.tie_word_embeddings:
            head = text.lm_head.weight
            model.lm_head.weight.copy_(head + delta * head.std() * torch.randn_like(head))
    return model


def vlm_config(model_type: str, text: Any) -> Any:
    """The config of a VLM on the decoder of `text`."""
    family = FAMILIES[model_type]
    settings = text.config.to_dict()
    settings["model_type"] = DECODER_TYPES.get(model_type, settings["model_type"])
    settings["rope_parameters"] = settings["rope_parameters"] | family.mrope
    vision = AutoConfig.for_model(family.vision, **family.vision_changes).to_dict()
    return AutoConfig.for_model(
        model_type,
        text_config=settings,
        vision_config=vision,
        tie_word_embeddings=text.config.tie_word_embeddings,
        **family.tokens,
        **family.changes,
    )


@torch.no_grad()
def _shake(model: Any) -> Any:
    """Every weight random, norms and biases included: what is swapped or left out then shows."""
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    return model
