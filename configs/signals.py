"""Signals that wait while the main thread works together with other threads.

A handler that raises may do so inside of Python's own locks. `Future.result` then fails with
"cannot release un-acquired lock", or a thread that still works is taken for one that has ended and
the process aborts at its exit (Python 3.11; about once in 150 stopped sweeps, measured).
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from configs.errors import Preempted

EXIT_FILE = "VISIONGRAFT_EXIT_FILE"  # of launch/torchrun.sh: torchrun's own exit code is always 1
HELD = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@contextlib.contextmanager
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


def when_nothing_is_lost() -> None:
    """Let SIGTERM and SIGUSR1 end this process with the exit code of a stopped run, from now on."""
    _own.append(os.getpid())
    for signum in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(signum, end_early)


_own: list[int] = []  # processes that have asked for it; those that they fork have not


def end_early(signum: int, _: FrameType | None) -> None:
    """End a run that has not made a step since it was started: there is nothing to save.

    At once, and not by an exception: libraries that are being imported would swallow it.
    """
    if os.getpid() not in _own:
        os._exit(128 + signum)
    name, code = signal.Signals(signum).name, Preempted.exit_code
    told = f"stopped by {name} before the first step; run the same command again"
    os.write(2, f"\n{told} (exit code {code})\n".encode())
    os._exit(code)


def tell_exit(code: int | None) -> None:
    """Tell whoever has started torchrun how the first process of this machine has ended.

    None: it has just begun; one that torchrun starts again may die without a word.
    """
    path = os.environ.get(EXIT_FILE)
    if path and os.environ.get("LOCAL_RANK", "0") == "0":
        with contextlib.suppress(OSError):
            Path(path).write_text("" if code is None else f"{code}\n", encoding="ascii")
