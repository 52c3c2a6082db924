"""Held-out questions with what was answered at the first, the previous and the last measurement."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from train.measuring.changes import describe_change
from train.measuring.results import Answer, Results
from train.reporting.content import Example, Examples, Said
from train.reporting.read import Measurement

A_LANGUAGE = 2  # examples of a language and group
MOST = 50  # examples of a group
MEANING = ("Better than the answer before it is the reference itself, or else a higher chrF "
           "against it; worse is the other way round.")  # fmt: skip
LONG = 500  # characters that are shown of a text


def run_examples(
    measurements: Sequence[Measurement], pictures: Mapping[str, Path]
) -> list[Examples]:
    """Return the examples of each group whose answers were generated, with pictures first."""
    steps = _shown_steps(measurements)
    by_name = {f"step {one.step}": one.results for one in steps}
    found = _by_group(by_name, pictures, is_over_time=True)
    if found and len(by_name) > 1:  # said once
        found[0] = replace(found[0], note=f"{found[0].note} {MEANING}".strip())
    return found


def model_examples(models: Mapping[str, Results], pictures: Mapping[str, Path]) -> list[Examples]:
    """Return the examples of each group with every model's answer."""
    return _by_group(models, pictures, is_over_time=False)


def compare(before: Answer, after: Answer) -> str:
    """Return "better", "worse", "same" or "other words" of an answer after another."""
    return describe_change(before.answer, after.answer, after.reference)


def _shown_steps(measurements: Sequence[Measurement]) -> list[Measurement]:
    with_answers = [m for m in measurements if any(r.answers for r in m.results.values())]
    return list({m.step: m for m in [*with_answers[:1], *with_answers[-2:]]}.values())


def _by_group(
    named: Mapping[str, Results], pictures: Mapping[str, Path], *, is_over_time: bool
) -> list[Examples]:
    groups = dict.fromkeys(g for results in named.values() for g, r in results.items() if r.answers)
    found = []
    for group in sorted(groups, key=lambda g: named_kind(named, g) == "text"):
        answers = {
            name: {a.row_id: a for a in results[group].answers}
            for name, results in named.items()
            if group in results
        }
        rows = list(dict.fromkeys(row for told in answers.values() for row in told))
        chosen = _choose(rows, {row: a for told in answers.values() for row, a in told.items()},
                         pictures)  # fmt: skip
        items = [_example(row, answers, pictures, is_over_time=is_over_time) for row in chosen]
        note = "" if len(items) == len(rows) else (
            f"{len(items)} of {len(rows)} rows are shown, at most {A_LANGUAGE} a language; all are "
            "in the evaluation's JSON.")  # fmt: skip
        found.append(Examples(group, items, _changes(items, note) if is_over_time else note))
    return found


def named_kind(named: Mapping[str, Results], group: str) -> str:
    """Return what the rows of a group are."""
    return next(r[group].kind.value for r in named.values() if group in r)


def _choose(
    rows: Sequence[str], answers: Mapping[str, Answer], pictures: Mapping[str, Path]
) -> list[str]:
    """Return a few rows of each language, those with a picture at hand first."""
    counts: Counter[str] = Counter()
    chosen = []
    for row in sorted(rows, key=lambda row: row not in pictures):
        language = answers[row].language
        if counts[language] < A_LANGUAGE:
            counts[language] += 1
            chosen.append(row)
    return sorted(chosen[:MOST], key=lambda row: answers[row].language)


def _example(
    row: str,
    answers: Mapping[str, Mapping[str, Answer]],
    pictures: Mapping[str, Path],
    *,
    is_over_time: bool,
) -> Example:
    said: list[Said] = []
    before: Answer | None = None
    for name, told in answers.items():
        if row in told:
            now = told[row]
            how = compare(before, now) if is_over_time and before is not None else ""
            said.append(Said(name, clip(now.answer), now.is_exact, how))
            if now.blind_answer is not None and not is_over_time:
                said.append(_blind(f"{name}, blind", now))
            before = now
    assert before is not None
    if is_over_time and before.blind_answer is not None:
        said.append(_blind("blind", before))
    return Example(
        row, before.language, clip(before.question), clip(before.reference), said,
        pictures.get(row),
    )  # fmt: skip


def _blind(label: str, answer: Answer) -> Said:
    text = answer.blind_answer or ""
    return Said(label, clip(text), text.strip() == answer.reference.strip())


def _changes(items: Sequence[Example], note: str) -> str:
    """Say how the answers shown changed since the measurement before."""
    changes = Counter(filter(None, map(_last_change, items)))
    if not changes:
        return note
    told = ", ".join(f"{number} {name}" for name, number in changes.most_common())
    return f"Of the rows shown, since the measurement before: {told}. {note}".strip()


def _last_change(item: Example) -> str:
    return next((said.change for said in reversed(item.answers) if said.change), "")


def clip(text: str) -> str:
    """Return a text that is not too long, with a mark where it was cut."""
    return text if len(text) <= LONG else f"{text[:LONG]} […]"
