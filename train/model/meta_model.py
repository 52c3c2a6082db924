"""A model from configs alone: shapes and dtypes on `meta`, or random weights on a device.

No weight is read: `config.json` of the paths in the config is all that is opened. What the plan
counts, estimates and tries out (train/planning/plan.py) is this model; what is trained comes from
train/model/build.py.
"""

from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AyaVisionForConditionalGeneration,
    SiglipVisionConfig,
)

from configs.schema import (
    DEEPSPEED,
    ModelConfig,
    ModelKind,
    Quantization,
    TrainConfig,
    VisionTowerConfig,
)
from data.processor import load
from train.model.attention import set_attention
from train.model.compose import aya_config, check_graftable
from train.model.load import build_decoder
from train.model.loss import add_token_losses
from train.model.quantize import quantize
from train.model.vision_tower import SHARED_KEYS
from train.model.what_trains import PartRow, hold_in_float32, set_what_trains
from train.precision import compute_dtype, computes_in_bf16

META = torch.device("meta")


def empty_model(
    config: TrainConfig, processing_class: Any, device: torch.device = META
) -> tuple[Any, list[PartRow]]:
    """Return the model that `config` would train, and the table of what trains.

    Args:
        config: of the run.
        processing_class: its processor or tokenizer: sizes of tiles and of the vocabulary.
        device: `meta` holds no values; any other holds random ones.
    """
    with device:
        model = _model(config.model, processing_class)
        set_attention(model, config.model.attn_implementation, half=computes_in_bf16(config))
        add_token_losses(model)
        if config.adapter.quantization is Quantization.nf4:
            decoder = getattr(model.model, "language_model", model.model)
            quantize(decoder, device=device, compute_dtype=compute_dtype(config))
        # Here as well: PEFT makes adapters on the device that is the default.
        model, table = set_what_trains(model, config.stage.parts, config.adapter)
    if config.engine.kind in DEEPSPEED:
        # It computes in one dtype over float32 copies of its own.
        model = model.to(compute_dtype(config))
    else:
        hold_in_float32(model, config.stage.parts)
    return model, table


def _model(config: ModelConfig, processing_class: Any) -> Any:
    dtype = getattr(torch, config.dtype.value)
    if config.kind is ModelKind.vlm:
        assert config.path is not None
        found = load("vision-language model", AutoConfig, config.path)
        return AutoModelForImageTextToText.from_config(found, dtype=dtype)
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    if config.decoder.path is None:
        text_lm: Any = build_decoder(config.decoder, tokenizer, dtype=dtype)
        text_config = text_lm.config
    else:
        text_config = load("text LM", AutoConfig, config.decoder.path).get_text_config()
    if config.kind is ModelKind.text_lm:
        return AutoModelForCausalLM.from_config(text_config, dtype=dtype)
    return _composed(config, text_config, processing_class, tokenizer, dtype)


def _composed(
    config: ModelConfig, text_config: Any, processing_class: Any, tokenizer: Any, dtype: torch.dtype
) -> Any:
    """Return what `compose` makes of the two, with rows for each token of the tokenizer."""
    check_graftable(AutoModelForCausalLM.from_config(text_config, dtype=dtype))
    text_config.vocab_size = max(text_config.vocab_size, len(tokenizer))
    composed = aya_config(
        text_config,
        _tower_config(config.vision_tower, processing_class),
        tokenizer,
        downsample_factor=config.downsample_factor,
        intermediate_size=config.projector_intermediate_size,
    )
    return AyaVisionForConditionalGeneration._from_config(composed, dtype=dtype)


def _tower_config(config: VisionTowerConfig, processing_class: Any) -> Any:
    shape: Any = config
    if config.path is not None:
        found = load("vision tower", AutoConfig, config.path)
        shape = getattr(found, "vision_config", found)
    shared = {key: getattr(shape, key) for key in SHARED_KEYS if hasattr(shape, key)}
    return SiglipVisionConfig(**shared, image_size=processing_class.img_size, vision_use_head=False)
