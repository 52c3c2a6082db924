"""A `.wandb` file: its records, read while they are written, and a file of one's own.

It is a log of LevelDB's kind: after a header, blocks of 32 KiB hold pieces of records, each with a
checksum, its length and its kind. wandb 0.31 has no reader of it in Python.
"""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from configs.errors import DataError

HEADER = b":W&B\xe1\xbe\x00"  # a name, a magic number, a version
BLOCK = 32768
HEAD = struct.Struct("<IHB")  # checksum of kind and bytes (zlib's CRC-32), length, kind
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


class LogReader:
    """Reads the records of a file that may still grow, each once."""

    def __init__(self, path: Path) -> None:
        """Begin at the start of `path`."""
        self.path, self.place = path, len(HEADER)

    def read(self) -> Iterator[bytes]:
        """Yield the records that are there by now.

        One that is written in part, or that a killed run has left so, waits for the next time.

        Raises:
            DataError: the file is not of the kind that this reads.
        """
        with self.path.open("rb") as file:
            if not HEADER.startswith(begins := file.read(len(HEADER))):
                raise DataError(
                    f"{self.path} begins with {begins!r}, but wandb 0.31 has {HEADER!r}"
                )
            place, pieces = self.place, [b""]
            while True:
                if (left := BLOCK - place % BLOCK) < HEAD.size:  # no room for a head
                    place += left
                    continue
                file.seek(place)
                if (piece := _read_piece(file)) is None:
                    return
                kind, data = piece
                place += HEAD.size + len(data)
                pieces = [data] if kind in (WHOLE, FIRST) else [*pieces, data]
                if kind in (WHOLE, LAST):
                    self.place = place
                    yield b"".join(pieces)

    @property
    def num_unread(self) -> int:
        """Bytes behind the last whole record."""
        return max(0, self.path.stat().st_size - self.place)


def _read_piece(file: BinaryIO) -> tuple[int, bytes] | None:
    head = file.read(HEAD.size)
    if len(head) < HEAD.size:
        return None
    checksum, length, kind = HEAD.unpack(head)
    data = file.read(length)
    is_whole = len(data) == length and WHOLE <= kind <= LAST
    return (kind, data) if is_whole and _checksum(kind, data) == checksum else None


class LogWriter:
    """Writes records where `wandb sync` reads them."""

    def __init__(self, path: Path) -> None:
        """Begin `path`."""
        self.file = path.open("wb")
        self.place = self.file.write(HEADER)

    def write(self, record: bytes) -> None:
        """Append a record; `flush` makes it readable."""
        is_first = True
        while True:
            if (left := BLOCK - self.place % BLOCK) < HEAD.size:
                self.file.write(bytes(left))
                self.place += left
                continue
            piece, record = record[: left - HEAD.size], record[left - HEAD.size :]
            begins, ends = (FIRST, WHOLE) if is_first else (MIDDLE, LAST)
            kind = begins if record else ends
            self.file.write(HEAD.pack(_checksum(kind, piece), len(piece), kind) + piece)
            self.place += HEAD.size + len(piece)
            is_first = False
            if not record:
                return

    def flush(self) -> None:
        """Hand on to the file system what was written."""
        self.file.flush()

    def close(self) -> None:
        """End the file."""
        self.file.close()


def _checksum(kind: int, data: bytes) -> int:
    return zlib.crc32(data, zlib.crc32(bytes([kind])))
