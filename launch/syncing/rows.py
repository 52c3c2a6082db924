"""Which rows of a run's history are sent: each value of each step once, whichever part has it.

A run that was broken off and gone on with makes some steps twice. Its rows are those of the first
part, then what the next one adds: steps that are new, and of a step that was there only names that
are new (an evaluation that the break prevented). So rows only ever come behind the others, and the
number of rows that the server has tells which ones are left to send. Values are the later part's,
as in metrics.jsonl, where the row was not sent before that part was there.
"""

from collections.abc import Iterable
from typing import Any

OF_EVERY_ROW = frozenset({"_step", "_runtime", "_timestamp"})
Items = dict[str, list[Any]]  # name -> HistoryItems; a table has several


class RowsOnce:
    """Takes the rows of all parts of a run, in order of time, and leaves out what was there."""

    def __init__(self, later: dict[int, Items] | None = None) -> None:
        """Begin with no row; `later` is what `later_values` returns."""
        self.num_rows = 0
        self.later = later or {}
        self.names: dict[int, frozenset[str]] = {}
        self._same: dict[frozenset[str], frozenset[str]] = {}  # most steps have the same names

    def take(self, history: Any) -> bool:
        """Take a HistoryRecord, and change it to what is to be sent; False: that is nothing."""
        step = history.step.num
        names = frozenset(map(_name, history.item)) - OF_EVERY_ROW
        known = self.names.get(step)
        if known is not None and names <= known:
            return False
        if known is not None or step in self.later:
            found, later = _by_name(history), self.later.get(step, {})
            new = names - known if known is not None else names
            kept = [later.get(name, found[name]) for name in found if name in new | OF_EVERY_ROW]
            items = [item for each in kept for item in each]
            del history.item[:]
            history.item.extend(items)
        names |= known or frozenset()
        self.names[step] = self._same.setdefault(names, names)
        self.num_rows += 1
        return True


def later_values(parts: Iterable[Iterable[Any]]) -> dict[int, Items]:
    """Return {step: the newest values}, for steps that several parts have.

    Args:
        parts: HistoryRecords of each part, in order of time.
    """
    found: dict[int, Items] = {}
    last = -1  # step of all parts before
    for histories in parts:
        newest = last
        for history in histories:
            step = history.step.num
            newest = max(newest, step)
            if step <= last:
                found.setdefault(step, {}).update(_by_name(history))
        last = newest
    return found


def _by_name(history: Any) -> Items:
    found: Items = {}
    for item in history.item:
        found.setdefault(_name(item), []).append(item)
    return found


def _name(item: Any) -> str:
    return str(item.nested_key[0] if item.nested_key else item.key)
