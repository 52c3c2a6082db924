"""From the config to held-out rows that are ready to be measured."""

import logging
from functools import partial

import numpy as np

from configs.schema import DataConfig, MeasureConfig
from data.build import Rows, index_samples, new_ledger, open_tables, rows_at_hand
from data.cache import open_cache
from data.index import SourceIndex
from data.render import Renderer, Sample
from data.sources.table import RowTable
from train.measuring.evaluation import HeldOut

log = logging.getLogger(__name__)
SEED = (
    0  # of shipped rows and drawn prompts: whatever a run's seed, it is measured on the same rows
)


def prepare_held_out(
    data: DataConfig,
    evaluation: MeasureConfig,
    renderer: Renderer,
    *,
    text_only: bool = False,
) -> HeldOut:
    """Return the held-out rows, ready to be measured.

    Args:
        data: `held_out` of it is read.
        evaluation: how many rows, and how they are answered.
        renderer: with the processor of the model to be measured.
        text_only: leave out groups of rows with pictures, which a text LM cannot read, and say so.
    """
    groups: dict[str, list[Sample]] = {}
    ledger, cache = new_ledger(data), open_cache(data.cache_dir)
    tables: dict[str, RowTable] = {}
    if data.held_out:
        tables = open_tables("held_out", data, cache, seed=SEED)
        if text_only:
            tables = _without_pictures(tables)
    if tables:
        chosen = index_samples(
            tables,
            data.held_out,
            data,
            renderer,
            cache,
            ledger,
            seed=SEED,
            choose=partial(first_of_each_language, evaluation.max_rows),
        )
        groups = {name: [] for name in chosen.source_names}
        for number in range(len(chosen)):
            groups[chosen.source_names[chosen.source_of[number]]].append(chosen.sample(number))
    return HeldOut(
        apart(groups),
        renderer,
        **limits(evaluation),
        skip=ledger.skip,
        left_out=ledger.bad,
    )


def limits(evaluation: MeasureConfig) -> dict[str, int]:
    """Return what a `HeldOut` takes of the config."""
    return {
        "batch_size": evaluation.batch_size,
        "max_new_tokens": evaluation.max_new_tokens,
        "max_answers": evaluation.max_answers,
        "num_choices": evaluation.num_choices,
    }


def apart(groups: dict[str, list[Sample]]) -> dict[str, list[Sample]]:
    """Return groups of which each has pictures in all rows or in none.

    What is measured of pictures is measured of groups that have them; what is measured of text must
    not be mixed with it. The rows without pictures of a source that has both become `<name>_text`.
    """
    found: dict[str, list[Sample]] = {}
    for name, samples in groups.items():
        seeing = [sample for sample in samples if sample.row.images]
        reading = [sample for sample in samples if not sample.row.images]
        if seeing and reading:
            log.info("held-out %s: %d rows with pictures, and %d without, measured as %s_text",
                     name, len(seeing), len(reading), name)  # fmt: skip
            found |= {name: seeing, f"{name}_text": reading}
        else:
            found[name] = samples
    return found


def first_of_each_language(max_rows: int, index: SourceIndex, rows: Rows) -> Rows:
    """Return the first `max_rows` rows of each language."""
    languages = index.lengths["language"][rows]
    kept = [np.flatnonzero(languages == language)[:max_rows] for language in np.unique(languages)]
    return rows[np.sort(np.concatenate([np.zeros(0, np.int64), *kept]))]


def _without_pictures(tables: dict[str, RowTable]) -> dict[str, RowTable]:
    kept = {name: t for name, t in tables.items() if not any(r.images for r in rows_at_hand([t]))}
    if len(kept) < len(tables):
        log.info("a text LM sees no pictures: %s left out", ", ".join(tables.keys() - kept.keys()))
    return kept
