"""What was measured, by group of held-out rows, measure and language, and the JSON it is kept as.

The JSON is described in docs/EVALUATION.md and by evaluation.schema.json beside this file.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any

from data.rows import Row

SCHEMA = 1  # version of the JSON: raised where a name goes or changes its meaning
BLIND = "blind_"  # before a measure: the same with the pictures blanked


class GroupKind(StrEnum):
    """What the rows of a group are."""

    text = "text"  # none has a picture
    captions = "captions"  # each has
    mixed = "mixed"


@dataclass(frozen=True)
class Measure:
    """A measure and how it is told."""

    name: str
    title: str
    form: str  # of a value, for str.format
    is_highest_best: bool


MEASURES = {
    measure.name: measure
    for measure in (
        Measure("nll", "loss, nats a token", "{:.3f}", False),
        Measure("nll_increase", "loss over step 0, nats a token", "{:+.3f}", False),
        Measure("kl", "KL to the original, nats a token", "{:.4f}", False),
        Measure("picture_gap", "picture gap, nats a token", "{:.3f}", True),
        Measure("choice_accuracy", "right caption chosen", "{:.0%}", True),
        Measure("exact_match", "answered exactly", "{:.0%}", True),
        Measure("chrf", "chrF", "{:.1f}", True),
        Measure("bleu", "BLEU", "{:.1f}", True),
        Measure("cider", "CIDEr-D", "{:.2f}", True),
    )
}


@dataclass(frozen=True)
class Answer:
    """A generated answer beside what was wanted."""

    row_id: str
    language: str
    question: str
    reference: str
    answer: str
    blind_answer: str | None = None  # with the pictures blanked

    @property
    def is_exact(self) -> bool:
        """Whether the answer is the reference, but for white space at its ends."""
        return self.answer.strip() == self.reference.strip()


ByLanguage = dict[str, float]


@dataclass
class GroupResult:
    """What was measured on one group of held-out rows."""

    kind: GroupKind = GroupKind.text
    by_language: dict[str, ByLanguage] = field(default_factory=dict)  # measure -> language -> value
    num_rows: dict[str, dict[str, int]] = field(default_factory=dict)  # measure -> language -> rows
    answers: list[Answer] = field(default_factory=list)

    def add(self, measure: str, values: ByLanguage, num_rows: dict[str, int]) -> None:
        """Take what was measured, unless it is nothing."""
        if values:
            self.by_language[measure] = values
            self.num_rows[measure] = {code: num_rows[code] for code in values}

    def means(self) -> dict[str, float]:
        """Return the mean over languages of each measure."""
        return {
            name: sum(values.values()) / len(values) for name, values in self.by_language.items()
        }

    def metrics(self) -> dict[str, float]:
        """Return `<measure>`: mean over languages, and `<measure>/<language>`: value."""
        found = self.means()
        for name, values in self.by_language.items():
            found |= {f"{name}/{code}": value for code, value in values.items()}
        return found

    def describe(self) -> str:
        """Return the means over languages in a line."""
        mean = self.means()
        forms = {
            "nll": "{:.3f} nats a token",
            "nll_increase": "{:+.3f} over step 0",
            "picture_gap": "picture gap {:.2f}",
            "choice_accuracy": "{:.0%} chosen",
            "exact_match": "{:.0%} exact",
            "chrf": "chrF {:.1f}",
        }
        return ", ".join(form.format(mean[name]) for name, form in forms.items() if name in mean)


Results = dict[str, GroupResult]  # by group


def measure_of(name: str) -> Measure:
    """Return a measure by its name, a blind one too."""
    if not name.startswith(BLIND):
        return MEASURES[name]
    seeing = MEASURES[name.removeprefix(BLIND)]
    return Measure(name, f"{seeing.title}, blind", seeing.form, seeing.is_highest_best)


def in_order(names: Iterator[str] | Sequence[str]) -> list[str]:
    """Sort names of measures as tables show them: a blind one after the one it belongs to."""
    order = [*MEASURES]
    found = dict.fromkeys(names)
    return sorted(found, key=lambda n: (order.index(n.removeprefix(BLIND)), n.startswith(BLIND)))


def flat_metrics(results: Results) -> dict[str, float]:
    """Return `<group>/<measure>[/<language>]`: value, for logs."""
    return {
        f"{group}/{name}": value
        for group, result in results.items()
        for name, value in result.metrics().items()
    }


def stable_metrics(results: Results) -> dict[str, float]:
    """Return `retention/<language>/<measure>` and `caption/<language>/<measure>`, for dashboards.

    Each is the mean over groups: of text in `retention`, of rows with pictures in `caption`. The
    mean over languages has `mean` in the language's place. Names do not depend on how a user calls
    the groups.
    """
    found: dict[str, float] = {}
    for prefix, kind in (("retention", GroupKind.text), ("caption", GroupKind.captions)):
        groups = [result for result in results.values() if result.kind is kind]
        for name in in_order([name for group in groups for name in group.by_language]):
            values: dict[str, list[float]] = {}
            for group in groups:
                for code, value in group.by_language.get(name, {}).items():
                    values.setdefault(code, []).append(value)
            means = {code: sum(values[code]) / len(values[code]) for code in sorted(values)}
            means["mean"] = sum(means.values()) / len(means)
            found |= {f"{prefix}/{code}/{name}": value for code, value in means.items()}
    return found


def as_json(results: Results) -> dict[str, Any]:
    """Return the results as plain values, by group."""
    return {
        name: {
            "kind": result.kind.value,
            "mean": _finite(result.means()),
            "by_language": {k: _finite(values) for k, values in result.by_language.items()},
            "num_rows": result.num_rows,
            "answers": [asdict(answer) for answer in result.answers],
        }
        for name, result in results.items()
    }


def _finite(values: ByLanguage) -> dict[str, float | None]:
    """Return values as JSON knows them: null for what is no number."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def from_json(groups: dict[str, Any]) -> Results:
    """Return what `as_json` gave."""
    known = {item.name for item in fields(Answer)}
    return {
        name: GroupResult(
            kind=GroupKind(group["kind"]),
            by_language={
                name: {code: math.nan if v is None else v for code, v in values.items()}
                for name, values in group["by_language"].items()
            },
            num_rows=group["num_rows"],
            answers=[
                Answer(**{key: value for key, value in answer.items() if key in known})
                for answer in group["answers"]
            ],
        )
        for name, group in groups.items()
    }


def kind_of(rows: Sequence[Row]) -> GroupKind:
    """Return what the rows of a group are."""
    with_pictures = sum(bool(row.images) for row in rows)
    if not with_pictures:
        return GroupKind.text
    return GroupKind.captions if with_pictures == len(rows) else GroupKind.mixed
