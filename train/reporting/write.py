"""Report files: report.html in one piece, report.md with its charts beside it."""

import os
import shutil
from pathlib import Path

from train.reporting.content import Report
from train.reporting.markdown import markdown
from train.reporting.page import page
from train.reporting.svg import draw, file_name

CHARTS = "report_charts"  # folder of the Markdown's charts


def write_report(folder: Path, report: Report) -> None:
    """Write report.html, report.md and the charts; each file appears whole or not at all."""
    charts = folder / CHARTS
    shutil.rmtree(charts, ignore_errors=True)
    if report.charts():
        charts.mkdir(parents=True)
    for chart in report.charts():
        _write(charts / file_name(chart), str(draw(chart, alone=True)))
    _write(folder / "report.html", page(report))
    _write(folder / "report.md", markdown(report, folder, CHARTS))


def _write(path: Path, text: str) -> None:
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        # Half a character (a lone surrogate) has no encoding.
        staging.write_text(text, encoding="utf-8", errors="backslashreplace")
        staging.replace(path)
    finally:
        staging.unlink(missing_ok=True)
