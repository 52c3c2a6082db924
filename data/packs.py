"""Which packs a rank takes, and in which order: planned from an index, or streamed.

Micro-batch i of rank r is pack `i * num_ranks + r` of the run, so step k takes packs
`k * packs_per_step` and those after it on any number of ranks.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from data.loader import Job
from data.pack import PackPlan
from data.streaming import SlotStream

States = dict[str, Any]  # by slot; plain JSON values


class Packs(Protocol):
    """The packs of one rank."""

    def jobs(self, first_step: int) -> Iterator[Job]:
        """Yield the rank's packs from an optimizer step on, without end."""
        ...

    def state_at(self, step: int) -> States:
        """Return what a checkpoint at `step` must hold for this rank, beside the step."""
        ...

    def go_on(self, states: States) -> None:
        """Take up the states of all ranks from a checkpoint."""
        ...

    def num_used(self, step: int) -> dict[str, int]:
        """Return the samples of this rank before `step` by source, where no index tells them."""
        ...

    def num_read(self, step: int) -> int:
        """Return the usable rows read for the packs before `step`, since this process began."""
        ...


class PlannedPacks:
    """Packs of a plan: any of them can be told without those before it."""

    def __init__(self, plan: PackPlan, *, rank: int, num_ranks: int) -> None:
        """Take the plan of the whole run."""
        self.plan, self.rank, self.num_ranks = plan, rank, num_ranks

    def jobs(self, first_step: int) -> Iterator[Job]:
        """Yield the rank's packs from an optimizer step on, without end."""
        item = first_step * self.plan.packs_per_step // self.num_ranks
        while True:
            yield Job(item, self.plan.pack(item * self.num_ranks + self.rank))
            item += 1

    def state_at(self, step: int) -> States:
        """Return nothing: the plan follows from the config."""
        return {}

    def go_on(self, states: States) -> None:
        """Do nothing: the plan follows from the config."""

    def num_used(self, step: int) -> dict[str, int]:
        """Return nothing: the index tells how many rows are used."""
        return {}

    def num_read(self, step: int) -> int:
        """Return 0: the index tells how many rows there are."""
        return 0


class StreamedPacks:
    """Packs of the slots that this rank serves; each slot gives one to every step."""

    def __init__(self, slots: Sequence[SlotStream]) -> None:
        """Take this rank's slots: its number, and every `num_ranks`-th one after it."""
        self.slots = slots

    def jobs(self, first_step: int) -> Iterator[Job]:
        """Yield the rank's packs from the step that `go_on` was told, without end."""
        streams = [iter(slot) for slot in self.slots]
        item = first_step * len(streams)
        while True:
            for stream in streams:
                pack, bad = next(stream)
                yield Job(item, pack, bad)
                item += 1

    def state_at(self, step: int) -> States:
        """Return where each slot stands when step `step` is the next."""
        return {str(slot.slot): slot.state_at(step) for slot in self.slots}

    def go_on(self, states: States) -> None:
        """Stand where the slots stood, whichever rank served them."""
        for slot in self.slots:
            slot.go_on(states[str(slot.slot)])

    def num_used(self, step: int) -> dict[str, int]:
        """Return the samples of this rank before `step` by source."""
        used: dict[str, int] = {}
        for slot in self.slots:
            for name, number in slot.num_used(step).items():
                used[name] = used.get(name, 0) + number
        return used

    def num_read(self, step: int) -> int:
        """Return the usable rows read for the packs before `step`, since this process began."""
        return sum(slot.num_read(step) for slot in self.slots)
