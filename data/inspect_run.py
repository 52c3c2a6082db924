"""The work of `python -m data.inspect`: see what would be trained on, and tell it.

Of the rows only those that are shown are rendered, so a million rows take no more memory than
their index. Tables are `data/inspect_tables.py`, the terminal is `data/inspect_text.py`, the page
`data/inspect_html.py`.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import zip_longest

import numpy as np
import numpy.typing as npt
from omegaconf import OmegaConf

from configs.errors import DataError
from configs.schema import InspectConfig
from data.build import TrainingData, build_training_data, describe_samples, plan_packs
from data.index import FIELDS, Lengths, lengths_of
from data.inspect_html import ShownRow, check_target, page, write_whole
from data.inspect_tables import Inspection, charts_of, tables_of
from data.inspect_text import stretches, tell, write
from data.ledger import BadRow
from data.render import Renderer, Sample


def inspect(config: InspectConfig) -> None:
    """Write rows and tables to standard output, and the page where one is asked for.

    Raises:
        ConfigError: `html` cannot be a file.
        DataError: a bad row where none may be skipped, or supervision that makes no sense.
    """
    target = None if config.html is None else check_target(config.html)
    found = look(config)
    chosen = choose_rows(found.lengths, found.source_of, config.num_rows, seed=config.seed)
    check_supervision(found, chosen)
    write(tell(found, chosen, config, colour=sys.stdout.isatty()))
    if target is not None:
        size = write_whole(target, pieces_of_page(found, chosen, config))
        write([f"wrote {target}: {len(chosen)} rows, {size:,} bytes"])


def look(config: InspectConfig) -> Inspection:
    """Return what would be trained on: measured, or the first rows of a stream."""
    # One slot of a stream reads all of its shards.
    data = replace(config.data, packs_per_step=1) if config.data.streaming else config.data
    renderer, training = build_training_data(config.model, data, seed=config.seed)
    if training.samples is None:
        return first_of_stream(training, config, renderer)
    return all_rows(training, config, renderer)


def all_rows(training: TrainingData, config: InspectConfig, renderer: Renderer) -> Inspection:
    """Return what an index tells of the sources."""
    rows, plan, ledger = training.samples, training.plan, training.ledger
    assert rows is not None and plan is not None
    if len(rows) < plan.packs_per_step:  # a few are enough to look at, if not to train on
        data = replace(config.data, packs_per_step=1)
        plan = plan_packs(rows, data, ledger, seed=config.seed).plan
        assert plan is not None
    mixture = describe_samples(rows, plan.weights, ledger)
    names, packs = rows.source_names, plan.epoch(0)
    return Inspection(
        rows.lengths, rows.source_of, names, rows.sample, renderer, packs, ledger.bad, mixture
    )


def first_of_stream(
    training: TrainingData, config: InspectConfig, renderer: Renderer
) -> Inspection:
    """Return the first `data.buffer_rows` rows of sources that are read in order."""
    packs: list[Sequence[int]] = []
    samples: list[Sample] = []
    bad: list[BadRow] = []
    for job in training.packs_of(0, 1).jobs(0):
        packs.append(range(len(samples), len(samples) + len(job.samples)))
        samples += [sample for sample in job.samples if isinstance(sample, Sample)]
        bad += [row for row in job.bad_rows if row not in bad]
        if len(samples) >= config.data.buffer_rows:
            break
    found = listed(samples, list(config.data.sources), renderer, packs=packs, bad=bad)
    told = f"streamed: the first {len(samples):,} rows that packs are made of; rows of a small set "
    return replace(found, mixture=f"{told}come more than once")


def listed(
    samples: Sequence[Sample],
    source_names: Sequence[str],
    renderer: Renderer,
    *,
    packs: Sequence[Sequence[int]] = (),
    bad: Sequence[BadRow] = (),
) -> Inspection:
    """Return an inspection of samples that are at hand."""
    lengths = np.array([lengths_of(sample, renderer) for sample in samples], FIELDS)
    source_of = np.array([source_names.index(sample.row.source) for sample in samples], np.uint16)
    return Inspection(
        lengths, source_of, source_names, lambda number: samples[number], renderer, packs, bad
    )


def choose_rows(
    lengths: Lengths, source_of: npt.NDArray[np.integer], num_rows: int, *, seed: int
) -> list[int]:
    """Return numbers of samples to show: `num_rows` a source, spread over its languages.

    The same seed gives the same rows; more of them begin with the same ones.
    """
    chosen: list[int] = []
    for source in np.unique(source_of):
        rng = np.random.default_rng([seed, int(source)])
        mine = np.flatnonzero(source_of == source)
        languages = lengths["language"][mine]
        groups = [
            rng.permutation(mine[languages == language])[:num_rows].tolist()
            for language in rng.permutation(np.unique(languages))
        ]
        turns = zip_longest(*groups)  # the first of each language, then the second
        drawn = [number for turn in turns for number in turn if number is not None]
        chosen += drawn[:num_rows]
    return chosen


def check_supervision(found: Inspection, chosen: Sequence[int]) -> None:
    """Refuse sources of which nothing would be learned, and rows that would teach pictures.

    All rows count for the first; the second was asked of each when it was measured, and is asked
    once more of those that are shown.

    Raises:
        DataError: naming the source or the row.
    """
    learned = np.bincount(
        found.source_of, found.lengths["num_supervised"], minlength=len(found.source_names)
    )
    for number in np.unique(found.source_of):
        if not learned[number]:
            name = found.source_names[number]
            raise DataError(f"source {name}: no token of it would be supervised")
    for number in chosen:
        sample = found.sample(number)
        try:
            found.renderer.check_supervised(sample)
        except DataError as error:
            raise DataError(f"row {sample.row}: {error}") from error


def facts_of(config: InspectConfig) -> dict[str, str]:
    """Return what matters most of the config, in words."""
    model, data = config.model, config.data
    path = model.path or model.decoder.path or "fresh"
    sources = (
        f"{name} ({source.path or source.kind.value}, weight {source.weight:g})"
        for name, source in data.sources.items()
    )
    return {
        "model": f"{model.kind.value}: {path}",
        "sources": ", ".join(sources),
        "pack": f"{data.max_tokens:,} tokens, {data.max_tiles:,} tiles",
        "bad rows": data.on_bad_row.value,
        "seed": str(config.seed),
    }


def pieces_of_page(
    found: Inspection, chosen: Sequence[int], config: InspectConfig
) -> Iterator[str]:
    """Return the page, row after row, so that no more than one row's pictures are held."""
    processor = found.renderer.image_processor
    return page(
        title="What would be trained on",
        facts=facts_of(config),
        config=OmegaConf.to_yaml(OmegaConf.structured(config)),
        mixture=found.mixture,
        charts=charts_of(found, config),
        tables=tables_of(found, config),
        rows=(
            ShownRow(sample, list(stretches(sample, found.renderer)), processor)
            for sample in map(found.sample, chosen)
        ),
    )
