"""SIGTERM and SIGUSR1: a checkpoint after the step, exit code 75, and the same curve in the end.

Also on another number of ranks: one to two, and two to one.
"""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from pico_runs import FAST, MIXED, metrics, run, same_weights, vlm, weights

from configs.command import _guarded
from configs.errors import Preempted
from train.measuring.evaluation import HeldOut
from train.saving.preempt import SAME_SECONDS, StopOnSignal
from train.tracking.tracker import Tracker
from train.tracking.wandb_run import WandbRun
from train.trainer import GraftTrainer

ROOT = Path(__file__).resolve().parents[3]
MEASURE = ["evaluation.eval_steps=3", "evaluation.max_rows=1", "evaluation.max_new_tokens=2"]
LENGTH = [
    "data.packs_per_step=4", "optim.max_steps=6", "checkpoint.save_steps=4", "data.num_workers=1",
]  # fmt: skip
SFT = [*MIXED, "stage=sft", *LENGTH, *MEASURE]
WORST_LOSS = 5e-6  # nats, on another number of ranks; measured 4.8e-7
WORST_WEIGHT = 2e-6  # of weights up to 1, on another number of ranks; measured 1.3e-7
# Rank 1 alone is sent a signal, and each rank tells how that ended.
SCRIPT = """
import os, signal, sys
from pathlib import Path
from configs.command import load_config
from configs.errors import Preempted
from train.run import train
from train.trainer import GraftTrainer

fetch = GraftTrainer.get_batch_samples
def signalled(self, *args):
    if self.state.global_step == 3 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGUSR1)
    return fetch(self, *args)
GraftTrainer.get_batch_samples = signalled
told = Path(sys.argv[1] + ".rank" + os.environ["RANK"])
try:
    train(load_config("train", sys.argv[2:]))
except Preempted as stop:
    told.write_text(str(stop))
"""


@pytest.fixture(scope="module")
def unbroken(pipeline, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    return run(*vlm(pipeline.align), *SFT, f"output_dir={folder}")


def send_at(step: int, patch: pytest.MonkeyPatch, signum: int = signal.SIGTERM) -> None:
    """Be sent a signal while the step after `step` is at work."""
    inner = GraftTrainer.get_batch_samples

    def signalled(self, *args):
        if self.state.global_step == step:
            os.kill(os.getpid(), signum)
        return inner(self, *args)

    patch.setattr(GraftTrainer, "get_batch_samples", signalled)


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def assert_same_run(one: Path, two: Path) -> None:
    assert metrics(one) == metrics(two)
    assert same_weights(one / "export", two / "export")


def test_the_step_is_finished_and_saved(unbroken, pipeline, tmp_path, monkeypatch):
    overrides = [*vlm(pipeline.align), *SFT, f"output_dir={tmp_path}/run"]
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    for step, signum, name in ((0, signal.SIGTERM, "SIGTERM"), (4, signal.SIGUSR1, "SIGUSR1")):
        with monkeypatch.context() as patch:
            send_at(step, patch, signum)
            wanted = rf"stopped by {name} after step {step + 1}; run the same command again to go "
            with pytest.raises(Preempted, match=wanted) as told:
                run(*overrides)
        assert told.value.exit_code == 75
        assert f"checkpoint-{step + 1}" in checkpoints(tmp_path / "run")
        after = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
        assert after == before
    assert_same_run(run(*overrides), unbroken)


def test_between_two_logged_steps(pipeline, tmp_path, monkeypatch):
    """What was counted and not yet logged is in the checkpoint."""
    command = [*vlm(pipeline.align), *SFT, "tracker.logging_steps=3", "optim.max_steps=3"]
    unbroken = run(*command, f"output_dir={tmp_path}/unbroken")
    with monkeypatch.context() as patch:
        send_at(0, patch)
        with pytest.raises(Preempted):
            run(*command, f"output_dir={tmp_path}/run")
    assert_same_run(run(*command, f"output_dir={tmp_path}/run"), unbroken)


def test_while_measuring(unbroken, pipeline, tmp_path, monkeypatch):
    """Between two steps the step before is saved, measured once; after the last one as well."""
    overrides = [*vlm(pipeline.align), *SFT, f"output_dir={tmp_path}/run"]
    inner, calls = HeldOut.measure, []

    def signalled(self, *args, **kwargs):
        calls.append(1)
        if len(calls) in (2, 3):  # after step 3 and, in the second process, after step 6
            os.kill(os.getpid(), signal.SIGTERM)
        return inner(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(HeldOut, "measure", signalled)
        for step in (3, 6):
            with pytest.raises(Preempted, match=f"after step {step}; .*checkpoint-{step} "):
                run(*overrides)
            assert f"checkpoint-{step}" in checkpoints(tmp_path / "run")
    assert_same_run(run(*overrides), unbroken)


def test_an_export_is_finished(pipeline, tmp_path, monkeypatch):
    def signalled(folder: Path) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("train.saving.export.follow_umask", signalled)
    folder = run(*vlm(pipeline.align), *MIXED, "stage=align", f"output_dir={tmp_path}/run")
    assert (folder / "finished.json").is_file()


def test_a_second_signal_ends_at_once(monkeypatch):
    """With what the signal does where nobody handles it; what comes at once is the same one."""
    killed = []
    stop = StopOnSignal()
    with stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR1)  # as when torchrun and SLURM send one each
        assert stop.agreed() == signal.SIGTERM
        kill = os.kill
        monkeypatch.setattr(
            os, "kill", lambda *args: killed.append((*args, signal.getsignal(args[1])))
        )
        stop.came -= SAME_SECONDS
        kill(os.getpid(), signal.SIGTERM)
    assert killed == [(os.getpid(), signal.SIGTERM, signal.SIG_DFL)]


def test_the_command_says_so_and_ends_with_its_code(capsys):
    def stopped() -> None:
        raise Preempted("stopped by SIGTERM")

    with pytest.raises(SystemExit) as ended:
        _guarded(stopped, "train")
    assert ended.value.code == 75
    assert capsys.readouterr().err == "\nstopped by SIGTERM\n"


def test_wandb_is_told(monkeypatch):
    class Run:
        def __init__(self) -> None:
            self.told: list[Any] = []

        def mark_preempting(self) -> None:
            self.told.append("preempting")

        def finish(self, exit_code: int) -> None:
            self.told.append(exit_code)

    told = []
    for options in ({}, {"failed": True}, {"preempted": True}):
        wandb_run = Run()
        Tracker(None, [WandbRun(wandb_run, "sft")]).finish(**options)
        told.append(wandb_run.told)
    assert told == [[0], [1], ["preempting", 75]]


# ------------------------------------------------------------------- processes, and ranks


def launch(arguments: list[str], folder: Path) -> subprocess.Popen[str]:
    """Start in a session of its own, whose processes get a signal together."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *arguments], cwd=folder, env=environment, text=True,
        stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def wait_for_step(step: int, folder: Path, process: subprocess.Popen[str]) -> None:
    path = folder / "metrics.jsonl"
    while not path.exists() or f'{{"step": {step}, "train/loss"' not in path.read_text():
        assert process.poll() is None, process.communicate()[1][-3000:]
        time.sleep(0.01)


@pytest.mark.slow
def test_torchrun_and_other_numbers_of_ranks(unbroken, pipeline, tmp_path, monkeypatch, caplog):
    """One rank up to step 1, two up to step 4, where rank 1 alone gets a signal; one to the end."""
    folder = tmp_path / "run"
    overrides = [*vlm(pipeline.align), *SFT, f"output_dir={folder}"]
    with monkeypatch.context() as patch:
        send_at(0, patch)
        with pytest.raises(Preempted):
            run(*overrides)
    (tmp_path / "script.py").write_text(SCRIPT)
    ranks = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    arguments = [*ranks, "script.py", str(tmp_path / "told"), *FAST, *overrides]
    process = launch(arguments, tmp_path)
    _, told = process.communicate(timeout=200)
    assert process.returncode == 0, told[-3000:]
    for rank in (0, 1):
        assert "stopped by SIGUSR1 after step 4" in (tmp_path / f"told.rank{rank}").read_text()
    manifest = json.loads((folder / "checkpoints/checkpoint-4/checkpoint.json").read_text())
    assert (manifest["num_ranks"], manifest["step"]) == (2, 4)
    assert {"random-0.json", "random-1.json"} < manifest["files"].keys()
    with caplog.at_level(logging.INFO):
        run(*overrides)
    assert "written by 2 process(es), and 1 go on: global batches stay the same" in caplog.text
    assert_nearly_same(folder, unbroken)


@pytest.mark.slow
def test_torchrun_hands_on_sigterm(pipeline, tmp_path):
    """To all processes of its ranks, workers too, and the step still has its batches.

    Its own exit code is 1 then; finished.json tells whether to start it again.
    """
    folder = tmp_path / "run"
    long = ["optim.max_steps=60", f"output_dir={folder}"]
    overrides = [*FAST, *vlm(pipeline.align), *SFT, *long]
    ranks = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    process = launch([*ranks, str(ROOT / "train/main.py"), *overrides], tmp_path)
    wait_for_step(1, folder, process)
    process.terminate()
    _, told = process.communicate(timeout=200)
    assert process.returncode == 1
    stopped = re.search(r"stopped by SIGTERM after step (\d+);", told)
    assert stopped, told[-3000:]
    assert f"checkpoint-{stopped.group(1)}" in checkpoints(folder)
    assert not (folder / "finished.json").exists()


def assert_nearly_same(one: Path, two: Path) -> None:
    """Up to the order in which the ranks' gradients are summed."""
    ours, theirs = metrics(one), metrics(two)
    assert [line.keys() for line in ours] == [line.keys() for line in theirs]
    worst = max(
        abs(line[name] - other[name])
        for line, other in zip(ours, theirs, strict=True)
        for name in line
        if name == "train/loss" or "/nll" in name
    )
    assert worst < WORST_LOSS
    first, second = weights(one / "export"), weights(two / "export")
    assert max(float((first[name] - second[name]).abs().max()) for name in first) < WORST_WEIGHT
