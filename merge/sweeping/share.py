"""Several processes measure one sweep: who measures what, and how they wait for each other.

They meet once, before the first of them writes; from then on files in `points/` tell what is
finished. A process that dies leaves no other one in a collective that never ends.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import TypeVar

from torch import distributed

from configs.errors import Preempted, VisiongraftError
from train.lost import told_when_lost
from train.ranks import num_ranks, rank

T = TypeVar("T")
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # as for training: SLURM, Kubernetes, torchrun
MEETING = timedelta(minutes=30)  # processes may start that far apart
POLL_SECONDS = 0.2
LEAST_WAIT = 3600.0  # seconds without a new point before the others are given up


def meet() -> None:
    """Wait until every process has come here: all have seen the folder as it was."""
    if num_ranks() > 1:
        with told_when_lost(lambda: "at the start", lambda: "run the same command again"):
            distributed.init_process_group("gloo", timeout=MEETING)
            distributed.barrier()


def share_of(items: Sequence[T]) -> list[T]:
    """What this process measures of what is not measured yet: every n-th one.

    Neighbours take about as long (answers get longer or shorter with alpha), so that every process
    has some of the long ones.
    """
    return list(items[rank() :: num_ranks()])


def wait_until(is_done: Callable[[], bool], count: Callable[[], int], *, longest: float) -> None:
    """Wait for the points of other processes.

    Args:
        is_done: whether all are there; called often.
        count: how many are there.
        longest: seconds that this process took for one; the others may take a few times as long.

    Raises VisiongraftError when none comes for a long time.
    """
    limit = LEAST_WAIT + 5 * longest
    seen, since = count(), time.monotonic()
    while not is_done():
        time.sleep(POLL_SECONDS)
        if count() != seen:
            seen, since = count(), time.monotonic()
        elif time.monotonic() - since > limit:
            raise VisiongraftError(
                f"no other process has finished a point for {limit / 60:.0f} minutes; the finished "
                f"ones ({seen}) are kept, and the same command goes on with the rest"
            )


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGUSR1 end a sweep as Ctrl-C does, with the exit code of a stopped training."""

    def stop(signum: int, _: FrameType | None) -> None:
        raise Preempted(
            f"stopped by {signal.Signals(signum).name}; finished points are kept: run the same "
            f"command again to go on (exit code {Preempted.exit_code})"
        )

    is_main = threading.current_thread() is threading.main_thread()  # others may not ask for them
    before = {signum: signal.signal(signum, stop) for signum in SIGNALS if is_main}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
