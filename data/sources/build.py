"""From the config of a source to its rows, and from rows to rendered samples."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from configs.errors import DataError
from configs.schema import BadRow, DataConfig, SourceConfig, SourceKind
from data.columns import make_row, read_table
from data.images import ImageRules
from data.ledger import Ledger
from data.render import Renderer, Sample
from data.rows import Row
from data.sources.shipped import name_rows, number_rows, scene_rows, udhr_rows

T = TypeVar("T")


def iterate_rows(name: str, data: DataConfig, source: SourceConfig, ledger: Ledger, *, seed: int
) -> Iterator[Row]:  # fmt: skip
    """Yield the rows of one source; those that cannot be made go to the ledger."""
    if source.kind is not SourceKind.dataset:
        yield from _shipped_rows(name, source, source.languages or data.languages, seed)
        return
    seen: set[str] = set()
    for row_id, columns in read_table(name, source):
        make = partial(_new_row, name, row_id, columns, source, image_rules(data), seen)
        row = ledger.refuse_or(name, row_id, make)
        if row is not None:
            yield row


def image_rules(data: DataConfig) -> ImageRules:
    """Return what a picture may be, from the config."""
    red, green, blue = data.background
    return ImageRules(data.max_pixels, data.max_image_bytes, (red, green, blue))


def _new_row(
    name: str,
    row_id: str,
    columns: Mapping[str, Any],
    source: SourceConfig,
    rules: ImageRules,
    seen: set[str],
) -> Row:
    if row_id in seen:
        raise DataError(
            f"an earlier row has the same id; {source.id_field!r} is no column of unique ids"
        )
    seen.add(row_id)
    return make_row(name, row_id, columns, source, rules=rules)


def _shipped_rows(
    name: str, source: SourceConfig, languages: Sequence[str], seed: int
) -> Iterator[Row]:
    held_out, num_rows = source.held_out, source.num_rows
    if source.kind is SourceKind.number_words:
        return number_rows(
            name, languages, num_rows, max_number=source.max_number, held_out=held_out, seed=seed
        )
    if source.kind is SourceKind.udhr:
        return udhr_rows(name, languages, num_rows, held_out=held_out)
    if num_rows is None:
        raise DataError(
            f"data source {name}: kind={source.kind.value} has no end of its own; set num_rows"
        )
    if source.kind is SourceKind.concept_names:
        return name_rows(name, languages, num_rows, seed=seed)
    return scene_rows(name, languages, num_rows, held_out=held_out, seed=seed)


def new_ledger(data: DataConfig) -> Ledger:
    """Return an empty ledger with the config's rules."""
    return Ledger(skip=data.on_bad_row is BadRow.skip, max_bad_ratio=data.max_bad_ratio)


def read_rows(
    data: DataConfig, sources: dict[str, SourceConfig], ledger: Ledger, *, seed: int
) -> dict[str, list[Row]]:
    """Return the rows of each source."""
    return {
        name: list(iterate_rows(name, data, source, ledger, seed=seed))
        for name, source in sources.items()
    }


def render_rows(
    rows: dict[str, list[Row]], renderer: Renderer, data: DataConfig, ledger: Ledger
) -> dict[str, list[Sample]]:
    """Return the rendered samples of each source; rows that cannot be rendered go to the ledger.

    Raises:
        DataError: a bad row where none may be skipped, too many, or no usable row at all.
    """
    samples: dict[str, list[Sample]] = {}
    for name, group in rows.items():
        made = (
            ledger.attempt(name, row.id, lambda row=row: _render(row, renderer, data))  # type: ignore[misc]
            for row in group
        )
        samples[name] = [sample for sample in made if sample is not None]
    ledger.check()
    empty = [name for name, group in samples.items() if not group]
    if empty:
        raise DataError(f"no usable row in the source {', '.join(empty)}; mend it or leave it out")
    return samples


def _render(row: Row, renderer: Renderer, data: DataConfig) -> Sample:
    """Render one row. Where rows may be skipped its pictures are decoded once, here, so that a
    broken one is left out before the packs are planned and not in the middle of the run."""
    if data.on_bad_row is BadRow.skip:
        for image in row.images:
            image.load()
    return renderer.render(row, max_tokens=data.max_tokens, max_tiles=data.max_tiles)
