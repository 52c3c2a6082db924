"""The report of one run folder, finished or not."""

from collections.abc import Sequence
from pathlib import Path

from train.measuring.results import GroupKind
from train.reporting.alarm import limit_of
from train.reporting.content import Block, Chart, Charts, Facts, Problems, Report, Section, Text
from train.reporting.curves import held_out_charts, training_charts
from train.reporting.examples import run_examples
from train.reporting.headline import run_facts, state, with_increase
from train.reporting.provenance import config_blocks, data_blocks, start_blocks
from train.reporting.read import RunFiles, read_run
from train.reporting.tables import group_tables
from train.reporting.write import write_report

KINDS = {"text_lm": "text LM", "vlm": "VLM", "compose": "composed VLM"}


def write_run_report(folder: Path) -> None:
    """Write report.md and report.html into a run folder, from its files alone.

    What is missing or broken is told in the report.
    """
    write_report(folder, run_report(read_run(folder)))


def run_report(run: RunFiles) -> Report:
    """Return what there is to say of a run."""
    curves = with_increase(run.curves)
    text = [*_charts(held_out_charts(curves, "retention", "text", limit=limit_of(run))),
            *_tables(run, GroupKind.text)]  # fmt: skip
    captions = [
        *_charts(held_out_charts(curves, "caption", "captions")),
        *_tables(run, GroupKind.captions),
        *_tables(run, GroupKind.mixed),
    ]
    lead: list[Block] = [Facts(run_facts(run))]
    if run.problems:
        lead.append(Problems(run.problems))
    training = _charts(training_charts(curves)) or [Text("Fewer than two steps were logged.")]
    sections = [
        Section("Text kept", text, "text"),
        Section("Pictures seen", captions, "captions"),
        Section("Held-out rows and what was answered",
                run_examples(run.measurements, run.pictures)),
        Section("Training", training),
        Section("Data", data_blocks(run)),
        Section("What was run", [*start_blocks(run.starts), *config_blocks(run.config)]),
    ]  # fmt: skip
    name = run.folder.resolve().name
    title = run.stage if run.stage == name else f"{run.stage}: {name}"
    return Report(title, f"{_about(run)}; {state(run)}", lead, sections)


def trained_parts(run: RunFiles) -> str:
    """Return which parts train, and how."""
    parts = run.value("stage", "parts")
    told = {
        name: part.get("mode")
        for name, part in (parts if isinstance(parts, dict) else {}).items()
        if isinstance(part, dict)
    }
    trains = [f"{name} ({mode})" for name, mode in told.items() if mode not in ("frozen", None)]
    return ", ".join(trains)


def kind_of(run: RunFiles) -> str:
    """Return what kind of model is trained, in words."""
    kind = str(run.value("model", "kind") or "model")
    return KINDS.get(kind, kind)


def model_of(run: RunFiles) -> str:
    """Return what was trained: the folder it was read from, or its kind."""
    path = run.value("model", "path") or run.value("model", "decoder", "path")
    return str(path or f"a new {kind_of(run)}")


def _about(run: RunFiles) -> str:
    parts = trained_parts(run)
    if not run.config:
        return "A run"
    model, kind = model_of(run), kind_of(run)
    told = model if model == f"a new {kind}" else f"{kind} from {model}"
    told = f"{told[0].upper()}{told[1:]}"
    return f"{told}; trains {parts}" if parts and run.value("model", "kind") != "text_lm" else told


def _tables(run: RunFiles, kind: GroupKind) -> list[Block]:
    groups = dict.fromkeys(
        name for m in run.measurements for name, result in m.results.items() if result.kind is kind
    )
    return [table for group in groups for table in group_tables(run.measurements, group)]


def _charts(charts: Sequence[Chart]) -> list[Block]:
    return [Charts(charts)] if charts else []
