"""Machines leave a run together: the first process exports alone, which may take long.

torchrun waits five minutes for the other machines and leaves; where it is the rendezvous host, the
torchrun of the machine that exports loses that, and ends its processes.
"""

import os
import time
from collections.abc import Callable

from train.ranks import num_ranks, rank
from train.store import has_store, open_store

POLL_SECONDS = 0.5
LAST_SECONDS = 10.0  # that the first process, and the store with it, stay for the others
DONE, SEEN = "done", "seen"


def leave_together(timeout_seconds: float) -> None:
    """Have one process of each machine wait until the first has come here. All ranks call this.

    Raises RuntimeError when the first has gone before.
    """
    num_machines = int(os.environ.get("GROUP_WORLD_SIZE", "1"))
    if num_ranks() == 1 or num_machines == 1 or not has_store():
        return
    store = open_store()
    if rank() == 0:
        store.set(DONE, "")
        _wait(lambda: store.add(SEEN, 0) == num_machines - 1, LAST_SECONDS)
    elif os.environ.get("LOCAL_RANK") == "0":
        _wait(lambda: store.check([DONE]), timeout_seconds)
        store.add(SEEN, 1)


def _wait(is_so: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not is_so() and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
