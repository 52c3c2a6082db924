"""The training set of a run: samples, their plan, and what the log says of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from configs.schema import DataConfig
from data.ledger import Ledger
from data.pack import PackPlan
from data.render import Sample


@dataclass(frozen=True)
class TrainingData:
    """Everything that is trained on."""

    samples: Sequence[Sample]
    plan: PackPlan
    ledger: Ledger


def build_training_data(
    samples_by_source: dict[str, list[Sample]], data: DataConfig, ledger: Ledger, *, seed: int
) -> TrainingData:
    """Return the samples of all sources in one list, and the plan that packs them."""
    samples = [sample for group in samples_by_source.values() for sample in group]
    weights = [data.sources[name].weight for name, g in samples_by_source.items() for _ in g]
    plan = PackPlan(
        num_tokens=np.array([sample.num_tokens for sample in samples]),
        num_tiles=np.array([sum(sample.num_tiles) for sample in samples]),
        weights=np.array(weights, dtype=np.float64),
        max_tokens=data.max_tokens,
        max_tiles=data.max_tiles,
        packs_per_step=data.packs_per_step,
        seed=seed,
    )
    return TrainingData(samples, plan, ledger)


def describe_samples(samples_by_source: dict[str, list[Sample]]) -> str:
    """Return a table: for each source its rows, tokens, supervised share, tiles and languages."""
    header = f"{'source':<16}{'rows':>8}{'tokens':>10}{'supervised':>12}{'tiles':>8}  languages"
    lines = [header]
    for name, samples in samples_by_source.items():
        tokens = sum(sample.num_tokens for sample in samples)
        supervised = sum(int(sample.supervised.sum()) for sample in samples)
        tiles = sum(sum(sample.num_tiles) for sample in samples)
        languages = ", ".join(sorted({sample.row.language for sample in samples}))
        share = f"{supervised / tokens:.1%}" if tokens else "-"
        lines.append(
            f"{name:<16}{len(samples):>8,}{tokens:>10,}{share:>12}{tiles:>8,}  {languages}"
        )
    return "\n".join(lines)
