"""WebDataset tar shards: rows by number through an index of their headers, or in order.

Nothing is unpacked: pictures are read from within the tar when they are needed.
"""

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import DataError
from data.cache import Cache, code_fingerprint, digest
from data.sources.names import distinct_names
from data.sources.records import Columns, Found
from data.sources.tar_columns import row_columns
from data.sources.tar_members import TarRow, iterate_rows, open_shard

GZIP = (".tar.gz", ".tgz")
CUT = "<truncated>"  # in the place of a key: the row that stands for what could not be read


class TarRecords:
    """The rows of plain tar shards by number, as Records.

    A key that comes back later in its shard, not consecutively, is a row of its own whose place
    ends in #2, #3, ...; what it means for ids is left to the caller. A shard that is cut off or
    damaged ends in a bad row `<shard>/<truncated>`.
    """

    def __init__(self, paths: Sequence[Path], cache: Cache) -> None:
        """Read the headers of all shards, or what the cache knows of them.

        Raises:
            DataError: a shard is compressed, missing or given twice, or no shard holds a row.
        """
        self.paths, self.cache = [Path(path) for path in paths], cache
        for path in self.paths:
            _check_suffix(path, in_order=False)
        self.root = self.paths[0].parent
        self._names = distinct_names(self.paths)
        self._stamp = _stamp(self.paths)
        folder = cache.folder("tar", self._stamp, self._build)
        load = partial(np.load, mmap_mode="r", allow_pickle=False)
        self._shards, self._starts, self._key_ends, self._keys = (
            load(folder / f"{name}.npy") for name in ("shards", "starts", "key_ends", "keys")
        )
        if not len(self):
            raise DataError(
                f"no row in {', '.join(self._names[:3])}: a WebDataset shard has members named "
                "<key>.<field>, such as 000123.jpg and 000123.txt"
            )

    def __len__(self) -> int:
        """Return the number of rows, those that cannot be read included."""
        return len(self._starts)

    def __reduce__(self) -> tuple[Any, ...]:
        """Open anew where it is unpickled: the index lies in the cache."""
        return TarRecords, (self.paths, self.cache)

    def place(self, index: int) -> str:
        """Return `<shard file name>/<key>`, with folders where two shards have one name."""
        return f"{self._names[self._shards[index]]}/{self._key(index)}"

    def columns(self, index: int) -> Columns:
        """Return row `index`.

        Raises:
            DataError: a member is not what its suffix says, or the shard ends or changed here.
        """
        shard = self._shards[index]
        path, name = self.paths[shard], self._names[shard]
        with open_shard(path, name) as file:
            row = next(_told(iterate_rows(file, int(self._starts[index])), name), None)
        if row is None or not self._key(index).startswith(row.key):
            raise DataError(f"{name} changed after it was opened; start again")
        return row_columns(row, path, name)

    def fingerprint(self) -> str:
        """Return what changes with every edit of a shard; their content is too much to read."""
        return self._stamp

    def _key(self, index: int) -> str:
        start = int(self._key_ends[index - 1]) if index else 0
        return self._keys[start : int(self._key_ends[index])].tobytes().decode()

    def _build(self, folder: Path) -> None:
        """Write where each row lies: 20 bytes a row, and its key."""
        shards, starts, key_ends, keys = array("i"), array("q"), array("q"), bytearray()
        for number, path in enumerate(self.paths):
            for key, start in _index(path):
                keys += key.encode()
                shards.append(number)
                starts.append(start)
                key_ends.append(len(keys))
        index = {"shards": shards, "starts": starts, "key_ends": key_ends, "keys": keys}
        for name, values in index.items():
            np.save(folder / name, np.array(values))


class TarShard:
    """A tar shard, plain or gzipped, that is read from its start to its end, as Shard.

    Places are `<name>/<key>`. A key that comes back shares its place: to tell the two apart, all
    keys before the cursor would have to be kept.
    """

    def __init__(self, path: Path, name: str | None = None) -> None:
        """Take the file's name for `name` where none is given; the file is opened by `read`.

        Raises:
            DataError: the file's name ends in something that cannot be read in order.
        """
        _check_suffix(path, in_order=True)
        self.path, self.name, self.root = path, name or path.name, path.parent

    def read(self, cursor: Any = None) -> Iterator[Found]:
        """Yield rows in order. The cursor is [byte of the next header, number of the next row].

        In a gzipped shard the byte is that of the unpacked stream, which is read again up to there,
        and pictures are {"bytes", "path"}. A null for the byte: all is read.
        """
        start, number = cursor or (0, 0)
        if start is None:
            return
        packed = self.path.name.lower().endswith(GZIP)
        with open_shard(self.path, self.name, unpack=packed, buffering=0) as file:
            rows = _told(iterate_rows(file, start), self.name)
            while True:
                try:
                    row = next(rows, None)
                except DataError as error:
                    bad = partial(_refuse, str(error))
                    yield Found(number, f"{self.name}/{CUT}", bad, [None, number + 1])
                    return
                if row is None:
                    return
                read = partial(row_columns, row, self.path, self.name)
                number += 1
                yield Found(number - 1, f"{self.name}/{row.key}", read, [row.end, number])


def _index(path: Path) -> Iterator[tuple[str, int]]:
    """Yield (key, start) of each row; where the shard is cut, (CUT, byte behind the last row).

    The reason of the cut is not kept: reading on from that byte meets it again.
    """
    seen: Counter[str] = Counter()
    end = 0
    with open_shard(path, path.name, buffering=0) as file:
        try:
            for row in iterate_rows(file):
                yield _unique(row.key, seen), row.start
                end = row.end
        except DataError:
            yield _unique(CUT, seen), end


def _unique(key: str, seen: Counter[str]) -> str:
    """Return the key, with a number where it or what it would be called was there before."""
    name = key
    while seen[name]:
        seen[key] += 1
        name = f"{key}#{seen[key]}"
    seen[name] += 1
    return name


def _told(rows: Iterator[TarRow], shard: str) -> Iterator[TarRow]:
    """Name the shard in what is wrong with it."""
    try:
        yield from rows
    except DataError as error:
        raise DataError(f"{shard} {error}") from error


def _refuse(reason: str) -> Columns:
    raise DataError(reason)


def _check_suffix(path: Path, *, in_order: bool) -> None:
    """Raise DataError where the file is no tar that can be read in this way."""
    name = path.name.lower()
    if name.endswith((".tar.zst", ".tar.zstd", ".tzst")):
        raise DataError(
            f"{path.name} is compressed with zstandard, which is not read here; unpack the "
            "compression (zstd -d; pictures hardly shrink anyhow)"
        )
    if name.endswith(GZIP) and not in_order:
        raise DataError(
            f"{path.name} is compressed, so that rows cannot be read by number; unpack the "
            "compression (gunzip), or set data.streaming=true"
        )
    if not name.endswith((".tar", *GZIP)):
        raise DataError(f"{path.name} is no tar shard; wanted a name in .tar, .tar.gz or .tgz")


def _stamp(paths: Sequence[Path]) -> str:
    """Return the index's key in the cache: by size and times, so that no shard is read whole."""
    told = []
    for path in paths:
        try:
            stat = path.stat()
        except OSError as error:
            raise DataError(f"{str(path)!r} cannot be opened: {error.strerror}") from error
        told.append([str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns,
                     stat.st_ino])  # fmt: skip
    return digest([code_fingerprint(), told])
