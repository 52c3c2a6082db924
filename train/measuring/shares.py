"""A measurement is shared out over the processes of a run.

What is measured together (a batch) does not depend on how many processes there are, so that the
figures do not either.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from train.ranks import gather_objects, num_ranks, rank

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class Ranks:
    """The processes that measure together.

    `in_step`: a forward is something that all do together (ZeRO-3, FSDP2), so that each must do as
    many as the others.
    """

    rank: int = 0
    count: int = 1
    in_step: bool = False

    def map(self, work: Callable[[T], U], items: Sequence[T]) -> list[U]:
        """Return `work` of each item, in order; every process of `count` calls this alike.

        A process takes every n-th item. In step, one that has none left does the last again.
        """
        mine = list(range(self.rank, len(items), self.count))
        if self.in_step:
            rounds = -(-len(items) // self.count)
            mine += [len(items) - 1] * (rounds - len(mine))
        found = {index: work(items[index]) for index in mine}
        if self.count == 1:
            return [found[index] for index in range(len(items))]
        everything: dict[int, U] = {}
        for told in gather_objects(found):
            everything |= told
        return [everything[index] for index in range(len(items))]


ALONE = Ranks()


def all_ranks(*, in_step: bool = False) -> Ranks:
    """Return the processes of this run."""
    return Ranks(rank(), num_ranks(), in_step)
