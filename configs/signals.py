"""Signals that wait while the main thread works together with other threads.

A handler that raises may do so inside of Python's own locks. `Future.result` then fails with
"cannot release un-acquired lock", or a thread that still works is taken for one that has ended and
the process aborts at its exit (Python 3.11; about once in 150 stopped sweeps, measured).
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

HELD = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@contextmanager
def held_back() -> Iterator[Callable[[], bool]]:
    """Let signals with a Python handler take effect when the block has ended.

    Yields a function that tells whether one has come, for threads to end early by. What has no
    Python handler (SIGTERM by default) ends the process as ever.
    """
    noted: list[int] = []

    def note(signum: int, _: FrameType | None) -> None:
        noted.append(signum)

    is_main = threading.current_thread() is threading.main_thread()  # others may not ask for them
    before = {signum: signal.getsignal(signum) for signum in HELD if is_main}
    held = {signum: handler for signum, handler in before.items() if callable(handler)}
    for signum in held:
        signal.signal(signum, note)
    try:
        yield lambda: bool(noted)
    finally:
        for signum, handler in held.items():
            signal.signal(signum, handler)
        for come in dict.fromkeys(noted):
            signal.raise_signal(come)
