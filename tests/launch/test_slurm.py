"""Jobs of launch/slurm on a real SLURM of two nodes (tests/slurm_cluster.py)."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pico_runs import (
    FAST,
    MIXED,
    SHAPES,
    TEXT,
    grafted_on,
    losses,
    metrics,
    run,
    same_weights,
)
from slurm_cluster import Cluster
from wandb_file import offline_runs

from train.saving.checkpoints import newest_checkpoint, step_of

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = str(ROOT / "launch/slurm/run.sbatch")
HERE = {"VISIONGRAFT_HOME": str(ROOT), "OMP_NUM_THREADS": "1", "NPROC_PER_NODE": "1"}
STAND_IN = {
    **HERE,
    "PYTHON": str(Path(__file__).with_name("stand_in_python.sh")),
    "REAL_PYTHON": sys.executable,
}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


class StandIn:
    """A job of two nodes in a folder of its own, whose python is stand_in_python.sh."""

    def __init__(self, cluster: Cluster, folder: Path, *options: str, do: str, **more: str) -> None:
        self.cluster, self.folder = cluster, folder
        folder.mkdir()
        self.id = cluster.submit(
            "--nodes=2", "--partition=high", *options, SCRIPT, "debug=fast", cwd=folder, DO=do,
            **{**STAND_IN, **more},
        )  # fmt: skip

    def events(self) -> list[str]:
        """What has happened so far: "node restart what"."""
        path = self.folder / "events.txt"
        return sorted(path.read_text().splitlines()) if path.exists() else []

    def wait_for(self, *events: str, seconds: float = 30) -> None:
        self.cluster.until(
            lambda: {*events} <= {*self.events()},
            f"job {self.id}: {events} are not among {self.events()}", seconds,
        )  # fmt: skip

    def signal(self, *how: str) -> None:
        self.cluster.run("scancel", *how, self.id)

    def end(self, state: str, code: str, restarts: int) -> str:
        """Wait until it has ended as it should; return its log."""
        told = self.cluster.wait(self.id, "COMPLETED", "FAILED", "CANCELLED")
        log = (self.folder / f"slurm-{self.id}.out").read_text()
        ended = (told["JobState"], told["ExitCode"], int(told["Restarts"]))
        assert ended == (state, code, restarts), log
        return log


def test_how_jobs_end_and_start_again(cluster, tmp_path):
    """Of several jobs side by side, each of one process a node that does as a run does."""

    def job(name: str, *options: str, do: str, **more: str) -> StandIn:
        return StandIn(cluster, tmp_path / name, *options, do=do, **more)

    # One minute is the shortest limit; SLURM looks for signals before it every 30 s.
    limit = job("limit", "--time=1", "--signal=USR1@60", do="save", MAX_FRUITLESS_RESTARTS="0")
    failed, codes = job("fail", do="fail"), {code: job(code, do=code) for code in ("0", "2")}
    cancelled, saved, died = job("cancel", do="save"), job("save", do="save"), job("die", do="die")
    kept = job("keep", do="save")
    for each in (cancelled, saved, died, kept):
        each.wait_for("n1 0 start", "n2 0 start")
    cancelled.signal()
    cluster.run("scontrol", "update", f"jobid={kept.id}", "requeue=0")
    kept.signal("--signal=USR1")
    log = kept.end("FAILED", "75:0", 0)
    assert f"job {kept.id} may not be requeued: submit it again" in log
    saved.signal("--batch", "--signal=USR1")  # as with --signal=B:USR1@300
    died.signal("--signal=TERM")
    for each, signal in ((saved, "USR1"), (died, "TERM")):
        each.wait_for(f"n1 0 {signal}", f"n2 0 {signal}", "n1 1 start", "n2 1 start")
        (each.folder / "end").touch()
        assert "goes back to the queue" in each.end("COMPLETED", "0:0", 1)
        left = sorted(path.name for path in each.folder.iterdir())
        assert left == ["end", "events.txt", f"slurm-{each.id}.out"]
    for code, state in (("0", "COMPLETED"), ("2", "FAILED")):
        assert "queue" not in codes[code].end(state, f"{code}:0", 0)
    cancelled.end("CANCELLED", "75:0", 0)
    assert cancelled.events() == ["n1 0 TERM", "n1 0 start", "n2 0 TERM", "n2 0 start"]
    # The others of one that has failed are sent SIGTERM by srun: that puts no job back.
    failed.end("FAILED", "1:0", 0)
    assert failed.events() == ["n1 0 TERM", "n1 0 start", "n2 0 start"]
    log = limit.end("FAILED", "1:0", 1)
    assert "error: SLURM has started this job 1 times since it last got further" in log
    assert {"n1 0 USR1", "n2 0 USR1"} < {*limit.events()} and "n1 1 start" not in limit.events()


def test_what_torchrun_is_told(cluster, tmp_path):
    (tmp_path / "site.sh").write_text("export FROM_SITE=site$NOT_SET\n")
    # As many sites want it, the job gets little of the environment; srun hands on all of that.
    export = "--export=DO,PYTHON,REAL_PYTHON,SRUN_ARGS,VISIONGRAFT_HOME,VISIONGRAFT_SITE"
    job = StandIn(
        cluster, tmp_path / "job", "--gpus-per-node=2", "--cpus-per-task=3", export, do="0",
        NPROC_PER_NODE="", SRUN_ARGS="--label", VISIONGRAFT_SITE=str(tmp_path / "site.sh"),
    )  # fmt: skip
    log = job.end("COMPLETED", "0:0", 0)
    assert "on 2 node(s) of n[1-2], 3 CPUs each, restart 0: visiongraft train debug=fast\n" in log
    for number, name in enumerate(("n1", "n2")):
        (line,) = (line for line in log.splitlines() if f"{name} is called" in line)
        assert line.startswith(f"{number}: {name} is called with site: ")
        port = 10000 + int(job.id)
        for told in (
            "--nproc-per-node 2", "--nnodes 2", f"--rdzv-endpoint n1:{port}",
            f"--rdzv-id {job.id}-0", f"--rdzv-conf is_host={int(name == 'n1')},",
            f"--local-addr {name} ", "train/main.py debug=fast",
        ):  # fmt: skip
            assert told in line


STEPS = 32
LENGTH = [
    f"optim.max_steps={STEPS}", "checkpoint.save_steps=4", "evaluation.max_rows=1",
    "evaluation.generate=false", "evaluation.num_choices=2",
]  # fmt: skip


def test_a_run_that_is_preempted_and_loses_a_node(cluster, tmp_path, request):
    """It has in the end what one of two processes has that nothing disturbs, and so has a merge."""
    text = run("model=pico_text", *SHAPES, *TEXT, "stage=text", f"output_dir={tmp_path}/text")
    train = [*FAST, *grafted_on(text / "export"), *MIXED, "stage=scratch", *LENGTH, "tracker=wandb"]

    def submit(*arguments: str) -> str:
        return cluster.submit(*arguments, cwd=tmp_path, **HERE)

    def step() -> int:
        path = tmp_path / "broken/metrics.jsonl"
        text = path.read_text() if path.exists() else ""  # its last line may be half written
        return max(map(int, re.findall(r'{"step": (\d+), "train/loss"', text)), default=0)

    local = subprocess.Popen(
        [str(ROOT / "launch/local.sh"), *train, "output_dir=local"], cwd=tmp_path,
        env={**os.environ, **HERE, "NPROC_PER_NODE": "2"}, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    request.addfinalizer(local.terminate)  # where the test fails
    whole = submit("--nodes=2", "--partition=high", SCRIPT, *train, "output_dir=whole")
    broken = submit("--nodes=2", "--cpus-per-task=2", SCRIPT, *train, "output_dir=broken")
    log = tmp_path / f"slurm-{broken}.out"

    cluster.until(lambda: step() >= 2, "no step 2", 240)
    # Of four CPUs a node it takes three: `whole` may stay, `broken` may not.
    rival = submit("--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=3", "--partition=high",
                   "--output=/dev/null", "--wrap=true")  # fmt: skip
    cluster.wait(rival, "COMPLETED")
    stopped = newest_checkpoint(tmp_path / "broken/checkpoints")
    assert f"stopped by SIGTERM after step {step_of(stopped)};" in log.read_text()
    assert cluster.wait(whole, "COMPLETED", "FAILED", seconds=240)["ExitCode"] == "0:0"
    assert local.wait(timeout=240) == 0
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "local")

    cluster.until(lambda: step() > step_of(stopped) + 2, "does not go on", 240)
    cluster.machines.kill("n2")
    # As SLURM does by itself SlurmdTimeout later.
    cluster.run("scontrol", "update", "nodename=n2", "state=down", "reason=test")
    cluster.wait(broken, "PENDING")
    assert "DUE TO NODE FAILURE" in log.read_text()
    cluster.start_node("n2")
    merge = submit("--nodes=2", "--partition=high", SCRIPT, "merge", "vlm=whole/export",
                   f"text={text}/export", "alpha=0.5", "out=merged")  # fmt: skip
    told = cluster.wait(broken, "COMPLETED", "FAILED", seconds=240)
    assert (told["JobState"], told["ExitCode"]) == ("COMPLETED", "0:0"), log.read_text()
    assert sorted(losses(tmp_path / "broken")) == list(range(1, STEPS + 1))
    assert metrics(tmp_path / "broken") == metrics(tmp_path / "local")
    assert same_weights(tmp_path / "broken/export", tmp_path / "local/export")

    starts = (tmp_path / "broken/environment.jsonl").read_text().splitlines()
    assert [json.loads(line)["requeued"] for line in starts][:3] == [0, 1, 2]
    offline = offline_runs(tmp_path / "broken")
    assert len(offline.folders) >= 3
    assert {r.run_id for r in offline.of("run")} == {(tmp_path / "broken/wandb_id.txt").read_text()}
    assert cluster.wait(merge, "COMPLETED", "FAILED")["ExitCode"] == "0:0"
    assert (tmp_path / "merged/merge_report.json").is_file()
