"""Several models in one Markdown table, and held-out questions with what each answers."""

from collections.abc import Sequence
from dataclasses import dataclass

from train.measuring.results import Results, in_order, measure_of

ABSENT = "–"


@dataclass(frozen=True)
class Example:
    """A held-out question, with its picture or without, and what each model answers."""

    picture: str | None  # path relative to the report; None for a text question
    language: str
    question: str
    reference: str
    answers: dict[str, str]  # by name of the model


def format_table(results: dict[str, Results]) -> str:
    """Return a row for each group and measure, and for each of its languages."""
    names = list(results)
    lines = [
        "| held-out rows | measure | language | " + " | ".join(names) + " |",
        "|---|---|---|" + "---:|" * len(names),
    ]
    for group in _in_order(name for result in results.values() for name in result):
        measured = {name: result[group] for name, result in results.items() if group in result}
        for measure in in_order([m for result in measured.values() for m in result.by_language]):
            told = measure_of(measure)
            found = {name: result.by_language.get(measure) for name, result in measured.items()}
            cells = [_mean(found.get(name), told.form) for name in names]
            lines.append(f"| **{group}** | {told.title} | mean | " + " | ".join(cells) + " |")
            for code in _in_order(code for values in found.values() for code in values or ()):
                cells = [_one(found.get(name), code, told.form) for name in names]
                lines.append(f"| {group} | {told.title} | {code} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def format_examples(examples: Sequence[Example], names: Sequence[str]) -> str:
    """Return a table of pictures, references and answers; right answers are ticked."""
    lines = [
        "| picture | question | reference | " + " | ".join(names) + " |",
        "|---|---|---|" + "---|" * len(names),
    ]
    for example in examples:
        cells = [_answer(example.answers.get(name), example.reference) for name in names]
        lines.append(
            f"| {_shown(example.picture)} | {_clean(example.question)} ({example.language}) | "
            f"{_clean(example.reference)} | " + " | ".join(cells) + " |"
        )
    return "\n".join(lines)


def _shown(picture: str | None) -> str:
    return f"![]({picture})" if picture else ABSENT


def _answer(text: str | None, reference: str) -> str:
    if text is None:
        return ABSENT
    return f"✓ {_clean(text)}" if text.strip() == reference.strip() else _clean(text)


def _clean(text: str) -> str:
    """Keep a text inside its cell."""
    return " ".join(text.replace("|", "\\|").split()) or "(nothing)"


def _mean(values: dict[str, float] | None, form: str) -> str:
    return ABSENT if not values else "**" + form.format(sum(values.values()) / len(values)) + "**"


def _one(values: dict[str, float] | None, code: str, form: str) -> str:
    return ABSENT if values is None or code not in values else form.format(values[code])


def _in_order(items: object) -> list[str]:
    return list(dict.fromkeys(items))  # type: ignore[call-overload]
