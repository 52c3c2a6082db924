"""Packs of a window of samples: full, of near-equal tokens and tiles, and still shuffled.

Ranks take the packs of a step side by side and wait for the slowest, so a pack should cost what the
next one costs: tokens in the decoder, tiles in the vision tower.
"""

import bisect
import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SPARE = 0.01  # of the tokens of a pack: room in which pictures change places
NEAR = 0.02  # of the mean tiles of a pack: packs that are no further above it are left alone
LEVELS = (0.0, 0.01, 0.03)  # above the even one: tried until no pack more is needed
PARTNERS = 24  # packs that a pack with many tiles looks to, those with the fewest first

Pack = list[int]  # indices of samples
Indices = npt.NDArray[np.int64]
Entry = tuple[int, int, int]  # tokens, tiles, number of a sample in its window
NOTHING: Entry = (0, 0, -1)  # stands in an exchange for no sample


def pack_window(
    order: Indices,
    num_tokens: Indices,
    num_tiles: Indices,
    *,
    max_tokens: int,
    max_tiles: int,
    min_packs: int = 1,
) -> list[Pack]:
    """Return the samples `order` in packs of near-equal tokens and tiles, within both budgets.

    Best fit in shuffled order finds how many packs it takes; it is done again at the level that
    fills all of them alike (else the last is half empty); then pictures change places with other
    samples until no pack has many more tiles than the mean. Where tiles are the scarcer budget,
    they are packed first and samples without tiles dealt out after.

    Longest first would fill 0 to 0.8 points more and put samples of a length together: the mean
    length of a pack then spreads up to 10 times as far as by chance, and a step learns from long
    rows or from short ones, never from both. Dealing out the longest evenly keeps that mean, but
    samples that share a pack then share it in every epoch (tests/benchmarks/packing.py).

    Args:
        order: [samples] indices into the next two, shuffled; none is over a budget.
        num_tokens: [all samples].
        num_tiles: [all samples].
        max_tokens: budget of a pack.
        max_tiles: budget of a pack.
        min_packs: make at least so many where the samples allow it.
    """
    if not len(order):
        return []
    tokens = _Budget(num_tokens[order].tolist(), max_tokens)
    tiles = _Budget(num_tiles[order].tolist(), max_tiles)
    with_tiles = [number for number, count in enumerate(tiles.of) if count]
    if tiles.num_full() > tokens.num_full():
        packs = _fill(with_tiles, tiles, tokens, max_tiles, min_packs)
        packs = _even_out(packs, tokens, tiles)
        packs = _deal_out([n for n, count in enumerate(tiles.of) if not count], packs, tokens)
    else:
        top = max_tokens - int(max_tokens * SPARE) * bool(with_tiles)
        packs = _fill(range(len(order)), tokens, tiles, top, min_packs)
        packs = _even_out(packs, tokens, tiles) if with_tiles else packs
    indices = order.tolist()
    return [[indices[number] for number in pack] for pack in packs]


@dataclass(frozen=True)
class _Budget:
    """What each sample of a window takes of tokens or tiles, and what a pack may hold."""

    of: list[int]  # [samples of the window]
    most: int

    def num_full(self) -> float:
        """Return how many full packs all samples would make."""
        return sum(self.of) / self.most

    def sums(self, packs: Sequence[Pack]) -> list[int]:
        """Return what each pack holds."""
        return [sum([self.of[number] for number in pack]) for pack in packs]


# ------------------------------------------------------------------------------ filling


def _fill(
    numbers: Sequence[int], first: _Budget, second: _Budget, top: int, min_packs: int
) -> list[Pack]:
    """Return packs filled alike, up to `top` of the budget that is scarcer, which is `first`."""
    packs = _best_fit(numbers, first, second, top)
    num_packs = max(len(packs), min_packs)
    free = float(np.median([top - held for held in first.sums(packs)]))
    gap = min(max(free / top, 0.0), 0.02)  # what best fit leaves free as a rule
    for more in LEVELS:
        level = int(sum(first.of) / num_packs * (more + 1) / (1 - gap)) + 1
        again = _best_fit(numbers, first, second, min(level, top), num_packs)
        if len(again) == num_packs:
            return again
    return packs


def _best_fit(
    numbers: Sequence[int], first: _Budget, second: _Budget, level: int, num_packs: int = 0
) -> list[Pack]:
    """Put each sample where it leaves the least of `first` free below `level`.

    What fits nowhere opens a pack; from `num_packs` on (0: never) it goes to the pack with the most
    room if the budgets allow it.
    """
    packs: list[Pack] = []
    free_second: list[int] = []  # [packs]
    # Sorted; (free of `first` below the level) << bits | pack: an int compares faster than a tuple.
    room: list[int] = []
    bits = len(numbers).bit_length()
    mask, above = (1 << bits) - 1, first.most - level
    for number in numbers:
        need, other = first.of[number], second.of[number]
        at = bisect.bisect_left(room, need << bits)
        if other:
            while at < len(room) and free_second[room[at] & mask] < other:
                at += 1
        if at == len(room) and 0 < num_packs <= at:
            fits = (room[-1] >> bits) + above >= need and free_second[room[-1] & mask] >= other
            at -= fits
        if at < len(room):
            entry = room.pop(at)
        else:
            entry = level << bits | len(packs)
            packs.append([])
            free_second.append(second.most)
        pack = entry & mask
        packs[pack].append(number)
        free_second[pack] -= other
        bisect.insort(room, entry - (need << bits))
    return packs


def _deal_out(numbers: Sequence[int], packs: list[Pack], tokens: _Budget) -> list[Pack]:
    """Put each sample, which has no tiles, where the fewest tokens are."""
    heap = [(held, pack) for pack, held in enumerate(tokens.sums(packs))]
    heapq.heapify(heap)
    for number in numbers:
        held, pack = heap[0]
        if held + tokens.of[number] <= tokens.most:
            packs[pack].append(number)
            heapq.heapreplace(heap, (held + tokens.of[number], pack))
        else:
            heapq.heappush(heap, (tokens.of[number], len(packs)))
            packs.append([number])
    return packs


# ------------------------------------------------------------------------------ even tiles


def _even_out(packs: list[Pack], tokens: _Budget, tiles: _Budget) -> list[Pack]:
    """Let packs with many tiles change pictures for samples of packs with few."""
    entries = [[NOTHING, *sorted([(tokens.of[i], tiles.of[i], i) for i in pack])] for pack in packs]
    free = [tokens.most - held for held in tokens.sums(packs)]
    order = sorted((held, pack) for pack, held in enumerate(tiles.sums(packs)))
    mean = sum(tiles.of) / len(packs)
    near = max(1.0, NEAR * mean)
    while len(order) > 1 and order[-1][0] - mean > near:
        many, rich = order.pop()
        pictures = [entry for entry in entries[rich] if entry[1]]
        for at, (few, poor) in enumerate(order[:PARTNERS]):
            pair = _best_pair(pictures, entries[poor], free[rich], free[poor], many - few)
            if pair:
                del order[at]
                moved, moved_tiles = _exchange(entries[rich], entries[poor], *pair)
                free[rich] += moved
                free[poor] -= moved
                bisect.insort(order, (many - moved_tiles, rich))
                bisect.insort(order, (few + moved_tiles, poor))
                break
    return [[number for _, _, number in pack if number >= 0] for pack in entries]


def _best_pair(
    pictures: list[Entry], poor: list[Entry], free_rich: int, free_poor: int, difference: int
) -> tuple[Entry, Entry] | None:
    """Return two samples whose exchange brings the tiles of two packs closest, within budgets.

    Only one that takes a fifth of the difference away counts, so that the search ends; one that
    takes four fifths away is good enough.
    """
    best, pair = 0.8 * difference, None
    for given in pictures:
        tokens, tiles, _ = given
        most = tokens + free_rich
        for got in poor[bisect.bisect_left(poor, (tokens - free_poor,)) :]:
            if got[0] > most:
                break
            left = abs(difference - 2 * (tiles - got[1]))
            if left < best:
                best, pair = left, (given, got)
                if left <= 0.2 * difference:
                    return pair
    return pair


def _exchange(rich: list[Entry], poor: list[Entry], given: Entry, got: Entry) -> tuple[int, int]:
    """Exchange two samples; return the tokens and tiles that changed hands."""
    for entry, source, target in ((given, rich, poor), (got, poor, rich)):
        if entry != NOTHING:
            source.remove(entry)
            bisect.insort(target, entry)
    return given[0] - got[0], given[1] - got[1]
