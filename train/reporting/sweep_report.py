"""The report of a sweep over alpha: what text costs, what captions are worth, what was chosen."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.measuring.results import Results, stable_metrics
from train.reporting.content import (
    ABSENT,
    Block,
    Cell,
    Charts,
    Column,
    Fact,
    Facts,
    LineChart,
    Problems,
    Report,
    Section,
    Series,
    Table,
    Text,
    counted,
    told,
)
from train.reporting.curves import NUM_FLAGGED, highest, worst
from train.reporting.examples import model_examples
from train.reporting.read import Reader, as_dict, read_results
from train.reporting.recipe_blocks import choice_blocks, sweep_provenance
from train.reporting.tables import BEST, side_by_side

COLUMNS = {
    "text_nll": ("text loss", "{:.3f}"),
    "text_exact_match": ("text answered exactly", "{:.0%}"),
    "caption_nll": ("caption loss", "{:.3f}"),
    "picture_gap": ("picture gap", "{:.3f}"),
    "caption_exact_match": ("captions exactly right", "{:.0%}"),
    "caption_chrf": ("caption chrF", "{:.1f}"),
}
MOST_COMPARED = 3  # candidates whose tables by language are shown


@dataclass(frozen=True)
class SweepFiles:
    """What a sweep's folder says."""

    folder: Path
    problems: list[str]
    points: list[dict[str, Any]]
    chosen: dict[str, Any]
    text_lm: str
    results: dict[str, Results]  # by candidate
    recipes: dict[str, dict[str, Any]]  # by candidate
    config: dict[str, Any]  # what makes it this sweep, with fingerprints of its inputs


def read_sweep(folder: Path) -> SweepFiles:
    """Read sweep.json and its points, as far as they can be read."""
    reader = Reader(folder)
    content = reader.json("sweep.json")
    points = content.get("points")
    chosen = content.get("chosen")
    results, recipes, measured = {}, {}, []
    for path in sorted((folder / "points").glob("*.json")):
        found = reader.json(f"points/{path.name}")
        point = found.get("point")
        if isinstance(point, dict) and isinstance(found.get("results"), dict):
            measured.append(point)
            name = str(point.get("name"))
            recipes[name] = as_dict(found.get("recipe"))
            results[name] = read_results(
                reader, f"points/{path.name}", {"groups": found["results"]}
            )
    listed = points if isinstance(points, list) else measured
    order = [point for point in listed if isinstance(point, dict)]
    names = [str(point.get("name")) for point in order]
    recipes = {name: recipes[name] for name in names if name in recipes}
    return SweepFiles(
        folder, reader.problems, order, chosen if isinstance(chosen, dict) else {},
        str(content.get("text_lm", "")), results, recipes, reader.json("config.json", needed=False),
    )  # fmt: skip


def sweep_report(sweep: SweepFiles) -> Report:
    """Return what there is to say of a sweep."""
    lead: list[Block] = [Facts(sweep_facts(sweep))]
    if sweep.problems:
        lead.append(Problems(sweep.problems))
    compared = compared_results(sweep)
    groups = dict.fromkeys(group for results in compared.values() for group in results)
    tables = [table for group in groups for table in side_by_side(compared, group)]
    sections = [
        Section("Text and captions against alpha", sweep_blocks(sweep)),
        Section("By language", [Text(BEST), *tables] if tables else []),
        Section("Held-out rows and every candidate's answer", model_examples(compared, {})),
        Section("What was run", sweep_provenance(sweep.recipes, sweep.results, sweep.config)),
    ]
    title = f"Sweep: {sweep.folder.resolve().name}"
    return Report(title, "Every point is a merge that was measured, not written", lead, sections)


def sweep_facts(sweep: SweepFiles) -> list[Fact]:
    """Return what was chosen, what it costs of text and keeps of captions, beside the VLM."""
    chosen = str(sweep.chosen.get("name", "nothing yet"))
    facts = [Fact("Alpha chosen", chosen, f"of {counted(len(sweep.points), 'candidate')} measured")]
    points = {str(point.get("name")): point for point in sweep.points}
    choice, base = points.get(chosen, {}), points.get(sweep.text_lm, {})
    vlm: dict[str, Any] = next((p for p in sweep.points if p.get("alpha") == 1), {})
    if _increase(choice, base) != ABSENT:
        note = f"nats a token; the VLM {_increase(vlm, base)}"
        facts.append(Fact("Text loss over the text LM", _increase(choice, base), note, "text"))
    for key, tone in (("text_exact_match", "text"), ("caption_exact_match", "captions"),
                      ("caption_chrf", "captions"), ("picture_gap", "captions")):  # fmt: skip
        title, form = COLUMNS[key]
        if _text(form, choice.get(key)) != ABSENT:
            beside = f"text LM {_text(form, base.get(key))}, VLM {_text(form, vlm.get(key))}"
            heading = title[:1].upper() + title[1:]
            facts.append(Fact(heading, _text(form, choice.get(key)), beside, tone))
    return facts


def sweep_blocks(sweep: SweepFiles) -> list[Block]:
    """Return the curves over alpha, the table of all points, and the rule that chose."""
    blocks: list[Block] = []
    charts = _charts(sweep)
    if charts:
        blocks.append(Charts(charts))
    chosen = str(sweep.chosen.get("name", ""))
    base = next((p for p in sweep.points if str(p.get("name")) == sweep.text_lm), {})
    rows = []
    for point in sweep.points:
        name = str(point.get("name"))
        mark = "best" if name == chosen else ""
        cells = [Cell(f"{name} (chosen)" if mark else name, mark=mark)]
        cells += [
            Cell(_text(form, point.get(key)), mark=mark) for key, (_, form) in COLUMNS.items()
        ]
        rows.append([*cells[:2], Cell(_increase(point, base), mark=mark), *cells[2:]])
    if rows:
        titles = [title for title, _ in COLUMNS.values()]
        columns = [Column("alpha", is_number=False), Column(titles[0]), Column("increase"),
                   *(Column(title) for title in titles[1:])]  # fmt: skip
        note = (
            "Losses and gap in nats a token; increase is over the text LM's loss. Bold: the choice."
        )
        blocks.append(Table("Every candidate", columns, rows, note))
    if sweep.chosen.get("rule"):
        blocks.append(Text(f"Chosen: {chosen}, the {sweep.chosen['rule']}."))
    return [*blocks, *choice_blocks(sweep.recipes.get(chosen, {}))]


def compared_results(sweep: SweepFiles) -> dict[str, Results]:
    """Return what was measured of the text LM, the choice and the VLM."""
    vlm = next((str(p.get("name")) for p in sweep.points if p.get("alpha") == 1), "")
    names = dict.fromkeys([sweep.text_lm, str(sweep.chosen.get("name")), vlm])
    there = [name for name in names if name in sweep.results][:MOST_COMPARED]
    return {f"alpha {name}": sweep.results[name] for name in there or list(sweep.results)[:2]}


def _charts(sweep: SweepFiles) -> list[LineChart]:
    """Return text loss, caption score and the share of languages, over alpha."""
    chosen = sweep.chosen.get("alpha")
    mark = (float(chosen), "chosen") if isinstance(chosen, int | float) else None
    charts = []
    for keys, title, unit, tone in (
        (("text_nll",), "Text loss", "nats a token", "text"),
        (("caption_chrf",), "Captions", "chrF", "captions"),
        (("picture_gap",), "Picture gap", "nats a token", "captions"),
        (("text_exact_match", "caption_exact_match"), "Answered exactly", "share of rows", ""),
    ):
        lines = {key: _over_alpha(sweep.points, key) for key in keys}
        series = [
            Series(key.split("_")[0] if len(keys) > 1 else title, line, "main" if not n else "flag")
            for n, (key, line) in enumerate(lines.items())
            if len(line) > 1
        ]
        if series:
            form = COLUMNS[keys[0]][1]
            most = highest(keys[0].split("_")[1], form)
            charts.append(LineChart(f"sweep-{keys[0]}", title, unit, series, form, x_title="alpha",
                                    tone=tone, mark=mark, most=most))  # fmt: skip
    by_language = _losses_by_language(sweep)
    return [charts[0], *by_language, *charts[1:]] if charts else by_language


def _losses_by_language(sweep: SweepFiles) -> list[LineChart]:
    """Return what each language's text loses over the text LM, over alpha."""
    alphas = {str(p.get("name")): p.get("alpha") for p in sweep.points}
    found = {
        name: {
            key.split("/")[1]: value
            for key, value in stable_metrics(results).items()
            if key.startswith("retention/") and key.endswith("/nll")
        }
        for name, results in sweep.results.items()
    }
    base = found.get(sweep.text_lm, {})
    lines: dict[str, list[tuple[float, float]]] = {}
    for name, losses in found.items():
        alpha = alphas.get(name)
        if isinstance(alpha, int | float):
            for code in losses.keys() & base.keys():
                lines.setdefault(code, []).append((float(alpha), losses[code] - base[code]))
    if not any(len(line) > 1 for line in lines.values()):
        return []
    highest = {code: max(value for _, value in line) for code, line in lines.items()}
    named = worst(highest, False)
    series = [
        Series(
            code, sorted(line), "main" if code == "mean" else "flag" if code in named else "rest"
        )
        for code, line in sorted(lines.items())
    ]
    note = f"The {NUM_FLAGGED} that lose most of {len(lines) - 1} languages are named."
    return [LineChart("sweep-languages", "Text loss over the text LM", "nats a token", series,
                      "{:+.3f}", x_title="alpha", tone="text",
                      note=note if len(lines) > NUM_FLAGGED + 1 else "")]  # fmt: skip


def _over_alpha(points: list[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    found = [(point.get("alpha"), point.get(key)) for point in points]
    return sorted(
        (float(alpha), float(value))
        for alpha, value in found
        if isinstance(alpha, int | float)
        and isinstance(value, int | float)
        and math.isfinite(value)
    )


def _increase(point: Mapping[str, Any], base: Mapping[str, Any]) -> str:
    value, zero = point.get("text_nll"), base.get("text_nll")
    if isinstance(value, int | float) and isinstance(zero, int | float):
        return told("{:+.3f}", value - zero)
    return ABSENT


def _text(form: str, value: Any) -> str:
    return told(form, value) if isinstance(value, int | float) else ABSENT
