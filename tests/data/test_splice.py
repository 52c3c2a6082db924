"""Pictures put into token ids afterwards: the same ids and mask as tokenizing all of the text."""

import copy
import time
from typing import Any

import numpy as np
import pytest
from data_pico import asked, picture, row
from tokenizers import AddedToken

import data.render
from data.render import Renderer
from data.rows import IMAGE

SIZES = [(20, 20), (100, 30), (30, 100), (200, 40), (64, 96), (300, 20), (1, 90)]
WORDS = ["What?", " \n What? ", "क्या?", "何?", "TILE_1 or TILE 2", "ab\u0301c", ""]


def rows() -> list[Any]:
    """Rows with one to three pictures, at both ends of the words and between them."""
    found = []
    for seed, size in enumerate(SIZES):
        one, two = picture(*size, seed), picture(*SIZES[seed - 1], seed)
        words = WORDS[seed]
        found += [
            asked(words, "An answer.", one),
            row(("user", (IMAGE, words, IMAGE)), ("assistant", ("Both.",)), images=(one, two)),
            row(
                ("system", ("Be brief.",)),
                ("user", (words, IMAGE)),
                ("assistant", ("First.",)),
                ("user", ("x", IMAGE, IMAGE, "y")),
                ("assistant", ("Second.",)),
                images=(one, two, one),
            ),
        ]
    return found


def test_spliced_is_whole(tiling_processor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data.render, "COMPARED", 10**9)
    whole = [Renderer(tiling_processor).render(given, check=True) for given in rows()]
    renderer = Renderer(tiling_processor)
    monkeypatch.setattr(data.render, "COMPARED", 0)
    renderer._seen_tiles.update(range(20))
    monkeypatch.setattr(renderer, "_whole", None)  # calling it would fail
    for given, wanted in zip(rows(), whole, strict=True):
        for check in (False, True):
            sample = renderer.render(given, check=check)
            assert np.array_equal(sample.input_ids, wanted.input_ids)
            assert np.array_equal(sample.supervised, wanted.supervised)


def test_it_is_used_after_it_was_compared(
    tiling_processor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data.render, "COMPARED", 3)
    renderer, given = Renderer(tiling_processor), asked("What?", "This.", picture(100, 30))
    calls: list[int] = []
    whole = renderer._whole

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return whole(*args, **kwargs)

    monkeypatch.setattr(renderer, "_whole", counted)
    for _ in range(6):
        renderer.render(given)
    assert len(calls) == 3
    renderer.render(asked("What?", "This.", picture(20, 20)))  # another number of tiles
    assert len(calls) == 4


@pytest.mark.parametrize("flag", ["rstrip", "lstrip"])
def test_a_placeholder_that_takes_blanks_along_is_read_the_long_way(
    flag: str, tiling_processor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data.render, "COMPARED", 0)
    processor = copy.deepcopy(tiling_processor)
    token = AddedToken(processor.image_token, special=True, normalized=False, **{flag: True})
    processor.tokenizer.add_special_tokens({"extra_special_tokens": [token]})
    renderer = Renderer(processor)
    assert renderer._cuts_around_pictures is False
    assert Renderer(tiling_processor)._cuts_around_pictures is True


def test_two_ways_that_differ_leave_the_long_one(
    tiling_processor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data.render, "COMPARED", 1)
    renderer, given = Renderer(tiling_processor), asked("What?", "This.", picture(100, 30))
    wanted = renderer.render(given).input_ids
    spoiled = Renderer(tiling_processor)
    spoiled._image_tokens[4] = np.zeros(3, dtype=np.int32)
    for _ in range(3):
        assert np.array_equal(spoiled.render(given).input_ids, wanted)
    assert spoiled._cuts_around_pictures is False


def test_it_is_worth_it(tiling_processor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given = asked("What?", "This.", *[picture(200, 40, seed) for seed in range(8)])
    seconds = {}
    for compared in (10**9, 0):
        monkeypatch.setattr(data.render, "COMPARED", compared)
        renderer = Renderer(tiling_processor)
        renderer._seen_tiles.update(range(20))
        renderer.render(given)
        start = time.process_time()
        for _ in range(30):
            renderer.render(given)
        seconds[compared] = time.process_time() - start
    assert seconds[0] < 0.8 * seconds[10**9]  # measured: 0.14
