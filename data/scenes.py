"""Small pictures of one or two emoji with a caption that names them from top to bottom.

The order is top to bottom because image tokens reach the decoder row by row, and because,
unlike left to right, it favours no script. A scene is a function of (seed, held_out, index) alone.
Pairs of concepts are split once and for all: a held-out scene shows a pair that no training
scene shows, in either order, so naming it right takes recognising each of the two, not
remembering a picture.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image, ImageChops

SCENE_PIXELS = 64
NUM_CONCEPTS = 24  # of those below, that the shipped scenes show

# Concepts by their English CLDR short name: the parquet's `id` column holds the Indonesian
# names, which replaced the code points. Each was chosen because it (1) keeps its colour and
# outline at 24 pixels, unlike every other one here, (2) has in all 23 languages a plain name
# without commas, digits or "face of", as CLDR has for many others, and (3) is a thing that the
# languages name alike (no "dromedary" for "camel"). The order is part of the split: append only.
CONCEPTS = (
    "sun", "fire", "rainbow", "umbrella", "key", "crown", "candle", "guitar",
    "bus", "strawberry", "lemon", "carrot", "eggplant", "watermelon", "mushroom", "cactus",
    "sunflower", "butterfly", "elephant", "penguin", "octopus", "turtle", "snail", "scissors",
    "bucket", "broccoli", "balloon", "whale", "tractor", "egg", "spider", "peach",
)  # fmt: skip

_SINGLE_SHARE = 0.4  # of the training scenes; held-out scenes are pairs
_SIZES = (24, 32)  # pixels; at most half the scene, so that upper and lower are plain
_STEP = 8  # pixels between possible places: the patch of the demo's tower, which so learns sooner
_PALEST, _DARKEST = 255, 208  # of a background channel


@dataclass(frozen=True)
class Concept:
    """A thing that scenes show: its picture on white, and its name in each language."""

    picture: Image.Image
    names: Mapping[str, str]


@dataclass(frozen=True)
class Placed:
    """Concept number `concept` in a square of `size` pixels whose top left is (x, y)."""

    concept: int
    x: int
    y: int
    size: int


@dataclass(frozen=True)
class Scene:
    """What a picture shows; `items` run from top to bottom."""

    items: tuple[Placed, ...]
    background: tuple[int, int, int]


def load_concepts(parquet: Path | str, chosen: Sequence[str] = CONCEPTS) -> tuple[Concept, ...]:
    """Read the `chosen` concepts (English names), in that order, from the emoji table."""
    # pq.read_table would import pyarrow.dataset, and that pandas: a tenth of a plan's time.
    table = pq.ParquetFile(parquet).read().to_pylist()
    by_name = {row["en"]: row for row in table}
    missing = [name for name in chosen if name not in by_name]
    if missing:
        raise ValueError(f"{parquet} has no concept {', '.join(missing)}")
    return tuple(_concept(by_name[name]) for name in chosen)


def _concept(row: Mapping[str, Any]) -> Concept:
    picture = Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")
    names = {column: text for column, text in row.items() if isinstance(text, str)}
    names.pop("category", None)
    return Concept(picture, names)


def is_held_out_pair(first: int, second: int) -> bool:
    """Whether the two concepts are kept apart in training; every concept has such partners."""
    return (first + second) % 5 == 0


def make_scene(
    seed: int, index: int, *, held_out: bool, concept_count: int = NUM_CONCEPTS
) -> Scene:
    """Compose scene number `index` of a split from the first `concept_count` concepts."""
    generator = np.random.Generator(np.random.PCG64([seed, int(held_out), index]))
    red, green, blue = (int(c) for c in generator.integers(_DARKEST, _PALEST + 1, size=3))
    background = (red, green, blue)
    if not held_out and generator.random() < _SINGLE_SHARE:
        return Scene((_place(generator, int(generator.integers(concept_count))),), background)
    while True:
        upper, lower = (int(c) for c in generator.choice(concept_count, size=2, replace=False))
        if is_held_out_pair(upper, lower) == held_out:
            break
    half = SCENE_PIXELS // 2
    places = (_place(generator, upper, 0, half), _place(generator, lower, half, half))
    return Scene(places, background)


def _place(
    generator: np.random.Generator, concept: int, start: int = 0, height: int = SCENE_PIXELS
) -> Placed:
    """Put a concept anywhere within the rows `start` to `start + height` (pixels)."""
    size = int(generator.choice(_SIZES))
    x = _STEP * int(generator.integers((SCENE_PIXELS - size) // _STEP + 1))
    y = start + _STEP * int(generator.integers((height - size) // _STEP + 1))
    return Placed(concept, x, y, size)


def draw_scene(scene: Scene, concepts: Sequence[Concept]) -> Image.Image:
    """Draw a scene as an RGB picture of `SCENE_PIXELS` squared.

    The emoji stand on white, so multiplying them onto the background lets it show around them.
    """
    canvas = Image.new("RGB", (SCENE_PIXELS, SCENE_PIXELS), scene.background)
    for item in scene.items:
        box = (item.x, item.y, item.x + item.size, item.y + item.size)
        picture = concepts[item.concept].picture.resize(
            (item.size, item.size), Image.Resampling.LANCZOS
        )
        canvas.paste(ImageChops.multiply(canvas.crop(box), picture), box[:2])
    return canvas


def caption(scene: Scene, concepts: Sequence[Concept], language: str, separator: str) -> str:
    """Name the things in the scene from top to bottom in `language`."""
    return separator.join(concepts[item.concept].names[language] for item in scene.items)
