"""A report as one HTML file: no script, nothing fetched, pictures inside, foreign text escaped."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from train.reporting.content import Cell, Report
from train.reporting.pictures import Pictures
from train.reporting.svg import STYLE, draw

FOLDER = Path(__file__).parent


def page(report: Report) -> str:
    """Return the HTML."""
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pictures = Pictures()
    style = (FOLDER / "page.css").read_text(encoding="utf-8") + STYLE
    template = environment.get_template("page.html.j2")
    return template.render(
        report=report,
        sections=[section for section in report.sections if section.blocks],
        style=Markup(style),
        draw=draw,
        cell=_cell,
        pictures=pictures,
    )


def _cell(value: Any) -> Cell:
    return value if isinstance(value, Cell) else Cell(str(value))
