"""The report of a pipeline: training runs, merges, a sweep and a comparison, as one story."""

import os
import sys
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from train.measuring.results import GroupKind, Results
from train.reporting.alarm import limit_of
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
    counted,
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
from train.reporting.preface import Preface, read_preface
from train.reporting.provenance import command_of, versions_table
from train.reporting.read import Reader, RunFiles, read_run
from train.reporting.run_report import model_of, trained_parts
from train.reporting.sweep_report import SweepFiles, read_sweep, sweep_blocks, sweep_facts
from train.reporting.tables import means_table

# Files whose time says when a folder was made, where nothing in them does.
MADE = ("config.yaml", "merge_report.json", "sweep.csv", "sweep.json", "evaluation.json")
SHOWN_CHARTS = 2  # of text and of captions, of each run; its own report has all


@dataclass
class Pipeline:
    """The folders of a pipeline, in the order in which they were made."""

    folder: Path
    runs: list[RunFiles] = field(default_factory=list)
    merges: list[Path] = field(default_factory=list)
    sweeps: list[SweepFiles] = field(default_factory=list)
    evaluations: list[EvaluationFiles] = field(default_factory=list)
    order: list[Path] = field(default_factory=list)  # of all of them, by time
    preface: Preface = field(default_factory=Preface)
    problems: list[str] = field(default_factory=list)  # of the preface


def read_pipeline(folder: Path) -> Pipeline:
    """Read the folders in a folder, each by the files that tell what it is."""
    reader = Reader(folder)
    found = Pipeline(folder, preface=read_preface(reader), problems=reader.problems)
    paths = sorted(path for path in folder.iterdir() if path.is_dir())
    found.order = sorted(paths, key=made_order)
    for path in found.order:
        if is_sweep(path):
            found.sweeps.append(read_sweep(path))
        elif is_run(path):
            found.runs.append(read_run(path))
        elif (path / "merge_report.json").is_file():
            found.merges.append(path)
        elif (path / "evaluation.json").is_file():
            found.evaluations.append(read_evaluation(path))
    return found


def made_order(folder: Path) -> tuple[float, int, float]:
    """Return what sorts folders by when they were made: as a run tells, else by their files.

    Within a minute a merge goes before a sweep, and that before a comparison: where all was copied
    at once, the times of files say nothing.
    """
    told = [str(s.get("time")) for s in Reader(folder).lines("environment.jsonl", needed=False)]
    there = [place for place, name in enumerate(MADE) if (folder / name).is_file()]
    times = [(folder / MADE[place]).stat().st_mtime for place in there]
    try:
        seconds = datetime.fromisoformat(told[0]).timestamp()
    except (IndexError, ValueError, OverflowError):
        seconds = min(times, default=sys.float_info.max)
    return seconds // 60, min(there, default=len(MADE)), seconds


def is_sweep(folder: Path) -> bool:
    """Whether a folder is of a sweep, finished or not."""
    return (folder / "sweep.json").is_file() or (folder / "points").is_dir()


def is_run(folder: Path) -> bool:
    """Whether a folder is of a training run."""
    return any((folder / name).is_file() for name in ("config.yaml", "metrics.jsonl"))


def pipeline_report(pipeline: Pipeline) -> Report:
    """Return the story of a pipeline, with what its preface says."""
    models, preface = models_of(pipeline), pipeline.preface
    problems = list(pipeline.problems)
    problems += [f"{run.folder.name}: {p}" for run in pipeline.runs for p in run.problems]
    problems += [f"{s.folder.name}: {p}" for s in pipeline.sweeps for p in s.problems]
    problems += [f"{e.folder.name}: {p}" for e in pipeline.evaluations for p in e.problems]
    facts = [Facts(sweep_facts(sweep)) for sweep in pipeline.sweeps[:1] if sweep.points]
    head = [*preface.lead, *facts, *([Problems(problems)] if problems else [])]
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
        Section("What was run", [*_commands(pipeline), *preface.notes]),
    ]  # fmt: skip
    name = pipeline.folder.resolve().name
    return Report(preface.title or f"Pipeline: {name}", _told(pipeline), head, sections)


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
    rows: dict[Path, list[Cell | str]] = {}
    for run in pipeline.runs:
        seconds = run.finished.get("seconds")
        loss = run.loss(last=True)
        rows[run.folder] = [
            _link(run.folder, "report.html"),
            f"trains {trained_parts(run) or 'all of it'}, from {_short(model_of(run), pipeline)}",
            state(run),
            duration(seconds) if isinstance(seconds, int | float) else ABSENT,
            f"{loss:.3f}" if loss is not None else ABSENT,
        ]  # fmt: skip
    others: list[tuple[Path, str, str, str]] = []
    for path in pipeline.merges:
        alpha = Reader(path).json("merge_report.json").get("alpha", "?")
        others.append((path, "README.md", f"merge at alpha {alpha}", "written"))
    for sweep in pipeline.sweeps:
        what = f"sweep over {counted(len(sweep.points), 'candidate')}"
        chose = f"chose {sweep.chosen.get('name', 'nothing yet')}"
        others.append((sweep.folder, "sweep.md", what, chose))
    for evaluation in pipeline.evaluations:
        what = f"measures {', '.join(evaluation.models)}"
        others.append((evaluation.folder, "report.md", what, "side by side"))
    for path, file, what, how in others:
        rows[path] = [_link(path, file), what, how, ABSENT, ABSENT]
    columns = [
        *(Column(title, is_number=False) for title in ("folder", "what", "state")),
        Column("time"),
        Column("training loss"),
    ]
    return Table("Steps", columns, [rows[path] for path in pipeline.order if path in rows])


def _run(run: RunFiles) -> list[Block]:
    """Return the headline of a run and its first curves."""
    curves = with_increase(run.curves)
    charts = [
        *training_charts(curves)[:1],
        *held_out_charts(curves, "retention", "text", limit=limit_of(run))[:SHOWN_CHARTS],
        *held_out_charts(curves, "caption", "captions")[:SHOWN_CHARTS],
    ]
    unique = [replace(chart, name=f"{run.folder.name}-{chart.name}") for chart in charts]
    blocks: list[Block] = [Heading(run.folder.name), Facts(run_facts(run))]
    return [*blocks, Charts(unique)] if unique else blocks


def _commands(pipeline: Pipeline) -> list[Block]:
    typed = list(pipeline.preface.commands) or [
        command_of(run.starts[-1]) for run in pipeline.runs if run.starts
    ]
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
    return ", ".join(counted(number, what) for what, number in counts.items() if number)
