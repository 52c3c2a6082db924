"""Where the elements of a JSON file with one long list begin and end.

Finding that out takes a parse of the whole file, so it is kept in the cache.
"""

import json
import re
from pathlib import Path

import numpy as np

from configs.errors import DataError
from data.cache import Cache, digest
from data.sources.text_spans import SPAN

BOM = "\xef\xbb\xbf"  # the three bytes of UTF-8, each taken for a character
SPACES = re.compile(r"[ \t\r\n]*")
# Only the extent counts here: numbers stay text, so one that is too long is that row's trouble.
DECODER = json.JSONDecoder(parse_int=str, parse_float=str)


def list_spans(path: Path, cache: Cache) -> np.ndarray:
    """Return [elements] of SPAN, on disk; lines are those that the elements start on.

    Raises:
        DataError: the file is not one JSON list.
    """

    def build(folder: Path) -> None:
        np.save(folder / "spans.npy", _walk(path), allow_pickle=False)

    key = digest(["json list", SPAN.descr, cache.file_fingerprint(path)])
    file = cache.folder("spans", key, build) / "spans.npy"
    spans: np.ndarray = np.load(file, mmap_mode="r", allow_pickle=False)
    return spans.view(np.ndarray)  # a plain array pickles


def _walk(path: Path) -> np.ndarray:
    # JSON's structure is ASCII, so a character a byte changes no extent, and offsets are bytes.
    text = path.read_bytes().decode("latin-1")
    at = _skip(text, len(BOM) if text.startswith(BOM) else 0)
    if text[at : at + 1] != "[":
        raise DataError(
            f"{path}: has no list at its top but {_utf8(text[at : at + 20])!r}; a .json file is "
            "one list of objects; if this one has a row a line, name it .jsonl"
        )
    spans: list[tuple[int, int, int]] = []
    line, counted = 1, 0
    at = _skip(text, at + 1)
    more = text[at : at + 1] != "]"
    while more:
        end = _end_of_value(text, at, path)
        line, counted = line + text.count("\n", counted, at), at
        spans.append((at, line, end - at))
        at = _skip(text, end)
        more = text[at : at + 1] == ","
        if more:
            at = _skip(text, at + 1)
        elif text[at : at + 1] != "]":
            raise _broken(path, text, at, "Expecting ',' or ']'")
    end = _skip(text, at + 1)
    if end < len(text):
        raise _broken(path, text, end, "Extra data behind the list")
    return np.array(spans, SPAN)


def _skip(text: str, at: int) -> int:
    found = SPACES.match(text, at)
    return found.end() if found else at


def _end_of_value(text: str, at: int, path: Path) -> int:
    try:
        return DECODER.raw_decode(text, at)[1]
    except json.JSONDecodeError as error:
        raise _broken(path, text, error.pos, error.msg) from error
    except RecursionError as error:
        raise _broken(path, text, at, "Nested too deeply") from error


def _broken(path: Path, text: str, at: int, what: str) -> DataError:
    line = text.count("\n", 0, at) + 1
    column = len(_utf8(text[text.rfind("\n", 0, at) + 1 : at])) + 1
    return DataError(f"{path}: is not JSON: {what} at line {line}, column {column}")


def _utf8(text: str) -> str:
    return text.encode("latin-1").decode("utf-8", "replace")
