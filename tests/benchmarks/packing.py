"""How full packs are, and how much a pack's samples are alike, for two orders of best fit.

    python tests/benchmarks/packing.py

`spread` is the standard deviation of the mean length of a pack over that of a sample, divided by
what chance gives for packs of so many samples: 1 is a fair draw.
"""

import sys
from pathlib import Path

sys.path[:] = [str(Path(__file__).resolve().parents[2]), *sys.path[1:]]

import numpy as np

from data.pack import PackPlan

NUM_SAMPLES = 4096


def make_sets(rng: np.random.Generator) -> dict[str, tuple[np.ndarray, int]]:
    """Return name -> (lengths in tokens, pack budget)."""
    short = rng.integers(12, 30, 3700)
    return {
        "short rows": (np.clip(rng.normal(25, 8, NUM_SAMPLES), 8, 90).astype(int), 1024),
        "short rows and paragraphs": (np.concatenate([short, rng.integers(30, 200, 400)]), 1024),
        "1-13 tiles": (
            170 * rng.integers(1, 14, NUM_SAMPLES) + rng.integers(30, 150, NUM_SAMPLES),
            8192,
        ),
        "text, 1, 3, 5 tiles": (
            170 * rng.choice([0, 1, 3, 5], NUM_SAMPLES) + rng.integers(20, 150, NUM_SAMPLES),
            2048,
        ),
    }


def measure(lengths: np.ndarray, budget: int, *, longest_first: bool) -> tuple[float, float]:
    """Return the share of the budget used, and the spread against chance."""
    plan = PackPlan(
        num_tokens=lengths,
        num_tiles=np.zeros_like(lengths),
        weights=np.ones(len(lengths)),
        max_tokens=budget,
        max_tiles=1,
        packs_per_step=1,
        seed=0,
    )
    order = np.random.default_rng(0).permutation(len(lengths))
    if longest_first:
        order = order[np.argsort(-lengths[order], kind="stable")]
    packs = plan._pack_window(order)
    fill = lengths.sum() / (len(packs) * budget)
    means = np.array([lengths[pack].mean() for pack in packs])
    by_chance = lengths.std() / np.sqrt(len(lengths) / len(packs))
    return float(fill), float(means.std() / by_chance)


def main() -> None:
    """Print a line for each set."""
    print(f"{'set':<28}{'ours: full, spread':>22}{'longest first: full, spread':>32}")
    for name, (lengths, budget) in make_sets(np.random.default_rng(0)).items():
        ours = measure(lengths, budget, longest_first=False)
        other = measure(lengths, budget, longest_first=True)
        print(f"{name:<28}{ours[0]:>13.1%}{ours[1]:>9.1f}{other[0]:>23.1%}{other[1]:>9.1f}")


if __name__ == "__main__":
    main()
