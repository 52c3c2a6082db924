"""All samples of a run by number, rendered when they are asked for.

What stays in memory is the index: lengths, and which row of which source a sample is. Token ids
are made again where they are needed, in the workers; of small sets the first ones are kept.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from configs.errors import DataError
from data.images import BytesImage
from data.index import FIELDS, Lengths, SourceIndex
from data.ledger import BadRow, refusal
from data.render import Renderer, Sample, over_budget
from data.sources.table import RowTable

REPEATED = "an earlier row has the same id; id_field names no column of unique ids"
KEPT_TOKENS = 4_000_000  # of rendered samples that are kept (20 MB a process)


@dataclass
class SampleTable:
    """The usable rows of several sources, source after source."""

    tables: Sequence[RowTable]
    renderer: Renderer
    lengths: Lengths  # [samples]
    source_of: npt.NDArray[np.uint16]  # [samples] number in `tables`
    row_of: npt.NDArray[np.uint32]  # [samples] number in the source
    folders: Sequence[Path] = ()  # of the indexes, in the cache
    _kept: dict[int, Sample] = field(default_factory=dict, repr=False)
    _num_kept: int = 0

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def source_names(self) -> list[str]:
        """Names of the sources, by their number."""
        return [table.name for table in self.tables]

    def row_name(self, number: int) -> str:
        """Return `source/id` of a sample, for messages."""
        table = self.tables[int(self.source_of[number])]
        return f"{table.name}/{table.row_id(int(self.row_of[number]))}"

    def sample(self, number: int) -> Sample:
        """Return sample `number`.

        Raises:
            DataError: its row cannot be read any more, or has changed since it was measured.
        """
        made = self.try_sample(number)
        if isinstance(made, BadRow):
            raise DataError(refusal([made]))
        return made

    def try_sample(self, number: int) -> Sample | BadRow:
        """Return sample `number`, or why its row cannot be used any more."""
        kept = self._kept.get(number)
        if kept is not None:
            return kept
        table, row = self.tables[int(self.source_of[number])], int(self.row_of[number])
        try:
            sample = self.renderer.render(table.row(row))
            self._check_unchanged(number, sample)
        except DataError as error:
            return BadRow(table.name, table.row_id(row), str(error))
        if self._num_kept < KEPT_TOKENS and not _holds_bytes(sample):
            self._kept[number] = sample
            self._num_kept += sample.num_tokens
        return sample

    def _check_unchanged(self, number: int, sample: Sample) -> None:
        measured = self.lengths[number]
        tiles, was = sum(sample.num_tiles), (measured["num_tokens"], measured["num_tiles"])
        if (sample.num_tokens, tiles) != was:
            for folder in self.folders:  # else the next start would trust them again
                shutil.rmtree(folder, ignore_errors=True)
            raise DataError(
                f"has changed since it was measured: it had {was[0]} tokens and {was[1]} tiles, "
                f"now {sample.num_tokens} and {tiles}; start the run again"
            )


def _holds_bytes(sample: Sample) -> bool:
    return any(isinstance(picture, BytesImage) for picture in sample.row.images)


@dataclass(frozen=True)
class Usable:
    """The rows of one source that fit the budgets, and those left out."""

    rows: npt.NDArray[np.uint32]  # numbers
    bad: list[BadRow]


def usable_rows(
    table: RowTable, index: SourceIndex, *, max_tokens: int, max_tiles: int, check_ids: bool
) -> Usable:
    """Return which rows of a source can be packed; the others with the reason why not.

    Args:
        table: the rows.
        index: how long they are.
        max_tokens: budget of a pack.
        max_tiles: budget of a pack.
        check_ids: refuse a row whose id an earlier one has.
    """
    lengths, bad = index.lengths, dict(index.bad)
    for key, budget in (("max_tokens", max_tokens), ("max_tiles", max_tiles)):
        held = lengths[key.replace("max", "num")]
        for number in np.flatnonzero(held > budget).tolist():
            reason = over_budget(key, held[number], budget)
            bad.setdefault(number, BadRow(table.name, table.row_id(number), reason))
    if check_ids:
        for number, reason in _repeated_ids(table, lengths):
            bad.setdefault(number, BadRow(table.name, table.row_id(number), reason))
    keep = np.ones(len(lengths), dtype=np.bool_)
    keep[list(bad)] = False
    return Usable(np.flatnonzero(keep).astype(np.uint32), [bad[number] for number in sorted(bad)])


def _repeated_ids(table: RowTable, lengths: Lengths) -> list[tuple[int, str]]:
    """Return the number of each row whose id is an earlier one's, and why it is refused."""
    hashes = np.where(
        lengths["is_bad"], np.arange(len(lengths), dtype=np.uint64), lengths["id_hash"]
    )
    order = np.argsort(hashes, kind="stable")
    alike = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
    first: dict[str, int] = {}
    found = []
    for at in sorted({*order[alike].tolist(), *order[alike + 1].tolist()}):
        row_id = table.row_id(at)  # told apart by themselves: two ids may share a hash
        earlier = first.setdefault(row_id, at)
        if earlier != at:
            found.append((at, REPEATED))
    return found


def join_samples(
    tables: Sequence[RowTable],
    indexes: Sequence[SourceIndex],
    rows: Sequence[npt.NDArray[np.uint32]],
    renderer: Renderer,
) -> SampleTable:
    """Return the chosen rows of several sources as one table of samples."""
    lengths = [index.lengths[chosen] for index, chosen in zip(indexes, rows, strict=True)]
    sizes = [len(chosen) for chosen in rows]
    return SampleTable(
        tables=tables,
        renderer=renderer,
        lengths=np.concatenate([np.zeros(0, FIELDS), *lengths]),
        source_of=np.repeat(np.arange(len(tables), dtype=np.uint16), sizes),
        row_of=np.concatenate([np.zeros(0, np.uint32), *rows]),
        folders=[index.folder for index in indexes],
    )
