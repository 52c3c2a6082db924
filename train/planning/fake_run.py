"""Runs a module forward and backward on fake tensors, as training would, and counts the bytes.

Fake tensors (torch's own) have shapes and dtypes and no values: nothing is allocated, and what
autograd, autocast, checkpointing and offloading would keep is what they do keep.
"""

import contextlib
import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from train.model.attention import FLASH_NAMES
from train.model.empty_nf4 import empty_state, state_tensors
from train.model.offload import stays
from train.planning.live_bytes import LiveBytes
from train.ranks import device_of_rank


@dataclass(frozen=True)
class Phases:
    """Bytes beside weights and gradients; what comes in from the module before is not counted.

    What it gives is not counted among what it holds if the module behind it moves that to the host.
    """

    forward: int = 0  # held at the end of the forward
    kept: int = 0  # held from there until the backward
    peak_forward: int = 0  # most at any time of the forward
    peak_backward: int = 0  # most at any time of the backward
    moved: int = 0  # what it gives, if that is moved to host memory
    host: int = 0  # held in host memory from the forward until the backward

    @property
    def above(self) -> int:
        """Return what the backward takes for a while, over what is kept for it."""
        return max(0, self.peak_backward - self.kept)


@dataclass(frozen=True)
class FakeRun:
    """How modules are run."""

    bf16: bool  # under autocast
    gradient_checkpointing: bool
    offload: bool = False

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
        # Fake tensors of a GPU need one: autocast asks for it.
        with FakeTensorMode(), device_of_rank():
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
            with torch.set_grad_enabled(has_grad or any_trains(module)), live:
                return self._phases(call, entered, kwargs, live)

    def _phases(
        self,
        call: Callable[..., Any],
        entered: torch.Tensor,
        kwargs: dict[str, Any],
        live: LiveBytes,
    ) -> Phases:
        moving = live.offloading() if self.offload else contextlib.nullcontext()
        autocast = torch.autocast(
            entered.device.type, torch.bfloat16, enabled=self.bf16, cache_enabled=False
        )
        with moving:
            with autocast:
                given = call(entered, **kwargs)
                given = given[0] if isinstance(given, tuple) else given
            held, peak_forward, host = live.now, live.most, live.host
            if not given.requires_grad:
                # What it gives takes the place of what it was given; nothing is kept.
                return Phases(forward=held, peak_forward=peak_forward)
            moved = 0
            if self.offload and not stays(given):
                moved = given.numel() * given.element_size()
            live.most = live.now
            given.backward(torch.empty_like(given))
        return Phases(held - moved, held - moved, peak_forward, live.most - moved, moved, host)


def any_trains(module: nn.Module) -> bool:
    """Whether any parameter of a module does."""
    return any(p.requires_grad for p in module.parameters())


def _checkpointed(module: nn.Module) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(module, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return call


def _same_tensors(module: nn.Module) -> nn.Module:
    """Return a copy of a module, in training mode, that holds the same tensors."""
    tensors = _tensors(module)
    same = copy.deepcopy(module, {id(tensor): tensor for tensor in tensors}).train()
    for inner in same.modules():  # its own configs, not the model's
        config = getattr(inner, "config", None)
        if config is not None and config._attn_implementation in FLASH_NAMES:
            config._attn_implementation = "sdpa"  # keeps as much, and knows fake tensors
    return same


def _tensors(module: nn.Module) -> list[torch.Tensor]:
    """Return parameters, their gradients and scales, and buffers."""
    parameters = list(module.parameters())
    gradients = [p.grad for p in parameters if p.grad is not None]
    scales = [tensor for p in parameters for tensor in state_tensors(p)]
    return [*parameters, *gradients, *scales, *module.buffers()]


def _fake_tensors(module: nn.Module) -> None:
    """Put fake tensors in the place of a module's; called inside a FakeTensorMode."""
    for inner in module.modules():
        places: tuple[dict[str, Any], ...] = (inner._parameters, inner._buffers)
        for held in places:
            for name, tensor in held.items():
                if tensor is not None:
                    held[name] = _fake(tensor)
        if hasattr(getattr(inner, "weight", None), "quant_state"):
            _unpack_for_dora(inner)


def _unpack_for_dora(packed: Any) -> None:
    """Let PEFT's DoRA unpack a layer in 4 bits, which it knows by a class no fake tensor can have.

    It asks first for what HQQ's layers have.
    """
    from bitsandbytes.functional import dequantize_4bit

    packed.W_q = None
    packed.dequantize = lambda: dequantize_4bit(packed.weight, packed.weight.quant_state)


def _fake(tensor: torch.Tensor) -> torch.Tensor:
    """Return a fake tensor; one that trains has a gradient, from the micro-batch before."""
    made = torch.empty(tensor.shape, dtype=tensor.dtype)
    if not isinstance(tensor, nn.Parameter):
        return made
    parameter = nn.Parameter(made, requires_grad=tensor.requires_grad)
    if tensor.requires_grad:
        parameter.grad = torch.empty_like(made)
    state: Any = getattr(tensor, "quant_state", None)
    if state is not None:
        parameter.quant_state = empty_state(state.shape, state.dtype)  # type: ignore[attr-defined]
    return parameter
