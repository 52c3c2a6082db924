"""From the config of a source to its rows, by number or in order."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from configs.errors import DataError
from configs.schema import DataConfig, SourceConfig, SourceKind
from data.cache import Cache, digest
from data.columns import RowContext
from data.images import ImageRules
from data.remote import Downloads
from data.rows import Row
from data.sources.files import open_files, open_shards
from data.sources.hub import HubRecords, hub_shards
from data.sources.records import Columns, Records, Shard
from data.sources.shipped import name_rows, number_rows, scene_rows, udhr_rows
from data.sources.table import ListTable, RecordTable, RowTable

log = logging.getLogger(__name__)
SHIPPED = (
    SourceKind.emoji_scenes,
    SourceKind.concept_names,
    SourceKind.number_words,
    SourceKind.udhr,
)


def open_table(
    key: str, name: str, data: DataConfig, source: SourceConfig, cache: Cache, *, seed: int
) -> RowTable:
    """Return the rows of one source.

    Args:
        key: of the source in the config (`data.sources.mine`), for messages.
        name: of the source.
        data: what all sources share.
        source: where rows come from.
        cache: what is kept between starts.
        seed: of what is drawn: prompts, shipped rows.

    Raises:
        DataError: the source cannot be read or holds no row.
    """
    if source.kind in SHIPPED:
        languages = source.languages or data.languages
        made = list(_shipped_rows(key, name, source, languages, seed))
        return ListTable(name, made, digest([asdict(source), languages, seed]))
    records = _open_records(key, source, cache)
    if not len(records):
        raise DataError(f"{key}: path={source.path!r} holds no rows")
    with suppress(DataError):
        _hint_at_language(key, source, records.columns(0))
    return RecordTable(name, records, source, row_context(records.root, data, cache, seed))


def _hint_at_language(key: str, source: SourceConfig, columns: Columns) -> None:
    """Say that a column with languages is not read: all rows would be English in silence."""
    found = [name for name in ("language", "lang") if name in columns]
    if found and source.language_field is None and source.language is None:
        log.warning(
            "%s: its rows have a column %r, which is not read: all rows count as English; "
            "set %s.language_field=%s",
            key, found[0], key, found[0],
        )  # fmt: skip


def _open_records(key: str, source: SourceConfig, cache: Cache) -> Records:
    if source.kind is SourceKind.dataset:
        return HubRecords(key, source)
    assert source.path is not None
    try:
        return open_files(source.path, cache)
    except DataError as error:
        raise DataError(f"{key}: {error}") from error


def open_stream(key: str, source: SourceConfig) -> Sequence[Shard]:
    """Return the shards of one source, to be read in order.

    Raises:
        DataError: the source cannot be read, or not in order.
    """
    if source.kind is SourceKind.dataset:
        return hub_shards(key, source)
    assert source.path is not None
    try:
        return open_shards(source.path)
    except DataError as error:
        raise DataError(f"{key}: {error}") from error


def row_context(root: Path, data: DataConfig, cache: Cache, seed: int) -> RowContext:
    """Return what making a row needs beside its columns."""
    downloads = Downloads(cache.root / "pictures", data.max_image_bytes)
    return RowContext(image_rules(data), root, seed, downloads if data.allow_urls else None)


def image_rules(data: DataConfig) -> ImageRules:
    """Return what a picture may be, from the config."""
    red, green, blue = data.background
    return ImageRules(data.max_pixels, data.max_image_bytes, (red, green, blue))


def _shipped_rows(
    key: str, name: str, source: SourceConfig, languages: Sequence[str], seed: int
) -> Iterator[Row]:
    held_out, num_rows = source.held_out, source.num_rows
    if source.kind is SourceKind.number_words:
        return number_rows(
            name, languages, num_rows, max_number=source.max_number, held_out=held_out, seed=seed
        )
    if source.kind is SourceKind.udhr:
        return udhr_rows(name, languages, num_rows, held_out=held_out)
    if num_rows is None:
        raise DataError(f"{key}: kind={source.kind.value} has no end of its own; set num_rows")
    if source.kind is SourceKind.concept_names:
        return name_rows(name, languages, num_rows, seed=seed)
    return scene_rows(name, languages, num_rows, held_out=held_out, seed=seed)
