"""Held-out rows for a vision-language model of another family: its own processor reads them."""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from configs.errors import DataError
from configs.schema import DataConfig, MeasureConfig
from data.build import new_ledger, open_tables
from data.cache import open_cache
from data.ledger import BadRow
from data.render import Sample
from data.rows import Row
from data.sources.table import RowTable
from train.measuring.conversations import Scored
from train.measuring.evaluation import HeldOut
from train.measuring.held_out import SEED, apart, limits
from train.measuring.pictures import Pictures
from train.measuring.plain_vlm import PlainVlm, blank_pictures, own_pictures
from train.measuring.reading import LossAndKL

log = logging.getLogger(__name__)
CHUNK = 8  # rows that are scored by one process before the next one's turn


class RowsAlone:
    """Makes samples of rows without rendering them: what they are in tokens, the model knows."""

    image_processor = None

    def render(self, row: Row) -> Sample:
        """Return a sample with one tile a picture and no tokens."""
        nothing = np.zeros(0, np.int32)
        return Sample(row, nothing, nothing.astype(bool), (1,) * len(row.images))


class PlainPictures(Pictures):
    """Pictures as they are, without tiles."""

    def __init__(self) -> None:
        """Hold none yet."""
        super().__init__(image_processor=None)

    def _look_at(self, sample: Sample) -> str:
        shown = own_pictures(sample.row)
        told = b"".join(str(each.size).encode() + each.tobytes() for each in shown)
        return hashlib.blake2b(told).hexdigest()


class PlainReader:
    """How a `PlainVlm` is asked: losses row by row, answers in batches where its processor can."""

    has_original = False

    def __init__(self, vlm: PlainVlm) -> None:
        """Take a model with its processor."""
        self._vlm = vlm

    def chunks(self, scored: Sequence[Scored]) -> list[list[int]]:
        """Return neighbours together."""
        numbers = range(len(scored))
        return [list(numbers[at : at + CHUNK]) for at in range(0, len(scored), CHUNK)]

    def losses(self, scored: Sequence[Scored], *, diverges: bool = False) -> list[LossAndKL]:
        """Return for each [S] nats of the tokens of its last answer."""
        shown = [self._pictures(item.shown, item.is_blank) for item in scored]
        return [(each, None) for each in self._vlm.token_losses([s.row for s in scored], shown)]

    def batches(self, samples: Sequence[Sample], batch_size: int) -> list[list[int]]:
        """Return as many pictures and alike lengths together."""
        order = sorted(
            range(len(samples)),
            key=lambda i: (
                len(samples[i].row.images),
                sum(len(t.text) for t in samples[i].row.turns),
            ),
        )
        return [order[at : at + batch_size] for at in range(0, len(order), batch_size)]

    def answers(
        self, samples: Sequence[Sample], *, is_blank: bool = False, in_step: bool = False
    ) -> list[str]:
        """Answer the last question of each sample by greedy search."""
        shown = [self._pictures(sample, is_blank) for sample in samples]
        return self._vlm.answers([sample.row for sample in samples], shown)

    @staticmethod
    def _pictures(sample: Sample, is_blank: bool) -> list[Image.Image]:
        pictures = own_pictures(sample.row)
        return blank_pictures(pictures) if is_blank else pictures


class PlainHeldOut(HeldOut):
    """Held-out rows that are measured on a `PlainVlm`."""

    def _reader(self, model: Any, original: Any) -> PlainReader:
        return PlainReader(model)


def prepare_plain(data: DataConfig, evaluation: MeasureConfig) -> PlainHeldOut:
    """Return the first rows of each language of `data.held_out`, as they are.

    Raises:
        DataError: a row cannot be read, and `data.on_bad_row` is not skip.
    """
    ledger, cache = new_ledger(data), open_cache(data.cache_dir)
    tables = open_tables("held_out", data, cache, seed=SEED) if data.held_out else {}
    renderer = RowsAlone()
    groups = {}
    for name, table in tables.items():
        bad: list[BadRow] = []
        groups[name] = [renderer.render(row) for row in _first(table, evaluation.max_rows, bad)]
        ledger.add(name, len(groups[name]), bad)
    return PlainHeldOut(
        apart(groups),
        renderer,
        pictures=PlainPictures(),
        **limits(evaluation),
        skip=ledger.skip,
        left_out=ledger.bad,
    )


def _first(table: RowTable, most: int, bad: list[BadRow]) -> Iterator[Row]:
    """Yield the first `most` rows of each language that can be read."""
    seen: Counter[str] = Counter()
    for number in range(len(table)):
        try:
            row = table.row(number)
        except DataError as error:
            bad.append(BadRow(table.name, table.row_id(number), str(error)))
            continue
        seen[row.language] += 1
        if seen[row.language] <= most:
            yield row
