"""A run that Hydra's submitit launcher has started in a job: what ends it, and who is told.

An error goes back, as the job's result, to the command that waits for it. A process that just ends
leaves none: submitit then asks `sacct` every ten minutes, and for ever where no accounts are kept.
"""

import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Any

from configs.errors import ConfigError, Preempted, VisiongraftError


def is_submitted() -> bool:
    """Whether this process is a job of submitit's."""
    return "SUBMITIT_EXECUTOR" in os.environ


def run_submitted(call: Callable[[], None]) -> None:
    """Run `call`; on submitit's signal let it stop with a checkpoint, and the job be queued again.

    Raises:
        Exception: what `call` raises; it stands in the job's log too.
        SystemExit: the job will run again, or has been cancelled: it has no result yet.
    """
    name = os.environ.get("SUBMITIT_PREEMPT_SIGNAL", "USR2")
    stop = _Stop(signal.Signals[f"SIG{name}"])
    try:
        if name in ("USR1", "TERM"):
            raise ConfigError(f"SUBMITIT_PREEMPT_SIGNAL={name} is a run's own signal; take USR2")
        _check_one_process()
        call()
    except Preempted as stopped:
        sys.stderr.write(f"\n{stopped}\n")
        if not (stop.came or _is_preempted()):
            sys.exit(stopped.exit_code)
        stop.requeue(stopped)
    except VisiongraftError as error:
        sys.stderr.write(f"\nerror: {error}\n")
        raise
    except Exception:
        traceback.print_exc()
        raise
    finally:
        sys.stderr.flush()


class _Stop:
    """submitit's signal (USR2), that it sends before a job's time is up: to a run, it is USR1.

    submitit's own handler queues the job again and ends the process in the middle of a step, so
    that all since the last checkpoint would be lost.
    """

    def __init__(self, signum: signal.Signals) -> None:
        self.came = False
        self.signum = signum
        self.theirs: Any = signal.getsignal(signum)
        if callable(self.theirs):
            signal.signal(signum, self._note)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.came = True
        if callable(signal.getsignal(signal.SIGUSR1)):
            os.kill(os.getpid(), signal.SIGUSR1)
        else:  # nothing here makes a checkpoint
            self.theirs(signum, frame)

    def requeue(self, stopped: Preempted) -> None:
        """Let submitit queue the job again; where it does not, the run's end is the result."""
        try:
            self.theirs(self.signum, None)
        except Exception as error:
            sys.stderr.write(f"{error}\n")
            raise stopped from None


def _is_preempted() -> bool:
    """Whether SIGTERM is of a preemption with a grace time: for SLURM, the job is at work still.

    One that ends in that time has failed, and would not be queued again. One that `scancel` has
    ended must not be; one that SLURM itself puts back is in no need of it.
    """
    job = os.environ.get("SLURM_JOB_ID", "")
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    if not job:
        return False
    command = ["scontrol", "--oneliner", "show", "job", job]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return " JobState=RUNNING " in told.stdout


def _check_one_process() -> None:
    num_tasks = os.environ.get("SLURM_NTASKS", os.environ.get("SUBMITIT_LOCAL_NTASKS", "1"))
    if num_tasks != "1":
        raise ConfigError(
            f"hydra.launcher: {num_tasks} tasks (nodes times tasks_per_node); submitit starts no "
            "torchrun, so each would be a run of its own. For runs of several processes there are "
            "job arrays: sbatch --array=0-N launch/slurm/run.sbatch"
        )
