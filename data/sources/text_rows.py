"""The bytes of one row, JSON or CSV, made into its columns."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from configs.errors import DataError
from data.sources.records import Columns
from data.sources.text_spans import START, Mark, find_rows, read_some

DELIMITERS = {".jsonl": None, ".ndjson": None, ".csv": ",", ".tsv": "\t"}
BOM = b"\xef\xbb\xbf"
JSON_TYPES = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}


@dataclass(frozen=True)
class Layout:
    """How the rows of a file are written."""

    delimiter: str | None = None  # between fields of CSV; None: JSON
    header: tuple[str, ...] = ()  # the names of CSV's columns
    begin: Mark = START  # where the first row may stand

    def parse(self, raw: bytes) -> Columns:
        """Return the columns of a row.

        Raises:
            DataError: it is not UTF-8, not JSON or CSV, no object, or has too many or few fields.
        """
        text = decode(raw)
        if self.delimiter is None:
            return parse_object(text)
        fields = parse_fields(text, self.delimiter)
        if len(fields) != len(self.header):
            raise DataError(
                f"has {len(fields)} fields where the header has {len(self.header)} "
                f"({', '.join(self.header)[:200]})"
            )
        return dict(zip(self.header, fields, strict=True))


def is_compressed(path: Path) -> bool:
    """Return whether a file's name says that it is packed by gzip."""
    return path.name.lower().endswith(".gz")


def suffix_of(path: Path) -> str:
    """Return the suffix that says what a file holds, in small letters, without `.gz`."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def read_layout(stream: BinaryIO, path: Path) -> Layout:
    """Return how the rows of a .jsonl, .ndjson, .csv or .tsv file are written, from its start.

    Raises:
        DataError: the suffix is another, or there is no header to name the columns of CSV.
    """
    suffix = suffix_of(path)
    if suffix not in DELIMITERS:
        raise DataError(f"{path}: suffix {suffix!r} is none of {', '.join(DELIMITERS)}, .json")
    begin = Mark(len(BOM) if read_some(stream, len(BOM), path) == BOM else 0, 0, 1)
    delimiter = DELIMITERS[suffix]
    if delimiter is None:
        return Layout(begin=begin)
    stream.seek(begin.offset)
    for block in find_rows(stream, begin, delimiter, path):
        for raw, start, line in block.rows():
            # Before the newline: what is left of the line is blank, and its number stays right.
            behind = Mark(start + len(raw), 0, line + raw.count(b"\n"))
            return Layout(delimiter, _header(raw, delimiter, f"{path}:{line}"), behind)
    raise DataError(f"{path}: is empty; its first row must name the columns")


def decode(raw: bytes) -> str:
    """Return the text of a row.

    Raises:
        DataError: it is not UTF-8.
    """
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"is not UTF-8 at byte {error.start + 1} of the row") from error


def parse_object(text: str) -> Columns:
    """Return what a JSON object holds.

    Raises:
        DataError: it is not JSON, or another value than an object.
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        where = "" if error.lineno == 1 else f"line {error.lineno} of the row, "
        raise DataError(f"is not JSON: {error.msg} at {where}column {error.colno}") from error
    except (ValueError, RecursionError) as error:  # digits without end, brackets without end
        raise DataError(f"is JSON that cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"is {JSON_TYPES.get(type(value), 'a number')}, not an object")
    return value


def parse_fields(text: str, delimiter: str) -> list[str]:
    """Return the fields of one CSV row.

    Raises:
        DataError: quotes that do not fit.
    """
    if len(text) > csv.field_size_limit():  # 128 KiB for all of Python; less than a conversation
        csv.field_size_limit(len(text))
    try:
        return next(csv.reader([text], delimiter=delimiter, strict=True))
    except csv.Error as error:
        if "unexpected end" in str(error):
            raise DataError(
                f"opens a quote that is never closed; {text.count(chr(10)) + 1} lines are taken "
                "for this row; close the quote, or double those within a field"
            ) from error
        raise DataError(f"is not CSV: {error}") from error


def _header(raw: bytes, delimiter: str, place: str) -> tuple[str, ...]:
    try:
        names = parse_fields(decode(raw), delimiter)
    except DataError as error:
        raise DataError(f"{place}: the header, which names the columns, {error}") from error
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{place}: the header has columns {', '.join(map(repr, twice))} twice")
    return tuple(names)
