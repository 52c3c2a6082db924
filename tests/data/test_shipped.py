"""Shipped rows: reproducible, in turns of languages, held out for good, named uniquely."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from data_pico import udhr

from configs.errors import DataError
from configs.languages import LANGUAGES
from configs.schema import DataConfig, SourceConfig, SourceKind
from data.build import open_tables
from data.cache import Cache
from data.instructions import DESCRIBE, LIST_SEPARATOR, TRANSLATE, WRITE_NUMBER
from data.number_words import number_words, split_numbers
from data.rows import IMAGE, Row
from data.sources.shipped import SceneImage, concepts, name_rows, number_rows, scene_rows, udhr_rows

ALL = list(LANGUAGES)
SOME = ["en", "hi", "ja"]


def read(data: DataConfig, seed: int = 0) -> dict[str, list[Row]]:
    tables = open_tables("sources", data, Cache(Path("not-used")), seed=seed)
    return {name: [table.row(i) for i in range(len(table))] for name, table in tables.items()}


def of_each_kind(*, held_out: bool = False, seed: int = 0) -> Iterator[tuple[str, list[Row]]]:
    sources = {
        "scenes": SourceConfig(SourceKind.emoji_scenes, num_rows=60, held_out=held_out),
        "names": SourceConfig(SourceKind.concept_names, num_rows=60),
        "numbers": SourceConfig(SourceKind.number_words, num_rows=60, held_out=held_out),
        "udhr": SourceConfig(SourceKind.udhr, held_out=held_out),
    }
    data = DataConfig(sources=sources, languages=SOME)
    yield from read(data, seed=seed).items()


def words(row: Row) -> tuple[str, ...]:
    return tuple(turn.text for turn in row.turns)


def test_rows_are_the_same_for_the_same_seed() -> None:
    first, second = dict(of_each_kind()), dict(of_each_kind())
    assert first == second
    other = dict(of_each_kind(seed=1))
    for name in ("scenes", "names", "numbers"):
        assert first[name] != other[name]
    assert first["udhr"] == other["udhr"]


def test_ids_are_unique_and_rows_know_where_they_are_from() -> None:
    for name, rows in of_each_kind():
        assert len({row.id for row in rows}) == len(rows) > 0
        assert {row.source for row in rows} == {name}
        assert str(rows[0]) == f"{name}/{rows[0].id}"
        assert {row.language for row in rows} == set(SOME)


@pytest.mark.parametrize("held_out", [False, True])
def test_languages_take_turns(held_out: bool) -> None:
    for name, rows in of_each_kind(held_out=held_out):
        if name != "udhr":
            assert [row.language for row in rows] == SOME * 20


def test_nothing_held_out_is_trained() -> None:
    trained, kept = dict(of_each_kind()), dict(of_each_kind(held_out=True))
    numbers = [int(row.id.split("-")[1]) for row in trained["numbers"]]
    assert set(numbers) <= set(split_numbers(9999)[0])
    assert {int(row.id.split("-")[1]) for row in kept["numbers"]} <= set(split_numbers(9999)[1])
    assert not {words(row) for row in trained["udhr"]} & {words(row) for row in kept["udhr"]}


def test_the_declaration_is_split_alike_in_every_language() -> None:
    trained, kept = (list(udhr_rows("u", ALL, None, held_out=part)) for part in (False, True))
    assert len(trained) + len(kept) == len(udhr())
    paragraphs = [{row.id.rsplit("-", 1)[1] for row in rows} for rows in (trained, kept)]
    assert not paragraphs[0] & paragraphs[1]
    assert 0.05 < len(kept) / len(udhr()) < 0.15
    assert {row.language for row in kept} == set(ALL)
    for row in trained:
        assert [turn.role for turn in row.turns] == ["assistant"]


@pytest.mark.parametrize("held_out", [False, True])
def test_all_numbers_of_all_languages_without_a_limit(held_out: bool) -> None:
    rows = list(number_rows("n", SOME, None, max_number=200, held_out=held_out, seed=0))
    numbers = split_numbers(200)[held_out]
    assert Counter(row.id for row in rows) == Counter(
        f"{code}-{number}" for code in SOME for number in numbers
    )
    for row in rows:
        code, number = row.id.split("-")
        asked = WRITE_NUMBER[code].format(number=int(number))
        assert words(row) == (asked, number_words(int(number), code))


def test_a_limit_above_all_numbers_is_all_of_them() -> None:
    assert len(list(number_rows("n", ["en"], 10_000, max_number=50, held_out=False, seed=0))) == 51


def test_a_captioned_scene_asks_and_answers_in_its_language() -> None:
    for row in scene_rows("s", ALL, 69, held_out=False, seed=0):
        question, answer = row.turns
        assert question.content[0] is IMAGE
        assert question.text in DESCRIBE[row.language]
        (image,) = row.images
        assert isinstance(image, SceneImage)
        named = [concepts()[item.concept].names[row.language] for item in image.scene.items]
        assert answer.text == LIST_SEPARATOR[row.language].join(named)
        assert image.load().size == image.size() == (64, 64)


def test_names_are_the_same_things_in_two_languages() -> None:
    """Each name given is, in the language of the instruction, the name wanted."""
    origins = set()
    for row in name_rows("n", SOME, 90, seed=0):
        given, instruction = row.turns[0].text.split("\n")
        assert instruction in (TRANSLATE[row.language], *DESCRIBE[row.language])
        wanted = row.turns[1].text.split(LIST_SEPARATOR[row.language])
        things = [c for name in wanted for c in concepts() if c.names[row.language] == name]
        assert len(things) == len(wanted) <= 3
        origin = [
            code
            for code in SOME
            if LIST_SEPARATOR[code].join(thing.names[code] for thing in things) == given
        ]
        assert origin
        origins.update(origin)
    assert origins == set(SOME)


def test_endless_kinds_need_a_number_of_rows() -> None:
    sources = {"scenes": SourceConfig(SourceKind.emoji_scenes)}
    data = DataConfig(sources=sources)
    expected = "data.sources.scenes: kind=emoji_scenes has no end of its own; set num_rows"
    with pytest.raises(DataError, match=expected):
        read(data)


def test_a_source_may_have_its_own_languages() -> None:
    sources = {"n": SourceConfig(SourceKind.number_words, num_rows=4, languages=["ko", "tr"])}
    data = DataConfig(sources=sources, languages=["en"])
    (rows,) = read(data).values()
    assert [row.language for row in rows] == ["ko", "tr"] * 2
