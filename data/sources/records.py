"""What every reader of files gives to the rest: raw rows by number, or shards read in order.

A raw row is its columns, before anything is made of them (`data/columns.py` does that).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

Columns = dict[
    str, Any
]  # by name; pictures as path, {"bytes", "path"}, FilePart, or a list of them


@dataclass(frozen=True, slots=True)
class FilePart:
    """An encoded picture that lies within a file, such as a member of a tar shard."""

    path: Path
    offset: int  # bytes
    size: int  # bytes
    name: str  # for messages


class Records(Protocol):
    """The raw rows of a source, by number.

    Opening reads no row, reading one reads no other, and what is open survives a fork: workers read
    side by side.
    """

    @property
    def root(self) -> Path:
        """Return the folder that paths of pictures start from where the config names none."""
        ...

    def __len__(self) -> int:
        """Return the number of rows, those that cannot be read included."""
        ...

    def place(self, index: int) -> str:
        """Return where row `index` stands, unique in its source: `rows.jsonl:17`."""
        ...

    def columns(self, index: int) -> Columns:
        """Return row `index`.

        Raises:
            DataError: it cannot be read; without its place, which the caller adds.
        """
        ...

    def fingerprint(self) -> str:
        """Return a digest that changes with anything that a row says (not with its pictures)."""
        ...


@dataclass(frozen=True, slots=True)
class Found:
    """A raw row met on the way through a shard."""

    number: int  # in its shard, from 0, those that cannot be read included
    place: str
    columns: Callable[[], Columns]  # raises DataError; not called for rows that others take
    after: Any  # where reading goes on behind this row: plain JSON values


class Shard(Protocol):
    """A part of a source that is read from its start to its end."""

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    @property
    def root(self) -> Path:
        """Return the folder that the paths of pictures start from, as of Records."""
        ...

    def read(self, cursor: Any = None) -> Iterator[Found]:
        """Yield rows in order, from the start or from behind the row whose `after` is given."""
        ...
