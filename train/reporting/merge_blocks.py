"""Where a merged model comes from, by its merge_report.json."""

from pathlib import Path
from typing import Any

from train.reporting.content import Block, Column, Problems, Table
from train.reporting.read import Reader, as_dict


def merge_blocks(folder: Path) -> list[Block]:
    """Return the recipe, the inputs with their fingerprints, and what was proved."""
    reader = Reader(folder)
    report = reader.json("merge_report.json")
    blocks: list[Block] = []
    rows = [[name, str(value)] for name, value in _facts(report) if value not in (None, "", {}, [])]
    words = [Column("", is_number=False), Column("", is_number=False)]
    if rows:
        blocks.append(Table(f"{folder.name}: how it was made", words, rows))
    inputs = [
        [role, str(told.get("folder", "")), file, str(facts.get("fingerprint", ""))[:16],
         f"{facts.get('num_bytes', 0):,}"]
        for role, told in as_dict(report.get("inputs")).items() if isinstance(told, dict)
        for file, facts in as_dict(told.get("files")).items() if isinstance(facts, dict)
    ]  # fmt: skip
    if inputs:
        columns = [Column(title, is_number=False)
                   for title in ("input", "folder", "file", "fingerprint")]  # fmt: skip
        blocks.append(Table("Inputs", [*columns, Column("bytes")], inputs))
    if reader.problems:
        blocks.append(Problems(reader.problems))
    return blocks


def _facts(report: dict[str, Any]) -> list[tuple[str, Any]]:
    method, changes = as_dict(report.get("method")), as_dict(report.get("changes"))
    relatives, verified = as_dict(report.get("relatives")), as_dict(report.get("verified"))
    ratio = changes.get("changed_ratio")
    return [
        ("method", method.get("name")),
        ("formula", method.get("formula")),
        ("alpha", report.get("alpha")),
        ("source", method.get("url")),
        ("dtype", report.get("dtype")),
        ("values changed", f"{ratio:.1%}" if isinstance(ratio, int | float) else None),
        ("differences of the inputs", "; ".join(map(str, relatives.get("differences") or []))),
        ("warnings", "; ".join(map(str, relatives.get("warnings") or []))),
        ("proved", ", ".join(f"{k.replace('_', ' ')}: {v}" for k, v in verified.items())),
        ("versions", ", ".join(f"{k} {v}" for k, v in as_dict(report.get("versions")).items())),
    ]
