"""Which report a folder gets: that of a run, a sweep, an evaluation, or all that it holds."""

from pathlib import Path

from configs.errors import ConfigError
from train.reporting.content import Report
from train.reporting.evaluation_report import evaluation_report, read_evaluation
from train.reporting.pipeline_report import is_run, is_sweep, pipeline_report, read_pipeline
from train.reporting.read import read_run
from train.reporting.run_report import run_report
from train.reporting.sweep_report import read_sweep, sweep_report
from train.reporting.write import write_report

OTHERS = {  # folders with words of their own, by a file in them
    "merge_report.json": ("a merge", "README.md and merge_report.json"),
    "judge.json": ("of a judge", "judge.md and judge.json"),
    "verdicts.jsonl": ("of a judge that is not done", "judge.md once the same command has ended"),
}


def write_any_report(folder: Path) -> None:
    """Write report.html and report.md anew into a folder of any kind.

    Raises:
        ConfigError: it is no folder, or holds nothing of ours.
    """
    if not folder.is_dir():
        raise ConfigError(f"{str(folder)!r} is not a folder; give the folder of a run, a sweep, an "
                          "evaluation, or one that holds several of them")  # fmt: skip
    write_report(folder, report_of(folder))


def report_of(folder: Path) -> Report:
    """Return the report of a folder, by the files that tell what it is."""
    if is_sweep(folder):
        return sweep_report(read_sweep(folder))
    if is_run(folder):
        return run_report(read_run(folder))
    if (folder / "evaluation.json").is_file():
        return evaluation_report(read_evaluation(folder))
    for file, (what, has) in OTHERS.items():
        if (folder / file).is_file():
            raise ConfigError(
                f"{str(folder)!r} is {what}: it has {has} instead; give the folder of a run, a "
                "sweep or an evaluation, or the one around it"
            )
    pipeline = read_pipeline(folder)
    if not any((pipeline.runs, pipeline.merges, pipeline.sweeps, pipeline.evaluations)):
        raise ConfigError(f"{str(folder)!r} holds no run, sweep, merge or evaluation of ours, nor "
                          "folders of such; give one that does")  # fmt: skip
    return pipeline_report(pipeline)
