"""Rows of JSONL and CSV files, compressed or not, read from start to end."""

import gzip
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

from configs.errors import DataError
from data.sources.records import Found
from data.sources.text_rows import DELIMITERS, is_compressed, read_layout, suffix_of
from data.sources.text_spans import Mark, find_rows, read_some


class TextShard:
    """A .jsonl, .ndjson, .csv or .tsv file, or one of these with .gz behind."""

    def __init__(self, path: Path, name: str | None = None) -> None:
        """Take a file; its rows are called by `name`, which is the file's where none is given.

        Raises:
            DataError: the name tells of a kind that is not read in order.
        """
        if suffix_of(path) == ".json":
            raise DataError(
                f"{path}: is one JSON list, which cannot be streamed; write a row a line (.jsonl)"
            )
        if suffix_of(path) not in DELIMITERS:
            raise DataError(f"{path}: is streamed from files of {', '.join(DELIMITERS)}, and .gz")
        self.path = path
        self.name = name or path.name
        self.root = path.parent

    def read(self, cursor: Any = None) -> Iterator[Found]:
        """Yield rows in order, from the start or from behind the row whose `after` is given.

        `after` is [offset in the unpacked bytes, rows before it, line]. A packed file has no way to
        get there but to unpack what is before.

        Raises:
            DataError: the file has no header, is packed badly, or is shorter than the cursor says.
        """
        with _open(self.path) as stream:
            layout = read_layout(stream, self.path)
            begin = layout.begin if cursor is None else Mark(*cursor)
            _go_to(stream, begin.offset, self.path)
            number = begin.number
            for block in find_rows(stream, begin, layout.delimiter, self.path):
                for raw, start, line in block.rows():
                    # Ends before the newline: the rest of that line is blank and counts as it did.
                    after = [start + len(raw), number + 1, line + raw.count(b"\n")]
                    place = f"{self.name}:{line}"
                    yield Found(number, place, partial(layout.parse, raw), after)
                    number += 1


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path)) if is_compressed(path) else path.open("rb")


def _go_to(stream: BinaryIO, offset: int, path: Path) -> None:
    """Move to an offset behind a row. Seeking alone would not tell that the file ends before it."""
    try:
        stream.seek(max(offset - 1, 0))
    except (OSError, EOFError, zlib.error) as error:  # packed: it reads all that is before
        raise DataError(f"{path}: cannot be unpacked up to byte {offset}: {error}") from error
    if offset and not read_some(stream, 1, path):
        raise DataError(
            f"{path}: ends before byte {offset}, where reading was to go on; it has changed since"
        )
