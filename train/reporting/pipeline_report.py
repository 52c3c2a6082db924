"""The report of a pipeline: training runs, merges, a sweep and a comparison, as one story."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from train.measuring.results import GroupKind, Results
from train.reporting.content import (
    ABSENT,
    Block,
    Cell,
    Charts,
    Code,
    Column,
    Facts,
    Heading,
    Problems,
    Report,
    Section,
    Table,
)
from train.reporting.curves import held_out_charts, training_charts
from train.reporting.evaluation_report import (
    EvaluationFiles,
    dot_charts,
    language_tables,
    read_evaluation,
)
from train.reporting.examples import model_examples
from train.reporting.headline import duration, run_facts, state, with_increase
from train.reporting.merge_blocks import merge_blocks
from train.reporting.provenance import command_of, versions_table
from train.reporting.read import Reader, RunFiles, read_run
from train.reporting.run_report import model_of, trained_parts
from train.reporting.sweep_report import SweepFiles, read_sweep, sweep_blocks, sweep_facts
from train.reporting.tables import means_table

SHOWN_CHARTS = 2  # of text and of captions, of each run; its own report has all


@dataclass
class Pipeline:
    """The folders of a pipeline, in the order in which they were made."""

    folder: Path
    runs: list[RunFiles] = field(default_factory=list)
    merges: list[Path] = field(default_factory=list)
    sweeps: list[SweepFiles] = field(default_factory=list)
    evaluations: list[EvaluationFiles] = field(default_factory=list)


def read_pipeline(folder: Path) -> Pipeline:
    """Read the folders in a folder, each by the files that tell what it is."""
    found = Pipeline(folder)
    for path in sorted(path for path in folder.iterdir() if path.is_dir()):
        if is_sweep(path):
            found.sweeps.append(read_sweep(path))
        elif is_run(path):
            found.runs.append(read_run(path))
        elif (path / "merge_report.json").is_file():
            found.merges.append(path)
        elif (path / "evaluation.json").is_file():
            found.evaluations.append(read_evaluation(path))
    found.runs.sort(key=lambda run: str(run.starts[0].get("time", "")) if run.starts else "~")
    return found


def is_sweep(folder: Path) -> bool:
    """Whether a folder is of a sweep, finished or not."""
    return (folder / "sweep.json").is_file() or (folder / "points").is_dir()


def is_run(folder: Path) -> bool:
    """Whether a folder is of a training run."""
    return any((folder / name).is_file() for name in ("config.yaml", "metrics.jsonl"))


def pipeline_report(
    pipeline: Pipeline,
    *,
    title: str = "",
    lead: Sequence[Block] = (),
    commands: Sequence[str] = (),
    notes: Sequence[Block] = (),
) -> Report:
    """Return the story of a pipeline.

    Args:
        pipeline: its folders.
        title: of the report; by default the folder's name.
        lead: what stands at its head.
        commands: as typed; by default those that the runs were started with.
        notes: what is to be said at the end.
    """
    models = models_of(pipeline)
    problems = [f"{run.folder.name}: {p}" for run in pipeline.runs for p in run.problems]
    problems += [f"{s.folder.name}: {p}" for s in pipeline.sweeps for p in s.problems]
    problems += [f"{e.folder.name}: {p}" for e in pipeline.evaluations for p in e.problems]
    facts = [Facts(sweep_facts(sweep)) for sweep in pipeline.sweeps[:1] if sweep.points]
    head = [*lead, *facts, *([Problems(problems)] if problems else [])]
    text = [*dot_charts(models, "retention"), *language_tables(models, GroupKind.text)]
    captions = [
        *dot_charts(models, "caption"),
        *language_tables(models, GroupKind.captions),
        *language_tables(models, GroupKind.mixed),
    ]
    means: list[Block] = [means_table(models, "Means over languages")] if models else []
    sections = [
        Section("What was done, in order", [_story(pipeline)]),
        Section("The models side by side", means),
        Section("Text kept", text, "text"),
        Section("Pictures seen", captions, "captions"),
        Section("Against alpha", [b for sweep in pipeline.sweeps for b in sweep_blocks(sweep)]),
        Section("Held-out rows and every model's answer",
                model_examples(models, _pictures(pipeline))),
        Section("The runs", [block for run in pipeline.runs for block in _run(run)]),
        Section("The merge", [b for path in pipeline.merges for b in merge_blocks(path)]),
        Section("What was run", [*_commands(pipeline, commands), *notes]),
    ]  # fmt: skip
    name = pipeline.folder.resolve().name
    return Report(title or f"Pipeline: {name}", _told(pipeline), head, sections)


def models_of(pipeline: Pipeline) -> dict[str, Results]:
    """Return the models that were measured side by side; else each run as it ended."""
    found: dict[str, Results] = {}
    for evaluation in pipeline.evaluations:
        for name, results in evaluation.models.items():
            known = name in found
            found[f"{evaluation.folder.name}: {name}" if known else name] = results
    if found:
        return found
    return {run.folder.name: run.measurements[-1].results
            for run in pipeline.runs if run.measurements}  # fmt: skip


def _pictures(pipeline: Pipeline) -> dict[str, Path]:
    """Return the pictures that any of the folders holds, by row."""
    found: dict[str, Path] = {}
    for run in pipeline.runs:
        found |= run.pictures
    for evaluation in pipeline.evaluations:
        found |= evaluation.pictures
    return found


def _story(pipeline: Pipeline) -> Table:
    rows: list[list[Cell | str]] = []
    for run in pipeline.runs:
        seconds = run.finished.get("seconds")
        loss = run.loss(last=True)
        kind = run.value("model", "kind")
        rows.append([
            _link(run.folder, "report.html"),
            f"trains {trained_parts(run) or kind or 'a model'}, "
            f"from {_short(model_of(run), pipeline)}",
            state(run),
            duration(seconds) if isinstance(seconds, int | float) else ABSENT,
            f"{loss:.3f}" if loss is not None else ABSENT,
        ])  # fmt: skip
    others: list[tuple[Path, str, str, str]] = []
    for path in pipeline.merges:
        alpha = Reader(path).json("merge_report.json").get("alpha", "?")
        others.append((path, "README.md", f"merge at alpha {alpha}", "written"))
    for sweep in pipeline.sweeps:
        what = f"sweep over {len(sweep.points)} candidates"
        chose = f"chose {sweep.chosen.get('name', 'nothing yet')}"
        others.append((sweep.folder, "sweep.md", what, chose))
    for evaluation in pipeline.evaluations:
        what = f"measures {', '.join(evaluation.models)}"
        others.append((evaluation.folder, "report.md", what, "side by side"))
    rows += [[_link(path, file), what, how, ABSENT, ABSENT] for path, file, what, how in others]
    columns = [
        *(Column(title, is_number=False) for title in ("folder", "what", "state")),
        Column("time"),
        Column("training loss"),
    ]
    return Table("Steps", columns, rows)


def _run(run: RunFiles) -> list[Block]:
    """Return the headline of a run and its first curves."""
    curves = with_increase(run.curves)
    charts = [
        *training_charts(curves)[:1],
        *held_out_charts(curves, "retention", "text")[:SHOWN_CHARTS],
        *held_out_charts(curves, "caption", "captions")[:SHOWN_CHARTS],
    ]
    unique = [replace(chart, name=f"{run.folder.name}-{chart.name}") for chart in charts]
    blocks: list[Block] = [Heading(run.folder.name), Facts(run_facts(run))]
    return [*blocks, Charts(unique)] if unique else blocks


def _commands(pipeline: Pipeline, commands: Sequence[str]) -> list[Block]:
    typed = list(commands) or [command_of(run.starts[-1]) for run in pipeline.runs if run.starts]
    starts = [start for run in pipeline.runs for start in run.starts]
    blocks: list[Block] = [Code("Commands", "\n".join(typed))] if any(typed) else []
    return [*blocks, versions_table(starts)] if starts else blocks


def _link(folder: Path, name: str) -> Cell:
    there = (folder / name).is_file()
    return Cell(folder.name, href=f"{folder.name}/{name}" if there else "")


def _short(path: str, pipeline: Pipeline) -> str:
    """Return a path as seen from the pipeline's folder, where it is in it."""
    inside = os.path.relpath(path, pipeline.folder) if os.path.exists(path) else path
    return path if inside.startswith("..") else inside


def _told(pipeline: Pipeline) -> str:
    counts = {"training run": len(pipeline.runs), "merge": len(pipeline.merges),
              "sweep": len(pipeline.sweeps), "comparison": len(pipeline.evaluations)}  # fmt: skip
    return ", ".join(f"{n} {what}{'s' if n > 1 else ''}" for what, n in counts.items() if n)
