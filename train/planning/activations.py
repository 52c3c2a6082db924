"""Bytes that a model's activations take, found by running a layer of each kind on fake tensors.

Fake tensors (torch's own) have shapes and dtypes and no values: nothing is allocated, and what
autograd, autocast and checkpointing would keep is what they do keep. One layer of the decoder, one
of the tower, the projector and the head are run forward and backward; the others are like them.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from train.model.loss import chunked_losses, logit_scale_of
from train.planning.fake_run import FakeRun, Phases, any_trains


@dataclass(frozen=True)
class PackShape:
    """What decides the activations of a pack."""

    num_tokens: int
    num_supervised: int  # tokens
    num_tiles: int


@dataclass(frozen=True)
class Activations:
    """Bytes of a pack's activations, by what they are of."""

    pixels: int
    tower: int  # kept for the backward; 0 of a frozen one
    projector: int
    decoder: int
    head: int  # logits of a chunk, their gradient
    working: int  # what is held beside those at the highest moment
    host: int = 0  # what waits in host memory for the backward

    @property
    def total(self) -> int:
        """Return the bytes at the highest moment."""
        return self.pixels + self.tower + self.projector + self.decoder + self.head + self.working


def measure_activations(
    model: Any, pack: PackShape, *, gradient_checkpointing: bool, bf16: bool, offload: bool = False
) -> Activations:
    """Return the bytes of a pack's activations on one device.

    Args:
        model: after `set_what_trains`; on `meta` or any device, it stays as it is.
        pack: of one micro-batch.
        gradient_checkpointing: whether layers are computed again in backward.
        bf16: whether the forward runs under autocast.
        offload: whether what is kept for the backward waits in host memory.
    """
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    run = FakeRun(bf16, gradient_checkpointing, offload)
    pixels, tower, projector = _vision(base, pack, run)
    layer, num_layers = _decoder_layer(base, pack, run)
    norm = _norm(base, pack, run)
    head = _head(base, pack, run)
    kept = num_layers * layer.kept + norm.kept
    before = pixels + tower.kept + projector.kept
    # What is moved to the host is gone from the device when the module behind has taken it.
    at_loss = before + num_layers * layer.forward + norm.forward + norm.moved + head.peak_forward
    in_backward = before + kept + max(head.peak_backward, layer.above, norm.above)
    in_vision = pixels + max(
        tower.forward + projector.peak_forward,
        tower.peak_forward,
        tower.kept + projector.peak_backward,
        tower.peak_backward,
    )
    highest = max(at_loss, in_backward, in_vision)
    parts = dict(tower=tower.kept, projector=projector.kept, decoder=kept, head=head.kept)
    host = tower.host + projector.host + num_layers * layer.host + norm.host + head.host
    working = highest - pixels - sum(parts.values())
    return Activations(pixels=pixels, **parts, working=working, host=host)


# ---------------------------------------------------------------------------- the modules


def _vision(base: Any, pack: PackShape, run: FakeRun) -> tuple[int, Phases, Phases]:
    """Return the bytes of pixels, and what the tower (all layers) and the projector take."""
    vision = getattr(base.config, "vision_config", None)
    num_tiles = max(pack.num_tiles, 1)  # a pack without pictures runs a black tile
    if vision is None:
        return 0, Phases(), Phases()
    pixels = pack.num_tiles * vision.num_channels * vision.image_size**2 * 4
    num_patches = (vision.image_size // vision.patch_size) ** 2
    tower, trains = base.model.vision_tower, any_trains(base.model.vision_tower)
    layers = getattr(tower, "vision_model", tower).encoder.layers
    shape = (num_tiles, num_patches, vision.hidden_size)
    dtype = next(tower.parameters()).dtype
    layer = run(layers[0], shape, dtype, {"attention_mask": None}, has_grad=trains)
    num_layers = len(layers)
    whole = Phases(
        forward=layer.forward * num_layers if trains else layer.forward,
        kept=layer.kept * num_layers,
        peak_forward=layer.forward * (num_layers - 1) * trains + layer.peak_forward,
        peak_backward=layer.kept * num_layers + layer.above,
        moved=layer.moved,
        host=layer.host * num_layers,
    )
    projector = run(
        base.model.multi_modal_projector, shape, dtype, {}, has_grad=trains, is_layer=False
    )
    return pixels, whole, projector


def _decoder_layer(base: Any, pack: PackShape, run: FakeRun) -> tuple[Phases, int]:
    decoder = _decoder(base)
    config = base.config.get_text_config()
    layer = decoder.layers[0]
    dtype = _stream_dtype(base)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    shape = (1, pack.num_tokens, config.hidden_size)
    kwargs = {"attention_mask": None, "position_embeddings": (width, dtype)}
    phases = run(layer, shape, dtype, kwargs, has_grad=_decoder_has_grad(base))
    return phases, len(decoder.layers)


def _norm(base: Any, pack: PackShape, run: FakeRun) -> Phases:
    shape = (1, pack.num_tokens, base.config.get_text_config().hidden_size)
    return run(_decoder(base).norm, shape, _stream_dtype(base), {}, has_grad=True, is_layer=False)


def _head(base: Any, pack: PackShape, run: FakeRun) -> Phases:
    """Return what the head takes for the supervised tokens, a chunk of logits at a time."""
    width = base.config.get_text_config().hidden_size
    return run(
        _Head(base.get_output_embeddings(), logit_scale_of(base)),
        (max(pack.num_supervised, 1), width),
        _stream_dtype(base),
        {},
        has_grad=True,
        is_layer=False,
    )


class _Head(nn.Module):
    def __init__(self, head: Any, logit_scale: float) -> None:
        super().__init__()
        self.head, self.logit_scale = head, logit_scale

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        wanted = torch.empty(len(states), dtype=torch.int64)
        return chunked_losses(states, wanted, self.head.weight, self.logit_scale)


def _decoder(base: Any) -> Any:
    return getattr(base.model, "language_model", base.model)


def _stream_dtype(base: Any) -> torch.dtype:
    """Return the dtype of what flows between layers: that of the word embeddings."""
    dtype: torch.dtype = base.get_input_embeddings().weight.dtype
    return dtype


def _decoder_has_grad(base: Any) -> bool:
    vision = [getattr(base.model, name, None) for name in ("vision_tower", "multi_modal_projector")]
    return any(any_trains(module) for module in (*vision, _decoder(base)) if module is not None)
