"""Which rows are used and which are not, and why. A row is never replaced by another."""

import json
import logging
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from configs.errors import DataError

log = logging.getLogger(__name__)
# A lone surrogate becomes its escape, which is JSON.
WRITTEN: dict[str, Any] = {"encoding": "utf-8", "errors": "backslashreplace"}
NUM_DEVIATIONS = 3  # of a count of rare rows, that its share in a part of a stream may be off
NUM_SHOWN = 5  # bad rows told in a message; the rest are counted
REMEDY = "\n  mend the row, or leave such rows out with data.on_bad_row=skip"


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used."""

    source: str
    id: str
    reason: str

    def __str__(self) -> str:
        # A lone surrogate cannot be written to a terminal or a log; its escape can.
        text = f"{self.source}/{self.id}: {self.reason}"
        return text.encode("utf-8", "backslashreplace").decode("utf-8")


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
    met: list[dict[str, Any]] = field(default_factory=list)  # bad rows met while training, once
    num_met: int = 0  # times one was met since this process began

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
        """Note bad rows met at a step; return those that are new as lines of rows.jsonl.

        Raises:
            DataError: rows may not be skipped.
        """
        rows = sorted(rows, key=str)  # the same on any number of ranks
        if rows and not self.skip:
            raise DataError(refusal(rows))
        self.num_met += len(rows)
        known = {(line["source"], line["id"]) for line in self.met}  # in an earlier epoch
        new = [row for row in dict.fromkeys(rows) if (row.source, row.id) not in known]
        lines = [{"step": step, **asdict(row)} for row in new]
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

    def check_ratio(self) -> None:
        """Stop when more than `max_bad_ratio` of the rows are bad, as far as is known.

        Raises:
            DataError: with the first few bad rows and the count of all.
        """
        bad = [*self.bad, *self._rows_met()]
        self._judge(len(bad), self.num_used.total() + len(self.bad), bad, slack=0.0)

    def check_stream(self, num_read: int) -> None:
        """Stop when more rows of streams are bad than `max_bad_ratio` allows for, beyond chance.

        Args:
            num_read: usable rows that streams have read since this process began.

        Raises:
            DataError: with the first few bad rows and the count of all.
        """
        total = num_read + self.num_met
        chance = NUM_DEVIATIONS * math.sqrt(self.max_bad_ratio * total)
        self._judge(self.num_met, total, self._rows_met(), slack=chance)

    def _judge(self, num_bad: int, total: int, bad: Sequence[BadRow], *, slack: float) -> None:
        if num_bad > self.max_bad_ratio * total + slack:
            raise DataError(
                f"{num_bad} of {total} rows are bad ({num_bad / total:.1%}), more than "
                f"data.max_bad_ratio={self.max_bad_ratio}{examples(bad)}"
            )

    def _rows_met(self) -> list[BadRow]:
        return [BadRow(line["source"], line["id"], line["reason"]) for line in self.met]

    @property
    def num_bad(self) -> int:
        """Rows left out so far."""
        return len(self.bad) + len(self.met)

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
