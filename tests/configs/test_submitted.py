"""What ends a run that submitit has started in a job: errors go back, its signal is a run's own."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from configs.command import _guarded
from configs.errors import CheckpointError, ConfigError, Preempted
from configs.submitted import is_submitted, run_submitted


@pytest.fixture(autouse=True)
def job(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """submitit's handler of USR2, which queues the job again and ends the process; what it got."""
    came: list[int] = []

    def requeue(signum: int, _: Any) -> None:
        came.append(signum)
        raise SystemExit(-1)

    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGUSR1, signal.SIGUSR2)}
    signal.signal(signal.SIGUSR2, requeue)
    yield came
    for signum, handler in before.items():
        signal.signal(signum, handler)


def test_only_a_job_of_submitits_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_submitted()
    monkeypatch.delenv("SUBMITIT_EXECUTOR")
    assert not is_submitted()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (CheckpointError("no weights in there"), "\nerror: no weights in there\n"),
        (RuntimeError("a bug of ours"), "Traceback (most recent call last)"),
    ],
)
def test_an_error_is_told_in_the_job_and_goes_back(
    error: Exception, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(type(error), match=str(error)):
        run_submitted(fail)
    assert told in capsys.readouterr().err


def train() -> None:
    """A run that makes a checkpoint at SIGUSR1."""
    came: list[int] = []
    signal.signal(signal.SIGUSR1, lambda signum, _: came.append(signum))
    os.kill(os.getpid(), signal.SIGUSR2)
    assert came == [signal.SIGUSR1]
    raise Preempted("stopped by SIGUSR1 after step 3")


def test_submitits_signal_stops_a_run_with_a_checkpoint_and_the_job_runs_again(
    job: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run_submitted(train)
    assert (job, ended.value.code) == ([signal.SIGUSR2], -1)
    assert "stopped by SIGUSR1 after step 3" in capsys.readouterr().err


def test_its_signal_may_not_be_a_runs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUBMITIT_PREEMPT_SIGNAL", "USR1")
    with pytest.raises(ConfigError, match=r"SUBMITIT_PREEMPT_SIGNAL=USR1.*take USR2"):
        run_submitted(lambda: None)


def test_where_nothing_makes_a_checkpoint_submitit_goes_on_by_itself(job: list[int]) -> None:
    with pytest.raises(SystemExit):
        run_submitted(lambda: os.kill(os.getpid(), signal.SIGUSR2))
    assert job == [signal.SIGUSR2]


def test_a_job_that_may_not_run_again_has_the_runs_end_as_its_result(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("Job not requeued because: timed-out too many times.")

    signal.signal(signal.SIGUSR2, refuse)
    with pytest.raises(Preempted, match="after step 3"):
        run_submitted(train)
    assert "timed-out too many times" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("state", "code", "queued"),
    [("RUNNING", -1, [signal.SIGUSR2]), ("CANCELLED", Preempted.exit_code, [])],
)
def test_after_sigterm_a_job_is_queued_again_unless_it_was_cancelled(
    job: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, state: str, code: int,
    queued: list[int],
) -> None:  # fmt: skip
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\n[ "$4" = 7_1 ] && echo "JobId=8 JobState={state} Reason=None"')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")

    def stop() -> None:
        raise Preempted("stopped by SIGTERM after step 3")

    with pytest.raises(SystemExit) as ended:
        run_submitted(stop)
    assert (ended.value.code, job) == (code, queued)


def test_several_tasks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "8")
    with pytest.raises(ConfigError, match=r"8 tasks .*launch/slurm/run\.sbatch"):
        run_submitted(lambda: None)


def test_ctrl_c_ends_the_command_and_not_its_jobs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["train", "--multirun", "hydra/launcher=submitit_slurm"])
    with pytest.raises(SystemExit) as ended:
        _guarded(interrupt, "train")
    assert ended.value.code == 130
    assert "interrupted; its jobs go on" in capsys.readouterr().err
