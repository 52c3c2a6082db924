"""Rows of JSONL, JSON and CSV files by number; of folders of pictures too, by their metadata file.

`datasets` gives a JSON file up whole at its first bad line, and copies what it reads into Arrow.
Here a bad line is that row's trouble alone, and of each row 20 bytes are kept: where it stands.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import DataError
from data.cache import Cache, combine
from data.sources.json_list import list_spans
from data.sources.names import distinct_names
from data.sources.records import Columns
from data.sources.text_rows import Layout, is_compressed, read_layout, suffix_of
from data.sources.text_shards import TextShard
from data.sources.text_spans import SPAN, find_rows

__all__ = ["FolderRecords", "TextRecords", "TextShard", "open_folder"]
MAX_OPEN = 128  # files; a process may have 1,024, and there are other sources
METADATA = ("metadata.jsonl", "metadata.csv")
# Hugging Face's ImageFolder calls them so, and shows them as `image` and `images`.
FILE_COLUMNS = ("file_name", "file_names")


class TextRecords:
    """The rows of .jsonl, .ndjson, .json, .csv and .tsv files, one file after another."""

    def __init__(self, paths: Sequence[Path], cache: Cache) -> None:
        """Find where the rows stand.

        Raises:
            DataError: a file is compressed, of another kind, given twice, without a header, or
                (.json) broken.
        """
        self.root = paths[0].parent
        self._paths = list(paths)
        self._names = distinct_names(paths)
        self._cache = cache
        opened = [_open(path, cache) for path in paths]
        self._layouts = [layout for layout, _ in opened]
        self._spans = [spans for _, spans in opened]
        self._ends = np.cumsum([len(spans) for spans in self._spans])
        self._files: dict[int, _File] = {}

    def __len__(self) -> int:
        return int(self._ends[-1])

    def place(self, index: int) -> str:
        """Return file and line, `rows.jsonl:17`; and if JSON elements share it, their number."""
        file, row = self._find(index)
        lines = self._spans[file]["line"][max(row - 1, 0) : row + 2].tolist()
        line = lines[min(row, 1)]
        number = f"[{row}]" if lines.count(line) > 1 else ""
        return f"{self._names[file]}:{line}{number}"

    def columns(self, index: int) -> Columns:
        """Return row `index`.

        Raises:
            DataError: it cannot be parsed.
        """
        file, row = self._find(index)
        start, _, size = self._spans[file][row].item()
        raw = os.pread(self._descriptor(file).number, size, start)
        if len(raw) < size:
            raise DataError("is cut short: its file has changed since it was opened")
        return self._layouts[file].parse(raw)

    def fingerprint(self) -> str:
        """Return the digest of the names and bytes of the files."""
        return combine([*self._names, *map(self._cache.file_fingerprint, self._paths)])

    def _find(self, index: int) -> tuple[int, int]:
        """Return the file that row `index` is in, and its number there."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        file = int(np.searchsorted(self._ends, index, side="right"))
        return file, index - int(self._ends[file]) + len(self._spans[file])

    def _descriptor(self, file: int) -> "_File":
        opened = self._files.get(file)
        if opened is None:
            if len(self._files) >= MAX_OPEN:
                self._files.pop(next(iter(self._files)), None)
            opened = self._files[file] = _File(self._paths[file])
        return opened

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": {}}


class FolderRecords:
    """A folder of pictures with a metadata file whose rows name them."""

    def __init__(self, folder: Path, metadata: TextRecords) -> None:
        self.root = folder
        self._metadata = metadata

    def __len__(self) -> int:
        return len(self._metadata)

    def place(self, index: int) -> str:
        """Return the line of the metadata file."""
        return self._metadata.place(index)

    def columns(self, index: int) -> Columns:
        """Return row `index`; where it has no `image`, its file name is that.

        Raises:
            DataError: it cannot be parsed.
        """
        columns = self._metadata.columns(index)
        found = next((name for name in FILE_COLUMNS if name in columns), None)
        if found is not None and "image" not in columns:
            columns["image"] = columns.pop(found)
        return columns

    def fingerprint(self) -> str:
        """Return the digest of the metadata file."""
        return self._metadata.fingerprint()


def open_folder(folder: Path, cache: Cache) -> FolderRecords:
    """Return the rows of a folder's metadata.jsonl or metadata.csv.

    Raises:
        DataError: there is none of them, or both, or it cannot be opened.
    """
    found = [name for name in METADATA if (folder / name).is_file()]
    if len(found) != 1:
        names = sorted(path.name for path in folder.iterdir())
        listed = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        raise DataError(
            f"{folder}: a folder of pictures needs one of {' or '.join(METADATA)}, whose column "
            f"file_name names them; there is {' and '.join(found) or listed or 'nothing'}"
        )
    return FolderRecords(folder, TextRecords([folder / found[0]], cache))


class _File:
    """An open file that is read by position.

    Such reads move no offset, so what a fork inherits is shared without harm. It closes when nobody
    reads from it any more, be it dropped from the open ones meanwhile.
    """

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


def _open(path: Path, cache: Cache) -> tuple[Layout, np.ndarray]:
    """Return how a file's rows are written, and where: [rows] of SPAN."""
    if is_compressed(path):
        raise DataError(
            f"{path}: is compressed, so its rows cannot be read by number; unpack it, or set "
            "data.streaming=true"
        )
    if suffix_of(path) == ".json":
        return Layout(), list_spans(path, cache)
    with path.open("rb") as stream:
        layout = read_layout(stream, path)
        stream.seek(layout.begin.offset)
        found = [block.spans for block in find_rows(stream, layout.begin, layout.delimiter, path)]
    return layout, np.concatenate([np.empty(0, SPAN), *found])
