"""The pictures that an evaluation has kept, and how a request carries one.

`pictures.json` in the evaluation's folder, or in its `pictures/`, is {row id: file beside it}.
"""

import base64
import json
from pathlib import Path

from configs.errors import DataError

MEDIA_TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".gif": "image/gif",
}


def find_pictures(evaluation: Path) -> dict[str, str]:
    """Return {row id: file}; nothing where an evaluation has kept none.

    Raises:
        DataError: a file is not there, is no picture, or lies outside of the folder: what is named
            here is sent to the judge.
    """
    folder = evaluation if evaluation.is_dir() else evaluation.parent
    found: dict[str, str] = {}
    for place in (folder, folder / "pictures"):
        index = place / "pictures.json"
        if not index.is_file():
            continue
        for row_id, name in json.loads(index.read_text(encoding="utf-8")).items():
            found[row_id] = _checked(index, name, [place, folder / "pictures"])
    return found


def _checked(index: Path, name: str, places: list[Path]) -> str:
    for place in places:
        file = (place / name).resolve()
        if file.is_relative_to(index.parent.resolve()) and file.is_file():
            if file.suffix.lower() not in MEDIA_TYPES:
                raise DataError(
                    f"{index} names {name!r}, but a picture is {', '.join(MEDIA_TYPES)}"
                )
            return str(file)
    raise DataError(f"{index} names {name!r}, which is no file below {index.parent}")


def data_uri(file: str) -> str:
    """Return a picture's bytes as they are, in the form that chat completions take."""
    media_type = MEDIA_TYPES[Path(file).suffix.lower()]
    content = base64.b64encode(Path(file).read_bytes()).decode("ascii")
    return f"data:{media_type};base64,{content}"
