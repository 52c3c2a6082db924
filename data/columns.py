"""Rows of anything `datasets.load_dataset` reads, by the names of its columns."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from configs.errors import DataError
from configs.languages import LANGUAGES
from configs.schema import SourceConfig
from data.images import BytesImage, FileImage, ImageRules, resolve_under
from data.instructions import DESCRIBE
from data.rows import IMAGE, ImageRef, Row, Turn, plain_text, question

RawRow = tuple[str, dict[str, Any]]  # id, columns
ROLES = ("system", "user", "assistant")


def read_table(name: str, config: SourceConfig) -> Iterator[RawRow]:
    """Yield (id, columns) of each row. Pictures stay encoded.

    Raises:
        DataError: the data set cannot be read, or lacks a column that the config names.
    """
    table = _load(name, config)
    num_rows = len(table) if config.num_rows is None else min(config.num_rows, len(table))
    for index in range(num_rows):
        columns = table[index]
        row_id = str(index) if config.id_field is None else str(columns[config.id_field])
        yield row_id, columns


def make_row(
    name: str, row_id: str, columns: Mapping[str, Any], config: SourceConfig, *, rules: ImageRules
) -> Row:
    """Turn one row of a table into a Row.

    Raises:
        DataError: a picture is missing, or the language or the messages are not understood.
    """
    told = columns[config.language_field] if config.language_field else None
    language = str(told or config.language or "en")
    if language not in LANGUAGES:
        raise DataError(f"language {language!r} is not one of {', '.join(LANGUAGES)}")
    images = tuple(_images(columns, config, rules))
    if config.messages_field is not None:
        turns = tuple(_turns(columns[config.messages_field], len(images)))
    elif config.image_field is None and config.prompt_field is None:
        turns = plain_text(_text(columns, config.caption_field))
    else:
        answer = _text(columns, config.caption_field)
        asked = _question(columns, config, language, has_picture=bool(images))
        turns = question(asked, answer, num_images=len(images))
    return Row(row_id, name, language, turns, images)


def _question(
    columns: Mapping[str, Any], config: SourceConfig, language: str, *, has_picture: bool
) -> str:
    if config.prompt_field is not None:
        return _text(columns, config.prompt_field)
    if not has_picture:
        raise DataError(
            "has no picture to describe; name its question by prompt_field or its conversation by "
            "messages_field, or set image_field=null where all rows are plain text"
        )
    return DESCRIBE[language][0]


def _text(columns: Mapping[str, Any], field: str) -> str:
    value = columns[field]
    if not isinstance(value, str | int) or not str(value).strip():
        raise DataError(f"column {field} holds {str(value)[:80]!r}, not text")
    return str(value)


def _load(name: str, config: SourceConfig) -> Any:
    from datasets import Image, List, load_dataset

    assert config.path is not None
    try:
        table = load_dataset(
            config.path, config.name, split=config.split, data_files=config.data_files or None
        )
    except Exception as error:  # datasets raises a dozen kinds for what a user can cause
        if isinstance(error, StopIteration):
            error = FileNotFoundError("no file matches")
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise DataError(
            f"data.sources.{name}: cannot read path={config.path!r}, "
            f"data_files={config.data_files}, split={config.split!r}: {reason}"
        ) from error
    _check_columns(name, config, table.column_names)
    field = config.image_field
    if field in table.column_names:
        feature = table.features[field]
        if isinstance(feature, Image):
            table = table.cast_column(field, Image(decode=False))
        elif isinstance(feature, List) and isinstance(feature.feature, Image):
            table = table.cast_column(field, List(Image(decode=False)))
    return table


def _check_columns(name: str, config: SourceConfig, present: list[str]) -> None:
    wanted = {
        "id_field": config.id_field,
        "prompt_field": config.prompt_field,
        "language_field": config.language_field,
        "messages_field": config.messages_field,
        "caption_field": None if config.messages_field else config.caption_field,
        "image_field": config.image_field,
    }
    lacking = [
        f"data.sources.{name}.{key}={column}"
        for key, column in wanted.items()
        if column is not None and column not in present
    ]
    if lacking:
        raise DataError(
            f"{', '.join(lacking)}: no such column; the data set has {', '.join(present)}"
            " (image_field=null for text alone)"
        )


def _images(
    columns: Mapping[str, Any], config: SourceConfig, rules: ImageRules
) -> Iterator[ImageRef]:
    value = columns.get(config.image_field) if config.image_field else None
    items = value if isinstance(value, list) else [] if value is None else [value]
    root = Path(config.image_root) if config.image_root else Path.cwd()
    for item in items:
        data = item.get("bytes") if isinstance(item, Mapping) else None
        reference = item.get("path") if isinstance(item, Mapping) else item
        if data is not None:
            yield BytesImage(data, str(reference or "in the row"), rules)
        elif _is_resolved(item, config):
            yield FileImage(Path(str(reference)), rules)  # resolved by datasets itself
        else:
            yield FileImage(resolve_under(root, str(reference)), rules)


def _is_resolved(item: Any, config: SourceConfig) -> bool:
    """Whether `datasets` has found the file itself, as for an image folder."""
    path = item.get("path") if isinstance(item, Mapping) else None
    return bool(path) and Path(str(path)).is_absolute() and config.image_root is None


def _turns(messages: Any, num_images: int) -> Iterator[Turn]:
    """Yield chat messages as turns; pictures without a place go before the first question."""
    if not isinstance(messages, list) or not messages:
        raise DataError("its messages are not a list of role and content")
    turns = [_turn(message) for message in messages]
    placed = sum(turn.content.count(IMAGE) for turn in turns)
    for turn in turns:
        if not placed and num_images and turn.role == "user":
            turn, placed = Turn(turn.role, (IMAGE,) * num_images + turn.content), num_images
        yield turn


def _turn(message: Any) -> Turn:
    if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
        raise DataError(f"message {str(message)[:80]!r} has no role and content")
    role, content = message["role"], message["content"]
    if role not in ROLES:
        raise DataError(f"message has the role {role!r}, which is not one of {', '.join(ROLES)}")
    pieces = content if isinstance(content, list) else [{"type": "text", "text": content}]
    return Turn(role, tuple(_piece(piece) for piece in pieces))


def _piece(piece: Any) -> str | None:
    kind = piece.get("type") if isinstance(piece, Mapping) else None
    if kind == "image":
        return IMAGE
    if kind == "text" and isinstance(piece.get("text"), str):
        return str(piece["text"])
    raise DataError(f"message holds {str(piece)[:80]!r}, which is neither text nor a picture")
