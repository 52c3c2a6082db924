"""What was run, in which versions, on what data."""

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from train.measuring.results import MEASURES, GroupResult, Results
from train.reporting.content import ABSENT, Block, Code, Column, Table, Text
from train.reporting.read import RunFiles, as_dict

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
    last = {"": run.measurements[-1].results} if run.measurements else {}
    held_out = held_out_table(run.value("data", "held_out"), last)
    blocks += [_sources(run), held_out, *_counts(run.data), *_reasons(run.rows)]
    return [block for block in blocks if not (isinstance(block, Table) and not block.rows)]


def start_blocks(starts: Sequence[dict[str, Any]]) -> list[Block]:
    """Return commands, machine and versions."""
    commands = "\n".join(dict.fromkeys(filter(None, map(command_of, starts))))
    blocks: list[Block] = [Code("Command", commands)] if commands else []
    return [*blocks, _starts(starts), versions_table(starts)] if starts else blocks


def config_blocks(config: Mapping[str, Any]) -> list[Block]:
    """Return the resolved config, folded."""
    text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
    return [Code("Resolved config", text, is_folded=True)] if config else []


def held_out_table(sources: Any, models: Mapping[str, Results]) -> Table:
    """Return a row for each held-out source: what it is, and its rows by language.

    Args:
        sources: `data.held_out` of a config.
        models: what was measured; where models read other rows, the note tells.
    """
    config = as_dict(sources)
    read = {
        model: {group: _rows_read(result) for group, result in results.items()}
        for model, results in models.items()
    }
    first: dict[str, dict[str, int]] = {name: {} for name in config}
    for groups in read.values():
        first |= {group: rows for group, rows in groups.items() if not first.get(group)}
    rows = [
        [name, _what(as_dict(config.get(name))), f"{sum(found.values()):,}" if found else ABSENT,
         _by_language(found)]
        for name, found in first.items()
    ]  # fmt: skip
    others = [
        f"{model} read {sum(found.values()):,} rows of {group}"
        for model, groups in read.items()
        for group, found in groups.items()
        if found and found != first[group]
    ]
    columns = [Column("source", is_number=False), Column("what it is", is_number=False),
               Column("rows"), Column("by language", is_number=False)]  # fmt: skip
    note = f"{'; '.join(others)}." if others else ""
    return Table("Sources of held-out rows", columns, rows, note)


def signatures_table(signatures: Any) -> Table:
    """Return how scores were computed: {measure: {language: sacrebleu's signature}}."""
    languages: dict[tuple[str, str], list[str]] = {}
    for measure, told in as_dict(signatures).items():
        title = MEASURES[measure].title if measure in MEASURES else measure
        for code, signature in as_dict(told).items():
            languages.setdefault((title, str(signature)), []).append(code)
    rows = [[title, ", ".join(codes), signature] for (title, signature), codes in languages.items()]
    columns = [Column(title, is_number=False) for title in ("score", "languages", "signature")]
    return Table("How scores were computed", columns, rows, is_folded=True)


def command_of(start: dict[str, Any]) -> str:
    """Return the command of a start as it could be typed: `visiongraft train` is two words."""
    words = start.get("command")
    if not isinstance(words, list) or not words:
        return str(words or "")
    program, *arguments = map(str, words)
    start_of = program.split(" ") if program.startswith("visiongraft ") else [program]
    return shlex.join([*start_of, *(item.removeprefix("++") for item in arguments)])


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
    config = as_dict(run.value("data", "sources"))
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
        source = as_dict(config.get(name))
        weight = source.get("weight", ABSENT)
        rows.append([name, _what(source), str(weight), f"{used[name]:,}", f"{bad[name]:,}"])
    columns = [
        Column("source", is_number=False), Column("what it is", is_number=False),
        Column("weight"), Column("rows used"), Column("left out"),
    ]  # fmt: skip
    return Table("Sources of training rows", columns, rows)


def _what(source: Mapping[str, Any]) -> str:
    """Return the kind of a source and where it is."""
    told = (str(source[key]) for key in ("kind", "path", "name") if source.get(key))
    return " ".join(told) or ABSENT


def _rows_read(result: GroupResult) -> dict[str, int]:
    """Return the rows of each language whose loss was measured."""
    told = as_dict(as_dict(result.num_rows).get("nll"))
    return {code: number for code, number in told.items() if isinstance(number, int)}


def _by_language(rows: Mapping[str, int]) -> str:
    """Return "ar, en: 40 each; hi: 6"."""
    codes: dict[int, list[str]] = {}
    for code in sorted(rows):
        codes.setdefault(rows[code], []).append(code)
    told = [f"{', '.join(c)}: {n:,}{' each' * (len(c) > 1)}" for n, c in codes.items()]
    return "; ".join(told) or ABSENT


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
