"""What a run takes of one device's memory, line by line, before a weight is read.

Weights, gradients, optimizer state and what the engine keeps follow from shapes; activations are
measured on fake tensors (train/planning/activations.py). What torch's allocator leaves unused
between blocks and what the driver takes (about 1 GiB of a GPU) come on top.
tests/train/planning/test_memory.py holds this against real runs, on a CPU.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from train.planning.activations import PackShape, measure_activations

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


@dataclass(frozen=True)
class _Sizes:
    """Bytes and values of a model's weights; tied ones once."""

    weight_bytes: int
    num_weights: int
    trained_bytes: int
    num_trained: int
    layer_bytes: int  # of the largest layer
    outer_bytes: int  # of what is in no layer: embeddings, head, norms


def estimate_memory(
    model: Any,
    pack: PackShape,
    *,
    engine: str,
    num_ranks: int,
    gradient_checkpointing: bool,
    bf16: bool,
) -> list[Line]:
    """Return what is held at the highest moment of a step, from the second step on.

    Args:
        model: after `set_what_trains` and what the engine makes of dtypes; on `meta` or not.
        pack: the heaviest micro-batch.
        engine: name of an EngineKind.
        num_ranks: devices that share the work.
        gradient_checkpointing: whether layers are computed again in backward.
        bf16: whether the model computes in bfloat16.
    """
    share, sizes = SHARES[engine], _sizes(model)
    activations = measure_activations(
        model,
        pack,
        gradient_checkpointing=gradient_checkpointing,
        bf16=bf16 and not share.is_deepspeed,
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
    ]


def total_bytes(lines: list[Line]) -> float:
    """Return the sum of an estimate."""
    return sum(line.num_bytes for line in lines)


def optimizer_bytes(lines: list[Line]) -> float:
    """Return what an estimate has for the optimizer."""
    return sum(line.num_bytes for line in lines if line.what == "optimizer")


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
    yield Line("gradients", sizes.trained_bytes / of_gradients, _over(of_gradients))
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
    if SHARES[engine].is_deepspeed:
        a_value = sizes.weight_bytes / max(sizes.num_weights, 1)
        yield Line("engine", REDUCE_BUCKET * a_value, "DeepSpeed's bucket of gradients")
    if engine == "zero3":
        yield Line("gathered", min(sizes.num_weights, MAX_LIVE) * a_value, "weights in use")


def _over(num_ranks: int, before: str = "") -> str:
    return f"{before}over {num_ranks} ranks" if num_ranks > 1 else ""


def _sizes(model: nn.Module) -> _Sizes:
    parameters = list(model.parameters())
    trained = [p for p in parameters if p.requires_grad]
    layers = [
        sum(p.numel() * p.element_size() for p in layer.parameters())
        for name, module in model.named_modules()
        if name.endswith(".layers") and isinstance(module, nn.ModuleList)
        for layer in module
    ]
    weight_bytes = sum(p.numel() * p.element_size() for p in parameters)
    return _Sizes(
        weight_bytes=weight_bytes,
        num_weights=sum(p.numel() for p in parameters),
        trained_bytes=sum(p.numel() * p.element_size() for p in trained),
        num_trained=sum(p.numel() for p in trained),
        layer_bytes=max(layers, default=0),
        outer_bytes=weight_bytes - sum(layers),
    )


def gib(num_bytes: float) -> str:
    """Return bytes as text: GiB, or MiB of what is small."""
    if num_bytes >= 2**30:
        return f"{num_bytes / 2**30:,.1f} GiB"
    return f"{math.ceil(num_bytes / 2**20):,} MiB"
