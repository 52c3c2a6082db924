"""Rows that come with the project: scenes, names, numbers, the declaration.

All of them are made from the seed and the row's number, so no row depends on another.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from data.instructions import DESCRIBE, LIST_SEPARATOR, TRANSLATE, WRITE_NUMBER
from data.number_words import number_words, split_numbers
from data.rows import Row, plain_text, question
from data.scenes import (
    NUM_CONCEPTS,
    SCENE_PIXELS,
    Concept,
    Scene,
    caption,
    draw_scene,
    load_concepts,
    make_scene,
)

ASSETS = Path(__file__).resolve().parents[1] / "assets"
DESCRIBE_SHARE = 0.5  # of the lines of names, that are asked for as a caption is
MAX_NAMES = 3  # names in a line to translate; a scene shows at most 2
HELD_OUT_PARAGRAPHS = 10  # one in so many paragraphs of the declaration is held out


@dataclass(frozen=True, slots=True)
class SceneImage:
    """A scene, drawn when it is needed."""

    scene: Scene

    def size(self) -> tuple[int, int]:
        """Return (width, height) in pixels."""
        return SCENE_PIXELS, SCENE_PIXELS

    def load(self) -> Image.Image:
        """Return the picture in RGB."""
        return draw_scene(self.scene, concepts())


@lru_cache(maxsize=1)
def concepts() -> tuple[Concept, ...]:
    """Return the things that scenes show, with their names in 23 languages."""
    return load_concepts(ASSETS / "emoji23.parquet")


def scene_rows(
    source: str, languages: Sequence[str], num_rows: int, *, held_out: bool, seed: int
) -> Iterator[Row]:
    """Yield captioned scenes, the languages in turn."""
    for index in range(num_rows):
        language = languages[index % len(languages)]
        scene = make_scene(seed, index, held_out=held_out)
        words = DESCRIBE[language]
        asked = words[_rng(seed, index).integers(len(words))]
        told = caption(scene, concepts(), language, LIST_SEPARATOR[language])
        yield Row(
            id=f"{language}-{index}",
            source=source,
            language=language,
            turns=question(asked, told, num_images=1),
            images=(SceneImage(scene),),
        )


def name_rows(source: str, languages: Sequence[str], num_rows: int, *, seed: int) -> Iterator[Row]:
    """Yield one to three names of things to say in another of the languages (or the same one).

    Half of them are asked for in the words that ask for a caption: what a picture stands for later,
    the names stand for here, and a vision tower has only to learn to say what names say.
    """
    for index in range(num_rows):
        rng = _rng(seed, index)
        target = languages[index % len(languages)]
        origin = languages[int(rng.integers(len(languages)))]
        chosen = rng.choice(NUM_CONCEPTS, size=rng.integers(1, MAX_NAMES + 1), replace=False)
        asked = TRANSLATE[target]
        if rng.random() < DESCRIBE_SHARE:
            asked = DESCRIBE[target][int(rng.integers(len(DESCRIBE[target])))]
        given, wanted = (
            LIST_SEPARATOR[code].join(concepts()[i].names[code] for i in chosen)
            for code in (origin, target)
        )
        yield Row(
            id=f"{target}-{index}",
            source=source,
            language=target,
            turns=question(f"{given}\n{asked}", wanted),
        )


def number_rows(
    source: str,
    languages: Sequence[str],
    num_rows: int | None,
    *,
    max_number: int,
    held_out: bool,
    seed: int,
) -> Iterator[Row]:
    """Yield numbers to write in words, the languages in turn; all numbers when not limited."""
    trained, kept = split_numbers(max_number)
    numbers = np.random.default_rng(seed).permutation(kept if held_out else trained)
    total = len(numbers) * len(languages)
    for index in range(total if num_rows is None else min(num_rows, total)):
        language = languages[index % len(languages)]
        number = int(numbers[index // len(languages)])
        yield Row(
            id=f"{language}-{number}",
            source=source,
            language=language,
            turns=question(
                WRITE_NUMBER[language].format(number=number), number_words(number, language)
            ),
        )


def udhr_rows(
    source: str, languages: Sequence[str], num_rows: int | None, *, held_out: bool
) -> Iterator[Row]:
    """Yield paragraphs of the declaration; the same ones are held out in every language."""
    table = pq.ParquetFile(ASSETS / "udhr23.parquet").read().to_pylist()  # see data/scenes.py
    chosen = [
        row
        for row in table
        if row["language"] in languages
        and (int(row["id"].rsplit("-", 1)[1]) % HELD_OUT_PARAGRAPHS == 0) is held_out
    ]
    for row in chosen[:num_rows]:
        yield Row(
            id=row["id"], source=source, language=row["language"], turns=plain_text(row["text"])
        )


def _rng(seed: int, index: int) -> np.random.Generator:
    return np.random.default_rng([seed, index])
