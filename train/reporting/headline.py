"""The headline of a run: where it stands, what it lost and what it learned."""

from collections.abc import Mapping

from train.measuring.results import BLIND, MEASURES
from train.reporting.alarm import alarm_fact, stopped_at
from train.reporting.content import Fact, counted, told
from train.reporting.curves import MEAN, by_language, worst
from train.reporting.read import Curves, RunFiles

SCORES = ("chrf", "cider", "choice_accuracy", "exact_match", "nll")  # the first there is, is told


def state(run: RunFiles) -> str:
    """Return whether the run is finished, and where it stands."""
    if run.finished:
        steps = run.finished.get("steps", run.last_step)
        return f"finished after {counted(steps, 'step') if isinstance(steps, int) else steps}"
    if not run.curves:
        return "nothing was logged yet"
    checkpoints = sorted(
        (path.name for path in (run.folder / "checkpoints").glob("checkpoint-*")),
        key=lambda name: (len(name), name),
    )
    goes_on = f", {checkpoints[-1]} is the last to go on from" if checkpoints else ""
    if (step := stopped_at(run)) is not None:
        return f"stopped by its alarm at step {step}{goes_on}"
    planned = run.value("optim", "max_steps")
    of = f" of {planned}" if planned else ""
    return f"not finished: logged up to step {run.last_step}{of}{goes_on}"


def run_facts(run: RunFiles) -> list[Fact]:
    """Return steps and time, training loss, text retention, captions: what there is of it."""
    text = [*text_facts(run.curves), alarm_fact(run)]
    facts = [_steps(run), _loss(run), *text, *caption_facts(run.curves)]
    return [fact for fact in facts if fact is not None]


def text_facts(curves: Curves) -> list[Fact]:
    """Return what held-out text lost, with the worst languages, and KL to the original."""
    facts = []
    increases = increase(curves)
    losses = {code: v[max(v)] for code, v in by_language(curves, "retention", "nll").items() if v}
    if MEAN in increases:
        note = ", ".join(
            f"{code} {told(MEASURES['nll_increase'].form, increases[code])}"
            for code in worst(increases, False)
        )
        value = told(MEASURES["nll_increase"].form, increases[MEAN])
        facts.append(Fact("Text loss over step 0", value,
                          f"nats a token; worst: {note}", "text"))  # fmt: skip
    elif MEAN in losses:
        note = ", ".join(f"{code} {losses[code]:.3f}" for code in worst(losses, False))
        note = f"nats a token; worst: {note}; step 0 was not measured"
        facts.append(Fact("Held-out text loss", f"{losses[MEAN]:.3f}", note, "text"))
    change = _ends(curves, "retention", "exact_match")
    if change is not None:
        facts.append(_score("Text questions answered exactly", "exact_match", change, "", "text"))
    kl = _ends(curves, "retention", "kl")
    if kl is not None:
        facts.append(Fact("KL to the original", told(MEASURES["kl"].form, kl[1]),
                          "nats a token", "text"))  # fmt: skip
    return facts


def caption_facts(curves: Curves) -> list[Fact]:
    """Return the score of captions, seeing against blind, and the picture gap."""
    facts = []
    name = next((n for n in SCORES if _ends(curves, "caption", n)), None)
    ends = _ends(curves, "caption", name) if name else None
    if name and ends:
        blind = _ends(curves, "caption", BLIND + name)
        note = f"blind {told(MEASURES[name].form, blind[1])}" if blind else ""
        facts.append(_score(f"Captions, {MEASURES[name].title}", name, ends, note, "captions"))
    for other in ("choice_accuracy", "picture_gap"):
        ends = _ends(curves, "caption", other)
        if ends and other != name:
            blind = _ends(curves, "caption", BLIND + other)
            note = f"blind {told(MEASURES[other].form, blind[1])}" if blind else ""
            if other == "picture_gap":
                note = "nats a token; 0 ignores pictures"
            title = MEASURES[other].title.partition(",")[0]
            facts.append(_score(title[:1].upper() + title[1:], other, ends, note, "captions"))
    return facts


def increase(curves: Curves) -> dict[str, float]:
    """Return the last text loss over that of step 0 by language; nothing without step 0."""
    given = by_language(curves, "retention", "nll_increase")
    if given:
        return {code: values[max(values)] for code, values in given.items()}
    return {
        code: values[max(values)] - values[0]
        for code, values in by_language(curves, "retention", "nll").items()
        if 0 in values and len(values) > 1
    }


def with_increase(curves: Curves) -> Curves:
    """Return the curves with the text loss over step 0, where it was not logged."""
    if by_language(curves, "retention", "nll_increase"):
        return curves
    made = {
        f"retention/{code}/nll_increase": {step: v - values[0] for step, v in values.items()}
        for code, values in by_language(curves, "retention", "nll").items()
        if 0 in values and len(values) > 1
    }
    return {**curves, **made}


def duration(seconds: float) -> str:
    """Return a time as people say it."""
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def _steps(run: RunFiles) -> Fact:
    seconds = run.finished.get("seconds")
    parts = [duration(seconds)] if isinstance(seconds, int | float) else []
    if len(run.starts) > 1:
        parts.append(f"since the last of {len(run.starts)} starts")
    speed = run.curves.get("perf/tokens_per_second", {})
    if speed:
        parts.append(f"{sum(speed.values()) / len(speed):,.0f} tokens/s")
    steps = run.finished.get("steps")
    return Fact(
        "Steps", f"{steps if isinstance(steps, int) else run.last_step:,}", ", ".join(parts)
    )


def _loss(run: RunFiles) -> Fact | None:
    first, last = run.loss(last=False), run.loss(last=True)
    if first is None or last is None:
        return None
    return Fact("Training loss", f"{last:.3f}", f"nats a token, from {first:.3f}")


def _score(
    title: str, measure: str, ends: tuple[float | None, float], note: str, tone: str
) -> Fact:
    form = MEASURES[measure].form
    start = f"from {told(form, ends[0])}" if ends[0] is not None else ""
    return Fact(title, told(form, ends[1]), "; ".join(filter(None, (start, note))), tone)


def _ends(curves: Mapping[str, Mapping[int, float]], prefix: str, measure: str
          ) -> tuple[float | None, float] | None:  # fmt: skip
    """Return the first and the last mean of a measure; no first one where it is the same."""
    values = curves.get(f"{prefix}/{MEAN}/{measure}", {})
    if not values:
        return None
    return (values[min(values)] if len(values) > 1 else None), values[max(values)]
