"""How often samples are seen: by source, by language, and what the log says of it."""

import numpy as np
import pytest

from configs.errors import DataError
from data.mixture import describe_mixture, sample_weights
from data.pack import PackPlan

SOURCES = np.array([0] * 60 + [1] * 30 + [2] * 10, dtype=np.uint16)
LANGUAGES = np.array([0] * 50 + [1] * 10 + [1] * 20 + [3] * 10 + [3] * 4 + [2] * 6, dtype=np.uint8)


def by_language(weights: np.ndarray) -> list[float]:
    return np.bincount(LANGUAGES, weights=weights).tolist()


def test_a_temperature_of_one_changes_no_bit() -> None:
    for seed in range(20):  # in the most of them the formula would round
        rng = np.random.default_rng(seed)
        of_source = rng.random(3).tolist()
        weights = sample_weights(SOURCES, rng.integers(0, 7, 100), of_source, 1.0)
        assert weights.dtype == np.float64
        assert weights.tolist() == [of_source[number] for number in SOURCES]


@pytest.mark.parametrize("temperature", [0.5, 1.5, 3.0, 100.0])
def test_languages_are_drawn_as_the_root_of_their_size(temperature: float) -> None:
    before = sample_weights(SOURCES, LANGUAGES, [1.0, 0.5, 2.0], 1.0)
    after = sample_weights(SOURCES, LANGUAGES, [1.0, 0.5, 2.0], temperature)
    assert by_language(before) == [50.0, 20.0, 12.0, 13.0]
    roots = [size ** (1 / temperature) for size in (50, 20, 12, 13)]
    wanted = [95 * root / sum(roots) for root in roots]
    assert by_language(after) == pytest.approx(wanted)
    assert after.sum() == pytest.approx(95)
    ratios = after / before  # of a language alike, so that its sources keep their proportion
    assert all(np.ptp(ratios[number == LANGUAGES]) < 1e-12 for number in range(4))


def test_a_case_worked_by_hand() -> None:
    """Sizes of 9 and 1 at T = 2 give 3 : 1, so 7.5 and 2.5 of 10."""
    language_of = np.array([0] * 9 + [1])
    weights = sample_weights(np.zeros(10, dtype=int), language_of, [1.0], 2.0)
    assert weights.tolist() == pytest.approx([7.5 / 9] * 9 + [2.5])


def test_an_endless_temperature_makes_languages_equal() -> None:
    weights = sample_weights(SOURCES, LANGUAGES, [1.0, 0.5, 2.0], float("inf"))
    assert by_language(weights) == pytest.approx([95 / 4] * 4)


def test_a_language_of_weight_zero_stays_out() -> None:
    """Source 2 alone has language 2; its zero is not raised to a share of the epoch."""
    weights = sample_weights(SOURCES, LANGUAGES, [1.0, 1.0, 0.0], float("inf"))
    assert by_language(weights) == pytest.approx([30.0, 30.0, 0.0, 30.0])
    assert not weights[SOURCES == 2].any()


def test_no_weight_at_all_is_left_to_the_plan() -> None:
    assert not sample_weights(SOURCES, LANGUAGES, [0.0, 0.0, 0.0], 3.0).any()


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_that_is_none(temperature: float) -> None:
    with pytest.raises(DataError, match=r"data\.language_temperature=.* is not above 0; give 1"):
        sample_weights(SOURCES, LANGUAGES, [1.0, 1.0, 1.0], temperature)


@pytest.mark.parametrize("weight", [-1.0, float("inf")])
def test_a_weight_that_is_none(weight: float) -> None:
    with pytest.raises(DataError, match=r"data\.sources\.<name>\.weight is a number of times, 0 o"):
        sample_weights(SOURCES, LANGUAGES, [1.0, weight, 1.0], 1.0)


def times_seen(plan: PackPlan, epoch: int) -> np.ndarray:
    return np.bincount(np.concatenate(plan.epoch(epoch)), minlength=100)


def test_over_many_epochs_each_sample_comes_as_often_as_its_weight() -> None:
    num_epochs = 300
    weights = sample_weights(SOURCES, LANGUAGES, [1.0, 0.5, 2.0], 3.0)
    plan = PackPlan(
        num_tokens=np.full(100, 10),
        num_tiles=np.zeros(100, dtype=np.int64),
        weights=weights,
        max_tokens=200,
        max_tiles=1,
        packs_per_step=1,
        seed=0,
    )
    counts = np.array([times_seen(plan, epoch) for epoch in range(num_epochs)])
    floor = np.floor(weights)
    assert (counts >= floor).all()  # at a weight of 1 or more no epoch goes without
    assert (counts <= floor + 1).all()
    chance = weights - floor
    error = np.sqrt(chance * (1 - chance) / num_epochs)
    assert (np.abs(counts.mean(axis=0) - weights) < 4.5 * error + 1e-9).all()
    assert 0 < chance.min() < chance.max() < 1
    assert (weights > 1).any() and (weights < 1).any()
    assert counts.sum(axis=1).mean() == pytest.approx(95, abs=1)
    assert (counts[1:] != counts[:-1]).any(axis=1).all()  # drawn anew each time


# ------------------------------------------------------------------------------ the table


def table(**changes: object) -> list[str]:
    num_tokens = np.where(SOURCES == 0, 100, 10)
    given: dict[str, object] = dict(
        source_names=["scenes", "words", "a_source_with_a_very_long_name", "empty"],
        language_names=["en", "es", "hi", "fr", "de"],
        source_of=SOURCES,
        language_of=LANGUAGES,
        weights=np.array([0.5] * 60 + [2.9] * 30 + [12.0] * 10),
        num_tokens=num_tokens,
        num_tiles=np.where(SOURCES == 0, 3, 0),
        num_supervised=num_tokens // 4,
        num_bad={"words": 7, "empty": 2},
    )
    return describe_mixture(**(given | changes)).splitlines()  # type: ignore[arg-type]


def cells(line: str) -> list[str]:
    return line.split()


def test_the_table_counts_what_an_epoch_holds() -> None:
    lines = {cells(line)[0]: cells(line)[1:] for line in table()}
    assert lines["source"] == [
        "rows", "left", "out", "seen", "samples", "tokens", "share", "superv.", "tiles",
    ]  # fmt: skip
    assert lines["scenes"] == ["60", "0", "x0.5", "30", "3,000", "59.2%", "25.0%", "90"]
    assert lines["words"] == ["30", "7", "x2.9", "87", "870", "17.2%", "20.0%", "0"]
    assert lines["a_source_with_a_very_…"][2:4] == ["x12", "120"]
    assert lines["empty"] == ["0", "2", "-", "0", "0", "0.0%", "-", "0"]
    assert lines["total"] == ["100", "9", "x2.4", "237", "5,070", "100.0%", "23.0%", "90"]
    assert lines["hi"] == ["6", "x12", "72", "720", "14.2%", "20.0%", "0"]


def test_languages_come_by_their_tokens_and_those_without_rows_do_not() -> None:
    names = [cells(line)[0] for line in table()]
    assert names[:5] == ["source", "scenes", "words", "a_source_with_a_very_…", "empty"]
    assert names[5:] == ["language", "en", "es", "fr", "hi", "total"]


def test_the_table_fits_a_hundred_columns_and_its_columns_are_straight() -> None:
    huge = np.full(100, 400_000_000_000)
    for lines in (table(), table(num_tokens=huge, num_tiles=huge, num_supervised=huge)):
        assert max(map(len, lines)) <= 100
        assert len({len(line) for line in lines if not line.startswith("language")}) == 1


@pytest.mark.parametrize(
    ("tokens", "shown"),
    [(12_345, "1,234,500"), (2_345_678, "234.6 M"), (234_567_890, "23.5 B")],
)
def test_large_counts_are_short(tokens: int, shown: str) -> None:
    lines = table(weights=np.ones(100), num_tokens=np.full(100, tokens))
    assert shown in lines[-1]
