"""Shares and intervals, against counting by hand and resampling row by row."""

import numpy as np

from train.judging.pairs import Pair
from train.judging.score import Outcome, rates


def outcome(language: str, points: int | None, number: int = 0) -> Outcome:
    pair = Pair("g", f"{language}-{number}", language, "q", "r", "x", "y", None)
    return Outcome(pair, points, ())


FOUND = [
    *(outcome("en", points) for points in [1] * 12 + [0] * 6 + [-1] * 2),
    *(outcome("fr", points) for points in [1] * 3 + [-1] * 7),
    outcome("fr", None),
]
DRAWING = {"num_resamples": 20_000, "confidence": 0.95, "seed": 0}


def test_shares_are_of_what_could_be_read() -> None:
    told = rates(FOUND, **DRAWING)
    french = told["by_language"]["fr"]
    assert (french["num_rows"], french["unreadable"], french["win_rate"]) == (11, 1, 0.3)
    assert told["by_language"]["en"]["win_and_half_ties_rate"] == 0.75
    assert told["all"]["win_rate"] == 15 / 30
    assert told["mean"]["win_rate"] == (12 / 20 + 3 / 10) / 2
    assert told["mean"]["num_languages"] == 2


def test_intervals_are_those_of_rows_drawn_one_by_one() -> None:
    told, draw = rates(FOUND, **DRAWING), np.random.default_rng(1)
    shares: dict[str, list[float]] = {"en": [], "fr": [], "all": [], "mean": []}
    rows = {code: np.array([o.points for o in FOUND if o.pair.language == code and
            o.points is not None]) for code in ("en", "fr")}  # fmt: skip
    for _ in range(20_000):
        drawn = {code: draw.choice(points, len(points)) for code, points in rows.items()}
        wins = {code: float((points == 1).mean()) for code, points in drawn.items()}
        shares["en"].append(wins["en"])
        shares["fr"].append(wins["fr"])
        shares["all"].append(float((np.concatenate(list(drawn.values())) == 1).mean()))
        shares["mean"].append((wins["en"] + wins["fr"]) / 2)
    for name, values in shares.items():
        ours = (told | told["by_language"])[name]["win_rate_interval"]
        theirs = np.percentile(values, [2.5, 97.5])
        assert np.abs(np.array(ours) - theirs).max() < 0.04, name
        assert ours[0] < (told | told["by_language"])[name]["win_rate"] < ours[1]


def test_the_seed_decides_and_nothing_else() -> None:
    few = DRAWING | {"num_resamples": 50}
    assert rates(FOUND, **few) == rates(FOUND, **few)
    assert rates(FOUND, **few) != rates(FOUND, **(few | {"seed": 1}))


def test_a_language_without_a_verdict_leaves_the_others_theirs() -> None:
    told = rates([*FOUND, outcome("ja", None)], **DRAWING)
    assert told["by_language"]["ja"]["win_rate"] is None
    assert told["by_language"]["ja"]["win_rate_interval"] is None
    assert told["mean"] == rates(FOUND, **DRAWING)["mean"]
