"""The chain of SLURM jobs from a text LM to a sweep: its commands, and its jobs on a real SLURM."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from pico_runs import FAST, SCENES, SHAPES, TEXT, TOWER
from slurm_cluster import Cluster

from configs.command import load_config
from launch.demo import plan_steps

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "launch/slurm/pipeline.sh"
STAGES = ("text", "align", "sft", "merge", "sweep")
RESULTS = {
    "text": "text/finished.json",
    "align": "align/finished.json",
    "sft": "sft/finished.json",
    "merge": "merged/merge_report.json",
    "sweep": "sweep/sweep.json",
}
# sbatch and squeue of a SLURM whose jobs are lines of a file.
SBATCH = """#!/bin/sh
printf '%s\\n' "$*" >>"$SLURM_FAKE"
[ -z "$SBATCH_FAILS" ] || { echo "sbatch: error: no such partition" >&2; exit 1; }
echo "$((100 + $(wc -l <"$SLURM_FAKE")));cluster"
"""
SQUEUE = """#!/bin/sh
for job in $QUEUED; do case "$*" in *--jobs=${job%:*}*) echo "${job#*:}" ;; esac; done
"""


class Fake:
    """The script in a folder of its own, with a SLURM that only notes what it is asked."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.jobs = folder, folder / "jobs"
        for name, text in {"sbatch": SBATCH, "squeue": SQUEUE}.items():
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)

    def call(self, *overrides: str, code: int = 0, **variables: str) -> tuple[list[str], str]:
        """Return what sbatch was asked for, and what was told."""
        self.jobs.write_text("")
        environment = {**os.environ, "PATH": f"{self.folder}:{os.environ['PATH']}", "OUT": "out",
                       "SLURM_FAKE": str(self.jobs), **variables}  # fmt: skip
        done = subprocess.run(
            [str(SCRIPT), *overrides], cwd=self.folder, env=environment,
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        return self.jobs.read_text().splitlines(), done.stdout + done.stderr

    def finish(self, *stages: str) -> None:
        """Make the results of stages."""
        for stage in stages:
            path = self.folder / "out" / RESULTS[stage]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    return Fake(tmp_path)


def commands(out: str) -> list[list[str]]:
    """The words after run.sbatch of what DRY_RUN=1 prints."""
    lines = [line.split("$(", 1)[1][:-1] for line in out.splitlines() if "=$(sbatch" in line]
    return [(words := shlex.split(line))[words.index(f"{ROOT}/launch/slurm/run.sbatch") + 1 :]
            for line in lines]  # fmt: skip


def test_by_default_the_stages_are_the_demos(fake: Fake) -> None:
    _, told = fake.call(DRY_RUN="1")
    given = commands(told)
    assert [words[0] for words in given] == ["train", "train", "train", "merge", "sweep"]
    for words, step in zip(given, plan_steps(Path("out")), strict=False):
        command, *overrides = step.arguments
        assert load_config(words[0], words[1:]) == load_config(command, overrides)
    assert not (fake.folder / "out").exists()


def test_every_job_waits_for_the_one_before(fake: Fake) -> None:
    asked, told = fake.call()
    for number, stage in enumerate(STAGES):
        words = asked[number].split()
        assert f"--job-name=out-{stage}" in words
        assert f"--output=out/pipeline/{stage}-%j.log" in words
        after = [word for word in words if word.startswith(("--dependency", "--kill"))]
        waits = [f"--dependency=afterok:{100 + number}", "--kill-on-invalid-dep=yes"]
        assert after == (waits if number else [])
        assert f"# {stage}: job {101 + number}" in told
    assert "squeue --jobs=101,102,103,104,105" in told
    assert "scancel 101 102 103 104 105" in told


def test_what_is_printed_can_be_run(fake: Fake) -> None:
    asked, _ = fake.call()
    _, told = fake.call(DRY_RUN="1", OUT="other")
    (fake.folder / "typed.sh").write_text(told)
    fake.jobs.write_text("")
    subprocess.run(
        ["bash", "typed.sh"], cwd=fake.folder, check=True, timeout=60,
        env={**os.environ, "PATH": f"{fake.folder}:{os.environ['PATH']}",
             "SLURM_FAKE": str(fake.jobs)},
    )  # fmt: skip
    typed = fake.jobs.read_text().replace(";cluster", "").replace("other", "out").splitlines()
    assert typed == asked


def test_models_and_options_of_ones_own(fake: Fake) -> None:
    (fake.folder / "lm").mkdir()
    variables = {
        "TEXT_LM": "lm",
        "ALIGN": """experiment=aya_vision_8b_align data.sources.captions.path=a
                    'data.sources.captions.prompts={en: ["What is it?"]}'""",
        "SFT": "experiment=aya_vision_8b_sft_lora data.sources.captions.path=parquet "
        "data.sources.captions.data_files=[*/*]",
        "MERGE": "'alpha_overrides={norms: 0}' alpha=0.5",
        "SWEEP": "data=captions_held_out data.held_out.captions.path=a",
        "SBATCH_ARGS": "--account=me --comment='of mine'",
        "SFT_SBATCH_ARGS": "--nodes=4",
    }
    _, told = fake.call("tracker.group=mine", DRY_RUN="1", **variables)
    align, sft, merge, sweep = commands(told)
    assert 'data.sources.captions.prompts={en: ["What is it?"]}' in align
    assert {"model.decoder.path=lm", "tracker.group=mine", "output_dir=out/align"} <= {*align}
    assert {"model.path=out/align/export", "data.sources.captions.data_files=[*/*]"} <= {*sft}
    assert {"alpha_overrides={norms: 0}", "text=lm", "vlm=out/sft/export"} <= {*merge}
    assert "tracker.group=mine" not in merge
    assert {"text=lm", "tracker.group=mine", "out=out/sweep"} <= {*sweep}
    lines = told.splitlines()
    assert all(r"--account=me --comment=of\ mine" in line for line in lines[1:5])
    assert [line.split("=")[0] for line in lines if "--nodes=4" in line] == ["sft"]


def test_what_is_done_is_left_out_and_what_is_queued_waited_for(fake: Fake) -> None:
    fake.call()
    fake.finish("text", "align")
    asked, told = fake.call(QUEUED="103:out-sft")
    assert "# align: done before" in told
    assert "# sft: job 103 is in the queue" in told
    assert [line.split("--job-name=")[1].split()[0] for line in asked] == ["out-merge", "out-sweep"]
    assert "--dependency=afterok:103" in asked[0]
    fake.finish("sft", "merge", "sweep")
    asked, told = fake.call()
    assert asked == [] and told.count("done before") == 5 and "watch" not in told


def test_a_number_that_another_job_has_now_is_not_ours(fake: Fake) -> None:
    fake.call()
    asked, _ = fake.call(QUEUED="101:somebody")
    assert len(asked) == 5


WRONG: dict[str, tuple[tuple[str, ...], dict[str, str], str]] = {
    "key": (("sed=1",), {}, "sed=1: no such key (did you mean seed?)"),
    "value": ((), {"MERGE": "method=linea"}, "merge: method: is 'linea'"),
    "quotes": ((), {"ALIGN": "seed='1"}, "ALIGN: seed='1"),
    "no text LM": ((), {"TEXT_LM": "nowhere"}, "TEXT_LM=nowhere is no folder"),
}


@pytest.mark.parametrize(("overrides", "variables", "said"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_told_before_anything_is_submitted(
    fake: Fake, overrides: tuple[str, ...], variables: dict[str, str], said: str
) -> None:
    asked, told = fake.call(*overrides, code=2, **variables)
    assert asked == [] and said in told


def test_results_of_other_commands_are_not_taken(fake: Fake) -> None:
    fake.call()
    fake.finish("text")
    asked, told = fake.call("seed=1", code=2)
    assert asked == [] and "text/finished.json was made by another command" in told
    fake.finish("sft")
    asked, told = fake.call(code=2)
    assert asked == [] and "sft/finished.json is there, and align" in told


def test_a_queued_job_of_another_command_is_not_waited_for(fake: Fake) -> None:
    fake.call()
    fake.finish("text")
    asked, told = fake.call(
        SFT="experiment=demo_sft seed=3", code=2, QUEUED="102:out-align 103:out-sft"
    )
    assert asked == [] and "job 103, sft, is of another command: scancel 103" in told
    asked, told = fake.call(code=2, QUEUED="103:out-sft")
    assert asked == [] and "job 103, sft, is queued, and align, which it waits for" in told


def test_a_submission_that_fails_ends_it(fake: Fake) -> None:
    asked, told = fake.call(code=1, SBATCH_FAILS="1")
    assert len(asked) == 1 and "no such partition" in told


def tiny(*overrides: str) -> str:
    """Overrides as a variable of the script holds them."""
    return shlex.join(overrides)


@pytest.mark.slow
@pytest.mark.timeout(600)  # seven starts of torch, in turn
def test_on_a_real_slurm_the_chain_outlives_a_requeue_and_goes_on_after_a_failure(
    cluster: Cluster, tmp_path: Path
) -> None:
    variables = {
        "OUT": "out",
        "NPROC_PER_NODE": "1",
        "TEXT": tiny(*FAST, "model=pico_text", *SHAPES, *TEXT, "stage=text"),
        "ALIGN": tiny(*FAST, "model=compose", *TOWER, *SCENES, "stage=align"),
        "SFT": tiny(*FAST, "model=vlm", *SCENES, "stage=sft"),
        "MERGE": "alpha=0.5 verify_logits=false",
        "SWEEP": tiny(*SCENES[:1], SCENES[2], "data.languages=[en,fr]", "alphas=[0,1]",
                      "tracker=jsonl", "evaluation.max_rows=4", "evaluation.generate=false"),
    }  # fmt: skip

    def submit() -> dict[str, str]:
        told = cluster.run(str(SCRIPT), cwd=tmp_path, env={**cluster.environment, **variables})
        return dict(re.findall(r"# (\w+): job (\d+)", told))

    def log(stage: str) -> str:
        return "".join(path.read_text() for path in tmp_path.glob(f"out/pipeline/{stage}-*.log"))

    other = tmp_path / "out/merged/of_another_merge"
    other.parent.mkdir(parents=True)
    other.touch()
    first = submit()
    assert [*first] == [*STAGES]
    cluster.wait(first["text"], "RUNNING")
    cluster.run("scontrol", "requeue", first["text"])
    told = cluster.wait(first["text"], "COMPLETED", "FAILED", "CANCELLED", seconds=300)
    assert (told["JobState"], told["Restarts"]) == ("COMPLETED", "1"), log("text")
    told = cluster.wait(first["merge"], "COMPLETED", "FAILED", "CANCELLED", seconds=300)
    assert told["JobState"] == "FAILED" and "out/merged" in log("merge"), log("merge")
    told = cluster.wait(first["sweep"], "CANCELLED", "RUNNING")
    assert told["JobState"] == "CANCELLED" and log("sweep") == ""  # it has never run

    other.unlink()
    second = submit()
    assert [*second] == ["merge", "sweep"]
    again = submit()
    assert again == second  # in the queue
    for stage, job in second.items():
        told = cluster.wait(job, "COMPLETED", "FAILED", "CANCELLED", seconds=300)
        assert told["JobState"] == "COMPLETED", log(stage)
    assert all((tmp_path / "out" / result).is_file() for result in RESULTS.values())
    assert submit() == {}
