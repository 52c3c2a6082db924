"""What is counted while steps are made, and the metrics made of it: losses, speed, MFU.

A rank counts for itself (`Meter`); when metrics are due, all ranks' `Counts` are put together
(`metrics_of`). What a checkpoint falls between is written into it, so that a run that goes on logs
what an unbroken one does.
"""

import math
import time
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from data.batches import PackedSample
from train.planning.flops import FlopShape, flops_of_pack

COUNTED = ("tokens", "supervised_tokens", "tiles", "images", "samples")


@dataclass
class Counts:
    """What one rank did since the last metrics; plain values, for JSON and for other ranks."""

    num_steps: int = 0  # whose loss is in `loss`
    loss: float = 0.0  # sum over steps of this rank's share of the step's mean, nats a token
    nats: dict[str, float] = field(default_factory=dict)  # by "source <name>", "language <code>"
    supervised: dict[str, int] = field(default_factory=dict)  # tokens, by the same
    num: dict[str, int] = field(default_factory=dict)  # COUNTED, packs
    budget_tokens: int = 0  # that the packs had room for
    flops: float = 0.0
    seconds: float = 0.0  # of training, without evaluation
    data_wait_seconds: float = 0.0
    peak_bytes: dict[str, int] = field(default_factory=dict)  # by phase
    num_skipped: int = 0  # steps left out
    spikes: list[str] = field(default_factory=list)  # what is to be said of them


class Meter:
    """Counts what this rank does, a step at a time."""

    def __init__(self, *, max_tokens: int, flops_of: Any = None) -> None:
        """Take the budget of a pack, and a function of its samples that gives its FLOPs."""
        self.max_tokens, self.flops_of = max_tokens, flops_of
        self.counts = Counts()
        self.packs: deque[Sequence[PackedSample]] = deque()  # of this step, losses still to come
        self.samples: list[PackedSample] = []  # of this step, losses known
        self.losses: list[torch.Tensor] = []  # of `samples`: [S] nats of each pack, on the device
        self.num_items = 1.0  # supervised tokens of this step, over all ranks
        self._started = time.perf_counter()

    # ------------------------------------------------------------------------- in a step

    def begin_step(
        self, packs: Iterable[Sequence[PackedSample]], num_items: float, wait_seconds: float
    ) -> None:
        """Take the samples of this rank's packs, and how long they were waited for."""
        self.packs, self.num_items = deque(packs), num_items
        self.samples, self.losses = [], []
        self.counts.data_wait_seconds += wait_seconds
        num = Counter(self.counts.num)
        for pack in self.packs:
            num["packs"] += 1
            num["samples"] += len(pack)
            for sample in pack:
                num["tokens"] += sample.num_tokens
                num["supervised_tokens"] += sample.num_supervised
                num["tiles"] += sample.num_tiles
                num["images"] += sample.num_images
            self.counts.budget_tokens += self.max_tokens
            if self.flops_of is not None:
                self.counts.flops += self.flops_of(pack)
        self.counts.num = dict(num)

    def add_losses(self, losses: torch.Tensor) -> None:
        """Take [S] nats of the supervised tokens of the next pack."""
        self.samples += self.packs.popleft()
        self.losses.append(losses.detach())

    def sample_nats(self) -> np.ndarray:
        """Return [samples] the sum of nats of each sample of this step, in the order of `samples`.

        Waits for the device.
        """
        if not self.losses:
            return np.zeros(0)
        nats = torch.cat(self.losses).double().cpu().numpy()
        ends = np.cumsum([sample.num_supervised for sample in self.samples], dtype=np.int64)
        # By sample and not by differences of a running sum, which one NaN would spread over all.
        return np.array([part.sum() for part in np.split(nats, ends[:-1])])

    def end_step(self, nats: np.ndarray) -> float:
        """Add a step to what is counted.

        Args:
            nats: what `sample_nats` returned.

        Returns:
            the mean nats a token of this rank's packs.
        """
        counts = self.counts
        counts.num_steps += 1
        counts.loss += float(nats.sum()) / self.num_items
        for sample, value in zip(self.samples, nats.tolist(), strict=True):
            for key in (f"source {sample.source}", f"language {sample.language}"):
                counts.nats[key] = counts.nats.get(key, 0.0) + value
                counts.supervised[key] = counts.supervised.get(key, 0) + sample.num_supervised
        return float(nats.sum()) / max(1, sum(sample.num_supervised for sample in self.samples))

    # ---------------------------------------------------------------------- between steps

    def pause(self) -> None:
        """Stop the clock: what follows is no training."""
        self.counts.seconds += time.perf_counter() - self._started
        self._started = math.inf

    def go_on(self) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def take(self) -> Counts:
        """Return what was counted since the last time."""
        self.pause()
        taken, self.counts = self.counts, Counts()
        self.go_on()
        return taken

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold to log later what an unbroken run would."""
        return asdict(self.counts)

    def load_states(self, states: Sequence[dict[str, Any]]) -> None:
        """Take up the states of ranks that this one stands for."""
        self.counts = add_counts([Counts(**state) for state in states])


def flops_of(shape: FlopShape, pack: Sequence[PackedSample]) -> float:
    """Return the floating-point operations of a pack; what is computed twice counts once."""
    return flops_of_pack(
        shape,
        [sample.num_tokens for sample in pack],
        sum(sample.num_supervised for sample in pack),
        sum(sample.num_tiles for sample in pack),
    )


def add_counts(counts: Sequence[Counts]) -> Counts:
    """Return the counts of several ranks as one: sums, and of peaks and steps the highest."""
    total = Counts()
    for one in counts:
        total.num_steps = max(total.num_steps, one.num_steps)
        total.num_skipped = max(total.num_skipped, one.num_skipped)
        for name in ("loss", "budget_tokens", "flops", "seconds", "data_wait_seconds"):
            setattr(total, name, getattr(total, name) + getattr(one, name))
        for name in ("nats", "supervised", "num"):
            into = getattr(total, name)
            for key, value in getattr(one, name).items():
                into[key] = into.get(key, 0) + value
        for phase, peak in one.peak_bytes.items():
            total.peak_bytes[phase] = max(peak, total.peak_bytes.get(phase, 0))
        total.spikes += one.spikes
    return total


def metrics_of(counts: Sequence[Counts], *, peak_flops: float | None = None) -> dict[str, float]:
    """Return metrics of all ranks' counts, under their names.

    Args:
        counts: of each rank, over the same steps.
        peak_flops: of one device, a second; None: unknown, and no MFU is told.
    """
    total, num_ranks = add_counts(counts), len(counts)
    seconds = total.seconds / num_ranks
    metrics = {f"train/{name}": value for name, value in losses_of(total).items()}
    if total.num_skipped:
        metrics["train/steps_skipped"] = total.num_skipped
    metrics |= {f"perf/{name}_per_second": total.num.get(name, 0) / seconds for name in COUNTED}
    metrics["perf/data_wait_ratio"] = total.data_wait_seconds / total.seconds
    if peak_flops is not None and total.flops:
        metrics["perf/mfu"] = total.flops / (seconds * num_ranks * peak_flops)
    metrics["data/padding_ratio"] = 1 - total.num.get("tokens", 0) / max(1, total.budget_tokens)
    for phase, peak in sorted(total.peak_bytes.items()):
        metrics[f"perf/memory_peak_gib/{phase}"] = round(peak / 2**30, 3)
    return metrics


def losses_of(total: Counts) -> dict[str, float]:
    """Return the loss in nats a token: mean over steps, and over all tokens of a source, language.

    Steps that were left out are in none of them.
    """
    found = {"loss": total.loss / total.num_steps} if total.num_steps else {}
    for key in sorted(total.nats):
        kind, name = key.split(" ", 1)
        found[f"loss/{kind}/{name}"] = total.nats[key] / max(1, total.supervised[key])
    return found
