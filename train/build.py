"""From the model config to a model: the one builder that reads it."""

from typing import Any

import torch

from configs.schema import ModelConfig, ModelKind
from data.render import Renderer
from data.tokenizer import ids_added
from train.attention import set_attention
from train.build_model import build_decoder, load_vlm
from train.compose import compose
from train.vision_tower import build_vision_tower


def build_model(config: ModelConfig, processing_class: Any) -> Any:
    """Return the model in its dtype on the CPU; the trainer moves it."""
    dtype = getattr(torch, config.dtype.value)
    if config.kind is ModelKind.vlm:
        assert config.path is not None
        model: Any = load_vlm(config.path, dtype=dtype)
    else:
        tokenizer = getattr(processing_class, "tokenizer", processing_class)
        stop_id = Renderer(processing_class).stop_token_id  # refuses a template before weights load
        model = build_decoder(config.decoder, tokenizer, dtype=dtype)
        if config.kind is ModelKind.compose:
            tower = build_vision_tower(
                config.vision_tower, image_size=processing_class.img_size, dtype=dtype
            )
            model = compose(
                model,
                tower,
                tokenizer,
                downsample_factor=config.downsample_factor,
                projector_intermediate_size=config.projector_intermediate_size,
                added_ids=ids_added(tokenizer),
                stop_ids=[stop_id],
            )
    set_attention(model, config.attn_implementation)
    return model
