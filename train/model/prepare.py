"""From the config to a model that is ready to be trained: checked, with our loss, parts set."""

import logging
from typing import Any

from configs.schema import DEEPSPEED, EngineKind, Quantization, TrainConfig
from train.model.attention import set_attention
from train.model.build import build_model
from train.model.loss import add_token_losses, check_against_text_class
from train.model.quantize import quantize, take_trained
from train.model.what_trains import PartRow, hold_in_float32, set_what_trains
from train.precision import compute_dtype, computes_in_bf16
from train.ranks import device_of_rank, rank

log = logging.getLogger(__name__)


def prepare_model(config: TrainConfig, processing_class: Any) -> tuple[Any, list[PartRow]]:
    """Return the model with our loss, checked, and the table of what trains."""
    # With FSDP2 rank 0 alone reads a VLM and gives the others their parts: not every process of a
    # machine holds all of it at once.
    empty = config.engine.kind is EngineKind.fsdp2 and rank() > 0
    model = build_model(config.model, processing_class, empty=empty)
    add_token_losses(model)
    if model.device.type != "meta":
        check_against_text_class(model)
    # After the check, which runs on a CPU: FlashAttention does not.
    half = computes_in_bf16(config)
    set_attention(model, config.model.attn_implementation, half=half)
    if config.adapter.quantization is Quantization.nf4:
        quantize_decoder(config, model)
    model, table = set_what_trains(model, config.stage.parts, config.adapter)
    if config.engine.kind not in DEEPSPEED:  # it keeps float32 copies of its own
        hold_in_float32(model, config.stage.parts)
    return model, table


def quantize_decoder(config: TrainConfig, model: Any) -> None:
    """Hold the decoder's linear layers in 4 bits, on the device of this process."""
    decoder = getattr(model.model, "language_model", model.model)
    dtype = compute_dtype(config)
    num_layers = quantize(decoder, device=device_of_rank(), compute_dtype=dtype)
    log.info("%d linear layers of the decoder are held in 4 bits (nf4)", num_layers)


def on_original_weights(config: TrainConfig, model: Any, processing_class: Any) -> Any:
    """Return the trained model over a decoder that was not quantized, to be exported.

    The adapter was trained over 4-bit weights, and what was measured is those; over the weights
    they were made of it answers slightly otherwise.
    """
    log.info(
        "adapter.quantization: the export folds the adapter into the weights as they were loaded, "
        "not into their 4-bit copies that it was trained and measured with"
    )
    original = build_model(config.model, processing_class)
    original, _ = set_what_trains(original, config.stage.parts, config.adapter)
    return take_trained(original, model)
