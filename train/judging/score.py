"""From verdicts to wins, ties and losses, their shares, and how sure they are."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from train.judging.pairs import Pair
from train.judging.prompt import Order, Verdict
from train.judging.verdicts import Judged, RequestKey

RULE = (
    "Each row is judged twice, with a's answer first and with b's answer first. It is a win for a "
    "(a loss, where b is better) only if both verdicts prefer the same model; one preference and a "
    "tie, or one of each, is a tie. Answers that are one but for white space at their ends are a "
    "tie and are not asked about. A row one of whose verdicts cannot be read is counted as "
    "unreadable and is in no share."
)


@dataclass(frozen=True)
class Outcome:
    """What became of a row."""

    pair: Pair
    points: int | None  # of a: 1 win, 0 tie, -1 loss; None: unreadable
    verdicts: tuple[Judged, ...]  # both orders; none for identical answers


def outcomes(pairs: Iterable[Pair], verdicts: dict[RequestKey, Judged]) -> list[Outcome]:
    """Return what became of each row by RULE; each has both verdicts."""
    return [_outcome(pair, verdicts) for pair in pairs]


def _outcome(pair: Pair, verdicts: dict[RequestKey, Judged]) -> Outcome:
    if pair.is_identical:
        return Outcome(pair, 0, ())
    both = tuple(verdicts[(*pair.key, order.value)] for order in Order)
    points = [item.points for item in both]
    if None in points:
        return Outcome(pair, None, both)
    return Outcome(pair, points[0] if points[0] == points[1] else 0, both)


def count(found: Sequence[Outcome]) -> dict[str, Any]:
    """Return counts and shares; shares are None where no row could be read."""
    points = [outcome.points for outcome in found]
    wins, ties, losses = (points.count(value) for value in (1, 0, -1))
    total = wins + ties + losses
    return {
        "num_rows": len(found),
        "wins": wins,
        "ties": ties,
        "losses": losses,
        "unreadable": points.count(None),
        "identical": sum(outcome.pair.is_identical for outcome in found),
        **_shares(wins, ties, losses, total),
    }


def _shares(wins: float, ties: float, losses: float, total: float) -> dict[str, float | None]:
    shares = {"win": wins, "tie": ties, "loss": losses, "win_and_half_ties": wins + ties / 2}
    return {f"{name}_rate": value / total if total else None for name, value in shares.items()}


def by_language(found: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """Group by language, in order of the codes."""
    codes = sorted({outcome.pair.language for outcome in found})
    return {code: [o for o in found if o.pair.language == code] for code in codes}


def rates(
    found: Sequence[Outcome], *, num_resamples: int, confidence: float, seed: int
) -> dict[str, Any]:
    """Return `by_language`, `all` (over rows) and `mean` (over languages, as the paper tells it).

    Intervals are percentiles of a bootstrap over rows within each language. Rows of a language
    drawn with replacement have multinomial counts, which are drawn at once.
    """
    groups = by_language(found)
    draws = {
        code: _resample(group, num_resamples, np.random.default_rng([seed, place]))
        for place, (code, group) in enumerate(groups.items())
    }
    told = {
        code: count(group) | _interval(_draw_shares(draws[code]), confidence)
        for code, group in groups.items()
    }
    pooled = sum(draws.values(), np.zeros((num_resamples, 3)))
    # A language none of whose rows could be read has no share to take part with.
    shares = [_draw_shares(draw) for draw in draws.values() if draw.sum()]
    mean = sum(shares, np.zeros((num_resamples, 2))) / max(1, len(shares))
    return {
        "all": count(found) | _interval(_draw_shares(pooled), confidence),
        "mean": _mean(told) | _interval(mean if shares else pooled[:, :0], confidence),
        "by_language": told,
    }


def _resample(found: Sequence[Outcome], num_resamples: int, draw: Any) -> Any:
    """Return [num_resamples, 3] float64: wins, ties and losses of rows drawn with replacement."""
    points = [o.points for o in found if o.points is not None]
    shares = [points.count(value) / max(1, len(points)) for value in (1, 0, -1)]
    if not points:
        return np.zeros((num_resamples, 3))
    return draw.multinomial(len(points), shares, size=num_resamples).astype(np.float64)


def _draw_shares(draws: Any) -> Any:
    """From [R, 3] counts to [R, 2] shares: wins; wins and half of the ties. [R, 0] for none."""
    total = draws.sum(axis=1, keepdims=True)
    if not total.any():
        return draws[:, :0]
    return np.stack([draws[:, 0], draws[:, 0] + draws[:, 1] / 2], axis=1) / total


def _interval(shares: Any, confidence: float) -> dict[str, list[float] | None]:
    names = ("win_rate_interval", "win_and_half_ties_rate_interval")
    if not shares.shape[1]:
        return dict.fromkeys(names)
    tail = 50 * (1 - confidence)
    low, high = np.percentile(shares, [tail, 100 - tail], axis=0)
    return {name: [float(low[i]), float(high[i])] for i, name in enumerate(names)}


def _mean(told: dict[str, dict[str, Any]]) -> dict[str, Any]:
    read = [values for values in told.values() if values["win_rate"] is not None]
    names = ("win_rate", "tie_rate", "loss_rate", "win_and_half_ties_rate")
    return {"num_languages": len(read)} | {
        name: sum(values[name] for values in read) / len(read) if read else None for name in names
    }


def position(found: Sequence[Outcome]) -> dict[str, Any]:
    """Return what the judge says by place and order, whatever is in the answers.

    `bias` is the share of verdicts for the first place less that for the second: 0 for a judge that
    looks at the answers alone.
    """
    said = [item for outcome in found for item in outcome.verdicts if item.verdict is not None]
    total = len(said)
    places = {v: sum(item.verdict == v for item in said) for v in Verdict}
    pairs = [o for o in found if o.verdicts and o.points is not None]
    same = sum(o.verdicts[0].points == o.verdicts[1].points for o in pairs)
    by_order = {}
    for order in Order:
        points = [item.points for item in said if item.order == order]
        by_order[order.value] = {
            "a": points.count(1), "tie": points.count(0), "b": points.count(-1),
            "a_rate": points.count(1) / len(points) if points else None,
        }  # fmt: skip
    return {
        "by_order": by_order,
        "first_rate": places[Verdict.first] / total if total else None,
        "second_rate": places[Verdict.second] / total if total else None,
        "tie_rate": places[Verdict.tie] / total if total else None,
        "bias": (places[Verdict.first] - places[Verdict.second]) / total if total else None,
        "agreement": same / len(pairs) if pairs else None,
    }
