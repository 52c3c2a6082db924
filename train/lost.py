"""A run of several processes that loses one: how long the others wait, and what they say.

gloo raises at once where the connection is closed, and after `engine.timeout_seconds` where nothing
comes any more. NCCL raises nothing: its watchdog aborts the process then, with its own message.
"""

import contextlib
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

from torch import distributed
from torch.distributed import distributed_c10d

from configs.errors import LostProcessError, VisiongraftError, first_line
from train.ranks import is_under_torchrun, num_ranks, rank
from train.saving.checkpoints import newest_checkpoint

# What gloo and NCCL say of another process. Ranks that disagree, or a GPU without memory, also come
# as their errors: those are mistakes of this process.
SIGNS = re.compile(
    r"connection closed by peer|connection reset by peer|broken pipe|connection refused"
    r"|no route to host|(network|host) is unreachable|connection timed out"
    r"|timed out waiting|connect timeout|application timeout|timeout caused pair closure"
    r"|ncclRemoteError|remote process exited|collective operation timeout|wait timeout"
    r"|monitoredBarrier",
    re.IGNORECASE,
)
# Where in gloo a message comes from, and what torch adds to each.
NOISE = re.compile(r"\[\S+\.(cc|cpp|h):\d+\] ?|\. This is typically caused by .*")
TIMED_OUT = re.compile(r"time(d)? ?out", re.IGNORECASE)
EXIT_SECONDS = 30  # between the message and the end
MEANING = (
    "\n  another process has died, or its machine or the network has failed; its own log says "
    "more: the first error of all logs is the cause"
)
TOO_SLOW = (
    "\n  nothing came for engine.timeout_seconds={seconds:g}: it has gone without a word, hangs, "
    "or is slow and needs a higher value"
)


def set_group_timeouts(seconds: float) -> None:
    """Let every group of processes wait that long, also those that libraries make.

    DeepSpeed makes a copy of the whole group, and torch gives that 30 minutes (10 with NCCL),
    whatever the first was given. There is no public way.
    """
    timeout = timedelta(seconds=seconds)
    distributed_c10d.default_pg_timeout = timeout
    distributed_c10d.default_pg_nccl_timeout = timeout


@contextlib.contextmanager
def told_when_lost(
    when: Callable[[], str], remedy: Callable[[], str], *, timeout_seconds: float | None = None
) -> Iterator[None]:
    """Turn what torch raises when another process is gone into one LostProcessError.

    Args:
        when: how far this process has come, such as "after step 3".
        remedy: what to do.
        timeout_seconds: engine.timeout_seconds, where there is that key.

    Raises:
        LostProcessError: with this rank and host, how far it came, the peer, and what to do.
    """
    try:
        yield
    except VisiongraftError:  # this process's own reason, or told already
        raise
    except Exception as error:
        said = lost_reason(error)
        if num_ranks() == 1 or said is None:
            raise
        _ignore_signals()
        is_late = TIMED_OUT.search(said) and timeout_seconds is not None
        late = TOO_SLOW.format(seconds=timeout_seconds) if is_late else ""
        raise LostProcessError(
            f"rank {rank()} of {num_ranks()} on {socket.gethostname()} has lost another process "
            f"{when()}: {said}{late}{MEANING}\n  {remedy()}"
        ) from error


def _ignore_signals() -> None:
    """Let torchrun, which has seen the other process end, not end this one before it has told."""
    if is_under_torchrun() and threading.current_thread() is threading.main_thread():
        for signum in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(signum, signal.SIG_IGN)


@contextlib.contextmanager
def ended_when_lost() -> Iterator[None]:
    """Let the kernel end a process of torchrun that has lost another, and whose exit waits for it.

    Libraries of GPUs clean up as they are unloaded, after Python has ended.
    """
    try:
        yield
    except LostProcessError:
        if is_under_torchrun() and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(EXIT_SECONDS)
        raise


def lost_reason(error: BaseException) -> str | None:
    """Return what torch says of a lost process; None where an error tells of something else."""
    network = (distributed.DistNetworkError, distributed.DistStoreError)
    text = first_line(error)
    if isinstance(error, network) or (isinstance(error, RuntimeError) and SIGNS.search(text)):
        return NOISE.sub("", text).strip()
    return None


def what_to_do(checkpoints: Path) -> str:
    """Return how a run goes on that has lost a process."""
    newest = None
    with contextlib.suppress(VisiongraftError, OSError):
        newest = newest_checkpoint(checkpoints)
    start = f"go on from {newest}" if newest else "start anew, for there is no checkpoint yet"
    return (
        f"all processes {start}: torchrun does that itself while --max-restarts are left "
        "(MAX_RESTARTS of launch/torchrun.sh); otherwise run the same command again"
    )
