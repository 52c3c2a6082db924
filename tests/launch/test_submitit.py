"""`--multirun hydra/launcher=submitit_slurm` on a real SLURM: results, errors, jobs run again."""

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from pico_runs import FAST, SCENES, losses, run, same_weights
from slurm_cluster import Cluster

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = ["--multirun", "hydra/launcher=submitit_slurm", "hydra.launcher.partition=low"]


def is_there(name: str) -> bool:
    """Whether a distribution is installed."""
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


lacking = [name for name in ("submitit", "hydra-submitit-launcher") if not is_there(name)]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(lacking), reason=f"pip install {' '.join(lacking)}"),
]


def start(cluster: Cluster, folder: Path, *overrides: str) -> "subprocess.Popen[str]":
    """Start a multirun on the head of the cluster; it ends when its jobs have ended."""
    environment = {**cluster.environment, "PYTHONPATH": str(ROOT)}
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    return cluster.machines.start(
        "head", sys.executable, "-m", "launch.cli", "train", *LAUNCHER, *FAST, *SCENES,
        f"hydra.sweep.dir={folder}/sweep", f"output_dir={folder}/runs", *overrides,
        env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def logs(folder: Path) -> str:
    """What the jobs have said."""
    return "".join(path.read_text() for path in folder.glob("sweep/.submitit/*/*_log.err"))


def test_runs_are_those_of_the_command_and_an_error_is_told_here_and_in_the_jobs_log(
    cluster: Cluster, tmp_path: Path
) -> None:
    process = start(cluster, tmp_path, "seed=0,1,x")
    _, told = process.communicate(timeout=300)
    assert process.returncode == 2, told + logs(tmp_path)
    assert told.rstrip().endswith("error: seed: is 'x', but it takes a whole number")
    assert "error: seed: is 'x'" in logs(tmp_path)
    for seed in (0, 1):
        alone = run(*SCENES, f"seed={seed}", f"output_dir={tmp_path}/alone{seed}")
        made = tmp_path / f"runs/{seed}"
        assert losses(made) == losses(alone)
        assert same_weights(made / "export", alone / "export")


def test_a_job_goes_on_from_its_last_step_after_submitits_signal_and_preemption(
    cluster: Cluster, tmp_path: Path
) -> None:
    long = ["seed=0", "optim.max_steps=24", "checkpoint.save_steps=1000"]
    process = start(cluster, tmp_path, *long, "hydra.launcher.max_num_timeout=1")
    metrics = tmp_path / "runs/0/metrics.jsonl"

    def wait_for_steps(more: int) -> None:
        there = len(losses(metrics.parent)) if metrics.exists() else 0
        cluster.until(
            lambda: metrics.exists() and len(losses(metrics.parent)) > there + more,
            f"no steps after {there}: {logs(tmp_path)}", seconds=200,
        )  # fmt: skip

    wait_for_steps(2)
    (job,) = tmp_path.glob("sweep/.submitit/*/*_log.err")
    cluster.run("scancel", "--signal=USR2", job.parent.name)  # as submitit does before the limit
    cluster.until(lambda: "stopped by SIGUSR1 after step" in logs(tmp_path), "no stop", seconds=100)
    wait_for_steps(2)
    cluster.submit("--partition=high", "--nodes=2", "--exclusive", "--wrap=sleep 1", cwd=tmp_path)
    _, told = process.communicate(timeout=300)
    said = logs(tmp_path)
    assert process.returncode == 0, told + said
    assert "stopped by SIGTERM after step" in said
    assert said.count("going on from") == 2
    alone = run(*SCENES, *long, f"output_dir={tmp_path}/alone")
    assert losses(tmp_path / "runs/0") == losses(alone)
    assert same_weights(tmp_path / "runs/0/export", alone / "export")
