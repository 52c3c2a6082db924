"""The columns of a raw row to a Row: its language, its words, its pictures.

Which column is what is in the config of the source; where rows come from is in `data/sources/`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.errors import DataError
from configs.languages import LANGUAGES
from configs.schema import SourceConfig, SourceKind
from data.conversations import place_pictures, read_messages, split_places
from data.images import BytesImage, FileImage, ImageRules, resolve_under
from data.prompts import draw, draw_prompt
from data.remote import Downloads, is_url, shown
from data.rows import ImageRef, Row, Turn, plain_text
from data.sources.records import FilePart

Key = tuple[int, str, str]  # seed, source, row id: what a draw depends on

NUM_NAMES = 8  # columns named in a message; the rest are counted
# JPEG, PNG, GIF, WebP, TIFF and data URIs begin so in base64; paths that long do not.
BASE64 = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "SUkq", "TU0A", "data:")
BASE64_LENGTH = 64  # characters


@dataclass(frozen=True)
class RowContext:
    """What making a row needs beside its columns and the config of its source."""

    rules: ImageRules
    root: Path  # folder that paths of pictures start from where the config names none
    seed: int  # of the draws of prompts and captions
    downloads: Downloads | None  # None: a picture named by a URL is refused


def make_row(
    name: str, row_id: str, columns: Mapping[str, Any], config: SourceConfig, context: RowContext
) -> Row:
    """Turn the columns of a raw row into a Row.

    Args:
        name: of the source.
        row_id: unique in its source.
        columns: by name; pictures in any of the forms of `data/sources/records.py`.
        config: says which column is what.
        context: what is the same for all rows.

    Raises:
        DataError: a column or a picture is missing, or what they hold is not understood.
    """
    language = _language(columns, config)
    turns: tuple[Turn, ...]
    if config.messages_field is not None:
        talk = read_messages(_value(columns, config, "messages_field"), config.image_placeholder)
        turns, pictures = talk.turns, _choose_pictures(talk.pictures, columns, config)
    else:
        key = (context.seed, name, row_id)
        answer = _caption(columns, config, key)
        if config.image_field is None and config.prompt_field is None:
            return Row(row_id, name, language, plain_text(answer))
        pictures = _listed(_value(columns, config, "image_field")) if config.image_field else []
        asked = _question(columns, config, language, key, has_picture=bool(pictures))
        turns = tuple(
            Turn(role, tuple(split_places(words, config.image_placeholder)))
            for role, words in (("user", asked), ("assistant", answer))
        )
    try:
        turns = place_pictures(turns, len(pictures), config.image_placeholder)
    except DataError as error:
        if config.image_field is None or config.image_field in columns or pictures:
            raise
        raise DataError(
            f"{error}; image_field={config.image_field} names no column of it: it has "
            f"{', '.join(list(columns)[:NUM_NAMES])}"
        ) from error
    images = tuple(_image(picture, config, context) for picture in pictures)
    return Row(row_id, name, language, turns, images)


def _language(columns: Mapping[str, Any], config: SourceConfig) -> str:
    """Return the language of a row; of `en-US` or `zh_Hans` the part before region and script."""
    told = _value(columns, config, "language_field") if config.language_field else None
    told = str(told or config.language or "en")
    language = told.replace("_", "-").partition("-")[0].lower()
    if language not in LANGUAGES:
        raise DataError(f"language {told!r} is not one of {', '.join(LANGUAGES)}")
    return language


def _value(columns: Mapping[str, Any], config: SourceConfig, key: str) -> Any:
    """Return the column that `key` of the config names."""
    field = getattr(config, key)
    if field not in columns:
        names = list(columns)
        more = f" and {len(names) - NUM_NAMES} more" if len(names) > NUM_NAMES else ""
        raise DataError(
            f"has no column {field!r}, which {key} names; "
            f"it has {', '.join(names[:NUM_NAMES])}{more}"
        )
    return columns[field]


# ----------------------------------------------------------------------------------- words


def _caption(columns: Mapping[str, Any], config: SourceConfig, key: Key) -> str:
    """Return the caption; where a row has several, as COCO does, one of them by draw."""
    field = config.caption_field
    value = _value(columns, config, "caption_field")
    if not isinstance(value, list | tuple) or not value:
        return _text(field, value)
    # All are looked at: whether a row is bad must not depend on the seed.
    return draw([_text(field, item) for item in value], "caption", *key)


def _question(
    columns: Mapping[str, Any], config: SourceConfig, language: str, key: Key, *, has_picture: bool
) -> str:
    if config.prompt_field is not None:
        return _text(config.prompt_field, _value(columns, config, "prompt_field"))
    if not has_picture:
        raise DataError(
            "has no picture to describe; name its question by prompt_field or its conversation by "
            "messages_field, or set image_field=null where all rows are plain text"
        )
    return draw_prompt(language, config.prompts, *key)


def _text(field: str, value: Any) -> str:
    if value is None or (isinstance(value, str) and not value.strip()):
        raise DataError(f"column {field!r} is empty")
    if not isinstance(value, str | int):
        raise DataError(f"column {field!r} holds {str(value)[:80]!r}, not text")
    return str(value)


# -------------------------------------------------------------------------------- pictures


def _choose_pictures(
    own: tuple[Any, ...], columns: Mapping[str, Any], config: SourceConfig
) -> list[Any]:
    """Return the pictures of a conversation: those in its messages, or those in the column.

    A row without the column has no picture: LLaVA's mix leaves it out where a row is text alone.
    """
    given = _listed(columns.get(config.image_field)) if config.image_field else []
    if own and given:
        raise DataError(
            f"has pictures in its messages and in column {config.image_field!r}; set "
            "image_field=null to take those in the messages"
        )
    return list(own) or given


def _listed(value: Any) -> list[Any]:
    """Return the pictures of a column: one, several, or none (null, or "" as CSV writes it)."""
    items = value if isinstance(value, list | tuple) else [value]
    return [item for item in items if not _is_nothing(item)]


def _is_nothing(item: Any) -> bool:
    if isinstance(item, Mapping) and {"bytes", "path"} & set(item):
        return item.get("bytes") is None and not item.get("path")
    return item is None or item == ""


def _image(item: Any, config: SourceConfig, context: RowContext) -> ImageRef:
    """Return the picture that a value of any form names."""
    if isinstance(item, FilePart):
        return FileImage(item.path, context.rules, item)
    is_pair = isinstance(item, Mapping)  # {"bytes", "path"} of `datasets`
    data, path = (item.get("bytes"), item.get("path")) if is_pair else (item, item)
    if isinstance(data, bytes | bytearray | memoryview):
        return BytesImage(bytes(data), path if is_pair and path else "in the row", context.rules)
    if is_pair and data is None and _is_resolved(path, config):
        return FileImage(Path(path), context.rules)
    reference = path if data is None else data
    if not isinstance(reference, str | Path):
        raise DataError(f"has {str(item)[:80]!r} where a picture is due: a path or its bytes")
    return _named_image(str(reference), config, context)


def _named_image(reference: str, config: SourceConfig, context: RowContext) -> FileImage:
    if len(reference) >= BASE64_LENGTH and reference.startswith(BASE64):
        raise DataError(
            f"image {reference[:24] + '...'!r} is base64 text; give the bytes it stands for, or "
            "save it as a file and give its path"
        )
    if not is_url(reference):
        root = Path(config.image_root) if config.image_root else context.root
        return FileImage(resolve_under(root, reference), context.rules)
    if context.downloads is None:
        raise DataError(
            f"image {shown(reference)!r} is a URL; set data.allow_urls=true to fetch it, or "
            "download it and give its path"
        )
    path = context.downloads.fetch(reference)
    part = FilePart(path, 0, path.stat().st_size, shown(reference))  # the whole of it, by its URL
    return FileImage(path, context.rules, part)


def _is_resolved(path: Any, config: SourceConfig) -> bool:
    """Whether `datasets` has found the file itself, as for an image folder."""
    trusted = config.kind is SourceKind.dataset and config.image_root is None
    return trusted and isinstance(path, str) and Path(path).is_absolute()


# ------------------------------------------------------------- moving to data/sources/hub.py
