"""How an answer has changed since the measurement before."""

from functools import cache

from sacrebleu.metrics.chrf import CHRF

SAME, BETTER, WORSE, OTHER = "same", "better", "worse", "other words"


def describe_change(before: str | None, now: str, reference: str) -> str:
    """Return same, better, worse, or other words; nothing where there was none before.

    Better is the reference itself, or else a higher chrF (sacrebleu) against it.
    """
    if before is None:
        return ""
    then, since, wanted = before.strip(), now.strip(), reference.strip()
    if then == since:
        return SAME
    if wanted in (then, since):
        return BETTER if since == wanted else WORSE
    gain = _chrf(since, wanted) - _chrf(then, wanted)
    if gain == 0:
        return OTHER
    return BETTER if gain > 0 else WORSE


def _chrf(text: str, reference: str) -> float:
    return float(_metric().sentence_score(text, [reference]).score)


@cache
def _metric() -> CHRF:
    return CHRF()
