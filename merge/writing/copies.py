"""Moves byte ranges from input files to output files, in the kernel where it can. No torch."""

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from configs.errors import CheckpointError
from merge.reading.checkpoint import DTYPE_BYTES
from merge.writing.output import Piece

STEP_BYTES = 32 << 20  # one system call, then progress
PLAIN_STEP_BYTES = 1 << 20  # where bytes have to go through memory
# The kernel's way does not work between these file systems, or not at all.
NOT_THERE = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EPERM)


@dataclass(frozen=True)
class Range:
    """Bytes of `source` from `start` that go to `offset` of an output file."""

    source: Path
    start: int
    offset: int
    num_bytes: int


def ranges(copied: Iterable[Piece]) -> Iterator[Range]:
    """The pieces to copy into one file, neighbours joined."""
    current: Range | None = None
    for piece in copied:
        stored = piece.source
        start = stored.offset + piece.start * DTYPE_BYTES[stored.dtype]
        following = Range(stored.file, start, piece.offset_of(piece.start), piece.num_bytes)
        if current is not None and _touch(current, following):
            size = current.num_bytes + following.num_bytes
            current = Range(current.source, current.start, current.offset, size)
            continue
        if current is not None:
            yield current
        current = following
    if current is not None:
        yield current


def copy_range(item: Range, target: int, told: Callable[[int], None]) -> None:
    """Copies one range into an open file.

    Args:
        item: what to copy.
        target: descriptor of the output file.
        told: called with the bytes of every step.

    Raises CheckpointError when the source ends early.
    """
    source = os.open(item.source, os.O_RDONLY)
    try:
        done, in_kernel = 0, True
        while done < item.num_bytes:
            left = item.num_bytes - done
            at = (item.start + done, item.offset + done)
            if in_kernel:
                try:
                    count = os.copy_file_range(source, target, min(STEP_BYTES, left), *at)
                except OSError as error:
                    if error.errno not in NOT_THERE:
                        raise
                    count = 0
                if count == 0:  # of some file systems that says "not here", not "the end"
                    in_kernel = False
                    continue
            else:
                count = _copy_plainly(source, target, min(PLAIN_STEP_BYTES, left), *at)
            if count == 0:
                raise CheckpointError(f"{item.source} ended early; was it changed?")
            done += count
            told(count)
    finally:
        os.close(source)


def write_at(target: int, data: bytes | memoryview, offset: int) -> None:
    """Writes all of `data` at `offset`, however many calls it takes."""
    view = memoryview(data)
    while view:
        count = os.pwrite(target, view, offset)
        view, offset = view[count:], offset + count


def _touch(first: Range, second: Range) -> bool:
    """Whether the second goes on where the first ends, in both files."""
    return (
        first.source == second.source
        and first.start + first.num_bytes == second.start
        and first.offset + first.num_bytes == second.offset
    )


def _copy_plainly(source: int, target: int, size: int, start: int, offset: int) -> int:
    """Copies through memory; returns the bytes copied, 0 at the end of the source."""
    data = os.pread(source, size, start)
    write_at(target, data, offset)
    return len(data)
