"""preface.json: what is said of a pipeline beyond its figures, kept for every report of it.

The demo writes it; `visiongraft report` of the folder then tells the same.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.reporting.content import Block, Cell, Column, Heading, Table, Text
from train.reporting.read import Reader

NAME = "preface.json"


@dataclass(frozen=True)
class Preface:
    """A title, what stands at the head and at the end, and the commands as they were typed."""

    title: str = ""
    lead: Sequence[Block] = ()
    commands: Sequence[str] = ()
    notes: Sequence[Block] = ()


def write_preface(folder: Path, preface: Preface) -> None:
    """Write it; blocks are tables, texts and headings."""
    content = {
        "title": preface.title,
        "lead": [_kept(block) for block in preface.lead],
        "commands": list(preface.commands),
        "notes": [_kept(block) for block in preface.notes],
    }
    text = json.dumps(content, ensure_ascii=False, indent=1)
    (folder / NAME).write_text(text + "\n", encoding="utf-8")


def read_preface(reader: Reader) -> Preface:
    """Return what a folder holds, or an empty one; what cannot be read is told."""
    content = reader.json(NAME, needed=False)
    try:
        return Preface(
            str(content.get("title", "")),
            [_block(item) for item in content.get("lead", ())],
            [str(command) for command in content.get("commands", ())],
            [_block(item) for item in content.get("notes", ())],
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reader.tell(f"{NAME} cannot be read: {type(error).__name__} {error}")
        return Preface()


def _kept(block: Block) -> dict[str, Any]:
    if isinstance(block, Table):
        return {
            "kind": block.kind,
            "caption": block.caption,
            "columns": [[column.title, column.is_number] for column in block.columns],
            "rows": [[c.text if isinstance(c, Cell) else c for c in row] for row in block.rows],
        }
    assert isinstance(block, Text | Heading)
    return {"kind": block.kind, "text": block.text}


def _block(item: dict[str, Any]) -> Block:
    if item["kind"] == Table.kind:
        columns = [
            Column(str(title), is_number=bool(is_number)) for title, is_number in item["columns"]
        ]
        rows = [[str(cell) for cell in row] for row in item["rows"]]
        if any(len(row) != len(columns) for row in rows):
            raise ValueError(f"a row of {item['caption']!r} has not {len(columns)} cells")
        return Table(str(item["caption"]), columns, rows)
    if item["kind"] not in (Text.kind, Heading.kind):
        raise ValueError(f"a block of the kind {item['kind']!r}")
    text = str(item["text"])
    return Heading(text) if item["kind"] == Heading.kind else Text(text)
