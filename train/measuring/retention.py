"""How much held-out text has lost since training began, and the alarm that tells of it."""

import math
from dataclasses import dataclass

from train.measuring.results import GroupKind, Results

MOST_NAMED = 3  # languages
INCREASE = "nll_increase"


def add_increase(results: Results, baseline: Results) -> None:
    """Add to each group of text what its losses are over those of step 0, by language.

    A language whose rows are not as many as they were at step 0 (`max_rows` was changed since) has
    no increase: other rows have another loss.
    """
    for name, result in results.items():
        before = baseline.get(name)
        if before is None or result.kind is not GroupKind.text:
            continue
        then, now = before.by_language.get("nll", {}), result.by_language.get("nll", {})
        same = [
            code
            for code in now
            if code in then and result.num_rows["nll"][code] == before.num_rows["nll"][code]
        ]
        rows = result.num_rows.get("nll", {})
        result.add(INCREASE, {code: now[code] - then[code] for code in same}, rows)


@dataclass(frozen=True)
class TextAlarm:
    """Rings when a group of held-out text has lost more than it may, in the mean over languages."""

    max_increase: float | None  # nats a token; None: never

    def check(self, results: Results, step: int) -> str | None:
        """Return what to say, or None."""
        increases = {
            name: result.by_language[INCREASE]
            for name, result in results.items()
            if INCREASE in result.by_language
        }
        if self.max_increase is None or not increases:
            return None
        means = {name: sum(found.values()) / len(found) for name, found in increases.items()}
        # A loss that is no number is the worst of all.
        name = max(means, key=lambda n: math.inf if math.isnan(means[n]) else means[n])
        found, mean = increases[name], means[name]
        if mean <= self.max_increase:
            return None
        worst = sorted(found.items(), key=lambda item: -item[1])[:MOST_NAMED]
        told = ", ".join(f"{code} {value:+.3f}" for code, value in worst)
        return (
            f"step {step}: held-out text ({name}) has lost {mean:.3f} nats a token since step 0, "
            f"more than evaluation.max_text_loss_increase={self.max_increase:g}; most in {told}"
        )
