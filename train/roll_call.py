"""Who is where, before the processes of a run meet: each reads data and loads the model by itself.

On the store that torchrun names each tells, again and again, what it does. One that waits says who
is missing, on which machine, and what came from there last. Only silence ends the wait: to measure
a million rows may take an hour, but what says nothing for `engine.timeout_seconds` is gone.
"""

import contextlib
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from torch import distributed

from configs.errors import LostProcessError, first_line
from train.ranks import num_ranks, rank
from train.store import has_store, open_store

log = logging.getLogger(__name__)
BEAT_SECONDS = 0.5  # between two signs of life
TELL_SECONDS = 30.0  # between two lines of the log
MOST_SHOWN = 4  # of those who are missing
HERE, ENDED, VERDICT = "waiting for the others", "ended", "verdict"


@contextlib.contextmanager
def roll_call(timeout_seconds: float) -> Iterator[Callable[[str], None]]:
    """Wait at the end of the block until every process has come there.

    Yields a function that takes what this process does now, such as "reading data".

    Raises:
        LostProcessError: another process has ended, or has been silent too long.
    """
    if num_ranks() == 1 or distributed.is_initialized() or not has_store():
        yield lambda doing: None
        return
    member = Member()
    try:
        yield member.tell
        member.wait_for_all(timeout_seconds)
    except BaseException as error:
        member.tell(f"{ENDED} by {type(error).__name__}: {first_line(error)}")
        time.sleep(3 * BEAT_SECONDS)  # until it is told: the store may end with this process
        raise
    finally:
        member.has_left.set()


class Member:
    """This process's signs of life, and what it hears: the first of all, the others of the first.

    A thread talks to the store, which may not answer; what it has heard is looked at.
    """

    def __init__(self) -> None:
        """Begin to give signs: the first process may not be there for a while."""
        self.heard: dict[int, list[Any]] = {n: ["", "", 0] for n in range(num_ranks())}
        self.heard[0][0] = os.environ["MASTER_ADDR"]
        self.others = [str(other) for other in self.heard if (other == 0) != (rank() == 0)]
        self.when = dict.fromkeys(self.heard, time.monotonic())
        self.doing, self.beats, self.verdict = "starting", 0, ""
        self.has_left = threading.Event()
        threading.Thread(target=self._talk, daemon=True, name="roll call").start()

    def tell(self, doing: str) -> None:
        """Say what this process does from now on."""
        self.doing = doing

    def wait_for_all(self, timeout_seconds: float) -> None:
        """Return when every process is here."""
        self.doing, told = HERE, time.monotonic()
        while not self.verdict:
            now = time.monotonic()
            missing = [n for n in map(int, self.others) if rank() or self.heard[n][1] != HERE]
            ended = [n for n in missing if self.heard[n][1].startswith(ENDED)]
            silent = [n for n in missing if now - self.when[n] > timeout_seconds]
            if rank() == 0 and not missing:
                self.verdict = HERE
            elif ended:
                self.verdict = f"{self.named(ended)}\n  its own log says more"
            elif silent:
                self.verdict = (
                    f"{self.named(silent)}\n  nothing came for engine.timeout_seconds="
                    f"{timeout_seconds:g}: the process, its machine or the network is gone"
                )
            elif missing and now - told > TELL_SECONDS and os.environ.get("LOCAL_RANK") == "0":
                told, level = now, logging.INFO if rank() == 0 else logging.ERROR  # else unseen
                log.log(level, "waiting for %s", self.named(missing))
            time.sleep(BEAT_SECONDS / 2)
        if self.verdict != HERE:
            raise LostProcessError(f"the run cannot begin without {self.verdict}")

    def named(self, others: list[int]) -> str:
        """Return who they are, where, what they told last, and when."""
        lines = []
        for other in others:
            (host, doing, beats), age = self.heard[other], time.monotonic() - self.when[other]
            word = f"{doing} ({age:.0f} s ago)" if beats else f"no word for {age:.0f} s"
            lines.append(f"rank {other}{host and f' on {host}'}: {word}")
        more = [f"{len(lines) - MOST_SHOWN} more"] if len(lines) > MOST_SHOWN else []
        return "; ".join([*lines[:MOST_SHOWN], *more])

    def _talk(self) -> None:
        store, is_last = None, False
        while not is_last:
            is_last = self.has_left.wait(BEAT_SECONDS if self.beats else 0)
            try:
                store = store or open_store()
                self._exchange(store)
            except RuntimeError as error:
                if store is not None:  # else the first process is not there yet
                    self.verdict = self.verdict or f"{self.named([0])}\n  {first_line(error)}"
                    return

    def _exchange(self, store: Any) -> None:
        self.beats += 1
        store.set(str(rank()), json.dumps([socket.gethostname(), self.doing, self.beats]))
        if rank() == 0 and self.verdict:
            store.set(VERDICT, self.verdict)
        elif rank() != 0 and store.check([VERDICT]):
            self.verdict = store.get(VERDICT).decode()
        there = self.others  # asked of all of them at once
        if not store.check(there):
            there = [other for other in there if store.check([other])]
        for other, told in zip(there, store.multi_get(there) if there else [], strict=True):
            found = json.loads(told)
            if self.heard[int(other)] != found:
                self.heard[int(other)], self.when[int(other)] = found, time.monotonic()
