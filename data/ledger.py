"""Which rows are used and which are not, and why. A row is never replaced by another."""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from configs.errors import DataError

log = logging.getLogger(__name__)
# A lone surrogate becomes its escape, which is JSON.
WRITTEN: dict[str, Any] = {"encoding": "utf-8", "errors": "backslashreplace"}
NUM_JUDGED = 1000  # rows of a stream, before its share of bad ones is judged
NUM_SHOWN = 5  # bad rows told in a message; the rest are counted
REMEDY = "\n  mend the row, or leave such rows out with data.on_bad_row=skip"


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used."""

    source: str
    id: str
    reason: str

    def __str__(self) -> str:
        return f"{self.source}/{self.id}: {self.reason}"


@dataclass
class Ledger:
    """Counts rows by source and keeps the id and reason of each that cannot be used.

    What is known before training (`add`) is written by `write`; a picture that proves broken, or a
    row of a stream, comes to light while training (`meet`) and is appended with its step.
    """

    skip: bool  # on_bad_row: skip or error
    max_bad_ratio: float
    num_used: Counter[str] = field(default_factory=Counter)
    bad: list[BadRow] = field(default_factory=list)
    met: list[dict[str, Any]] = field(default_factory=list)  # bad rows met while training

    def add(self, source: str, num_used: int, bad: Sequence[BadRow]) -> None:
        """Count the rows of a source.

        Raises:
            DataError: rows cannot be used and may not be skipped; the first few are named.
        """
        if bad and not self.skip:
            raise DataError(refusal(bad))
        self.num_used[source] += num_used
        self.bad += bad

    def meet(self, step: int, rows: Iterable[BadRow]) -> list[dict[str, Any]]:
        """Note bad rows met at a step; return them as lines of rows.jsonl.

        Raises:
            DataError: rows may not be skipped.
        """
        rows = sorted(rows, key=str)  # the same on any number of ranks
        if rows and not self.skip:
            raise DataError(refusal(rows))
        lines = [{"step": step, **asdict(row)} for row in rows]
        self.met += lines
        return lines

    def check(self) -> None:
        """Stop when nothing is left, or more than `max_bad_ratio` of the rows are bad.

        Raises:
            DataError: with the first few bad rows and the count of all.
        """
        total = self.num_used.total() + len(self.bad)
        if self.num_used.total() == 0:
            why = f"all {total} rows are bad" if total else "the sources hold no rows"
            raise DataError(f"no usable row: {why}{examples(self.bad)}")
        empty = sorted(source for source, number in self.num_used.items() if not number)
        if empty:
            mine = [row for row in self.bad if row.source in empty]
            raise DataError(
                f"no usable row in the source {', '.join(empty)}; mend it or leave it out"
                f"{examples(mine)}"
            )
        self.check_ratio()
        if self.bad:
            log.warning("left out %d of %d rows%s", len(self.bad), total, examples(self.bad))

    def check_ratio(self, num_streamed: int = 0, *, is_last: bool = True) -> None:
        """Stop when more than `max_bad_ratio` of the rows are bad, as far as is known.

        Args:
            num_streamed: rows of streams that were used so far, which no index counts.
            is_last: no more will come. Before that, a stream is judged by 1,000 rows at least.

        Raises:
            DataError: with the first few bad rows and the count of all.
        """
        met = [BadRow(line["source"], line["id"], line["reason"]) for line in self.met]
        if not num_streamed:  # a row is met in every epoch, and is one row of the index
            met = list(dict.fromkeys(met))
        bad = [*self.bad, *met]
        total = self.num_used.total() + len(self.bad)
        if num_streamed:
            total = num_streamed + len(bad)
            if total < NUM_JUDGED and not is_last:
                return
        if len(bad) > self.max_bad_ratio * total:
            raise DataError(
                f"{len(bad)} of {total} rows are bad ({len(bad) / total:.1%}), more than "
                f"data.max_bad_ratio={self.max_bad_ratio}{examples(bad)}"
            )

    @property
    def num_bad(self) -> int:
        """Rows left out so far."""
        return len(self.bad) + len({(line["source"], line["id"]) for line in self.met})

    def write(self, path: Path, held_out: Sequence[BadRow] = ()) -> None:
        """Write a line for each source and each row left out, as JSON.

        Lines of rows met while training stay as they are: the run may go on from a checkpoint.
        """
        kept = read_met(path)
        counts = Counter(row.source for row in self.bad)
        lines: list[dict[str, Any]] = [
            {"source": source, "used": self.num_used[source], "bad": counts[source]}
            for source in sorted({*self.num_used, *counts})
        ]
        lines += [asdict(row) for row in self.bad]
        lines += [{"group": "held_out", **asdict(row)} for row in held_out]
        _replace(path, [*lines, *kept])

    def resume(self, path: Path, step: int) -> None:
        """Forget what was met after a step: it will be met again.

        Call it where rows.jsonl is written, then share `met` with the other ranks.
        """
        lines = _read(path)
        past = [line for line in lines if line.get("step", step + 1) <= step]
        self.met = [line for line in past if "reason" in line]
        _replace(path, [*(line for line in lines if "step" not in line), *past])

    @staticmethod
    def append(path: Path, lines: Iterable[dict[str, Any]]) -> None:
        """Add lines to rows.jsonl."""
        with path.open("a", **WRITTEN) as file:
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def refusal(bad: Sequence[BadRow]) -> str:
    """Return the message for rows that cannot be used and may not be skipped."""
    if len(bad) == 1:
        return f"row {bad[0]}{REMEDY}"
    return f"{len(bad)} rows cannot be used:{examples(bad)}{REMEDY.replace('the row', 'them')}"


def examples(bad: Sequence[BadRow]) -> str:
    """Return the first few bad rows, a line each, and the count of the others."""
    lines = [f"\n  {row}" for row in bad[:NUM_SHOWN]]
    more = f"\n  and {len(bad) - NUM_SHOWN} more" if len(bad) > NUM_SHOWN else ""
    return "".join(lines) + more


def read_met(path: Path) -> list[dict[str, Any]]:
    """Return the lines of rows.jsonl that were added while training."""
    return [line for line in _read(path) if "step" in line]


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    *whole, cut = path.read_text(encoding="utf-8").split("\n")  # killed in a line: it is cut
    if cut:
        log.warning("%s: the last line is cut off and left out: %s", path, cut[:80])
    return [json.loads(line) for line in whole]


def _replace(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    staging = path.with_name(f".{path.name}")
    with staging.open("w", **WRITTEN) as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    staging.replace(path)
