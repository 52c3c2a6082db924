"""Which alpha: the rule, in words and in code. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Point:
    """What was measured at one alpha, each the mean over groups and languages."""

    alpha: float
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
    """The chosen alpha and the rule that chose it."""

    alpha: float
    rule: str


def choose_alpha(points: Sequence[Point], *, max_text_loss_increase: float) -> Choice:
    """Return the alpha with the best captions among those that cost little text.

    Args:
        points: one each alpha; the smallest alpha stands for the text LM.
        max_text_loss_increase: nats a token that the choice may cost over the text LM.
    """
    base = min(points, key=lambda point: point.alpha)
    limit = base.text_nll + max_text_loss_increase
    allowed = [point for point in points if point.text_nll <= limit]
    best = max(allowed, key=lambda point: (point.caption_score, -point.alpha))
    measure = "likelihood" if best.caption_chrf is None else "chrF"
    rule = (
        f"largest {measure} of held-out captions among the {len(allowed)} of {len(points)} alphas "
        f"whose held-out text loss is at most {limit:.3f} nats a token: that of alpha "
        f"{base.alpha:g} ({base.text_nll:.3f}) plus max_text_loss_increase="
        f"{max_text_loss_increase:g}"
    )
    return Choice(best.alpha, rule)


def make_point(alpha: float, results: dict[str, Any], caption_groups: Sequence[str]) -> Point:
    """Return the point of one measurement: the mean over groups of the mean over languages.

    Args:
        alpha: where it was taken.
        results: `{group: {measure: mean}}`.
        caption_groups: groups whose rows have pictures; the others are text.
    """
    text = [means for name, means in results.items() if name not in caption_groups]
    captions = [means for name, means in results.items() if name in caption_groups]
    return Point(
        alpha=alpha,
        text_nll=_mean(text, "nll") or 0.0,
        text_exact_match=_mean(text, "exact_match"),
        caption_nll=_mean(captions, "nll") or 0.0,
        picture_gap=_mean(captions, "picture_gap") or 0.0,
        caption_exact_match=_mean(captions, "exact_match"),
        caption_chrf=_mean(captions, "chrf"),
    )


def _mean(groups: Sequence[dict[str, float]], measure: str) -> float | None:
    values = [means[measure] for means in groups if measure in means]
    return sum(values) / len(values) if values else None
