"""Where held-out text lost more than it may, and whether the run ended there."""

from train.measuring.results import GroupKind
from train.reporting.content import Fact, counted
from train.reporting.read import Measurement, RunFiles

INCREASE = "nll_increase"
LIMIT = "max_text_loss_increase"  # of the config's evaluation; null: no alarm


def limit_of(run: RunFiles) -> float | None:
    """Return the nats a token that a group of text may lose over step 0; None: no limit."""
    value = run.value("evaluation", LIMIT)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number else None


def alarm_fact(run: RunFiles) -> Fact | None:
    """Return how often and where the limit was exceeded; nothing where it was not measured."""
    measured = [one for one in run.measurements if one.step and _means(one)]
    limit = limit_of(run)
    if not measured:
        return None
    if limit is None:
        is_off = LIMIT in (run.value("evaluation") or {})
        return Fact("Text alarm", "off", f"evaluation.{LIMIT} is null", "text") if is_off else None
    steps: dict[str, list[int]] = {}
    for one in measured:
        for group in exceeding(one, limit):
            steps.setdefault(group, []).append(one.step)
    above = {step for found in steps.values() for step in found}
    told = "; ".join(f"{group} {_at(found)}" for group, found in steps.items())
    note = f"measurements above {limit:g} nats a token, {LIMIT}"
    value = f"{len(above)} of {len(measured)}"
    return Fact("Text loss above its limit", value, f"{note}: {told}" if told else note, "text")


def stopped_at(run: RunFiles) -> int | None:
    """Return the step at which the alarm ended the run, or None."""
    limit, last = limit_of(run), max(run.measurements, key=lambda one: one.step, default=None)
    if limit is None or last is None or run.finished or not exceeding(last, limit):
        return None
    return last.step if run.value("evaluation", "on_text_loss_increase") == "stop" else None


def exceeding(measured: Measurement, limit: float) -> list[str]:
    """Return the groups of text that lost more than the limit; what is no number did."""
    return [group for group, mean in _means(measured).items() if not mean <= limit]


def _means(measured: Measurement) -> dict[str, float]:
    """Return the increase of each group of text, mean over languages."""
    found = {
        group: result.by_language[INCREASE]
        for group, result in measured.results.items()
        if result.kind is GroupKind.text and result.by_language.get(INCREASE)
    }
    return {group: sum(values.values()) / len(values) for group, values in found.items()}


def _at(steps: list[int]) -> str:
    if len(steps) < 4:
        return f"at step{'s' * (len(steps) > 1)} {', '.join(map(str, steps))}"
    return f"at {counted(len(steps), 'step')} from {steps[0]} to {steps[-1]}"
