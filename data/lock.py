"""One process at a time fetches or makes what all of them read; the others wait, and say for whom.

The lock is the kernel's and is free as soon as its holder has ended, however that was. Beside it
the holder keeps a note of who it is and what it does, renewed while it lives: on a machine that has
stopped or lost the file system a lock may be held for ever. On a file system without such locks
(Lustre without `-o flock`) a file is the lock; a holder that was killed leaves it, and its note's
silence sets it free.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from configs.disks import TIMEOUT
from configs.errors import BusyError, CacheError

log = logging.getLogger(__name__)
DEFAULT_TIMEOUT = 600.0  # seconds without a sign of life
TELL_SECONDS = 30  # between two lines that say who waits for whom
BEAT_SECONDS = 5.0  # between two signs of life
WATCH_SECONDS = 3 * BEAT_SECONDS  # without a sign of life, after which a note is taken for left
# Between two tries: each asks the file system's server, and a run may have hundreds that wait.
POLL_SECONDS = 1.0


@contextlib.contextmanager
def only_one(place: Path, doing: str) -> Iterator[None]:
    """Hold the lock of `place`, `<place>.lock`, while `with` lasts.

    Args:
        place: what is fetched or made; its folder is there.
        doing: such as "downloads ORG/NAME", for those who wait.

    Raises:
        CacheError: the holder has given no sign of life for `cache.timeout_seconds`.
    """
    note = Path(f"{place}.holder")
    try:
        lock = _lock_of(place)
        _wait(lock, note, place)
    except (OSError, NotImplementedError) as error:
        # A file system without locks: work may be done twice, not wrongly.
        log.warning("%s: no locks here (%s); processes do not wait for each other", place, error)
        yield
        return
    try:
        with _noted(note, doing):
            yield
    finally:
        lock.release()


@contextlib.contextmanager
def alone(note: Path, doing: str) -> Iterator[None]:
    """Keep a note while `with` lasts, and refuse to begin where another process keeps one.

    No lock of the kernel's: that of a machine that has died may be held for ever (NFS 3), and the
    job that a scheduler starts in its place is to go on.

    Raises:
        BusyError: another process that lives has a note here.
    """
    while not _taken(note):
        found = _read(note)
        if _lives(note, found):
            raise BusyError(
                f"{note.parent} is in use by {_holder(_read(note))}: end that process, or let it "
                "finish (one whose torchrun was killed may train on by itself), then run the same "
                "command again"
            )
        log.warning("%s was left by %s, which is gone", note, _holder(found))
        note.unlink(missing_ok=True)
    with _noted(note, doing):
        yield


def _taken(note: Path) -> bool:
    try:
        os.close(os.open(note, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except FileExistsError:
        return False
    return True


def _lives(note: Path, found: str | None) -> bool:
    """Whether who keeps a note gives a sign of life; one of this host must be there at least."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        told = json.loads(found or "")
        if told["host"] == socket.gethostname() and not _is_other_process(int(told["pid"])):
            return False
    until = time.monotonic() + WATCH_SECONDS
    while time.monotonic() < until:
        if _read(note) not in (found, None):
            return True
        time.sleep(BEAT_SECONDS / 20)
    return False


def _is_other_process(pid: int) -> bool:
    return pid != os.getpid() and Path(f"/proc/{pid}").exists()


def _lock_of(place: Path) -> BaseFileLock:
    """Return the kernel's lock, or that of a file where the file system knows no other.

    Raises OSError where neither is possible.
    """
    with open(f"{place}.lock", "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
                raise
            return SoftFileLock(f"{place}.softlock")
    return FileLock(f"{place}.lock")


def _wait(lock: BaseFileLock, note: Path, place: Path) -> None:
    limit = float(os.environ.get(TIMEOUT, DEFAULT_TIMEOUT))
    seen, since = _read(note), time.monotonic()
    asked, step = since, min(TELL_SECONDS, max(limit / 4, 0.05))
    while True:
        try:
            lock.acquire(timeout=step, poll_interval=min(POLL_SECONDS, step / 4))
            return
        except Timeout:
            now, found = time.monotonic(), _read(note)
        if found != seen:
            seen, since = found, now
        if now - since > limit and isinstance(lock, SoftFileLock):
            log.warning("%s: left by %s, which is gone; taken away", place, _holder(found))
            for left in (Path(lock.lock_file), note):
                left.unlink(missing_ok=True)
            since = now
        elif now - since > limit:
            raise CacheError(
                f"{me()} has waited {now - asked:.0f} s for {_holder(found)}, which has given no "
                f"sign of life for {now - since:.0f} s (cache.timeout_seconds={limit:g}): its "
                f"machine may have stopped, or lost the disk\n  end that process, or remove "
                f"{lock.lock_file} and {note} if there is none; then run the same command again"
            )
        if os.environ.get("LOCAL_RANK", "0") == "0":  # a line a machine: others log errors alone
            log.error("%s waits for %s (%s.lock)", me(), _holder(found), place)


def me() -> str:
    """Return which process this is, as others know it."""
    rank = os.environ.get("RANK")
    process = f"process {os.getpid()} on {socket.gethostname()}"
    return process if rank is None else f"rank {rank} ({process})"


@dataclass
class _Note:
    who: str
    doing: str
    since: str
    host: str
    pid: int
    beat: int = 0


def _holder(found: str | None) -> str:
    try:
        note = json.loads(found or "")
        return f"{note['who']}, which {note['doing']} since {note['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process"


def _read(note: Path) -> str | None:
    try:
        return note.read_text(encoding="utf-8")
    except OSError:
        return None


@contextlib.contextmanager
def _noted(path: Path, doing: str) -> Iterator[None]:
    """Keep a note at `path` that changes while this process lives."""
    note = _Note(me(), doing, time.strftime("%H:%M:%S"), socket.gethostname(), os.getpid())
    ended = threading.Event()

    def write() -> None:
        with contextlib.suppress(OSError):  # a full disk: the work itself will say so
            staging = Path(f"{path}.{os.getpid()}")
            staging.write_text(json.dumps(vars(note)), encoding="utf-8")
            staging.replace(path)

    def beat() -> None:
        while not ended.wait(BEAT_SECONDS):
            note.beat += 1
            write()

    write()
    thread = threading.Thread(target=beat, name="lock-holder", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(OSError):  # a stale handle: what was done is done
            path.unlink(missing_ok=True)
