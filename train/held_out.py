"""From the config to held-out rows that are ready to be measured."""

import logging

from configs.schema import DataConfig, MeasureConfig
from data.render import Renderer
from data.rows import Row
from data.sources.build import new_ledger, read_rows, render_rows
from train.evaluation import HeldOut

log = logging.getLogger(__name__)


def prepare_held_out(
    data: DataConfig,
    evaluation: MeasureConfig,
    renderer: Renderer,
    *,
    seed: int,
    text_only: bool = False,
) -> HeldOut:
    """Return the held-out rows, ready to be measured.

    Args:
        data: `held_out` of it is read.
        evaluation: how many rows, and how they are answered.
        renderer: with the processor of the model to be measured.
        seed: of the shipped sources.
        text_only: leave out groups of rows with pictures, which a text LM cannot read, and say so.
    """
    samples = {}
    if data.held_out:
        ledger = new_ledger(data)
        rows = read_rows(data, data.held_out, ledger, seed=seed)
        if text_only:
            rows = _without_pictures(rows)
        samples = render_rows(rows, renderer, data, ledger)
    return HeldOut(
        samples,
        renderer,
        max_rows=evaluation.max_rows,
        batch_size=evaluation.batch_size,
        max_new_tokens=evaluation.max_new_tokens,
    )


def _without_pictures(rows: dict[str, list[Row]]) -> dict[str, list[Row]]:
    kept = {name: group for name, group in rows.items() if not any(row.images for row in group)}
    if len(kept) < len(rows):
        log.info("a text LM sees no pictures: %s left out", ", ".join(rows.keys() - kept.keys()))
    return kept
