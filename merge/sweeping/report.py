"""The tables of a sweep: Markdown, CSV, JSON. The picture is drawn in plot.py."""

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from merge.sweeping.candidates import Candidate
from merge.sweeping.choose import Choice, Point, point_of
from merge.sweeping.points import Measured

HEADINGS = {
    "name": "alpha",
    "text_nll": "text loss",
    "text_loss_increase": "increase",
    "text_exact_match": "text exact match",
    "caption_nll": "caption loss",
    "picture_gap": "picture gap",
    "caption_exact_match": "caption exact match",
    "caption_chrf": "caption chrF",
}
LANGUAGE_COLUMNS = ("candidate", "group", "language", "measure", "value", "count")
ABSENT = "–"


@dataclass(frozen=True)
class Outcome:
    """All that a sweep has found."""

    candidates: Sequence[Candidate]
    measured: Sequence[Measured]
    """One each candidate, in the same order."""
    captions: Sequence[str]
    """Groups whose rows have pictures."""
    text_lm: str
    """Name of the candidate that is the text LM."""
    choice: Choice

    @property
    def points(self) -> list[Point]:
        """The means."""
        return [measured.point for measured in self.measured]

    def increase(self, point: Point) -> float:
        """Nats a token of held-out text that a candidate costs over the text LM."""
        return point.text_nll - point_of(self.points, self.text_lm).text_nll

    def columns(self) -> list[str]:
        """Names of what `cells` gives of each point."""
        return [*asdict(self.points[0]), "text_loss_increase"]

    def cells(self, point: Point) -> list[Any]:
        """All numbers of a point."""
        return [*asdict(point).values(), self.increase(point)]

    def language_rows(self) -> list[tuple[str, str, str, str, float, int]]:
        """Every number of every candidate, group, measure and language, as LANGUAGE_COLUMNS."""
        return [row for measured in self.measured for row in measured.rows()]


def write_tables(out: Path, outcome: Outcome) -> None:
    """Write sweep.json, sweep.csv, sweep_languages.csv and sweep.md."""
    plain = {
        "chosen": asdict(outcome.choice),
        "text_lm": outcome.text_lm,
        "points": [asdict(point) for point in outcome.points],
    }
    (out / "sweep.json").write_text(json.dumps(plain, indent=1), encoding="utf-8")
    cells = [outcome.cells(point) for point in outcome.points]
    _write_csv(out / "sweep.csv", outcome.columns(), cells)
    _write_csv(out / "sweep_languages.csv", LANGUAGE_COLUMNS, outcome.language_rows())
    (out / "sweep.md").write_text(format_report(outcome), encoding="utf-8")


def format_report(outcome: Outcome) -> str:
    """Return the Markdown report; its first paragraph is its title."""
    schedules = [
        f"- `{candidate.name}`: alpha {candidate.recipe.alpha}"
        for candidate in outcome.candidates
        if candidate.alpha is None
    ]
    parts = [
        "# Sweep over alpha",
        format_table(outcome),
        *(["\n".join(schedules)] if schedules else []),
        f"Chosen: **{_called(outcome.choice)}**, the {outcome.choice.rule}.",
        "Losses and the gap are nats a supervised token, increase is that of the text loss over "
        "the text LM's; the gap is the caption loss with a shuffled picture minus that with the "
        "right one. Each is the mean over groups of the mean over languages.",
        "![sweep](sweep.png)",
        format_languages(outcome),
    ]
    return "\n\n".join(parts) + "\n"


def format_table(outcome: Outcome) -> str:
    """Return the means as a Markdown table, the choice in bold."""
    lines = ["| " + " | ".join(HEADINGS.values()) + " |", "|" + "---:|" * len(HEADINGS)]
    for point in outcome.points:
        values = asdict(point) | {"text_loss_increase": outcome.increase(point)}
        cells = [_cell(name, values[name]) for name in HEADINGS]
        if point.name == outcome.choice.name:
            cells = [f"**{cell}**" for cell in cells]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def format_languages(outcome: Outcome) -> str:
    """Return by language what text costs and what captions are worth, at three candidates."""
    names = _compared(outcome)
    found = {measured.point.name: measured for measured in outcome.measured}
    text = [group for group in found[outcome.text_lm].results if group not in outcome.captions]
    generated = all(point.caption_chrf is not None for point in outcome.points)
    measure, title = ("chrf", "caption chrF") if generated else ("nll", "caption loss")
    losses = {name: found[name].by_language(text, "nll") for name in names}
    scores = {name: found[name].by_language(outcome.captions, measure) for name in names}
    base = losses[outcome.text_lm]
    headings = [
        "language",
        f"text loss, {names[outcome.text_lm]}",
        *(f"increase, {called}" for name, called in names.items() if name != outcome.text_lm),
        *(f"{title}, {called}" for called in names.values()),
    ]
    lines = ["| " + " | ".join(headings) + " |", "|---|" + "---:|" * (len(headings) - 1)]
    for code in sorted({*base, *scores[outcome.text_lm]}):
        cells = [_at(base, code, "{:.3f}")]
        for name in names:
            if name != outcome.text_lm:
                rise = {c: value - base[c] for c, value in losses[name].items()}
                cells.append(_at(rise, code, "{:+.3f}"))
        form = "{:.1f}" if generated else "{:.3f}"
        cells += [_at(scores[name], code, form) for name in names]
        lines.append(f"| {code} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _compared(outcome: Outcome) -> dict[str, str]:
    """{name: what it is called} of the text LM, the choice and the VLM, as far as measured."""
    choice = outcome.choice
    called = {outcome.text_lm: "text LM"}
    if choice.name == outcome.text_lm:
        called[choice.name] += " (chosen)"
    else:
        called[choice.name] = f"chosen ({choice.name})"
    vlm = next((point.name for point in outcome.points if point.alpha == 1), None)
    if vlm is not None and vlm not in called:
        called[vlm] = "VLM (1)"
    return called


def _called(choice: Choice) -> str:
    return choice.name if choice.alpha is None else f"alpha {choice.name}"


def _at(values: dict[str, float], code: str, form: str) -> str:
    return form.format(values[code]) if code in values else ABSENT


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ABSENT
    if name == "name":
        return str(value)
    if name.endswith("exact_match"):
        return f"{value:.0%}"
    forms = {"caption_chrf": "{:.1f}", "text_loss_increase": "{:+.3f}"}
    return forms.get(name, "{:.3f}").format(value)


def _write_csv(path: Path, columns: Iterable[str], rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
