"""Which rows are used and which are not, and why. A row is never replaced by another."""

import json
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from configs.errors import DataError

log = logging.getLogger(__name__)
T = TypeVar("T")
NUM_SHOWN = 5  # bad rows told in a message; the rest are counted


@dataclass
class Ledger:
    """Counts rows by source and keeps the id and reason of each that cannot be used."""

    skip: bool  # on_bad_row: skip or error
    max_bad_ratio: float
    num_used: Counter[str] = field(default_factory=Counter)
    bad: list[dict[str, str]] = field(default_factory=list)

    def attempt(self, source: str, row_id: str, make: Callable[[], T]) -> T | None:
        """Return `make()` and count the row as used, or None after noting why it cannot be.

        Raises:
            DataError: the row cannot be used and rows may not be skipped.
        """
        made = self.refuse_or(source, row_id, make)
        if made is not None:
            self.num_used[source] += 1
        return made

    def refuse_or(self, source: str, row_id: str, make: Callable[[], T]) -> T | None:
        """Return `make()`, or None after noting that the row cannot be used.

        Raises:
            DataError: the row cannot be used and rows may not be skipped.
        """
        try:
            return make()
        except DataError as error:
            if not self.skip:
                raise DataError(
                    f"row {source}/{row_id}: {error}\n"
                    "  mend the row, or leave such rows out with data.on_bad_row=skip"
                ) from error
            self.bad.append({"source": source, "id": row_id, "reason": str(error)})
            return None

    def check(self) -> None:
        """Stop when nothing is left, or more than `max_bad_ratio` of the rows are bad.

        Raises:
            DataError: with the first few bad rows and the count of all.
        """
        total = self.num_used.total() + len(self.bad)
        if self.num_used.total() == 0:
            why = f"all {total} rows are bad" if total else "the sources hold no rows"
            raise DataError(f"no usable row: {why}{self._examples()}")
        ratio = len(self.bad) / total
        if ratio > self.max_bad_ratio:
            raise DataError(
                f"{len(self.bad)} of {total} rows are bad ({ratio:.1%}), more than "
                f"data.max_bad_ratio={self.max_bad_ratio}{self._examples()}"
            )
        if self.bad:
            log.warning("left out %d of %d rows%s", len(self.bad), total, self._examples())

    def write(self, path: Path) -> None:
        """Write a line for each source and each row left out, as JSON."""
        counts = Counter(row["source"] for row in self.bad)
        with path.open("w", encoding="utf-8") as file:
            for source in sorted({*self.num_used, *counts}):
                line = {"source": source, "used": self.num_used[source], "bad": counts[source]}
                file.write(json.dumps(line) + "\n")
            for row in self.bad:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def _examples(self) -> str:
        lines = [f"\n  {row['source']}/{row['id']}: {row['reason']}" for row in self.bad]
        more = f"\n  and {len(lines) - NUM_SHOWN} more" if len(lines) > NUM_SHOWN else ""
        return "".join(lines[:NUM_SHOWN]) + more
