"""Bytes that a model's activations take, found by running a layer of each kind on fake tensors.

Fake tensors (torch's own) have shapes and dtypes and no values: nothing is allocated, and what
autograd, autocast and checkpointing would keep is what they do keep. One layer of the decoder, one
of the tower, the projector and the head are run forward and backward; the others are like them.
"""

import copy
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from train.model.loss import chunked_losses, logit_scale_of
from train.ranks import device_of_rank


@dataclass(frozen=True)
class PackShape:
    """What decides the activations of a pack."""

    num_tokens: int
    num_supervised: int  # tokens
    num_tiles: int


@dataclass(frozen=True)
class Phases:
    """Bytes beside weights and gradients; what comes in from the module before is not counted."""

    forward: int = 0  # held at the end of the forward
    kept: int = 0  # held from there until the backward
    peak_forward: int = 0  # most at any time of the forward
    peak_backward: int = 0  # most at any time of the backward

    @property
    def above(self) -> int:
        """Return what the backward takes for a while, over what is kept for it."""
        return max(0, self.peak_backward - self.kept)


@dataclass(frozen=True)
class Activations:
    """Bytes of a pack's activations, by what they are of."""

    pixels: int
    tower: int  # kept for the backward; 0 of a frozen one
    projector: int
    decoder: int
    head: int  # logits of a chunk, their gradient
    working: int  # what is held beside those at the highest moment

    @property
    def total(self) -> int:
        """Return the bytes at the highest moment."""
        return self.pixels + self.tower + self.projector + self.decoder + self.head + self.working


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that are made inside it and still alive, and the most of them."""

    def __init__(self) -> None:
        """Start at nothing."""
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and look at what it gives."""
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._see(tensor.untyped_storage())
        return made

    def ignore(self, *tensors: torch.Tensor) -> None:
        """Leave out tensors that were made before."""
        self._known |= {tensor.untyped_storage()._cdata for tensor in tensors}

    def _see(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def measure_activations(
    model: Any, pack: PackShape, *, gradient_checkpointing: bool, bf16: bool
) -> Activations:
    """Return the bytes of a pack's activations on one device.

    Args:
        model: after `set_what_trains`; on `meta` or any device, it stays as it is.
        pack: of one micro-batch.
        gradient_checkpointing: whether layers are computed again in backward.
        bf16: whether the forward runs under autocast.
    """
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    run = _Runner(bf16, gradient_checkpointing)
    pixels, tower, projector = _vision(base, pack, run)
    layer, num_layers = _decoder_layer(base, pack, run)
    norm = _norm(base, pack, run)
    head = _head(base, pack, run)
    kept = num_layers * layer.kept + norm.kept
    before = pixels + tower.kept + projector.kept
    at_loss = before + num_layers * layer.forward + norm.forward + head.peak_forward
    in_backward = before + kept + max(head.peak_backward, layer.above, norm.above)
    in_vision = pixels + max(
        tower.forward + projector.peak_forward,
        tower.peak_forward,
        tower.kept + projector.peak_backward,
        tower.peak_backward,
    )
    highest = max(at_loss, in_backward, in_vision)
    parts = dict(tower=tower.kept, projector=projector.kept, decoder=kept, head=head.kept)
    return Activations(pixels=pixels, **parts, working=highest - pixels - sum(parts.values()))


# ---------------------------------------------------------------------------- the modules


def _vision(base: Any, pack: PackShape, run: "_Runner") -> tuple[int, Phases, Phases]:
    """Return the bytes of pixels, and what the tower (all layers) and the projector take."""
    vision = getattr(base.config, "vision_config", None)
    num_tiles = max(pack.num_tiles, 1)  # a pack without pictures runs a black tile
    if vision is None:
        return 0, Phases(), Phases()
    pixels = pack.num_tiles * vision.num_channels * vision.image_size**2 * 4
    num_patches = (vision.image_size // vision.patch_size) ** 2
    tower, trains = base.model.vision_tower, _any_trains(base.model.vision_tower)
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
    )
    projector = run(
        base.model.multi_modal_projector, shape, dtype, {}, has_grad=trains, is_layer=False
    )
    return pixels, whole, projector


def _decoder_layer(base: Any, pack: PackShape, run: "_Runner") -> tuple[Phases, int]:
    decoder = _decoder(base)
    config = base.config.get_text_config()
    layer = decoder.layers[0]
    dtype = _stream_dtype(base)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    shape = (1, pack.num_tokens, config.hidden_size)
    kwargs = {"attention_mask": None, "position_embeddings": (width, dtype)}
    phases = run(layer, shape, dtype, kwargs, has_grad=_decoder_has_grad(base))
    return phases, len(decoder.layers)


def _norm(base: Any, pack: PackShape, run: "_Runner") -> Phases:
    shape = (1, pack.num_tokens, base.config.get_text_config().hidden_size)
    return run(_decoder(base).norm, shape, _stream_dtype(base), {}, has_grad=True, is_layer=False)


def _head(base: Any, pack: PackShape, run: "_Runner") -> Phases:
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


def _any_trains(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())


def _decoder_has_grad(base: Any) -> bool:
    vision = [getattr(base.model, name, None) for name in ("vision_tower", "multi_modal_projector")]
    return any(_any_trains(module) for module in (*vision, _decoder(base)) if module is not None)


# ----------------------------------------------------------------------------- the runner


class _Runner:
    """Runs a module on fake tensors as training would, and counts."""

    def __init__(self, bf16: bool, gradient_checkpointing: bool) -> None:
        # Fake tensors of a GPU need one: autocast asks for it.
        self.device = device_of_rank()
        self.bf16, self.gradient_checkpointing = bf16, gradient_checkpointing

    def __call__(
        self,
        module: nn.Module,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        kwargs: dict[str, Any],
        *,
        has_grad: bool,
        is_layer: bool = True,
    ) -> Phases:
        """Return what `module` takes for an input of `shape` and `dtype`.

        Args:
            module: of a model; a copy of its outer shell is run.
            shape: of the input.
            dtype: of the input.
            kwargs: further inputs; `position_embeddings` (width, dtype) of a head's cos and sin.
            has_grad: whether its input has a gradient.
            is_layer: whether checkpointing would compute it again.
        """
        module = _same_tensors(module)
        with FakeTensorMode(), self.device:
            _fake_tensors(module)
            entered = torch.empty(shape, dtype=dtype, requires_grad=has_grad)
            if "position_embeddings" in kwargs:
                width, angle_dtype = kwargs["position_embeddings"]
                angles = torch.empty((1, shape[1], width), dtype=angle_dtype)
                kwargs = kwargs | {"position_embeddings": (angles, angles)}
            again = is_layer and self.gradient_checkpointing
            call: Callable[..., Any] = _checkpointed(module) if again else module
            live = LiveBytes()
            live.ignore(entered, *_tensors(module), *kwargs.get("position_embeddings", ()))
            with torch.set_grad_enabled(has_grad or _any_trains(module)), live:
                return self._phases(call, entered, kwargs, live)

    def _phases(
        self,
        call: Callable[..., Any],
        entered: torch.Tensor,
        kwargs: dict[str, Any],
        live: LiveBytes,
    ) -> Phases:
        with torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.bf16, cache_enabled=False
        ):
            given = call(entered, **kwargs)
            given = given[0] if isinstance(given, tuple) else given
            forward = live.now
        kept, peak_forward = live.now, live.most
        if not given.requires_grad:
            # What it gives takes the place of what it was given; nothing is kept.
            return Phases(forward=forward, kept=0, peak_forward=peak_forward)
        live.most = live.now
        gradient = torch.empty_like(given)
        given.backward(gradient)
        return Phases(forward, kept, peak_forward, live.most)


def _checkpointed(module: nn.Module) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(module, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return call


def _same_tensors(module: nn.Module) -> nn.Module:
    """Return a copy of a module, in training mode, that holds the same tensors."""
    tensors = _tensors(module)
    return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors}).train()


def _tensors(module: nn.Module) -> list[torch.Tensor]:
    """Return parameters, their gradients, and buffers."""
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    return [*module.parameters(), *module.buffers(), *gradients]


def _fake_tensors(module: nn.Module) -> None:
    """Put fake tensors in the place of a module's; called inside a FakeTensorMode."""
    for inner in module.modules():
        places: tuple[dict[str, Any], ...] = (inner._parameters, inner._buffers)
        for held in places:
            for name, tensor in held.items():
                if tensor is not None:
                    held[name] = _fake(tensor)


def _fake(tensor: torch.Tensor) -> torch.Tensor:
    """Return a fake tensor; one that trains has a gradient, from the micro-batch before."""
    made = torch.empty(tensor.shape, dtype=tensor.dtype)
    if not isinstance(tensor, nn.Parameter):
        return made
    parameter = nn.Parameter(made, requires_grad=tensor.requires_grad)
    if tensor.requires_grad:
        parameter.grad = torch.empty_like(made)
    return parameter
