"""What a run takes of one device's memory, line by line, before a weight is read.

Weights, gradients, optimizer state and what the engine keeps follow from shapes; activations are
measured on fake tensors (train/planning/activations.py). What torch's allocator leaves unused
between blocks and what the driver takes (about 1 GiB of a GPU) come on top.
tests/train/planning/test_memory.py holds this against real runs, on a CPU; ERROR is what it found.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from train.model.empty_nf4 import held_bytes, loaded_bytes
from train.planning.activations import PackShape, measure_activations

ERROR = 0.04  # of the estimate, at most, against what the CPU allocator gave out
MOMENTS = 2  # of AdamW, each in the dtype of what it updates
FLOAT32 = 4  # bytes
# DeepSpeed's defaults (0.19: runtime/zero/config.py), which train/arguments.py leaves as they are.
REDUCE_BUCKET = 500_000_000  # values
MAX_LIVE = 1_000_000_000  # gathered values that ZeRO-3 holds at once


@dataclass(frozen=True)
class Share:
    """What of a model each rank holds for itself under an engine."""

    weights: bool  # each rank holds its part of them
    gradients: bool
    optimizer: bool
    is_deepspeed: bool = False  # computes in one dtype, over float32 copies of what trains


WHOLE = Share(weights=False, gradients=False, optimizer=False)
# By the name of configs.schema.EngineKind.
SHARES: dict[str, Share] = {
    "single": WHOLE,
    "ddp": WHOLE,
    "fsdp2": Share(weights=True, gradients=True, optimizer=True),
    "zero2": Share(weights=False, gradients=True, optimizer=True, is_deepspeed=True),
    "zero3": Share(weights=True, gradients=True, optimizer=True, is_deepspeed=True),
}


@dataclass(frozen=True)
class Line:
    """A line of the estimate."""

    what: str
    num_bytes: float
    note: str = ""
    on_host: bool = False  # not of the device, but of a machine with all ranks


@dataclass(frozen=True)
class _Sizes:
    """Bytes and values of a model's weights; tied ones once."""

    weight_bytes: int
    num_weights: int
    trained_bytes: int
    num_trained: int
    layer_bytes: int  # of the largest layer
    outer_bytes: int  # of what is in no layer: embeddings, head, norms
    trained_layer_bytes: int  # of the layer with most that trains
    trained_outer_bytes: int


def estimate_memory(
    model: Any,
    pack: PackShape,
    *,
    engine: str,
    num_ranks: int,
    gradient_checkpointing: bool,
    bf16: bool,
    offload: bool = False,
) -> list[Line]:
    """Return what is held at the highest moment of a step, from the second step on.

    Args:
        model: after `set_what_trains` and what the engine makes of dtypes; on `meta` or not.
        pack: the heaviest micro-batch.
        engine: name of an EngineKind.
        num_ranks: devices that share the work.
        gradient_checkpointing: whether layers are computed again in backward.
        bf16: whether the model computes in bfloat16.
        offload: whether what is kept for the backward waits in host memory.
    """
    share, sizes = SHARES[engine], _sizes(model)
    activations = measure_activations(
        model,
        pack,
        gradient_checkpointing=gradient_checkpointing,
        bf16=bf16 and not share.is_deepspeed,
        offload=offload,
    )
    kept = "kept for the backward"
    return [
        *_held(sizes, share, num_ranks),
        *_engine(sizes, engine, num_ranks),
        Line("pictures", activations.pixels, f"{pack.num_tiles} tiles as they come"),
        Line("tower", activations.tower, kept),
        Line("projector", activations.projector, kept),
        Line("decoder", activations.decoder, kept),
        Line("head", activations.head, kept),
        Line("working", activations.working, "beside those at the highest moment"),
        Line(
            "offloaded",
            activations.host * num_ranks,
            f"{gib(activations.host)} a rank wait for the backward",
            on_host=True,
        ),
    ]


def loading_line(
    model: Any, *, engine: str, is_vlm: bool, num_ranks: int, loaded_dtype: torch.dtype
) -> Line:
    """Return what is held on the host before the engine has shared the model out.

    Args:
        model: as for `estimate_memory`.
        engine: name of an EngineKind.
        is_vlm: whether the model is loaded whole; with fsdp2 rank 0 alone reads it then.
        num_ranks: of the machine.
        loaded_dtype: of the weights as they come, which the engines of DeepSpeed change later.
    """
    if SHARES[engine].is_deepspeed:
        of_one = float(sum(p.numel() for p in model.parameters()) * loaded_dtype.itemsize)
    else:
        of_one = float(sum(loaded_bytes(p) for p in model.parameters()))
    if engine == "fsdp2" and is_vlm:
        return Line("loading", of_one, "rank 0 alone reads the model", on_host=True)
    note = f"each rank reads all of it, {gib(of_one)}" if num_ranks > 1 else "the whole model"
    return Line("loading", of_one * num_ranks, note, on_host=True)


def total_bytes(lines: list[Line]) -> float:
    """Return the sum of an estimate, of what is on the device."""
    return sum(line.num_bytes for line in lines if not line.on_host)


def bytes_of(lines: list[Line], *names: str) -> float:
    """Return what an estimate has under these names."""
    return sum(line.num_bytes for line in lines if line.what in names)


def checkpoint_bytes(model: Any, *, is_adapter: bool) -> tuple[float, float]:
    """Return what the weights and the optimizer take in a checkpoint on disk.

    Args:
        model: after `set_what_trains`.
        is_adapter: whether PEFT writes what trains alone.
    """
    sizes = _sizes(model)
    weights = sizes.trained_bytes if is_adapter else sizes.weight_bytes
    return weights, MOMENTS * FLOAT32 * sizes.num_trained


def _held(sizes: _Sizes, share: Share, num_ranks: int) -> Iterator[Line]:
    """Yield what is there all the time."""
    of_weights, of_gradients, of_optimizer = (
        num_ranks if shared else 1 for shared in (share.weights, share.gradients, share.optimizer)
    )
    yield Line("weights", sizes.weight_bytes / of_weights, _over(of_weights))
    # DeepSpeed sums gradients in float32 (train/arguments.py).
    gradients = FLOAT32 * sizes.num_trained if share.is_deepspeed else sizes.trained_bytes
    yield Line("gradients", gradients / of_gradients, _over(of_gradients))
    if share.is_deepspeed:
        size, what = (1 + MOMENTS) * FLOAT32 * sizes.num_trained, "float32 copy, 2 moments"
    else:
        size, what = MOMENTS * sizes.trained_bytes, "2 moments"
    yield Line("optimizer", size / of_optimizer, f"AdamW: {what}{_over(of_optimizer, ', ')}")


def _engine(sizes: _Sizes, engine: str, num_ranks: int) -> Iterator[Line]:
    """Yield what an engine holds for its own ends."""
    if num_ranks == 1 and not SHARES[engine].is_deepspeed:
        return
    if engine == "ddp":
        yield Line("engine", sizes.trained_bytes, "DDP's buckets of gradients")
    if engine == "fsdp2":
        gathered = sizes.outer_bytes + 2 * sizes.layer_bytes
        yield Line("engine", gathered, "gathered: 2 layers, embeddings, head")
        # A layer's gradients whole and in the buffer they are reduced from; those of the rest are
        # whole through the backward.
        reduced = sizes.trained_outer_bytes + 2 * sizes.trained_layer_bytes
        yield Line("reduced", reduced, "gradients of a layer, embeddings, head")
    if SHARES[engine].is_deepspeed:
        a_value = sizes.weight_bytes / max(sizes.num_weights, 1)
        buckets = 2 * REDUCE_BUCKET * a_value  # one is filled while the other is sent
        yield Line("engine", buckets, "DeepSpeed's buckets of gradients")
    if engine == "zero3":
        yield Line("gathered", min(sizes.num_weights, MAX_LIVE) * a_value, "weights in use")


def _over(num_ranks: int, before: str = "") -> str:
    return f"{before}over {num_ranks} ranks" if num_ranks > 1 else ""


def _sizes(model: nn.Module) -> _Sizes:
    parameters = list(model.parameters())
    trained = [p for p in parameters if p.requires_grad]
    blocks = [
        list(layer.parameters())
        for name, module in model.named_modules()
        if name.endswith(".layers") and isinstance(module, nn.ModuleList)
        for layer in module
    ]
    layers = [sum(held_bytes(p) for p in block) for block in blocks]
    trained_layers = [_trained_bytes(block) for block in blocks]
    weight_bytes, trained_bytes = sum(map(held_bytes, parameters)), _trained_bytes(trained)
    return _Sizes(
        weight_bytes=weight_bytes,
        num_weights=sum(p.numel() for p in parameters),
        trained_bytes=trained_bytes,
        num_trained=sum(p.numel() for p in trained),
        layer_bytes=max(layers, default=0),
        outer_bytes=weight_bytes - sum(layers),
        trained_layer_bytes=max(trained_layers, default=0),
        trained_outer_bytes=trained_bytes - sum(trained_layers),
    )


def _trained_bytes(parameters: list[nn.Parameter]) -> int:
    return sum(p.numel() * p.element_size() for p in parameters if p.requires_grad)


def gib(num_bytes: float) -> str:
    """Return bytes as text: GiB, or MiB of what is small."""
    if num_bytes >= 2**30:
        return f"{num_bytes / 2**30:,.1f} GiB"
    return f"{math.ceil(num_bytes / 2**20):,} MiB"
