"""Task N of a SLURM job array is number N of Hydra's own --multirun: config, folder, result."""

import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from pico_runs import FAST, SCENES, losses, same_weights
from slurm_cluster import Cluster

from configs.command import load_config, run_command
from configs.errors import ConfigError
from launch.slurm.array_task import expand, task_overrides

ROOT = Path(__file__).resolve().parents[2]
SWEEPS = {
    "lists": "train experiment=demo_text seed=0,1 stage.parts.decoder.learning_rate=1e-4,2e-4",
    "range": "train seed=range(3) stage.name=it stage.parts={}",
    "choice": "train optim.max_steps=choice(10,20) seed=sort(3,1)",
    "groups": "train tracker=glob(*,exclude=t*) engine=ddp,single",
    "folder by stage": "train stage=align,sft",
    "same key twice": "train seed=0,1 seed=2,3",
    "folder swept": "train output_dir=a,b",
    "quotes": "train seed=0,1 output_dir='a, \\'b\\' = c'",
    "added": "train ~data.held_out.numbers seed=0,1 +data.sources.b={kind:files,path:p}",
    "short name": "evaluate model=a,b out=measured tracker=jsonl,wandb",
    "free names": "sweep vlm=V text=T out=O schedules={x:{alpha:0.5}} alphas=[0,1],[0,0.5,1]",
    "merges": "merge vlm=V text=T out=O alpha=0.2,[0.8,0.2],[[0,0.8],[1,0]]",
    "of hydra": "train hydra.verbose=false seed=0,1",
}  # fmt: skip


def split(line: str) -> list[str]:
    """The words of a line; a quote of Hydra's keeps what is in it together."""
    head, quote, rest = line.partition("'")
    words = head.split()
    return [*words[:-1], f"{words[-1]}{quote}{rest}"] if quote else words


@pytest.fixture
def multirun(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Return what calls a command with --multirun, and gives the configs that its runs got."""
    found: list[Any] = []
    module = types.ModuleType("noted")
    module.note = found.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "noted", module)
    monkeypatch.chdir(tmp_path)  # Hydra leaves its multirun.yaml

    def call(command: str, overrides: list[str]) -> list[Any]:
        monkeypatch.setattr("sys.argv", ["visiongraft", "--multirun", *overrides])
        run_command(command, "noted:note")
        return found

    return call


def at(number: int, count: int) -> dict[str, str]:
    """SLURM's variables in a task of a whole array."""
    return {"SLURM_ARRAY_TASK_ID": str(number), "SLURM_ARRAY_TASK_COUNT": str(count),
            "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_MAX": str(count - 1)}  # fmt: skip


@pytest.mark.parametrize("line", SWEEPS.values(), ids=SWEEPS)
def test_every_task_is_the_multiruns_run_of_that_number(line: str, multirun: Any) -> None:
    command, *overrides = split(line)
    runs = multirun(command, overrides)
    assert len(runs) > 1
    tasks = [task_overrides(command, overrides, at(n, len(runs))) for n in range(len(runs))]
    assert [load_config(command, task) for task in tasks] == runs
    folders = [getattr(run, "output_dir", None) or run.out for run in runs]
    assert [folder.rsplit("/", 1)[1] for folder in folders] == [str(n) for n in range(len(runs))]


def test_overrides_of_hydra_are_handed_on() -> None:
    assert expand("train", ["seed=0,1", "hydra.verbose=true"]) == (
        ["hydra.verbose=true"], [["seed=0"], ["seed=1"]],
    )  # fmt: skip


@pytest.mark.parametrize("numbers", [[1], [2, 4], [0, 5], [0, 2, 4], [3, 4, 5], [0]], ids=str)
def test_a_part_of_the_tasks_may_be_chosen(numbers: list[int]) -> None:
    variables = {"COUNT": len(numbers), "MIN": numbers[0], "MAX": numbers[-1]}
    variables["ID"] = numbers[-1]
    environment = {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in variables.items()}
    assert f"seed={numbers[-1]}" in task_overrides("train", ["seed=range(6)"], environment)


WRONG = {
    "more tasks": (["seed=0,1,2"], at(0, 6), r"goes up to 5, and there are 3 .*--array=0-2"),
    "fewer tasks": (["seed=range(6)"], at(1, 3), r"0-2 is 3 of 6 combinations: --array=0-5"),
    "no sweep": (["seed=0"], at(0, 2), "no override has several values"),
    "no array": (["seed=0,1"], {}, "SLURM_ARRAY_TASK_ID is not set"),
    "shuffled": (["seed=shuffle(0,1)"], at(0, 2), r"seed=shuffle\(0,1\): each task would draw"),
    "no such key": (["sed=0,1"], at(0, 2), r"sed=0,1: no such key \(did you mean seed\?\)"),
    "value": (["seed=0,x"], at(1, 2), "seed: is 'x', but it takes a whole number"),
    "another sweeper": (["seed=0,1", "hydra/sweeper=basic"], at(0, 2), "is of --multirun"),
    "launcher": (["seed=0,1", "hydra/launcher=submitit_slurm"], at(0, 2), "is of --multirun"),
}


@pytest.mark.parametrize(("overrides", "variables", "told"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_told(overrides: list[str], variables: dict[str, str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        task_overrides("train", overrides, variables)


def call(*arguments: str, **variables: str) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "launch.slurm.array_task", *arguments],
        cwd=ROOT, env=variables, capture_output=True, timeout=60,
    )  # fmt: skip


def test_the_command_writes_overrides_with_nuls_and_loads_no_torch() -> None:
    done = call("train", "seed=4,5", "output_dir=a b", **at(1, 2))
    assert (done.returncode, done.stdout) == (0, b"seed=5\0output_dir='a b/1'\0")
    assert b"hydra" in done.stderr
    assert not any(b"| " + name + b"\n" in done.stderr.replace(b"  ", b"")
                   for name in (b"torch", b"transformers", b"trl"))  # fmt: skip


@pytest.mark.parametrize("arguments", [("train", "seed=interval(0,1)"), ("report",), ()])
def test_the_command_ends_with_one_message(arguments: tuple[str, ...]) -> None:
    done = call(*arguments, **at(0, 2))
    lines = [line for line in done.stderr.splitlines() if not line.startswith(b"import time:")]
    assert (done.returncode, done.stdout) == (2, b"")
    assert len(lines) == 2 and lines[1].startswith(b"error: ")


def submit(cluster: Cluster, folder: Path, array: str, *overrides: str) -> str:
    """Submit an array of small runs; return its id."""
    return cluster.submit(
        f"--array={array}", str(ROOT / "launch/slurm/run.sbatch"), *FAST, *SCENES, *overrides,
        cwd=folder, VISIONGRAFT_HOME=str(ROOT), NPROC_PER_NODE="1",
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_on_a_real_slurm_every_task_has_the_multiruns_result(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = ["seed=0,1", "stage.parts.decoder.learning_rate=1e-3"]
    job = submit(cluster, tmp_path, "0-1", *sweep, "output_dir=array")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train", "--multirun", *FAST, *SCENES, *sweep, "output_dir=m"])
    run_command("train", "train.start:start")
    for number in (0, 1):
        told = cluster.wait(f"{job}_{number}", "COMPLETED", "FAILED", "TIMEOUT", seconds=300)
        log = (tmp_path / f"slurm-{job}_{number}.out").read_text()
        assert told["JobState"] == "COMPLETED", log
        one, other = tmp_path / f"array/{number}", tmp_path / f"m/{number}"
        assert losses(one) == losses(other)
        assert same_weights(one / "export", other / "export")
    assert {path.name for path in (tmp_path / "array").iterdir()} == {"0", "1"}


@pytest.mark.slow
def test_on_a_real_slurm_an_array_of_another_size_ends_at_once(
    cluster: Cluster, tmp_path: Path
) -> None:
    for array, said in {"0-3": "goes up to 3, and there are 3", "0-1": "0-1 is 2 of 3"}.items():
        job = submit(cluster, tmp_path, array, "seed=0,1,2")
        for number in (0, 1):
            told = cluster.wait(f"{job}_{number}", "COMPLETED", "FAILED")
            assert told["ExitCode"] == "2:0"
            assert said in (tmp_path / f"slurm-{job}_{number}.out").read_text()
