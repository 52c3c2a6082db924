"""Kill it anywhere, run the same command again: the curve and the weights of an unbroken run."""

import json
import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from pico_runs import FAST, MIXED, losses, metrics, run, same_weights, vlm

import train.main
import train.saving.export
from configs.command import load_config
from configs.errors import ConfigError
from train.run import train as train_run
from train.saving.checkpoints import newest_checkpoint
from train.trainer import GraftTrainer

ROOT = Path(__file__).resolve().parents[2]
# Epochs end after steps 3 and 6: between two checkpoints and at one. The next would end after 9.
LENGTH = ["optim.max_steps=9", "checkpoint.save_steps=2", "data.num_workers=1"]
MEASURE = ["evaluation.eval_steps=3", "evaluation.max_rows=1", "evaluation.max_new_tokens=2"]
SFT = [*MIXED, *LENGTH, *MEASURE, "stage=sft"]
LORA = [*SFT, "stage=sft_lora", "adapter.lora_dropout=0.2", "adapter.r=4"]
KINDS = {"sft": SFT, "lora": LORA}

# Runs the command, and ends it by SIGKILL where the second checkpoint is whole but not yet renamed.
KILL_WHILE_SAVING = """
import os, signal, sys
from pathlib import Path
from configs.command import run_command

inner = Path.rename
def rename(self, target):
    if self.name == "checkpoint-4":
        os.kill(os.getpid(), signal.SIGKILL)
    return inner(self, target)
Path.rename = rename
run_command("train", "train.run:train")
"""


def start(script: list[str], overrides: list[str], folder: Path) -> subprocess.Popen[bytes]:
    """Start a command in a folder in which our packages are not."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if script[0] == "-c":
        environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, *script, *FAST, *overrides]
    return subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.DEVNULL)


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    while not path.is_dir():
        assert process.poll() is None, "ended before its first checkpoint"
        time.sleep(0.002)


@pytest.fixture(scope="module")
def unbroken(pipeline, tmp_path_factory) -> dict[str, Path]:
    """A run of each kind that nothing has disturbed."""
    root = tmp_path_factory.mktemp("unbroken")
    base = vlm(pipeline.align)
    return {kind: run(*base, *KINDS[kind], f"output_dir={root}/{kind}") for kind in KINDS}


@pytest.fixture(scope="module")
def killed(pipeline, tmp_path_factory) -> dict[str, Path]:
    """Runs ended by SIGKILL: from outside after a checkpoint, and while saving."""
    root = tmp_path_factory.mktemp("killed")
    command = [*vlm(pipeline.align), *SFT]
    after = start([str(ROOT / "train/main.py")], [*command, f"output_dir={root}/after"], root)
    saving = start(["-c", KILL_WHILE_SAVING], [*command, f"output_dir={root}/saving"], root)
    wait_for(root / "after/checkpoints/checkpoint-2", after)
    after.send_signal(signal.SIGKILL)
    for process in (after, saving):
        assert process.wait() == -signal.SIGKILL
    return {path.name: path for path in root.iterdir()}


def assert_same_run(one: Path, two: Path) -> None:
    assert metrics(one) == metrics(two)
    assert sorted(losses(one)) == list(range(1, 10))
    assert same_weights(one / "export", two / "export")


def resume(source: Path, target: Path, pipeline: Any, overrides: list[str]) -> Path:
    """Go on with a copy of a run folder."""
    shutil.copytree(source, target)
    return run(*vlm(pipeline.align), *overrides, f"output_dir={target}")


@pytest.mark.slow
def test_killed_twice(killed, unbroken, pipeline, tmp_path):
    """From outside, a second time wherever it happens to be."""
    shutil.copytree(killed["after"], tmp_path / "run")
    command = [*vlm(pipeline.align), *SFT, f"output_dir={tmp_path}/run"]
    process = start([str(ROOT / "train/main.py")], command, tmp_path)
    wait_for_step(tmp_path / "run", 5, process)
    time.sleep(random.Random(0).uniform(0, 0.2))
    process.kill()
    assert process.wait() == -signal.SIGKILL, "it ended by itself"
    assert_same_run(run(*command), unbroken["sft"])


@pytest.mark.slow
def test_killed_again_and_again_until_it_is_done(unbroken, pipeline, tmp_path):
    """At random steps and moments, whatever is at work there, with a worker."""
    draw, folder, kills = random.Random(int(os.environ.get("CHAOS_SEED", "0"))), tmp_path / "run", 0
    command = [*vlm(pipeline.align), *SFT, f"output_dir={folder}"]
    while not (folder / "finished.json").exists():
        process = start([str(ROOT / "train/main.py")], command, tmp_path)
        step = max(steps_made(folder), default=0) + draw.randint(1, 3)
        while process.poll() is None and step not in steps_made(folder):
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.3))
        process.kill()
        kills += process.wait() == -signal.SIGKILL
    assert kills >= 2
    assert_same_run(folder, unbroken["sft"])


def steps_made(folder: Path) -> set[int]:
    """The steps that a run has logged so far; its last line may be half written."""
    path = folder / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return {int(step) for step in re.findall(r'{"step": (\d+), "train/loss"', text)}


def wait_for_step(folder: Path, step: int, process: subprocess.Popen[bytes]) -> None:
    while step not in steps_made(folder):
        assert process.poll() is None, "ended before it was killed"
        time.sleep(0.005)


class Killed(BaseException):
    """Ends a run in this process where SIGKILL would, and leaves the same files."""


def kill_in(name: str, at: int, patch: pytest.MonkeyPatch) -> None:
    """Die when a function is called for the `at`-th time, before it does anything."""
    owner, _, leaf = name.rpartition(".")
    inner, calls = getattr(sys.modules[owner], leaf), []

    def dying(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) == at:
            raise Killed
        return inner(*args, **kwargs)

    patch.setattr(sys.modules[owner], leaf, dying)


IN_A_SAVE = {
    "between the files": ("torch.save", 2),  # the optimizer's is there, the schedule's is not
    "before the manifest": ("train.saving.checkpoints.write_manifest", 1),
    "before all is on the disk": ("train.saving.checkpoints.flush_folder", 1),
    "after the rename": ("train.saving.checkpoints.retain", 1),
    "while an old one goes": ("train.saving.checkpoints.remove", 1),
}


@pytest.mark.slow
def test_killed_in_every_phase_of_a_save(unbroken, pipeline, tmp_path, monkeypatch):
    """In one run, one after the other; only a renamed checkpoint counts."""
    overrides = [*vlm(pipeline.align), *LORA, f"output_dir={tmp_path}/run"]
    checkpoints, went_on_from = tmp_path / "run/checkpoints", []
    for name, at in IN_A_SAVE.values():
        with monkeypatch.context() as patch:
            if name == "train.saving.checkpoints.remove":
                patch.setattr(name, half_removed)
            else:
                kill_in(name, at, patch)
            with pytest.raises(Killed):
                run(*overrides)
        newest = newest_checkpoint(checkpoints) if checkpoints.exists() else None
        went_on_from.append(None if newest is None else newest.name)
    assert went_on_from == [None, None, None, "checkpoint-2", "checkpoint-6"]
    assert_same_run(run(*overrides), unbroken["lora"])
    left = sorted(path.name for path in checkpoints.iterdir())
    assert left == ["checkpoint-8", "checkpoint-9"]


def half_removed(checkpoint: Path) -> None:
    """What `remove` has done when it is killed in the middle."""
    hidden = checkpoint.with_name(".removing")
    checkpoint.rename(hidden)
    (hidden / "optimizer.pt").unlink()
    raise Killed


@pytest.mark.slow
def test_a_damaged_checkpoint_costs_its_steps_alone(unbroken, pipeline, tmp_path, monkeypatch):
    """The one before is gone on from, and the curve is the same."""
    overrides = [*vlm(pipeline.align), *SFT, f"output_dir={tmp_path}/run"]
    with monkeypatch.context() as patch:
        stop_at(5, patch)
        with pytest.raises(KeyboardInterrupt):
            run(*overrides)
    model = tmp_path / "run/checkpoints/checkpoint-4/model.safetensors"
    model.write_bytes(model.read_bytes()[:-1])
    assert newest_checkpoint(model.parents[1]).name == "checkpoint-2"
    assert_same_run(run(*overrides), unbroken["sft"])


@pytest.mark.slow
def test_the_best_is_kept_and_survives(unbroken, pipeline, tmp_path, monkeypatch):
    """By a measure taken every third step, where otherwise every second is saved."""
    kept = ["checkpoint.best_metric=eval/scenes/nll", "checkpoint.best_is_highest=true",
            "checkpoint.save_total_limit=1"]  # fmt: skip
    overrides = [*vlm(pipeline.align), *SFT, *kept, f"output_dir={tmp_path}/run"]
    measured = {line["step"]: line["eval/scenes/nll"]
                for line in metrics(unbroken["sft"]) if "eval/scenes/nll" in line}  # fmt: skip
    best = max((3, 6, 9), key=measured.__getitem__)
    assert best != 9, measured
    with monkeypatch.context() as patch:
        stop_at(7, patch)
        with pytest.raises(KeyboardInterrupt):
            run(*overrides)
    assert_same_run(run(*overrides), unbroken["sft"])
    checkpoints = tmp_path / "run/checkpoints"
    left = sorted(path.name for path in checkpoints.iterdir())
    assert left == ["best.json", f"checkpoint-{best}", "checkpoint-9"]
    assert json.loads((checkpoints / "best.json").read_text())["value"] == measured[best]


def test_no_pickle_of_classes_is_written(unbroken):
    """What torch.save wrote holds tensors and plain values: torch reads it with weights_only."""
    for folder in (path / "checkpoints/checkpoint-9" for path in unbroken.values()):
        assert not (folder / "training_args.bin").exists()
        assert json.loads((folder / "random-0.json").read_text())["numpy"][0] == "MT19937"
        saved = sorted(path.name for path in folder.iterdir() if path.suffix in (".pt", ".bin"))
        assert saved == ["optimizer.pt", "scheduler.pt"]
        for name in saved:
            torch.load(folder / name, weights_only=True)


@pytest.mark.slow
def test_killed_after_a_checkpoint(killed, unbroken, pipeline, tmp_path):
    assert (killed["after"] / "checkpoints/checkpoint-2").is_dir()
    assert not (killed["after"] / "finished.json").exists()
    resumed = resume(killed["after"], tmp_path / "run", pipeline, SFT)
    assert_same_run(resumed, unbroken["sft"])


@pytest.mark.slow
def test_killed_while_saving(killed, unbroken, pipeline, tmp_path):
    """What was not renamed is not taken, though it is whole, and is gone at the end."""
    checkpoints = killed["saving"] / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == [".writing", "checkpoint-2"]
    assert (checkpoints / ".writing/checkpoint-4/trainer_state.json").is_file()
    assert max(losses(killed["saving"])) == 4  # logged past the checkpoint; logged again below
    resumed = resume(killed["saving"], tmp_path / "run", pipeline, SFT)
    assert_same_run(resumed, unbroken["sft"])
    left = sorted(path.name for path in (resumed / "checkpoints").iterdir())
    assert left == ["checkpoint-8", "checkpoint-9"]


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the trainer stop, as by Ctrl-C, when it is asked for the batches after a step."""
    inner = GraftTrainer.get_batch_samples

    def stopping(self, *args):
        if self.state.global_step == step:
            raise KeyboardInterrupt
        return inner(self, *args)

    monkeypatch.setattr(GraftTrainer, "get_batch_samples", stopping)


@pytest.mark.parametrize("kind", KINDS)
def test_interrupted_twice(kind, unbroken, pipeline, tmp_path, monkeypatch):
    """Before the first checkpoint, and then again across the edges of epochs."""
    overrides = [*vlm(pipeline.align), *KINDS[kind], f"output_dir={tmp_path}/run"]
    for step in (1, 5, 8):
        with monkeypatch.context() as patch:
            stop_at(step, patch)
            with pytest.raises(KeyboardInterrupt):
                run(*overrides)
        assert max(losses(tmp_path / "run")) == step
    assert_same_run(run(*overrides), unbroken[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_stopped_while_exporting(kind, unbroken, pipeline, tmp_path, monkeypatch):
    """All steps are done: only measuring and exporting are left, and are not told twice."""
    overrides = [*vlm(pipeline.align), *KINDS[kind], f"output_dir={tmp_path}/run"]

    def stop(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train.saving.export, "follow_umask", stop)
        with pytest.raises(KeyboardInterrupt):
            run(*overrides)
    assert not (tmp_path / "run/export").exists()
    assert_same_run(run(*overrides), unbroken[kind])


def test_a_finished_run_says_so(unbroken, pipeline, monkeypatch, caplog):
    overrides = [*FAST, *vlm(pipeline.align), *SFT, f"output_dir={unbroken['sft']}"]
    before = {path: path.stat().st_mtime_ns for path in unbroken["sft"].rglob("*")}
    monkeypatch.setattr(sys, "argv", ["train/main.py", *overrides])
    with caplog.at_level(logging.INFO):
        train.main.main()
    assert f"{unbroken['sft']} is finished; its model is in {unbroken['sft']}/export" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in unbroken["sft"].rglob("*")} == before


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("optim.max_steps=12", r"optim\.max_steps: 9 there, 12 now"),
        ("seed=1", r"seed: 0 there, 1 now"),
        ("data.sources.scenes.num_rows=13", r"data\.sources\.scenes\.num_rows: 12 there, 13 now"),
        ("stage.parts.decoder.mode=frozen", r"parts\.decoder\.mode: 'full' there, 'frozen' now"),
        ("+data.sources.udhr={kind: udhr}", r"data\.sources\.udhr\.kind: None there, 'udhr' now"),
    ],
)
def test_the_folder_of_another_run_is_refused(change, told, unbroken, pipeline):
    overrides = [*FAST, *vlm(pipeline.align), *SFT, f"output_dir={unbroken['sft']}", change]
    with pytest.raises(ConfigError, match=rf"holds another run:(\n.*)*{told}"):
        train_run(load_config("train", overrides))


def test_what_does_not_change_learning_may_change(unbroken, pipeline, caplog):
    changes = ["tracker.logging_steps=3", "data.num_workers=0", "evaluation.max_rows=2",
               "checkpoint.save_steps=5", "engine.num_threads=1"]  # fmt: skip
    with caplog.at_level(logging.INFO):
        run(*vlm(pipeline.align), *SFT, f"output_dir={unbroken['sft']}", *changes)
    assert "is finished" in caplog.text


def test_a_folder_of_something_else_is_refused(pipeline, tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ConfigError, match=r"holds files, but no run of ours; give an empty"):
        run(*vlm(pipeline.align), *SFT, f"output_dir={tmp_path}")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_dry_run_writes_nothing(pipeline, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        run(*vlm(pipeline.align), *SFT, f"output_dir={tmp_path}/run", "dry_run=true")
    assert not (tmp_path / "run").exists()
    assert "9 steps of 2 packs (about 3.00 epochs of 3 steps)" in caplog.text
    assert "stage sft: what trains" in caplog.text
