"""torchrun, which notices a machine that has gone without a word, and a run that was stopped.

    python launch/agent.py [torchrun options] PROGRAM [key=value ...]    # what torchrun.sh calls

Each machine's torchrun asks the rendezvous host whether others have come. torch 2.13 waits for the
answer of a host that is cut off until the kernel gives up, after a quarter of an hour, and does not
see meanwhile that its own processes have ended. Here the kernel gives up after LOST_SECONDS.
"""

import contextlib
import os
import signal
import socket
import stat
import sys
import threading
import time
from pathlib import Path
from typing import Any

LOST_SECONDS = int(os.environ.get("LOST_SECONDS", "60"))
LEVEL = "TORCH_CPP_LOG_LEVEL"  # read when torch is imported
STOPPED = "75"  # exit code of a run that a signal has stopped: Preempted, in configs/errors.py
LAST_SECONDS = 3.0  # that the other processes of a machine have to end too
AGAIN = "run the same command again on every machine, to go on from the last checkpoint"
REASONS = {
    "RendezvousConnectionError": (
        "the rendezvous host does not answer: it or the network is gone, or it was never there"
    ),
    "RendezvousTimeoutError": "not all machines have come within JOIN_SECONDS",
    "RendezvousClosedError": "another machine has ended the run",
}


def main() -> None:
    """Run torchrun; tell in one line what it cannot go on without."""
    before = os.environ.get(LEVEL)
    os.environ[LEVEL] = before or "ERROR"  # else each try to reach a lost host is thirty lines
    from torch.distributed import run

    os.environ.pop(LEVEL) if before is None else None  # it is for this process alone
    threading.Thread(target=watch, daemon=True, name="watch").start()
    try:
        run.main()
    except Exception as error:
        host, kind = socket.gethostname(), type(error).__name__
        if kind == "SignalException":
            sys.stderr.write(f"\ntorchrun on {host}: {error}\n")
            # Where no process has told how it ended, there was nothing to save yet, or no time.
            sys.exit(130 if error.sigval is signal.SIGINT else int(STOPPED))  # type: ignore[attr-defined]
        if kind == "ChildFailedError":  # its own text is thirty lines, and ours stands above it
            sys.exit(f"\ntorchrun on {host}: {how_ended(error)}")
        if kind not in REASONS:
            raise
        sys.exit(f"\nerror: torchrun on {host}: {REASONS[kind]}; {AGAIN}")


def how_ended(error: Any) -> str:
    """Return how the processes of this machine have ended that have failed."""
    ends = []
    for rank, failure in sorted(error.failures.items()):
        code = failure.exitcode
        how = f"ended with exit code {code}" if code >= 0 else f"was ended by {signal_name(-code)}"
        ends.append(f"rank {rank} (process {failure.pid}) {how}")
    return "; ".join(ends)


def signal_name(number: int) -> str:
    """Return a signal's name, and where it may have come from."""
    name = signal.Signals(number).name
    return f"{name} (the system, out of memory?)" if name == "SIGKILL" else name


def watch() -> None:
    """Look after connections, also those that torch opens later; end with a run that was stopped.

    With --max-restarts torchrun would start that again, and wait for machines that are taken away.
    Where each of them comes back by itself that is right: LEAVE_TOGETHER=0 (Kubernetes).
    """
    leaves = os.environ.get("LEAVE_TOGETHER", "1") != "0"
    while not (leaves and was_stopped()):
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):  # closed by now, or no TCP
                if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                    with socket.socket(fileno=os.dup(int(name))) as connection:
                        notice(connection)
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


def was_stopped() -> bool:
    """Whether the first process of this machine has ended with a checkpoint, a moment ago."""
    told = Path(os.environ.get("VISIONGRAFT_EXIT_FILE", "/dev/null"))
    with contextlib.suppress(OSError):
        is_over = time.time() - told.stat().st_mtime > LAST_SECONDS
        return is_over and told.read_text(encoding="ascii").strip() == STOPPED
    return False


def notice(connection: socket.socket) -> None:
    """Let a connection fail where the other side has acknowledged nothing for LOST_SECONDS."""
    ask = max(LOST_SECONDS // 4, 1)  # seconds: where nothing is under way the kernel asks
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, LOST_SECONDS * 1000)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, ask)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, ask)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


if __name__ == "__main__":
    main()
