"""The report of models that were measured side by side."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.measuring.results import GroupKind, Results, stable_metrics
from train.reporting.content import (
    Block,
    Charts,
    Column,
    DotChart,
    Problems,
    Report,
    Section,
    Table,
    counted,
)
from train.reporting.curves import MEAN, highest, worst
from train.reporting.examples import model_examples
from train.reporting.provenance import config_blocks, held_out_table, signatures_table, start_blocks
from train.reporting.read import Reader, as_dict, read_pictures, read_results
from train.reporting.tables import means_table, side_by_side


@dataclass(frozen=True)
class EvaluationFiles:
    """What a stand-alone evaluation says."""

    folder: Path
    problems: list[str]
    models: dict[str, Results]
    paths: dict[str, str]
    pictures: dict[str, Path]
    settings: dict[str, Any]  # the command's config
    environment: dict[str, Any]
    signatures: dict[str, Any]  # measure -> language -> how it was computed


def read_evaluation(folder: Path) -> EvaluationFiles:
    """Read evaluation.json and its pictures, as far as they can be read."""
    reader = Reader(folder)
    content = reader.json("evaluation.json")
    models, paths = {}, {}
    for name, model in as_dict(content.get("models")).items():
        if isinstance(model, dict):
            models[name] = read_results(reader, f"evaluation.json: {name}", model)
            paths[name] = str(model.get("path", ""))
    pictures = read_pictures(reader, folder)
    told = [as_dict(content.get(key)) for key in ("settings", "environment", "signatures")]
    return EvaluationFiles(folder, reader.problems, models, paths, pictures, *told)


def evaluation_report(evaluation: EvaluationFiles) -> Report:
    """Return what there is to say of models side by side."""
    columns = [Column("model", is_number=False), Column("folder", is_number=False)]
    lead: list[Block] = [Table("Models", columns, [list(i) for i in evaluation.paths.items()])]
    if evaluation.problems:
        lead.append(Problems(evaluation.problems))
    models = evaluation.models
    text = [*dot_charts(models, "retention"), *language_tables(models, GroupKind.text)]
    captions = [
        *dot_charts(models, "caption"),
        *language_tables(models, GroupKind.captions),
        *language_tables(models, GroupKind.mixed),
    ]
    sections = [
        Section("Means over languages", [means_table(models, "All measures")] if models else []),
        Section("Text kept", text, "text"),
        Section("Pictures seen", captions, "captions"),
        Section("Held-out rows and every model's answer",
                model_examples(models, evaluation.pictures)),
        Section("What was run", _provenance(evaluation)),
    ]  # fmt: skip
    title = f"Side by side: {evaluation.folder.resolve().name}"
    return Report(
        title, f"{counted(len(models), 'model')} on the same held-out rows", lead, sections
    )


def _provenance(evaluation: EvaluationFiles) -> list[Block]:
    """Return the command, machine and versions, the rows, how scores were computed, settings."""
    sources = as_dict(evaluation.settings.get("data")).get("held_out")
    tables = [held_out_table(sources, evaluation.models), signatures_table(evaluation.signatures)]
    return [
        *start_blocks([evaluation.environment] if evaluation.environment else []),
        *(table for table in tables if table.rows),
        *config_blocks(evaluation.settings),
    ]


def dot_charts(models: Mapping[str, Results], prefix: str) -> list[Block]:
    """Return a row a language and a dot a model: loss of text, score of captions."""
    tone = "text" if prefix == "retention" else "captions"
    found = {name: stable_metrics(results) for name, results in models.items()}
    wanted = {
        "nll": ("Text loss" if tone == "text" else "Caption loss", "nats a token", "{:.3f}"),
        "exact_match": ("Answered exactly", "share of rows", "{:.0%}"),
        "chrf": ("chrF", "0 to 100", "{:.1f}"),
    }
    values = {
        measure: {name: _of(metrics, prefix, measure) for name, metrics in found.items()}
        for measure in wanted
    }
    charts = []
    if tone == "text" and len(models) > 1:
        charts.append(_increase_chart(values["nll"]))
    charts += [
        _dots(f"{prefix}-{measure}-models", title, unit, values[measure], form, tone,
              measure != "nll")
        for measure, (title, unit, form) in wanted.items()
    ]  # fmt: skip
    there = [chart for chart in charts if chart is not None]
    return [Charts(there)] if there else []


def _increase_chart(losses: Mapping[str, Mapping[str, float]]) -> DotChart | None:
    """Return what each model loses of each language's text over the first model."""
    first = next(iter(losses))  # shown too, at 0: marks then mean the same in every chart
    base = losses[first]
    rises = {
        name: {code: losses[name][code] - base[code] for code in losses[name].keys() & base.keys()}
        for name in losses
    }
    title = f"Text loss over that of {first}"
    name, form = "retention-increase-models", "{:+.3f}"
    return _dots(name, title, "nats a token", rises, form, "text", False)


def _dots(
    name: str, title: str, unit: str, values: Mapping[str, Mapping[str, float]], form: str,
    tone: str, is_highest_best: bool,
) -> DotChart | None:  # fmt: skip
    """Return a chart of {model: {language: value}}; nothing where nothing was measured."""
    there = {model: told for model, told in values.items() if told}
    codes = {code for told in there.values() for code in told} - {MEAN}
    if not codes:
        return None
    last, most = list(there)[-1], highest(name.split("-")[1], form)
    marks = [place for place, model in enumerate(values) if model in there]
    order = worst(there[last], is_highest_best, len(codes))
    rows = [
        (code, [told.get(code) for told in there.values()])
        for code in [MEAN, *order, *sorted(codes - set(order))]
    ]
    note = f"Worst of {last} first."
    return DotChart(name, title, unit, list(there), rows, form, tone, note, most, marks)


def language_tables(models: Mapping[str, Results], kind: GroupKind) -> list[Block]:
    """Return the tables by language of the groups of a kind."""
    groups = dict.fromkeys(
        name for results in models.values() for name, result in results.items()
        if result.kind is kind
    )  # fmt: skip
    return [table for group in groups for table in side_by_side(models, group)]


def _of(metrics: Mapping[str, float], prefix: str, measure: str) -> dict[str, float]:
    return {
        name.split("/")[1]: value
        for name, value in metrics.items()
        if name.startswith(f"{prefix}/") and name.endswith(f"/{measure}")
    }
