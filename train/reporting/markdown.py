"""A report as Markdown: the same figures, pictures and charts as links."""

import os
import re
from pathlib import Path
from urllib.parse import quote

from train.reporting.content import (
    ABSENT,
    Block,
    Cell,
    Charts,
    Code,
    Examples,
    Facts,
    Heading,
    Problems,
    Report,
    Said,
    Table,
    Text,
)
from train.reporting.svg import described, file_name

MARKS = {"better": " ▲", "worse": " ▼", "same": " =", "other words": " ~"}
ACTIVE = re.compile(r"([\\`*_\[\]<>|#!&])")  # what Markdown or HTML in it would take for its own


def markdown(report: Report, folder: Path, charts: str) -> str:
    """Return the Markdown of a report that will lie in `folder`, with its charts in `charts`."""
    parts = [f"# {escaped(report.title)}", escaped(report.subtitle)]
    parts += [_block(block, folder, charts) for block in report.lead]
    for section in report.sections:
        if section.blocks:
            parts.append(f"## {escaped(section.title)}")
            parts += [_block(block, folder, charts) for block in section.blocks]
    return "\n\n".join(part for part in parts if part) + "\n"


def escaped(text: str) -> str:
    """Return a text that Markdown shows as it is, on one line."""
    return ACTIVE.sub(r"\\\1", " ".join(text.split()))


def _block(block: Block, folder: Path, charts: str) -> str:
    match block:
        case Facts():
            lines = [
                f"| {escaped(f.label)} | **{escaped(f.value)}** | {escaped(f.note)} |"
                for f in block.items
            ]
            return "\n".join(["| | | |", "|---|---:|---|", *lines])
        case Table():
            return _table(block)
        case Charts():
            return "\n\n".join(
                f"![{escaped(described(c))}]({charts}/{quote(file_name(c))})"
                + (f"\n\n{escaped(c.note)}" if c.note else "")
                for c in block.items
            )
        case Examples():
            return _examples(block, folder)
        case Text():
            return escaped(block.text)
        case Heading():
            return f"### {escaped(block.text)}"
        case Code():
            return f"{escaped(block.title)}:\n\n{_fenced(block.text)}"
        case Problems():
            return "What could not be read:\n\n" + "\n".join(f"- {escaped(p)}" for p in block.items)


def table_lines(table: Table) -> str:
    """Return the lines of a table alone."""
    heads = [escaped(column.full_title) for column in table.columns]
    rules = ["---:" if column.is_number else "---" for column in table.columns]
    lines = [f"| {' | '.join(heads)} |", f"|{'|'.join(rules)}|"]
    for number, row in enumerate(table.rows):
        cells = [_cell(cell, is_strong=number < table.num_strong) for cell in row]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _table(table: Table) -> str:
    parts = [f"### {escaped(table.caption)}", table_lines(table), escaped(table.note)]
    return "\n\n".join(part for part in parts if part)


def _cell(cell: Cell | str, *, is_strong: bool) -> str:
    cell = cell if isinstance(cell, Cell) else Cell(cell)
    text = escaped(cell.text) or ABSENT
    if cell.href:
        text = f"[{text}]({quote(cell.href)})"
    strong = is_strong or cell.mark == "best"
    return (f"**{text}**" if strong and text != ABSENT else text) + MARKS.get(cell.mark, "")


def _examples(block: Examples, folder: Path) -> str:
    names = list(dict.fromkeys(said.label for item in block.items for said in item.answers))
    heads = ["picture", "language", "question", "reference", *map(escaped, names)]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for item in block.items:
        said = {one.label: one for one in item.answers}
        picture = ABSENT
        if item.picture is not None:
            picture = f"![]({quote(os.path.relpath(item.picture, folder))})"
        cells = [picture, item.language, escaped(item.question), escaped(item.reference)]
        cells += [_said(said.get(name)) for name in names]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n\n".join(
        p for p in (f"### {escaped(block.title)}", "\n".join(lines), escaped(block.note)) if p
    )


def _said(said: Said | None) -> str:
    if said is None:
        return ABSENT
    tick = "✓ " if said.is_exact else ""
    return f"{tick}{escaped(said.text) or '(nothing)'}{MARKS.get(said.change, '')}"


def _fenced(text: str) -> str:
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text.rstrip()}\n{fence}"
