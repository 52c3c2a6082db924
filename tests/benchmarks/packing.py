"""How full packs are, how alike in work, and how much of a shuffled order they keep.

    python tests/benchmarks/packing.py

For each set and way to pack a window:
`full`: share of the token budget used. `tokens`, `tiles`: the most over the mean of 8 packs side by
side, median and worst. `spread`: standard deviation of the mean length of a pack over that of a
sample, divided by what chance gives for packs of so many samples; 1 is a fair draw. `again`: how
much more often than by chance two samples of a pack share one in the next epoch too.
Then for whole plans: drift of lengths through an epoch, and seconds.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path[:] = [str(Path(__file__).resolve().parents[2]), *sys.path[1:]]

import numpy as np

from data.balance import step_balance
from data.pack import Pack, PackPlan, pack_window
from data.pack_window import _best_fit, _Budget, _deal_out

NUM_SAMPLES = 4096
SIDE_BY_SIDE = 8
NUM_SEEDS = 4


@dataclass
class Set:
    """Samples and the budgets of a pack."""

    tokens: np.ndarray
    tiles: np.ndarray
    max_tokens: int
    max_tiles: int = 64


def make_sets(seed: int, num: int = NUM_SAMPLES) -> dict[str, Set]:
    """Return sets by name: texts alone, pictures of 169 or 170 tokens a tile, and mixtures."""
    rng = np.random.default_rng(seed)
    none = np.zeros(num, dtype=np.int64)
    paragraphs = num // 10

    def some(share: float) -> np.ndarray:
        return np.where(rng.random(num) < share, rng.integers(1, 14, num), 0)

    def words(mean: float) -> np.ndarray:
        return np.clip(rng.lognormal(mean, 0.9, num), 12, 4000).astype(np.int64)

    short = np.clip(rng.normal(25, 8, num), 8, 90).astype(np.int64)
    mixed = [rng.integers(12, 30, num - paragraphs), rng.integers(30, 200, paragraphs)]
    all_, half, tenth, most = rng.integers(1, 14, num), some(0.5), some(0.1), some(0.7)
    few = rng.choice([0, 1, 3, 5], num)
    return {
        "short rows": Set(short, none, 1024),
        "short rows and paragraphs": Set(np.concatenate(mixed), none, 1024),
        "1-13 tiles": Set(170 * all_ + rng.integers(30, 150, num), all_, 8192),
        "text, 1, 3, 5 tiles": Set(170 * few + rng.integers(20, 150, num), few, 2048),
        "half text, half 1-13 tiles": Set(169 * half + words(5), half, 8192),
        "90 % long text, 1-13 tiles": Set(169 * tenth + words(6), tenth, 8192),
        "small tiles, 32 a pack": Set(20 * most + words(4.5), most, 8192, 32),
    }


# ------------------------------------------------------------------------------ ways to pack


def ours(given: Set, order: np.ndarray) -> list[Pack]:
    """What the plan does."""
    return pack_window(
        order, given.tokens, given.tiles, max_tokens=given.max_tokens, max_tiles=given.max_tiles
    )


def best_fit(given: Set, order: np.ndarray) -> list[Pack]:
    """Shuffled best fit alone."""
    tokens = _Budget(given.tokens[order].tolist(), given.max_tokens)
    tiles = _Budget(given.tiles[order].tolist(), given.max_tiles)
    packs = _best_fit(range(len(order)), tokens, tiles, given.max_tokens)
    return [order[pack].tolist() for pack in packs]


def longest_first(given: Set, order: np.ndarray) -> list[Pack]:
    """Best fit, longest first."""
    return best_fit(given, order[np.argsort(-given.tokens[order], kind="stable")])


def dealt_out(given: Set, order: np.ndarray) -> list[Pack]:
    """Longest first, each where the fewest tokens are; tiles are not looked at."""
    order = order[np.argsort(-given.tokens[order], kind="stable")]
    num_packs = int(1.02 * given.tokens.sum() / given.max_tokens) + 1
    tokens = _Budget(given.tokens[order].tolist(), given.max_tokens)
    packs = _deal_out(range(len(order)), [[] for _ in range(num_packs)], tokens)
    return [order[pack].tolist() for pack in packs]


# ------------------------------------------------------------------------------ measures


def ratios(work: np.ndarray, packs: list[Pack], rng: np.random.Generator) -> tuple[float, float]:
    """Return median and worst of the most over the mean of packs side by side."""
    held = np.array([work[pack].sum() for pack in packs])[rng.permutation(len(packs))]
    groups = held[: len(held) // SIDE_BY_SIDE * SIDE_BY_SIDE].reshape(-1, SIDE_BY_SIDE)
    each = groups.max(axis=1) / np.maximum(groups.mean(axis=1), 1e-9) if work.any() else np.ones(1)
    return float(np.median(each)), float(each.max())


def share_again(packs: list[Pack], next_packs: list[Pack], num_samples: int) -> float:
    """Return how often samples of a pack share one again, over what chance gives."""
    pack_of = np.empty(num_samples, dtype=np.int64)
    for number, pack in enumerate(next_packs):
        pack_of[pack] = number
    again = pairs = 0
    for pack in packs:
        counts = np.bincount(pack_of[pack])
        again += int((counts * (counts - 1) // 2).sum())
        pairs += len(pack) * (len(pack) - 1) // 2
    return again / pairs * len(next_packs)


def measure(name: str, way: Callable[[Set, np.ndarray], list[Pack]]) -> np.ndarray:
    """Return full, tokens (2), tiles (2), spread, again: means over the seeds."""
    rows = []
    for seed in range(NUM_SEEDS):
        given, rng = make_sets(seed)[name], np.random.default_rng(seed)
        lengths = given.tokens
        packs, after = (way(given, rng.permutation(len(lengths))) for _ in range(2))
        means = np.array([lengths[pack].mean() for pack in packs])
        by_chance = lengths.std() / np.sqrt(len(lengths) / len(packs))
        rows.append(
            [
                lengths.sum() / (len(packs) * given.max_tokens),
                *ratios(lengths, packs, rng),
                *ratios(given.tiles, packs, rng),
                means.std() / by_chance,
                share_again(packs, after, len(lengths)),
            ]
        )
    return np.mean(rows, axis=0)


def plan_of(given: Set, seed: int, packs_per_step: int = SIDE_BY_SIDE) -> PackPlan:
    """Return the plan of a set."""
    return PackPlan(
        num_tokens=given.tokens,
        num_tiles=given.tiles,
        weights=np.ones(len(given.tokens)),
        max_tokens=given.max_tokens,
        max_tiles=given.max_tiles,
        packs_per_step=packs_per_step,
        seed=seed,
    )


def drift(given: Set, num_epochs: int = 12) -> float:
    """Return the root mean square, over epochs, of r * sqrt(steps): about 1 for a shuffle.

    r is the correlation of a step's mean length with its number.
    """
    plan, found = plan_of(given, seed=1), []
    for epoch in range(num_epochs):
        packs = plan.epoch(epoch)
        steps = [
            given.tokens[np.concatenate(packs[at : at + SIDE_BY_SIDE])].mean()
            for at in range(0, len(packs), SIDE_BY_SIDE)
        ]
        r = np.corrcoef(np.arange(len(steps)), steps)[0, 1]
        found.append(r * np.sqrt(len(steps)))
    return float(np.sqrt(np.mean(np.square(found))))


def timed(given: Set) -> tuple[float, Any]:
    """Return the processor seconds to plan an epoch, and its balance."""
    plan, start = plan_of(given, seed=0), time.process_time()
    plan.num_samples(0)
    return time.process_time() - start, step_balance(plan)


def main() -> None:
    """Print a line for each set and way, then one for each plan."""
    print(f"{'':<44}{'full':>7}{'tokens':>14}{'tiles':>14}{'spread':>8}{'again':>7}")
    for name in make_sets(0):
        for way in (best_fit, longest_first, dealt_out, ours):
            full, token, tokens, tile, tiles, spread, again = measure(name, way)
            print(
                f"{name:<28}{way.__name__:<16}{full:>7.1%}{token:>7.2f}{tokens:>7.2f}{tile:>7.2f}"
                f"{tiles:>7.2f}{spread:>8.1f}{again:>7.1f}"
            )
    for name, given in make_sets(0, 2 * NUM_SAMPLES + 1000).items():
        print(f"{name:<28}drift {drift(given):.2f}")
    for num in (100_000, 1_000_000):
        for name in ("short rows", "1-13 tiles", "half text, half 1-13 tiles"):
            seconds, balance = timed(make_sets(0, num)[name])
            print(f"{num:,} {name}: {seconds:.2f} s, {balance}")


if __name__ == "__main__":
    main()
