"""From the model config to a model: the one builder that reads it."""

from typing import Any

import torch

from configs.schema import ModelConfig, ModelKind
from data.render import Renderer
from data.tokenizer import ids_added
from train.model.compose import compose
from train.model.load import build_decoder, empty_vlm, load_vlm
from train.model.vision_tower import build_vision_tower


def build_model(config: ModelConfig, processing_class: Any, *, empty: bool = False) -> Any:
    """Return the model in its dtype on the CPU, with transformers' own attention.

    The trainer moves it; `set_attention` gives it one for packs.

    Args:
        config: which model.
        processing_class: its tokenizer or processor.
        empty: a VLM is left on `meta`, for a rank that is given its part by another.
    """
    dtype = getattr(torch, config.dtype.value)
    if config.kind is ModelKind.vlm:
        assert config.path is not None
        model: Any = (empty_vlm if empty else load_vlm)(config.path, dtype=dtype)
    elif config.kind is ModelKind.text_lm:
        model = build_decoder(config.decoder, processing_class, dtype=dtype)
    else:
        model = _graft(config, processing_class, dtype)
    return model


def _graft(config: ModelConfig, processor: Any, dtype: torch.dtype) -> Any:
    """Return the vision-language model that is put together as `config` says."""
    stop_id = Renderer(processor).stop_token_id  # refuses a chat template before weights load
    text_lm = build_decoder(config.decoder, processor.tokenizer, dtype=dtype)
    tower = build_vision_tower(config.vision_tower, image_size=processor.img_size, dtype=dtype)
    return compose(
        text_lm,
        tower,
        processor.tokenizer,
        downsample_factor=config.downsample_factor,
        projector_intermediate_size=config.projector_intermediate_size,
        added_ids=ids_added(processor.tokenizer),
        stop_ids=[stop_id],
    )
