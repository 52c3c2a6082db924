"""One run on its way: `wandb sync` in a process of its own, and the proof that it arrived.

`wandb sync` (0.31) ends with exit code 0, and marks a run as synced, also when nothing arrived. So
the server is asked how many rows it has, and the sync's own log is looked at for errors.
"""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from data.cache import cache_root, digest
from launch.syncing.offline_runs import OfflineRun
from launch.syncing.replay import Replay, run_record
from launch.syncing.server import Server, SyncError

log = logging.getLogger(__name__)
# W&B would try for days: 7 attempts of each request, about 2 minutes, then the next call goes on.
RETRIES = "6"
RETRIED = ("GRAPHQL", "FILE_STREAM", "FILE_TRANSFER")
ARRIVE_SECONDS = 60  # for rows that were sent, to be counted by the server
END_SECONDS = 10  # for a process that is told to end
SHOWN = 3  # errors


class Sending:
    """Sends a run, once or as it grows."""

    def __init__(self, run: OfflineRun, server: Server) -> None:
        """Ask the server what it has, and send the rest."""
        record = run_record(run)
        if record is None:
            raise SyncError("nothing is written of it yet")
        self.run, self.server, self.record = run, server, record
        self._lock = _taken(server, record)
        self._temporary = tempfile.TemporaryDirectory(prefix="visiongraft-sync-")
        self.folder = Path(self._temporary.name)
        self.process: subprocess.Popen[bytes] | None = None
        self.url = ""  # of the run's page, when it has arrived
        try:
            self.replay = Replay(run, self.folder, server.num_rows(record))
            self.replay.feed(run)
            if self.replay.num_new < 0:
                raise SyncError(
                    f"W&B has {self.replay.num_there} rows of it and its files have "
                    f"{self.replay.rows.num_rows}: it was sent by something else, or files of it "
                    "are gone; nothing was sent"
                )
            # It is shown as running then, until it ends.
            self.follows = run.is_growing() and not self.replay.has_ended
            if not self.follows:
                self.replay.end()
            self._start()
        except BaseException:
            self.stop()
            raise

    def feed(self, run: OfflineRun) -> None:
        """Send what is new in a run that grows."""
        self.run = run
        self.replay.feed(run)

    def is_alive(self) -> bool:
        """Whether the process still works."""
        return self.process is not None and self.process.poll() is None

    def finish(self) -> None:
        """Wait until all has arrived.

        Raises:
            SyncError: something has not.
        """
        assert self.process is not None
        try:
            self.process.wait()
            errors = self.errors()
            if not errors:
                self._wait_for_rows()
            self.url = self._page()
        finally:
            self.stop()
        if errors:
            more = f" (and {len(errors) - SHOWN} more)" if len(errors) > SHOWN else ""
            raise SyncError("; ".join(errors[:SHOWN]) + more)

    def finish_later(self) -> None:
        """Wait until the rows that there are have arrived, and leave the run as running."""
        try:
            self._wait_for_rows()
        finally:
            self.stop()

    def errors(self) -> list[str]:
        """Return what the process could not do."""
        found: list[str] = []
        for path in sorted(self.folder.glob("wandb/logs/debug-sync*.log")):
            with path.open(encoding="utf-8", errors="replace") as file:
                # What is fatal is "ERROR+4". A line may still be written.
                lines = [line for line in file if '"level":"ERROR' in line and line.endswith("}\n")]
            for told in map(json.loads, lines):
                text = ": ".join(str(told[key]) for key in ("msg", "error") if key in told)
                found.append(" ".join(text.split()))
        code = None if self.process is None else self.process.returncode
        if not found and code:
            said = (self.folder / "said.txt").read_text(errors="replace").strip().splitlines()
            found.append(f"wandb sync ended with exit code {code}: {''.join(said[-1:])}")
        return list(dict.fromkeys(found))

    def _page(self) -> str:
        """Return the address of the run's page, or "" where the process has not told it."""
        said = (self.folder / "said.txt").read_text(errors="replace")
        found = re.search(r"View run .*(https?://\S+)", said)
        return found[1] if found else ""

    def stop(self) -> None:
        """End the process; what has not arrived is sent by the next call."""
        if self.process is not None:
            for signum in (signal.SIGTERM, signal.SIGKILL):
                try:
                    os.killpg(self.process.pid, signum)  # W&B's service is its child
                    self.process.wait(END_SECONDS)
                except (ProcessLookupError, subprocess.TimeoutExpired):
                    continue
                break
        self._temporary.cleanup()
        self._lock.release()

    def _start(self) -> None:
        command = ["beta", "sync", "--live"] if self.follows else ["sync"]
        environment = {f"WANDB_X_{name}_RETRY_MAX": RETRIES for name in RETRIED}
        environment |= {"WANDB_CACHE_DIR": str(self.folder / "cache")}  # not into a small home
        environment |= dict(os.environ) | {"WANDB_DIR": str(self.folder)}
        with (self.folder / "said.txt").open("wb") as said:
            # A session of its own: Ctrl-C is ours, and we end it.
            self.process = subprocess.Popen(
                [sys.executable, "-m", "wandb", *command, str(self.replay.path.parent)],
                stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=environment,
                start_new_session=True,
            )  # fmt: skip

    def _wait_for_rows(self) -> None:
        """Return when the server has every row, which it may count a little later."""
        wanted, until = self.replay.rows.num_rows, time.monotonic() + ARRIVE_SECONDS
        pause = 0.2
        while (there := self.server.num_rows(self.record)) < wanted:
            if errors := self.errors():
                raise SyncError("; ".join(errors[:SHOWN]))
            if time.monotonic() > until:
                raise SyncError(f"W&B has {there} of {wanted} rows; the next call sends the rest")
            time.sleep(pause)
            pause = min(5, pause * 2)


def _taken(server: Server, record: Any) -> FileLock:
    """Return the lock of a run, taken: two that send it take each other's rows for their own.

    Not beside the run, whose folder may be somebody else's, and copied.

    Raises:
        SyncError: another sync of this user holds it.
    """
    name = digest([server.url, record.entity or server.entity, record.project, record.run_id])
    path = cache_root(None) / "syncing" / f"{name}.lock"
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise SyncError(f"another sync sends it ({path})") from error
    except (OSError, NotImplementedError) as error:  # no locks there, or no home
        log.warning("%s: not locked, so one sync at a time: %s", path, error)
    return lock
