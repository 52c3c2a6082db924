"""A step that goes wrong ends the run, or is left out, and its rows are named; jumps are told."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pico_runs import FAST, MIXED, losses, metrics, run, same_weights, vlm, weights

from configs.command import load_config
from configs.errors import ConfigError, TrainingError
from data.batches import PackedSample
from train.trainer import GraftTrainer
from train.watching.meter import Meter
from train.watching.stability import ENOUGH, SpikeWatch, describe, heaviest_rows, rows_to_blame

STEPS = ["optim.max_steps=4", "checkpoint.save_steps=1", "evaluation.generate=false", "stage=sft",
         "evaluation.eval_on_start=false", "data.packs_per_step=2"]  # fmt: skip


def told(number: int, num_supervised: int = 2) -> PackedSample:
    return PackedSample("mine", str(number), "en", 5, num_supervised, 0, 0)


def spoil(monkeypatch: pytest.MonkeyPatch, step: int, how: str) -> None:
    """Make the loss of the first row, or the gradient alone, wrong at a step."""
    inner = GraftTrainer.compute_loss

    def compute_loss(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step + 1 != step or how == "nothing":
            return inner(self, model, inputs, *args, **kwargs)
        if how == "gradient":
            loss = inner(self, model, inputs, *args, **kwargs)
            return loss + Poison.apply(loss)
        add = self.watch.meter.add_losses

        def wrong(values: torch.Tensor) -> None:
            add(values)
            values.data[0] = float("nan")

        self.watch.meter.add_losses = wrong
        try:
            return inner(self, model, inputs, *args, **kwargs) * float("nan")
        finally:
            self.watch.meter.add_losses = add

    monkeypatch.setattr(GraftTrainer, "compute_loss", compute_loss)


class Poison(torch.autograd.Function):
    """0, with a gradient that is infinite."""

    @staticmethod
    def forward(ctx: Any, loss: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(loss)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return torch.full_like(gradients[0], float("inf"))


@pytest.fixture(scope="module")
def undisturbed(pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    return run(*vlm(pipeline.align), *MIXED, *STEPS, f"output_dir={folder}/run")


def test_a_loss_that_is_no_number_ends_the_run_naming_its_rows(
    pipeline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two packs of the step have one such row each; the others are not named."""
    overrides = [*vlm(pipeline.align), *MIXED, *STEPS, f"output_dir={tmp_path}/run"]
    with monkeypatch.context() as patch:
        spoil(patch, 3, "loss")
        with pytest.raises(TrainingError) as caught:
            run(*overrides)
    first, rows, rest = str(caught.value).split("\n", 2)
    assert first == "step 3: the loss is infinite or not a number"
    named = rows.removeprefix("  rows whose loss is not: ").split(", ")
    assert len(named) == 2 and all(name.split("/")[0] in ("scenes", "numbers") for name in named)
    assert "parameters whose gradient is not: " in rest
    assert "optim.on_nonfinite=skip" in rest
    checkpoints = sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir())
    assert checkpoints[-1] == "checkpoint-2"  # nothing of step 3 is saved


def test_the_run_goes_on_from_before_it(
    pipeline: Any, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = [*vlm(pipeline.align), *MIXED, *STEPS, f"output_dir={tmp_path}/run"]
    with monkeypatch.context() as patch:
        spoil(patch, 3, "gradient")
        with pytest.raises(TrainingError, match=r"^step 3: the gradient is infinite") as caught:
            run(*overrides)
    assert "rows of the step: " in str(caught.value)
    run(*overrides)
    assert losses(tmp_path / "run") == losses(undisturbed)
    assert same_weights(tmp_path / "run/export", undisturbed / "export")


@pytest.mark.parametrize("logging_steps", [1, 2])
def test_a_step_that_is_left_out_changes_nothing(
    logging_steps: int, pipeline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Neither weights nor optimizer; the ones after it are made, and it is counted and named."""
    overrides = [*vlm(pipeline.align), *MIXED, *STEPS, "optim.on_nonfinite=skip",
                 "checkpoint.save_total_limit=9",
                 f"tracker.logging_steps={logging_steps}"]  # fmt: skip
    spoil(monkeypatch, 3, "loss")
    with caplog.at_level(logging.WARNING):
        folder = run(*overrides, f"output_dir={tmp_path}/run")
    assert "step 3: the loss is infinite or not a number" in caplog.text
    assert "the step is left out" in caplog.text
    before, after = (weights(folder / f"checkpoints/checkpoint-{step}") for step in (2, 3))
    assert all(torch.equal(before[name], after[name]) for name in before)
    lines = {
        line["step"]: line for line in metrics(folder) if "train/learning_rate/decoder" in line
    }
    told_at = 3 if logging_steps == 1 else 4  # alone, or with the one after it
    assert {step for step, line in lines.items() if "train/steps_skipped" in line} == {told_at}
    assert lines[told_at]["train/steps_skipped"] == 1
    assert ("train/loss" in lines[told_at]) == (logging_steps == 2)
    last = weights(folder / "checkpoints/checkpoint-4")
    assert not all(torch.equal(last[name], after[name]) for name in after)
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda text: pytest.fail(text))  # no NaN is written


@pytest.mark.parametrize("engine", ["zero2", "zero3"])
def test_deepspeed_cannot_leave_steps_out(engine: str) -> None:
    with pytest.raises(ConfigError, match=rf"on_nonfinite: is skip, but engine={engine} makes"):
        load_config("train", [*FAST, f"engine={engine}", "optim.on_nonfinite=skip"])


# Two processes, of which the second meets a loss that is no number, or both an infinite gradient.
ON_RANKS = """
import json, os, sys
import deepspeed.comm.torch
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from configs.command import load_config
from configs.errors import TrainingError
from pytest import MonkeyPatch
from test_stability import spoil
from train import run

deepspeed.comm.torch.build_shm_op = lambda: None
rank = os.environ["RANK"]
for name, how, overrides in json.loads(sys.argv[1]):
    config = load_config("train", overrides)
    with MonkeyPatch.context() as patch:
        spoil(patch, 3, "nothing" if how == "loss" and rank == "0" else how)
        try:
            run.train(config)
            told = "trained on"
        except TrainingError as error:
            told = str(error)
    unset_hf_deepspeed_config()
    with open(f"{config.output_dir}-{rank}.txt", "w") as file:
        file.write(told)
"""
RANK_RUNS = [
    ("ddp-loss", "loss", ["engine=ddp"]),
    ("ddp-skip", "loss", ["engine=ddp", "optim.on_nonfinite=skip"]),
    ("fsdp2-gradient", "gradient", ["engine=fsdp2"]),
    ("zero2-loss", "loss", ["engine=zero2"]),
    ("zero2-gradient", "gradient", ["engine=zero2"]),
    ("zero3-gradient", "gradient", ["engine=zero3"]),
    ("zero2-half", "gradient", ["engine=zero2", "model.dtype=bfloat16"]),
]


@pytest.fixture(scope="module")
def on_ranks(pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what each of two processes said of each of RANK_RUNS."""
    root = tmp_path_factory.mktemp("ranks")
    (root / "script.py").write_text(ON_RANKS)
    common = [*FAST, *vlm(pipeline.align), *MIXED, *STEPS, "evaluation.max_rows=1"]
    runs = [
        (name, how, [*common, *overrides, f"output_dir={root}/{name}"])
        for name, how, overrides in RANK_RUNS
    ]
    here, tests = Path(__file__).resolve().parent, Path(__file__).resolve().parents[2]
    paths = os.pathsep.join(map(str, (tests.parent, tests, here)))
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    done = subprocess.run(
        [sys.executable, *launch, str(root / "script.py"), json.dumps(runs)],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-6000:]
    (root / "log.txt").write_text(done.stdout + done.stderr)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp-loss", "zero2-loss"])
def test_a_row_of_one_rank_ends_all_and_is_named_by_all(name: str, on_ranks: Path) -> None:
    told = [(on_ranks / f"{name}-{rank}.txt").read_text() for rank in (0, 1)]
    named = [text.splitlines()[1] for text in told]
    assert all(text.startswith("step 3: the loss is infinite or not a number") for text in told)
    assert named[0] == named[1] and named[0].startswith("  rows whose loss is not: ")
    assert len(named[0].removeprefix("  rows whose loss is not: ").split(", ")) == 1
    assert ("on_nonfinite=skip" in told[0]) == name.startswith("ddp")
    steps = sorted(path.name for path in (on_ranks / name / "checkpoints").iterdir())
    assert steps[-1] == "checkpoint-2"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["fsdp2-gradient", "zero2-gradient", "zero3-gradient", "zero2-half"]
)
def test_an_infinite_gradient_ends_all_ranks(name: str, on_ranks: Path) -> None:
    """DeepSpeed calls its norm -1."""
    for rank in (0, 1):
        told = (on_ranks / f"{name}-{rank}.txt").read_text()
        assert told.startswith("step 3: the gradient is infinite or not a number")


@pytest.mark.slow
def test_ranks_leave_a_step_out_together_and_one_says_so(on_ranks: Path) -> None:
    assert [(on_ranks / f"ddp-skip-{rank}.txt").read_text() for rank in (0, 1)] == [
        "trained on"
    ] * 2
    assert (on_ranks / "log.txt").read_text().count("the step is left out") == 1
    before, after = (
        weights(on_ranks / f"ddp-skip/checkpoints/checkpoint-{step}") for step in (3, 4)
    )
    assert not all(torch.equal(before[name], after[name]) for name in before)


# --------------------------------------------------------------------------------- spikes


def test_a_spike_is_told_once_there_is_enough_to_hold_it_against() -> None:
    watch = SpikeWatch(6.0)
    rng = np.random.default_rng(0)
    assert watch.see(50.0) is None  # nothing before it
    watch = SpikeWatch(6.0)
    for value in rng.normal(3, 0.1, ENOUGH):
        assert watch.see(float(value)) is None
    found = watch.see(9.0)
    assert found is not None and found.startswith("9.000 nats against 2.982 +- 0.085")
    assert watch.see(9.0) is not None  # the first one is not taken for what is usual
    assert watch.see(3.1) is None


def test_what_is_no_spike() -> None:
    even = SpikeWatch(6.0)
    for _ in range(ENOUGH + 1):
        assert even.see(2.0) is None
    assert even.see(2.1) is None  # no deviation at all before it, yet 5 % are no spike
    assert even.see(float("nan")) is None
    assert SpikeWatch(None).see(1e9) is None


def test_the_rows_with_the_highest_loss_a_token_are_named() -> None:
    samples = [told(0, 1), told(1, 10), told(2, 2)]
    assert heaviest_rows(samples, np.array([3.0, 10.0, 8.0])) == (
        "mine/2 (4.00), mine/0 (3.00), mine/1 (1.00)"
    )


def test_a_spike_of_a_run_is_logged_with_its_rows(
    pipeline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("train.watching.stability.ENOUGH", 2)
    inner, calls = Meter.sample_nats, []

    def jump(self: Any) -> np.ndarray:
        calls.append(1)
        return inner(self) * (100 if len(calls) == 4 else 1)

    monkeypatch.setattr(Meter, "sample_nats", jump)
    with caplog.at_level(logging.WARNING):
        run(*vlm(pipeline.align), *MIXED, *STEPS, f"output_dir={tmp_path}/run",
            "optim.spike_deviations=3")  # fmt: skip
    assert "loss spike at step 4" in caplog.text and "scenes/" in caplog.text


def test_all_rows_are_named_where_every_loss_is_a_number() -> None:
    samples = [told(0), told(1)]
    assert rows_to_blame(samples, np.array([1.0, float("inf")])) == ["mine/1"]
    assert rows_to_blame(samples, np.array([1.0, 2.0])) == ["mine/0", "mine/1"]
    text = describe(7, [str(number) for number in range(30)], [], finite=True)
    assert text.endswith(", 19 and 10 more")
