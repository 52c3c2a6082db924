"""Folders as `train.evaluate` writes them, made of answers."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from train.measuring.results import Answer, GroupKind, GroupResult, as_json


def row(number: int, language: str, answer: str, reference: str = "a red cat") -> Answer:
    """An answer to the row of that number and language."""
    return Answer(f"scenes/{language}-{number}", language, "What is it?", reference, answer)


def evaluation(
    folder: Path, models: Mapping[str, Sequence[Answer]], *, group: str = "scenes"
) -> Path:
    """Write evaluation.json, with one group of answers of each model."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        name: {
            "path": f"/models/{name}",
            "groups": as_json({group: GroupResult(GroupKind.captions, answers=list(answers))}),
        }
        for name, answers in models.items()
    }
    text = json.dumps({"schema": 1, "models": content}, ensure_ascii=False)
    (folder / "evaluation.json").write_text(text, encoding="utf-8")
    return folder


def pictures(folder: Path, row_ids: Sequence[str]) -> None:
    """Write a picture for each row, of another colour each."""
    (folder / "pictures").mkdir()
    index = {}
    for number, row_id in enumerate(row_ids):
        index[row_id] = f"{number}.png"
        Image.new("RGB", (8, 8), (number, 200, 0)).save(folder / "pictures" / f"{number}.png")
    (folder / "pictures" / "pictures.json").write_text(json.dumps(index), encoding="utf-8")
