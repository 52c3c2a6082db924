"""A source as the rest of `data/` sees it: rows by number, each made when it is asked for."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from configs.errors import DataError
from configs.schema import SourceConfig
from data.columns import RowContext, make_row
from data.rows import Row
from data.sources.records import Columns, Found, Records


class RowTable(Protocol):
    """The rows of one source. Reading one reads no other; workers read side by side."""

    @property
    def name(self) -> str:
        """The source's name in the config."""
        ...

    @property
    def root(self) -> str:
        """The folder that paths of pictures start from; empty where they come along."""
        ...

    def __len__(self) -> int:
        """Return the number of rows, those that cannot be used included."""
        ...

    def row_id(self, index: int) -> str:
        """Return the id of row `index`, also of one that cannot be read."""
        ...

    def row(self, index: int) -> Row:
        """Return row `index`.

        Raises:
            DataError: it cannot be used; without its id, which the caller adds.
        """
        ...

    def fingerprint(self) -> str:
        """Return a digest that changes with anything that a row says (not with its pictures)."""
        ...


@dataclass(frozen=True)
class ListTable:
    """Rows that are at hand: those that ship with the project."""

    name: str
    rows: Sequence[Row]
    digest: str
    root: str = ""

    def __len__(self) -> int:
        return len(self.rows)

    def row_id(self, index: int) -> str:
        """Return the id of row `index`."""
        return self.rows[index].id

    def row(self, index: int) -> Row:
        """Return row `index`."""
        return self.rows[index]

    def fingerprint(self) -> str:
        """Return the digest of what the rows are made from."""
        return self.digest


@dataclass(frozen=True)
class RecordTable:
    """Rows made from the columns of raw records."""

    name: str
    records: Records
    config: SourceConfig
    context: RowContext

    @property
    def root(self) -> str:
        """The folder that paths of pictures start from."""
        return os.path.realpath(self.config.image_root or self.context.root)

    def __len__(self) -> int:
        limit = self.config.num_rows
        return len(self.records) if limit is None else min(limit, len(self.records))

    def row_id(self, index: int) -> str:
        """Return what `id_field` holds, or where the row stands."""
        if self.config.id_field is not None:
            try:
                row_id = self.records.columns(index)[self.config.id_field]
                return self.records.place(index) if row_id is None else str(row_id)
            except (DataError, KeyError):
                pass
        return self.records.place(index)

    def row(self, index: int) -> Row:
        """Return row `index`, made anew.

        Raises:
            DataError: it cannot be read or used.
        """
        columns = self.records.columns(index)
        field = self.config.id_field
        if field is not None and columns.get(field) is None:
            raise DataError(f"has no id: column {field!r} is missing or empty")
        row_id = self.records.place(index) if field is None else str(columns[field])
        return make_row(self.name, row_id, columns, self.config, self.context)

    def fingerprint(self) -> str:
        """Return the digest of the records; what is made of them is the config's."""
        return self.records.fingerprint()


@dataclass(frozen=True)
class TableShard:
    """Rows that are at hand, as the one shard of a stream."""

    table: RowTable

    @property
    def name(self) -> str:
        """The source's name."""
        return self.table.name

    @property
    def root(self) -> Path:
        """Not used: these rows bring their pictures along."""
        return Path()

    def read(self, cursor: Any = None) -> Iterator[Found]:
        """Yield rows in order; columns hold the row itself."""
        for number in range(cursor or 0, len(self.table)):
            row_id = self.table.row_id(number)
            yield Found(number, row_id, partial(self._columns, number), number + 1)

    def _columns(self, number: int) -> Columns:
        return {"row": self.table.row(number)}
