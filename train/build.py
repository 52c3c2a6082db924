"""From the model config to a model: the one builder that reads it."""

from typing import Any

import torch

from configs.schema import ModelConfig, ModelKind
from train.attention import set_attention
from train.build_model import build_decoder, build_vision_tower, compose, empty_vlm, load_vlm


def build_model(config: ModelConfig, processing_class: Any, *, empty: bool = False) -> Any:
    """Return the model in its dtype on the CPU; the trainer moves it.

    With `empty` a VLM is on `meta`, for a rank that is given its part by another.
    """
    dtype = getattr(torch, config.dtype.value)
    if config.kind is ModelKind.vlm:
        assert config.path is not None
        model: Any = (empty_vlm if empty else load_vlm)(config.path, dtype=dtype)
    else:
        tokenizer = getattr(processing_class, "tokenizer", processing_class)
        model = build_decoder(config.decoder, tokenizer, dtype=dtype)
        if config.kind is ModelKind.compose:
            tower = build_vision_tower(config.vision_tower, dtype=dtype)
            model = compose(
                model,
                tower,
                tokenizer,
                downsample_factor=config.downsample_factor,
                projector_intermediate_size=config.projector_intermediate_size,
            )
    set_attention(model, config.attn_implementation)
    return model
