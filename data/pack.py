"""Which samples share a sequence, and in which order the packs come.

A plan is a pure function of lengths, weights, seed, epoch and budgets. It knows nothing of ranks
and workers: global batch k is packs k * packs_per_step and the ones after it, whoever takes them.
"""

import bisect
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from configs.errors import DataError
from data.pack_window import Indices, Pack, pack_window

__all__ = ["Pack", "PackPlan", "pack_window"]

WINDOW = 4096  # samples packed together, at most: enough to fill packs, few enough to stay shuffled
KEPT_EPOCHS = 2  # in memory: where an epoch ends, packs of both sides are asked for


@dataclass(frozen=True)
class _Epoch:
    """The packs of one epoch, flat: 4 to 8 bytes a sample and 8 a pack."""

    samples: npt.NDArray[np.integer[Any]]  # [samples of the epoch] indices, pack after pack
    ends: Indices  # [packs] where each pack ends in `samples`

    def __len__(self) -> int:
        return len(self.ends)

    def pack(self, number: int) -> Pack:
        start = self.ends[number - 1] if number else 0
        pack: Pack = self.samples[start : self.ends[number]].tolist()
        return pack


@dataclass
class PackPlan:
    """The packs of every epoch, made when they are asked for; the latest two stay in memory."""

    num_tokens: Indices  # [samples]
    num_tiles: Indices  # [samples]
    weights: npt.NDArray[np.float64]  # [samples] times each is seen an epoch
    max_tokens: int
    max_tiles: int
    packs_per_step: int
    seed: int
    _kept: dict[int, _Epoch] = field(default_factory=dict, repr=False)  # oldest use first
    _ends: list[int] = field(default_factory=list, repr=False)  # packs up to the end of each epoch

    def epoch(self, number: int) -> list[Pack]:
        """Return the packs of one epoch; their number is a multiple of `packs_per_step`.

        Raises:
            DataError: the weights leave no sample, or too few for one step.
        """
        epoch = self._epoch(number)
        return [epoch.pack(i) for i in range(len(epoch))]

    def num_samples(self, number: int) -> int:
        """Return the samples of an epoch, repeated ones as often as they come."""
        return len(self._epoch(number).samples)

    def num_steps(self, num_epochs: float) -> int:
        """Return the optimizer steps in so many epochs, at least 1."""
        whole = int(num_epochs)
        packs = self._start(whole)
        if num_epochs > whole:
            packs += round((num_epochs - whole) * len(self._epoch(whole)))
        return max(1, packs // self.packs_per_step)

    def pack(self, index: int) -> Pack:
        """Return pack `index` of the run, counted through all epochs."""
        while not self._ends or self._ends[-1] <= index:
            self._epoch(len(self._ends))
        number = bisect.bisect_right(self._ends, index)
        return self._epoch(number).pack(index - self._start(number))

    def epoch_of(self, step: int) -> float:
        """Return how many epochs lie before optimizer step `step`."""
        index = step * self.packs_per_step
        self.pack(max(index - 1, 0))
        number = bisect.bisect_left(self._ends, index)
        start = self._start(number)
        return number + (index - start) / (self._ends[number] - start)

    def held(self, number: int) -> tuple[Indices, Indices]:
        """Return the tokens and the tiles of each pack of an epoch, [packs] each."""
        return self._held(self._epoch(number))

    def fill_ratio(self, number: int = 0) -> float:
        """Return the share of the token budget that an epoch's packs use."""
        tokens, _ = self.held(number)
        return int(tokens.sum()) / (len(tokens) * self.max_tokens)

    def _start(self, number: int) -> int:
        """Return the packs before an epoch."""
        while len(self._ends) < number:
            self._epoch(len(self._ends))
        return self._ends[number - 1] if number else 0

    def _epoch(self, number: int) -> _Epoch:
        """Return an epoch, made again where it is no longer kept."""
        start = self._start(number)
        epoch = self._kept.pop(number, None) or self._make_epoch(number)
        self._kept[number] = epoch
        while len(self._kept) > KEPT_EPOCHS:
            del self._kept[next(iter(self._kept))]
        if len(self._ends) == number:
            self._ends.append(start + len(epoch))
        return epoch

    def _make_epoch(self, number: int) -> _Epoch:
        rng = np.random.default_rng([self.seed, number])
        order = rng.permutation(_repeat(self.weights, rng))
        if not len(order):
            raise DataError(
                f"epoch {number} holds no sample: {len(self.weights)} rows with weights of "
                f"{self.weights.sum():g} in all; raise data.sources.<name>.weight"
            )
        windows = np.array_split(order, -(-len(order) // WINDOW))
        packed = [self._pack(window) for window in windows]
        missing = -sum(map(len, packed)) % self.packs_per_step
        if missing:
            packed[-1] = self._fill_step(windows[-1], packed[-1], missing)
        packs = [window[i] for window in packed for i in rng.permutation(len(window)).tolist()]
        return self._side_by_side(_flat(packs, len(order), len(self.weights)))

    def _pack(self, window: Indices, min_packs: int = 1) -> list[Pack]:
        return pack_window(
            window,
            self.num_tokens,
            self.num_tiles,
            max_tokens=self.max_tokens,
            max_tiles=self.max_tiles,
            min_packs=min_packs,
        )

    def _fill_step(self, window: Indices, packs: list[Pack], missing: int) -> list[Pack]:
        """Return a window in so many packs more that every step is full and no sample left out."""
        wanted = len(packs) + missing
        if len(window) < wanted:
            raise DataError(
                f"{len(window)} samples are too few for data.packs_per_step="
                f"{self.packs_per_step}; lower it or give more rows"
            )
        spread = self._pack(window, min_packs=wanted)
        if len(spread) > wanted:  # the level did not suit its lengths
            spread = packs
        while len(spread) < wanted:
            longest = max(spread, key=len)
            spread.append(longest[len(longest) // 2 :])
            del longest[len(longest) // 2 :]
        return spread

    def _side_by_side(self, epoch: _Epoch) -> _Epoch:
        """Return the epoch with the packs of each step in order of work, the most first.

        So ranks take alike packs at a time, however many there are.
        """
        tokens, tiles = self._held(epoch)
        step = np.arange(len(epoch)) // self.packs_per_step
        order = np.lexsort((-tokens, -tiles, step)).tolist()
        packs = [epoch.pack(i) for i in order]
        return _flat(packs, len(epoch.samples), len(self.weights))

    def _held(self, epoch: _Epoch) -> tuple[Indices, Indices]:
        starts = epoch.ends - np.diff(epoch.ends, prepend=0)
        tokens = np.add.reduceat(self.num_tokens[epoch.samples], starts)
        return tokens, np.add.reduceat(self.num_tiles[epoch.samples], starts)


def _flat(packs: list[Pack], num_samples: int, num_rows: int) -> _Epoch:
    kind = np.int32 if num_rows <= np.iinfo(np.int32).max else np.int64
    samples: npt.NDArray[np.integer[Any]] = np.fromiter(
        chain.from_iterable(packs), dtype=kind, count=num_samples
    )
    return _Epoch(samples, np.cumsum([len(pack) for pack in packs]))


def _repeat(weights: npt.NDArray[np.float64], rng: np.random.Generator) -> Indices:
    """Return sample indices, each as often as its weight; fractions are drawn."""
    times = np.floor(weights).astype(np.int64)
    times += rng.random(len(weights)) < weights - times
    return np.repeat(np.arange(len(weights)), times)
