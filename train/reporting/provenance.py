"""What was run, in which versions, on what data."""

import shlex
from collections import Counter
from collections.abc import Sequence
from typing import Any

import yaml

from train.reporting.content import ABSENT, Block, Code, Column, Table, Text
from train.reporting.read import RunFiles

MOST_REASONS = 12  # why rows were left out, told one by one
SHOWN_IDS = 3  # rows named with a reason


def data_blocks(run: RunFiles) -> list[Block]:
    """Return sources with their rows, why rows were left out, and counts where they are kept."""
    blocks: list[Block] = []
    samples = run.data.get("samples")
    languages = run.value("data", "languages")
    told = []
    if isinstance(samples, int):
        told.append(f"{samples:,} samples")
    if isinstance(run.data.get("tokens"), int):
        told.append(f"{run.data['tokens']:,} tokens")
    if isinstance(run.data.get("supervised_tokens"), int):
        told.append(f"{run.data['supervised_tokens']:,} of them supervised")
    if isinstance(languages, list) and languages:
        told.append(f"languages: {', '.join(map(str, languages))}")
    if run.data.get("digest"):
        told.append(f"digest {run.data['digest']}")
    if told:
        blocks.append(Text("; ".join(told) + "."))
    blocks += [_sources(run), *_counts(run.data), *_reasons(run.rows)]
    return [block for block in blocks if not (isinstance(block, Table) and not block.rows)]


def run_blocks(run: RunFiles) -> list[Block]:
    """Return commands, machine, versions and the resolved config."""
    blocks: list[Block] = []
    commands = "\n".join(dict.fromkeys(filter(None, map(command_of, run.starts))))
    if commands:
        blocks.append(Code("Command", commands))
    if run.starts:
        blocks += [_starts(run.starts), versions_table(run.starts)]
    if run.config:
        text = yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True)
        blocks.append(Code("Resolved config", text, is_folded=True))
    return blocks


def command_of(start: dict[str, Any]) -> str:
    """Return the command of a start as it could be typed."""
    words = start.get("command")
    return shlex.join(map(str, words)) if isinstance(words, list) else str(words or "")


def versions_table(starts: Sequence[dict[str, Any]]) -> Table:
    """Return versions of the last start, and of the first where they differ."""
    first, last = _versions(starts[0]), _versions(starts[-1])
    names = dict.fromkeys((*last, *first))
    rows = [
        [
            name,
            last.get(name, ABSENT)
            + (
                f" (first start: {first.get(name, ABSENT)})"
                if first.get(name) != last.get(name)
                else ""
            ),
        ]
        for name in names
    ]
    columns = [Column(title, is_number=False) for title in ("package", "version")]
    return Table("Versions", columns, rows)


def _versions(start: dict[str, Any]) -> dict[str, str]:
    packages = start.get("packages")
    found = packages if isinstance(packages, dict) else {}
    versions = {"python": start.get("python"), **found}
    return {str(name): str(value) for name, value in versions.items() if value}


def _starts(starts: Sequence[dict[str, Any]]) -> Table:
    """Return where and when the run was started; whatever else is known of a start too."""
    known = {"time": "time", "host": "host", "platform": "platform", "cpus": "CPU cores",
             "world_size": "processes"}  # fmt: skip
    others = [
        key
        for start in starts
        for key, value in start.items()
        if key not in {*known, "command", "packages", "python"}
        and isinstance(value, str | int | float)
    ]
    titles = {**known, **{key: key.replace("_", " ") for key in others}}
    rows = [[str(start.get(key) if start.get(key) is not None else ABSENT) for key in titles]
            for start in starts]  # fmt: skip
    columns = [Column(title, is_number=False) for title in titles.values()]
    return Table("Starts", columns, rows)


def _sources(run: RunFiles) -> Table:
    """Return a row for each source: what it is, its rows used and left out."""
    sources = run.value("data", "sources")
    config = sources if isinstance(sources, dict) else {}
    used: Counter[str] = Counter()
    bad: Counter[str] = Counter()
    for line in run.rows:
        name = str(line.get("source"))
        if isinstance(line.get("used"), int):
            used[name] += line["used"]
            bad[name] += line["bad"] if isinstance(line.get("bad"), int) else 0
        elif "step" in line and "reason" in line:
            bad[name] += 1
    rows = []
    for name in dict.fromkeys([*config, *used, *bad]):
        source = config.get(name)
        source = source if isinstance(source, dict) else {}
        what = " ".join(str(source[key]) for key in ("kind", "path", "name") if source.get(key))
        weight = source.get("weight", ABSENT)
        rows.append([name, what or ABSENT, str(weight), f"{used[name]:,}", f"{bad[name]:,}"])
    columns = [
        Column("source", is_number=False), Column("what it is", is_number=False),
        Column("weight"), Column("rows used"), Column("left out"),
    ]  # fmt: skip
    return Table("Sources of training rows", columns, rows)


def _reasons(lines: Sequence[dict[str, Any]]) -> list[Block]:
    """Return why rows were left out, the most frequent reason first."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for line in lines:
        if "reason" in line:
            place = "held out" if line.get("group") == "held_out" else "training"
            key = place, str(line["reason"])
            reasons.setdefault(key, []).append(f"{line.get('source')}/{line.get('id')}")
    if not reasons:
        return [Text("No row was left out.")] if lines else []
    order = sorted(reasons.items(), key=lambda item: -len(item[1]))
    rows = [
        [
            place,
            reason,
            f"{len(ids):,}",
            ", ".join(ids[:SHOWN_IDS]) + (" …" if len(ids) > SHOWN_IDS else ""),
        ]
        for (place, reason), ids in order[:MOST_REASONS]
    ]
    left = sum(len(ids) for _, ids in order[MOST_REASONS:])
    note = f"{left} more rows for other reasons are in rows.jsonl." if left else ""
    columns = [Column("rows", is_number=False), Column("reason", is_number=False),
               Column("number"), Column("such as", is_number=False)]  # fmt: skip
    return [Table("Rows left out", columns, rows, note)]


def _counts(data: dict[str, Any]) -> list[Table]:
    """Return tables of data_summary.json: {"by_language": {code: {what: number}}, ...}."""
    tables = []
    for key in ("by_language", "by_source"):
        told = data.get(key)
        counts = (
            {k: v for k, v in told.items() if isinstance(v, dict)} if isinstance(told, dict) else {}
        )
        what = list(dict.fromkeys(name for values in counts.values() for name in values))
        columns = [Column(key.removeprefix("by_"), is_number=False),
                   *(Column(name.replace("_", " ")) for name in what)]  # fmt: skip
        rows = [[k, *(_number(v.get(name)) for name in what)] for k, v in counts.items()]
        tables.append(Table(f"Training rows by {key.removeprefix('by_')}", columns, rows))
    return tables


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int | float) else ABSENT
