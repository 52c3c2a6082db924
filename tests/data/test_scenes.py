"""Scenes: the same for the same seed, split by pairs, told in reading order."""

import numpy as np
import pytest
from PIL import Image, ImageChops

from configs.languages import LANGUAGES
from data.instructions import LIST_SEPARATOR
from data.scenes import (
    CONCEPTS,
    NUM_CONCEPTS,
    SCENE_PIXELS,
    Concept,
    Placed,
    Scene,
    caption,
    draw_scene,
    is_held_out_pair,
    load_concepts,
    make_scene,
)
from data.sources.shipped import ASSETS, concepts

MANY = 4000


def scenes(*, held_out: bool, seed: int = 0, count: int = MANY) -> list[Scene]:
    return [make_scene(seed, index, held_out=held_out) for index in range(count)]


def pairs(many: list[Scene]) -> set[frozenset[int]]:
    return {frozenset(item.concept for item in s.items) for s in many if len(s.items) == 2}


def test_a_scene_depends_on_seed_split_and_index_alone() -> None:
    whole = scenes(held_out=False, count=50)
    assert [make_scene(0, index, held_out=False) for index in reversed(range(50))] == whole[::-1]
    assert len({repr(scene) for scene in whole}) == 50
    assert whole != scenes(held_out=False, seed=1, count=50)
    for scene in whole[:5]:
        assert draw_scene(scene, concepts()).tobytes() == draw_scene(scene, concepts()).tobytes()


def test_held_out_pairs_are_never_trained() -> None:
    """In either order, for any seed."""
    trained = pairs(scenes(held_out=False)) | pairs(scenes(held_out=False, seed=9))
    kept = pairs(scenes(held_out=True))
    assert not trained & kept
    assert all(len(pair) == 2 for pair in trained | kept)
    possible = NUM_CONCEPTS * (NUM_CONCEPTS - 1) // 2
    assert len(trained) + len(kept) > 0.95 * possible  # nearly every pair was seen
    for first in range(NUM_CONCEPTS):
        for second in range(NUM_CONCEPTS):
            assert is_held_out_pair(first, second) == is_held_out_pair(second, first)


def test_every_concept_is_trained_and_held_out() -> None:
    for held_out in (False, True):
        many = scenes(held_out=held_out)
        assert {item.concept for scene in many for item in scene.items} == set(range(NUM_CONCEPTS))
    assert all(len(scene.items) == 2 for scene in scenes(held_out=True))
    assert {len(scene.items) for scene in scenes(held_out=False, count=100)} == {1, 2}


def test_things_lie_within_the_scene_and_apart() -> None:
    for scene in scenes(held_out=False, count=1000):
        for item in scene.items:
            assert min(item.x, item.y) >= 0
            assert max(item.x, item.y) + item.size <= SCENE_PIXELS
        if len(scene.items) == 2:
            upper, lower = scene.items
            assert upper.y + upper.size <= lower.y
        assert all(208 <= channel <= 255 for channel in scene.background)


def test_items_run_from_top_to_bottom_in_picture_and_caption() -> None:
    """What stands higher in the drawn picture is what the caption names first."""
    names = [concept.names["en"] for concept in concepts()]
    for scene in [s for s in scenes(held_out=False, count=60) if len(s.items) == 2]:
        drawn = draw_scene(scene, concepts())
        background = Image.new("RGB", drawn.size, scene.background)
        told = caption(scene, concepts(), "en", ", ").split(", ")
        assert [names.index(name) for name in told] == [item.concept for item in scene.items]
        for name, rows in zip(told, ((0, 32), (32, 64)), strict=True):
            half = drawn.crop((0, rows[0], SCENE_PIXELS, rows[1]))
            box = ImageChops.difference(half, background.crop((0, 0, 64, 32))).getbbox()
            assert box is not None, name
            (item,) = (i for i in scene.items if rows[0] <= i.y < rows[1])
            alone = draw_scene(Scene((item,), scene.background), concepts())
            assert half.tobytes() == alone.crop((0, rows[0], SCENE_PIXELS, rows[1])).tobytes()
            assert names[item.concept] == name


def test_the_background_shows_around_the_things() -> None:
    white = Image.new("RGB", (8, 8), "white")
    scene = Scene((Placed(0, 8, 8, 24),), (210, 220, 230))
    drawn = draw_scene(scene, [Concept(white, {})])
    assert (np.asarray(drawn) == (210, 220, 230)).all()


@pytest.mark.parametrize("language", LANGUAGES)
def test_captions_are_unambiguous(language: str) -> None:
    """Each thing has a name of its own, in which no separator stands."""
    names = [concept.names[language] for concept in concepts()]
    assert len(names) == len(CONCEPTS) >= NUM_CONCEPTS
    assert len(set(names)) == len(names)
    separator = LIST_SEPARATOR[language].strip()
    assert not any(separator in name or name != name.strip() or not name for name in names)


def test_a_concept_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="has no concept dragonfruit, sunn"):
        load_concepts(ASSETS / "emoji23.parquet", ["sun", "dragonfruit", "sunn"])
