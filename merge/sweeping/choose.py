"""Which candidate: the rule, in words and in code, and the Pareto front. No torch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from configs.errors import CheckpointError


@dataclass(frozen=True)
class Point:
    """What was measured of one candidate, each the mean over groups and languages."""

    name: str
    alpha: float | None  # None for a schedule
    text_nll: float  # nats a token of held-out text
    text_exact_match: float | None  # share of held-out questions without pictures
    caption_nll: float
    picture_gap: float
    caption_exact_match: float | None
    caption_chrf: float | None  # 0 to 100

    @property
    def caption_score(self) -> float:
        """What the rule maximises: chrF of generated captions, or likelihood without them."""
        return -self.caption_nll if self.caption_chrf is None else self.caption_chrf


@dataclass(frozen=True)
class Choice:
    """The chosen candidate and the rule that chose it."""

    name: str
    alpha: float | None
    rule: str


def choose_candidate(
    points: Sequence[Point], *, text_lm: str, max_text_loss_increase: float
) -> Choice:
    """The candidate with the best captions among those that cost little text.

    Of equals a number goes before a schedule, a small number before a large one.

    Args:
        points: one each candidate.
        text_lm: name of the one that is the text LM.
        max_text_loss_increase: nats a token that the choice may cost over the text LM.

    Raises CheckpointError where the text LM itself has no loss or no caption score.
    """
    base = point_of(points, text_lm)
    limit = base.text_nll + max_text_loss_increase
    allowed = [p for p in points if p.text_nll <= limit and not math.isnan(p.caption_score)]
    if base not in allowed:
        raise CheckpointError(
            f"the text LM's held-out text loss is {base.text_nll}, its caption score "
            f"{base.caption_score}: no numbers to hold others against; is it whole?"
        )
    best = max(allowed, key=_preference)
    measure = "likelihood" if best.caption_chrf is None else "chrF"
    rule = (
        f"largest {measure} of held-out captions among the {len(allowed)} of {len(points)} "
        f"candidates whose held-out text loss is at most {limit:.3f} nats a token: that of the "
        f"text LM ({base.text_nll:.3f}) plus max_text_loss_increase={max_text_loss_increase:g}"
    )
    return Choice(best.name, best.alpha, rule)


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """Points that no other one beats in text loss and captions at once, by rising text loss."""
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (p.text_nll, -p.caption_score)):
        if not front or point.caption_score > front[-1].caption_score:
            front.append(point)
    return front


def point_of(points: Sequence[Point], name: str) -> Point:
    """The point of a candidate."""
    return next(point for point in points if point.name == name)


def make_point(
    name: str, alpha: float | None, means: Mapping[str, Mapping[str, Any]], captions: Sequence[str]
) -> Point:
    """The point of one measurement: the mean over groups of the mean over languages.

    Args:
        name: of the candidate.
        alpha: its number, or None.
        means: `{group: {measure: mean}}`.
        captions: groups whose rows have pictures; the others are text.
    """
    text = [found for group, found in means.items() if group not in captions]
    seen = [found for group, found in means.items() if group in captions]
    text_nll, caption_nll = _mean(text, "nll"), _mean(seen, "nll")
    if text_nll is None or caption_nll is None:
        raise CheckpointError(f"{name}: no loss was measured of text, or of captions")
    return Point(
        name=name,
        alpha=alpha,
        text_nll=text_nll,
        text_exact_match=_mean(text, "exact_match"),
        caption_nll=caption_nll,
        picture_gap=_mean(seen, "picture_gap") or 0.0,
        caption_exact_match=_mean(seen, "exact_match"),
        caption_chrf=_mean(seen, "chrf"),
    )


def _preference(point: Point) -> tuple[float, bool, float]:
    return point.caption_score, point.alpha is not None, -(point.alpha or 0.0)


def _mean(groups: Sequence[Mapping[str, float]], measure: str) -> float | None:
    values = [means[measure] for means in groups if measure in means]
    return sum(values) / len(values) if values else None
