"""What is told of all rows, as text and on the page alike: budgets, lengths, languages, reasons.

Tables are made from arrays of lengths, so a million rows take no more memory than their index.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

from configs.languages import LANGUAGES
from configs.schema import InspectConfig
from data.histogram import make_histogram, percentiles
from data.index import Lengths
from data.inspect_html import Chart, Table
from data.ledger import BadRow
from data.render import Renderer, Sample

CODES = list(LANGUAGES)
NUM_BAD_SHOWN = 20
# A setting is the same for all rows, and stays; an apostrophe within a word quotes nothing.
VARIES = re.compile(
    r"(?P<setting>data\.\w+=[\d.]+)|(?P<quoted>(?<!\w)'[^']*'|\"[^\"]*\")|\d[\d,]*(\.\d+)?"
)
# Contract: how `data/samples.py` words that a row is over a budget.
TOO_LONG = re.compile(r"has \d+ tokens, more than data\.max_tokens=")
TOO_MANY_TILES = re.compile(r"has \d+ image tiles, more than data\.max_tiles=")


@dataclass(frozen=True)
class Inspection:
    """What would be trained on: arrays over all rows, and any row when it is asked for."""

    lengths: Lengths  # [samples]
    source_of: npt.NDArray[np.integer]  # [samples] number in `source_names`
    source_names: Sequence[str]
    sample: Callable[[int], Sample]
    renderer: Renderer
    packs: Sequence[Sequence[int]]  # of one epoch: numbers of samples
    bad: Sequence[BadRow]
    mixture: str = ""  # table of how sources and languages mix, as text; empty: not known


def tables_of(found: Inspection, config: InspectConfig) -> list[Table]:
    """Return what is told of all rows, as text and on the page alike."""
    return [budget_table(found, config), language_table(found), *ledger_tables(found.bad)]


def budget_table(found: Inspection, config: InspectConfig) -> Table:
    """Return a table of what an epoch's packs are filled with."""
    data = config.data
    taken = np.fromiter(chain.from_iterable(found.packs), np.int64)
    lengths = found.lengths[taken]
    budget, tokens = len(found.packs) * data.max_tokens, total(lengths, "num_tokens")
    supervised, image = total(lengths, "num_supervised"), total(lengths, "num_image_tokens")
    parts = {
        "supervised": supervised,
        "prompt and tags": tokens - supervised - image,
        "image": image,
        "unused": budget - tokens,
    }
    of_what = "the rows read" if data.streaming else "an epoch"
    note = (
        f"{of_what}: {len(taken):,} rows in {len(found.packs):,} packs of {data.max_tokens:,} "
        f"tokens and {data.max_tiles:,} tiles"
    )
    if not data.streaming:
        steps, few = len(found.packs) // data.packs_per_step, "too few for a step"
        note += f"; {f'{steps:,} steps' if steps else few} of {data.packs_per_step:,} packs"
    rows = [[name, f"{number:,}", share(number, budget)] for name, number in parts.items()]
    return Table("token budget", ["tokens that are", "number", "share"], rows, note=note)


def language_table(found: Inspection) -> Table:
    """Return a table of languages: rows, tokens, and how long a row is."""
    rows = []
    for code in np.unique(found.lengths["language"]):
        lengths = found.lengths[found.lengths["language"] == code]
        ranked = percentiles(lengths["num_tokens"])
        tokens = total(lengths, "num_tokens")
        supervised = share(total(lengths, "num_supervised"), tokens)
        sizes = (len(lengths), tokens, ranked["p50"], ranked["p95"], ranked["max"])
        rows.append([CODES[code], *(f"{size:,}" for size in sizes), supervised])
    header = ["language", "rows", "tokens", "p50", "p95", "max", "supervised"]
    return Table("tokens a row by language", header, rows)


def ledger_tables(bad: Sequence[BadRow]) -> list[Table]:
    """Return why rows were left out, by kind of reason, and the first of them; none if none was."""
    if not bad:
        return []
    kinds = Counter(kind_of(row.reason) for row in bad)
    counts = [[reason, f"{number:,}"] for reason, number in kinds.most_common(NUM_BAD_SHOWN)]
    rows = [[f"{row.source}/{row.id}", row.reason] for row in bad[:NUM_BAD_SHOWN]]
    more = len(bad) - len(rows)
    return [
        Table("reasons for leaving rows out", ["reason", "rows"], counts),
        Table("rows left out", ["row", "reason"], rows, frozenset({0, 1}),
              note=f"and {more:,} more" if more else ""),
    ]  # fmt: skip


def kind_of(reason: str) -> str:
    """Return a reason without the names and numbers in it that differ from row to row."""

    def blank(found: re.Match[str]) -> str:
        setting, quoted = found["setting"], found["quoted"]
        return setting or ("'...'" if quoted else "N")

    return VARIES.sub(blank, reason.partition("\n")[0])


def charts_of(found: Inspection, config: InspectConfig) -> list[Chart]:
    """Return histograms of the lengths of rows, with what lies over the budget."""
    wanted = (
        ("tokens", "num_tokens", config.data.max_tokens, TOO_LONG),
        ("supervised tokens", "num_supervised", None, None),
        ("tiles", "num_tiles", config.data.max_tiles, TOO_MANY_TILES),
    )
    charts = []
    for unit, field, budget, reason in wanted:
        values = found.lengths[field]
        notes = [f"{name} {value:,}" for name, value in percentiles(values).items()]
        if budget is not None and reason is not None:
            left_out = sum(bool(reason.match(row.reason)) for row in found.bad)
            over = int((values > budget).sum()) + left_out
            notes.append(f"over the budget of {budget:,}, and so left out: {over:,}")
        charts.append(
            Chart(f"{unit} a row", unit.split()[-1], make_histogram(values), ", ".join(notes))
        )
    return charts


def total(lengths: Lengths, field: str) -> int:
    """Return the sum over rows, in whole numbers that cannot overflow."""
    return int(lengths[field].sum(dtype=np.int64))


def share(part: int, whole: int) -> str:
    """Return `part` of `whole` in percent, or a dash of nothing."""
    return f"{part / whole:.1%}" if whole else "-"
