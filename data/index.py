"""How long each row of a source is, without its pixels: what packing must know, measured once.

Rows are measured by rendering them (text and image headers), in parallel, and kept in the cache
under a digest of all that decides the result: the rows, the tokenizer and processor, the code. An
edited file or picture is noticed. Budgets are applied afterwards, so changing one measures nothing.
"""

import json
import logging
import multiprocessing
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from configs.errors import DataError
from configs.languages import LANGUAGES
from data.cache import Cache, code_fingerprint, combine, digest
from data.images import FileImage
from data.ledger import BadRow, refusal
from data.render import Renderer, Sample
from data.sources.table import RowTable

log = logging.getLogger(__name__)
FIELDS = np.dtype(
    [
        ("num_tokens", "<i4"),  # image tokens included
        ("num_supervised", "<i4"),  # tokens
        ("num_image_tokens", "<i4"),
        ("num_tiles", "<i4"),
        ("language", "u1"),  # number in configs.languages.LANGUAGES
        ("is_bad", "?"),
        ("id_hash", "<u8"),
    ]
)
AHEAD = 4  # chunks a worker that are measured before the first of them is taken
CHUNK = 512  # rows a worker measures at once
PROBED = 100  # rows that are measured first, so that a wrong field is told at once
SERIAL = 2 * CHUNK  # up to so many rows, other processes cost more than they save
LANGUAGE_NUMBER = {code: number for number, code in enumerate(LANGUAGES)}

Lengths = npt.NDArray[np.void]  # [rows] of FIELDS


@dataclass(frozen=True)
class SourceIndex:
    """The measured rows of one source."""

    lengths: Lengths  # [rows], memory-mapped; zeros where a row is bad
    bad: dict[int, BadRow]  # by row number
    folder: Path  # in the cache


@dataclass
class _Measured:
    """What one chunk of rows gave."""

    lengths: Lengths
    bad: list[tuple[int, str, str]]  # row number, id, reason
    pictures: dict[str, str]  # path of each picture file: what tells whether it was edited


def build_index(
    table: RowTable,
    renderer: Renderer,
    cache: Cache,
    *,
    settings: object,
    verify_pixels: bool,
    num_workers: int | None,
    fail_early: bool,
) -> SourceIndex:
    """Return the index of a source, from the cache where nothing has changed.

    Args:
        table: the rows.
        renderer: of the model's processor.
        cache: where the index is kept.
        settings: plain values that decide, beside the rows, what is made of them.
        verify_pixels: decode each picture once, not its header alone.
        num_workers: processes that measure; None: one a core.
        fail_early: raise at a bad row among the first ones, before the others are measured.

    Raises:
        DataError: `fail_early`, and one of the first rows cannot be used.
    """
    told = digest([settings, verify_pixels, table.name, table.root, LANGUAGES])
    key = combine([code_fingerprint(), table.fingerprint(), renderer.fingerprint(), told])
    measure = partial(_measure_chunk, table, renderer, verify_pixels)

    def build(folder: Path) -> None:
        if fail_early and len(table) > PROBED:
            _probe(table, measure)
        _write(folder, _measure_all(table, measure, num_workers or usable_cores()))

    folder = cache.folder("index", key, build, is_valid=pictures_unchanged)
    return _read(folder, table.name)


def usable_cores() -> int:
    """Return the CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _probe(table: RowTable, measure: "partial[_Measured]") -> None:
    found = measure(range(PROBED)).bad
    if found:
        raise DataError(
            refusal([BadRow(table.name, row_id, reason) for _, row_id, reason in found])
        )


def _measure_all(
    table: RowTable, measure: "partial[_Measured]", num_workers: int
) -> Iterator[_Measured]:
    chunks = [range(i, min(i + CHUNK, len(table))) for i in range(0, len(table), CHUNK)]
    bar = tqdm(
        total=len(table), desc=f"measuring {table.name}", unit="row", delay=5, mininterval=1
    )  # fmt: skip
    with bar:
        for done in _mapped(measure, chunks, num_workers if len(table) > SERIAL else 1):
            bar.update(len(done.lengths))
            yield done


def _mapped(
    measure: "partial[_Measured]", chunks: Sequence[range], num_workers: int
) -> Iterator[_Measured]:
    if num_workers == 1:
        yield from map(measure, chunks)
        return
    global _forked
    _forked = measure  # forked workers find it here: nothing of it is pickled
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # a process a core is enough
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(num_workers, mp_context=context) as pool:
        submitted: deque[tuple[range, Future[_Measured]]] = deque()
        to_come = iter(chunks)
        while True:
            # A few ahead: results of all chunks at once would not fit in memory.
            for rows in islice(to_come, AHEAD * num_workers - len(submitted)):
                submitted.append((rows, pool.submit(_call, rows)))
            if not submitted:
                return
            rows, done = submitted.popleft()
            try:
                yield done.result()
            except BrokenProcessPool as error:
                raise DataError(
                    f"a process that measured rows died, among rows {rows.start} and "
                    f"{rows.stop + num_workers * CHUNK} (from 0): out of memory, or a picture that "
                    "crashes its decoder; data.num_index_workers=1 shows which"
                ) from error


_forked: Any = None


def _call(rows: range) -> _Measured:
    done: _Measured = _forked(rows)
    return done


def _measure_chunk(
    table: RowTable, renderer: Renderer, verify_pixels: bool, rows: range
) -> _Measured:
    done = _Measured(np.zeros(len(rows), FIELDS), [], {})
    for at, number in enumerate(rows):
        try:
            row = table.row(number)
            for path in filter(None, map(_own_file, row.images)):
                done.pictures.setdefault(path, _stat(path))  # before its header is read
            sample = renderer.render(row, check=True)
            if verify_pixels:
                for picture in row.images:
                    picture.load()
        except DataError as error:
            if error.path is not None:
                done.pictures.setdefault(error.path, _stat(error.path))
            done.bad.append((number, table.row_id(number), str(error)))
            done.lengths[at]["is_bad"] = True
            continue
        done.lengths[at] = lengths_of(sample, renderer)
    return done


def lengths_of(sample: Sample, renderer: Renderer) -> tuple[int, ...]:
    """Return what the index says of a sample: the values of FIELDS."""
    token = getattr(renderer.processing_class, "image_token_id", None)
    return (
        sample.num_tokens,
        int(sample.supervised.sum()),
        0 if token is None else int((sample.input_ids == token).sum()),
        sum(sample.num_tiles),
        LANGUAGE_NUMBER[sample.row.language],
        False,
        int(digest(sample.row.id)[:16], 16),
    )


def _own_file(picture: Any) -> str | None:
    """Return the path of a picture that is a file of its own."""
    is_own = isinstance(picture, FileImage) and picture.part is None
    return str(picture.path) if is_own else None


# -------------------------------------------------------------------------- kept on disk


def _write(folder: Path, chunks: Iterator[_Measured]) -> None:
    lengths = []
    with (
        # A lone surrogate becomes its escape, which is JSON.
        (folder / "bad.jsonl").open("w", encoding="utf-8", errors="backslashreplace") as bad_rows,
        (folder / "pictures.txt").open("wb") as pictures,
    ):
        for chunk in chunks:
            lengths.append(chunk.lengths)
            bad_rows.writelines(json.dumps(bad, ensure_ascii=False) + "\n" for bad in chunk.bad)
            for path, told in chunk.pictures.items():
                pictures.write(os.fsencode(path) + b"\0" + told.encode("ascii") + b"\0")
    np.save(folder / "lengths.npy", np.concatenate(lengths) if lengths else np.zeros(0, FIELDS))


def _read(folder: Path, source: str) -> SourceIndex:
    lengths = np.load(folder / "lengths.npy", mmap_mode="r", allow_pickle=False)
    with (folder / "bad.jsonl").open(encoding="utf-8") as file:
        bad = [json.loads(line) for line in file]
    named = {number: BadRow(source, row_id, reason) for number, row_id, reason in bad}
    return SourceIndex(lengths, named, folder)


def pictures_unchanged(folder: Path) -> bool:
    """Whether the picture files that an index was made from are still the same files."""
    try:
        with (folder / "pictures.txt").open("rb") as file:
            entries = _split(file)
            return all(_stat(os.fsdecode(path)) == told.decode() for path, told in entries)
    except FileNotFoundError:  # not whole, or just being made anew
        return False


def _split(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """Yield pairs of texts that end in a zero byte, a block of the file at a time."""
    rest = b""
    while block := file.read(1 << 20):
        *texts, rest = (rest + block).split(b"\0")
        if len(texts) % 2:
            rest = texts.pop() + b"\0" + rest
        yield from zip(texts[::2], texts[1::2], strict=True)


def _stat(path: str) -> str:
    """Return what changes with every edit of a file, and with another file in its place."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return "-"
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} {found.st_ino}"


def settings_of(source: Any, **shared: Any) -> object:
    """Return what, beside rows and processor, decides the index of a source, as plain values."""
    told = asdict(source)
    del told["weight"]  # decides how often a row is seen, not what it is
    return [told, sorted(shared.items())]
