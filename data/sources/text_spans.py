"""Where the rows of a text file begin and end, found a block at a time; nothing is parsed here.

Blocks are read and not memory-mapped: a file that is cut short under a map kills the process, and a
compressed stream has no map. So files by number and streams in order share this one way.
"""

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from configs.errors import DataError

# Packed, 20 bytes a row: offset of its first byte; line that is on, from 1; bytes, newline apart.
SPAN = np.dtype([("start", "<i8"), ("line", "<i8"), ("size", "<u4")])
BLOCK_BYTES = 1 << 20
MAX_ROW_BYTES = 1 << 30  # beyond it a quote or a newline is missing, and memory would go first
NEWLINE, RETURN, QUOTE = 10, 13, 34
IS_INK = np.ones(256, dtype=bool)
IS_INK[list(b" \t\r\n")] = False


class Mark(NamedTuple):
    """A place between two rows."""

    offset: int  # bytes
    number: int  # rows before it
    line: int  # from 1


START = Mark(0, 0, 1)


class Block(NamedTuple):
    """A piece of a file that holds whole rows."""

    data: bytes
    offset: int  # of its first byte in the file
    spans: np.ndarray  # [rows] of SPAN, starts counted from the file's first byte

    def rows(self) -> Iterator[tuple[bytes, int, int]]:
        """Yield (bytes, offset, line) of each row."""
        for start, line, size in self.spans.tolist():
            begin = start - self.offset
            yield self.data[begin : begin + size], start, line


def find_rows(stream: BinaryIO, begin: Mark, delimiter: str | None, path: Path) -> Iterator[Block]:
    """Yield the blocks of a stream that stands at `begin`, the start of a row.

    With a delimiter it is CSV, where a newline within quotes ends no row; without, each line is a
    row. Lines with nothing on them are none.

    Raises:
        DataError: the stream breaks off, or a row is longer than 1 GiB.
    """
    offset, _, line = begin
    rest, more = b"", b"first"
    while more:
        # A row longer than a block: twice as much each time, so that it is not searched in squares.
        more = read_some(stream, max(BLOCK_BYTES, len(rest)), path)
        data = rest + more
        spans, used, num_lines = _rows_in(data, delimiter, is_last=not more)
        spans["start"] += offset
        spans["line"] += line
        yield Block(data, offset, spans)
        rest, offset, line = data[used:], offset + used, line + num_lines
        if len(rest) > MAX_ROW_BYTES:
            missing = "newline" if delimiter is None else "closing quote"
            raise DataError(
                f"{path}: the row on line {line} is longer than {MAX_ROW_BYTES} bytes; "
                f"is a {missing} missing?"
            )


def read_some(stream: BinaryIO, size: int, path: Path) -> bytes:
    """Return the next `size` bytes of a stream, fewer only at its end.

    Raises:
        DataError: it breaks off.
    """
    try:
        return stream.read(size)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read to its end: {error}; is it whole?") from error


def _rows_in(data: bytes, delimiter: str | None, *, is_last: bool) -> tuple[np.ndarray, int, int]:
    """Return the SPANs of the whole rows (lines from 0), and the bytes and lines they take up."""
    view = np.frombuffer(data, np.uint8)
    newlines = np.flatnonzero(view == NEWLINE)
    closing = np.arange(newlines.size)  # those of them that end a row
    if delimiter is not None:
        closing = np.flatnonzero(~_within_quotes(view, newlines, ord(delimiter)))
    ends = newlines[closing]
    used, num_lines = (int(ends[-1]) + 1, int(closing[-1]) + 1) if ends.size else (0, 0)
    starts, lines = np.append(0, ends + 1)[:-1], np.append(0, closing + 1)[:-1]
    if is_last and used < view.size:  # the last row has no newline behind it
        starts, lines = np.append(starts, used), np.append(lines, num_lines)
        ends, used = np.append(ends, view.size), view.size
    spans = np.empty(starts.size, SPAN)
    spans["start"], spans["line"], spans["size"] = starts, lines, ends - starts
    return spans[_has_row(view[:used], spans, delimiter)], used, num_lines


def _has_row(view: np.ndarray, spans: np.ndarray, delimiter: str | None) -> np.ndarray:
    """Return [spans] bool: which are no blank lines, as `json` or `csv` takes them."""
    if not spans.size:
        return np.zeros(0, dtype=bool)
    if delimiter is None:
        return np.logical_or.reduceat(IS_INK[view], spans["start"])
    is_return = view[spans["start"]] == RETURN
    return spans["size"] > is_return


def _within_quotes(view: np.ndarray, newlines: np.ndarray, delimiter: int) -> np.ndarray:
    """Return [newlines] bool: which stand in a quoted field of CSV that begins outside of one.

    Quotes side by side are one run; of even length it changes nothing (empty field, or quotes that
    are doubled within a field). An odd run where a field may begin changes from outside to inside
    or back. Any other odd run leaves us outside, wherever we were: it closes the field, or is
    an ordinary character of an unquoted one. In well-formed CSV this is the count of quotes modulo
    2; past a stray quote it is still what Python's `csv` does.
    """
    quotes = np.flatnonzero(view == QUOTE)
    first = np.flatnonzero(np.diff(quotes, prepend=-2) != 1)
    runs = quotes[first][np.diff(first, append=quotes.size) % 2 == 1]
    before = np.where(runs > 0, view[runs - 1], NEWLINE)
    is_swap = (before == delimiter) | (before == NEWLINE)
    swaps = np.cumsum(is_swap)
    swaps -= np.maximum.accumulate(np.where(is_swap, 0, swaps))  # since the last that left us out
    is_inside = np.append(False, swaps % 2 == 1)
    return is_inside[np.searchsorted(runs, newlines)]
