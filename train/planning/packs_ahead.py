"""What the packs of a run hold: lengths of rows, the work of a step, the heaviest pack."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from configs.schema import DataConfig
from data.build import TrainingData
from data.index import Lengths
from data.pack import PackPlan
from train.planning.activations import PackShape
from train.planning.flops import FlopShape, flops_of_pack

EXACT_EPOCHS = 2
SAMPLED = 512  # packs whose FLOPs stand for all


@dataclass(frozen=True)
class HeavyPack:
    """The pack that costs the most, of the first epoch or, of a stream, at the budgets."""

    sample_lengths: tuple[int, ...]  # tokens
    shape: PackShape
    is_at_budget: bool  # not found, but put together to fill data.max_tokens and data.max_tiles


@dataclass(frozen=True)
class StepWork:
    """Means over optimizer steps; of a stream, steps of packs at the budgets."""

    num_samples: float | None  # None: streamed
    num_tokens: float
    num_supervised: float  # tokens
    num_tiles: float
    flops: float  # model FLOPs, over all devices
    hardware_flops: float  # with what is computed again


def describe_lengths(lengths: Lengths) -> str:
    """Return the table of how long rows are: mean, median, 95th percentile, largest."""
    lines = [f"{'':<18}{'mean':>10}{'p50':>10}{'p95':>10}{'max':>10}{'of tokens':>12}"]
    tokens = lengths["num_tokens"]
    for title, name in (
        ("tokens", "num_tokens"),
        ("supervised tokens", "num_supervised"),
        ("image tokens", "num_image_tokens"),
        ("tiles", "num_tiles"),
    ):
        values = lengths[name].astype(np.int64)
        share = f"{values.sum() / max(int(tokens.sum()), 1):.1%}" if name != "num_tiles" else ""
        middle, high = np.percentile(values, (50, 95))
        lines.append(
            f"{title:<18}{values.mean():>10,.1f}{middle:>10,.0f}{high:>10,.0f}"
            f"{values.max():>10,}{share:>12}"
        )
    return "\n".join(lines)


def heaviest_pack(
    config: DataConfig, data: TrainingData, shape: FlopShape, processing_class: Any
) -> HeavyPack:
    """Return the pack with the most FLOPs, by its tokens and tiles."""
    if data.plan is None or data.samples is None:
        return _at_budget(config, processing_class)
    tokens, tiles = data.plan.held(0)
    cost = tokens * shape.token.total(recompute=True) + tiles * shape.tile.total(recompute=True)
    pack = data.plan.pack(int(np.argmax(cost)))
    chosen = data.samples.lengths[pack]
    return HeavyPack(tuple(chosen["num_tokens"].tolist()), _shape_of(chosen), is_at_budget=False)


def step_work(
    config: DataConfig, data: TrainingData, shape: FlopShape, heavy: HeavyPack
) -> StepWork:
    """Return what an optimizer step holds and costs on average."""
    num_packs = config.packs_per_step
    if data.plan is None or data.samples is None:
        pack, flops = heavy.shape, _flops(shape, heavy.sample_lengths, heavy.shape)
        return StepWork(
            None,
            pack.num_tokens * num_packs,
            pack.num_supervised * num_packs,
            pack.num_tiles * num_packs,
            flops[0] * num_packs,
            flops[1] * num_packs,
        )
    tokens, tiles = data.plan.held(0)
    numbers = np.unique(np.linspace(0, len(tokens) - 1, min(SAMPLED, len(tokens))).astype(int))
    lengths = [data.samples.lengths[data.plan.pack(int(number))] for number in numbers]
    costs = [_flops(shape, one["num_tokens"].tolist(), _shape_of(one)) for one in lengths]
    flops, hardware_flops = np.mean(costs, axis=0) * num_packs
    return StepWork(
        num_samples=data.plan.num_samples(0) / len(tokens) * num_packs,
        num_tokens=float(tokens.mean()) * num_packs,
        num_supervised=float(np.mean([one["num_supervised"].sum() for one in lengths])) * num_packs,
        num_tiles=float(tiles.mean()) * num_packs,
        flops=float(flops),
        hardware_flops=float(hardware_flops),
    )


def num_epochs(plan: PackPlan, num_steps: int) -> float:
    """Return the epochs in so many steps; of many, as if all were as long as the first."""
    epochs = num_steps / plan.num_steps(1)
    # To be exact, each epoch on the way has to be packed.
    return epochs if epochs > EXACT_EPOCHS else plan.epoch_of(num_steps)


def _at_budget(config: DataConfig, processing_class: Any) -> HeavyPack:
    """Return a pack of one sample as long and with as many tiles as the budgets allow."""
    tokens, tiles = config.max_tokens, 0
    a_tile = tokens_a_tile(processing_class)
    if a_tile:
        tiles = min(config.max_tiles, tokens // a_tile)
    shape = PackShape(tokens, max(1, tokens - tiles * a_tile), tiles)
    return HeavyPack((tokens,), shape, is_at_budget=True)


def tokens_a_tile(processing_class: Any) -> int:
    """Return the image tokens of a tile; 0 for a text LM."""
    if not hasattr(processing_class, "image_processor"):
        return 0
    # The processor's patch is what becomes one token, of several patches of the tower.
    return int((processing_class.img_size // processing_class.patch_size) ** 2)


def _shape_of(samples: npt.NDArray[np.void]) -> PackShape:
    return PackShape(
        int(samples["num_tokens"].sum()),
        int(samples["num_supervised"].sum()),
        int(samples["num_tiles"].sum()),
    )


def _flops(shape: FlopShape, lengths: Sequence[int], pack: PackShape) -> tuple[float, float]:
    """Return the model's and the hardware's FLOPs of a pack."""
    numbers = lengths, pack.num_supervised, pack.num_tiles
    return flops_of_pack(shape, *numbers), flops_of_pack(shape, *numbers, recompute=True)
