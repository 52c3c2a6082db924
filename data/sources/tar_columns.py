"""The columns of a row of a WebDataset shard.

Later ones stand over earlier ones of the same name:
1. each member under its field: pictures by where they lie in the shard, `.txt .caption .cls .lang
   .id .text` as text, `.json` behind another dot (`meta.json`) parsed, all others as bytes;
2. `image`: the picture, or the list of them, in order; `caption`: what `.txt` says, where there is
   no `.caption`;
3. the keys of the member `json`. But null gives way to a member, and file names to the pictures:
   `"image": "cat.jpg"` tells where a picture lay before it was put into the shard;
4. `__key__`.
"""

import json
from pathlib import Path
from typing import Any

from configs.errors import DataError
from data.sources.records import Columns, FilePart
from data.sources.tar_members import Member, TarRow, open_shard

PICTURES = {"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm"}
TEXTS = {"txt", "caption", "cls", "lang", "id", "text"}


def row_columns(row: TarRow, path: Path, shard: str) -> Columns:
    """Return the columns of a row of the shard at `path`, see the top of this file.

    Raises:
        DataError: a member is not what its suffix says, or two have one field.
    """
    columns: Columns = {}
    pictures: list[FilePart | dict[str, Any]] = []
    picture_names = {"image"}
    for member in row.members:
        if member.field in columns:
            raise DataError(f"has two members of the field {member.field!r}: {member.name!r}")
        columns[member.field] = value = _value(member, path, shard)
        if _suffix(member) in PICTURES:
            pictures.append(value)
            picture_names.add(member.field)
    if pictures:
        columns["image"] = pictures[0] if len(pictures) == 1 else pictures
    if "txt" in columns:
        columns.setdefault("caption", columns["txt"])
    for name, value in columns.pop("json", {}).items():
        gives_way = value is None or (name in picture_names and _names_files(value))
        if name not in columns or not gives_way:
            columns[name] = value
    return columns | {"__key__": row.key}


def _value(member: Member, path: Path, shard: str) -> Any:
    """Return what a member is to a row: a picture's place, text, JSON, or bytes."""
    name, suffix = f"{shard}/{member.name}", _suffix(member)
    if not member.is_file:
        raise DataError(
            f"member {member.name!r} is a link, a device or sparse; write it as a file "
            "(tar --dereference --hard-dereference)"
        )
    if suffix in PICTURES:
        if member.data is not None:
            return {"bytes": member.data, "path": name}
        return FilePart(path, member.offset, member.size, name)
    data = _content(member, path, shard)
    if suffix not in TEXTS and suffix != "json":
        return data
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"member {member.name!r} is not UTF-8 at byte {error.start}") from error
    return text if suffix in TEXTS else _parsed(member, text)


def _parsed(member: Member, text: str) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"member {member.name!r} is not JSON: {error}") from error
    if member.field == "json" and not isinstance(value, dict):
        raise DataError(f"member {member.name!r} is a JSON {type(value).__name__}, not an object")
    return value


def _content(member: Member, path: Path, shard: str) -> bytes:
    if member.data is not None:
        return member.data
    with open_shard(path, shard) as file:
        file.seek(member.offset)
        data = file.read(member.size)
    if len(data) < member.size:
        raise DataError(f"{shard} changed after it was opened; start again")
    return data


def _suffix(member: Member) -> str:
    return member.field.rpartition(".")[2]


def _names_files(value: Any) -> bool:
    return isinstance(value, str) or (
        isinstance(value, list) and all(isinstance(item, str) for item in value)
    )
