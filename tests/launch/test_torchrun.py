"""launch/torchrun.sh and local.sh: processes, threads, signals, and the run's own exit code."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pico_runs import FAST, SCENES, SHAPES, TOWER, metrics

ROOT = Path(__file__).resolve().parents[2]
LOCAL = str(ROOT / "launch/local.sh")
TORCHRUN = str(ROOT / "launch/torchrun.sh")
# In the place of Python: tells how it was called, and ends as it is told to.
FAKE = """#!/usr/bin/env bash
if [[ $1 == -c ]]; then
    echo "${DEVICES:-0}"
    exit "${NO_TORCH:-0}"
fi
printf '%s\\n' "OMP_NUM_THREADS=$OMP_NUM_THREADS" "$PET_RDZV_CONF" "$@" > "$SEEN"
printf '%s' "${TELL:-}" > "$VISIONGRAFT_EXIT_FILE"
exit "${CODE:-0}"
"""


@pytest.fixture
def call(tmp_path: Path) -> Any:
    """Call a script with a fake Python; return how it ended, and how Python was called."""
    fake, seen = tmp_path / "python", tmp_path / "seen"
    fake.write_text(FAKE)
    fake.chmod(0o755)

    def run(*command: str, **env: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        clean = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
        done = subprocess.run(
            command, env={**clean, "PYTHON": str(fake), "SEEN": str(seen), **env},
            capture_output=True, text=True, timeout=30, cwd=tmp_path,
        )  # fmt: skip
        return done, seen.read_text().splitlines() if seen.exists() else []

    return run


def after(words: list[str], option: str) -> str:
    return words[words.index(option) + 1]


@pytest.mark.parametrize(("devices", "processes"), [("0", "1"), ("1", "1"), ("4", "4")])
def test_a_process_a_device(call: Any, devices: str, processes: str) -> None:
    done, words = call(LOCAL, "seed=1", "optim.max_steps=3", DEVICES=devices)
    assert done.returncode == 0, done.stderr
    assert after(words, "--nproc-per-node") == processes
    assert words[-4:] == ["--standalone", f"{ROOT}/train/main.py", "seed=1", "optim.max_steps=3"]


def test_threads_are_the_cores_shared_out(call: Any) -> None:
    cores = len(os.sched_getaffinity(0))
    assert call(LOCAL)[1][0] == f"OMP_NUM_THREADS={cores}"
    assert call(LOCAL, NPROC_PER_NODE=str(cores))[1][0] == "OMP_NUM_THREADS=1"
    assert call(LOCAL, NPROC_PER_NODE=str(3 * cores))[1][0] == "OMP_NUM_THREADS=1"
    assert call(LOCAL, OMP_NUM_THREADS="7")[1][0] == "OMP_NUM_THREADS=7"


def test_what_can_be_set(call: Any) -> None:
    options = {"MAX_RESTARTS": "3", "SHUTDOWN_SECONDS": "60", "NPROC_PER_NODE": "2"}
    _, words = call(TORCHRUN, "--nnodes", "2", "--rdzv-id", "a b", "--", "seed=1", **options)
    assert words[1] == "join_timeout=600,read_timeout=600"
    assert after(words, "--max-restarts") == "3"
    assert after(words, "--shutdown-timeout") == "60"
    assert after(words, "--signals-to-handle").split(",")[-1] == "SIGUSR1"
    assert words[-6:] == ["--nnodes", "2", "--rdzv-id", "a b", f"{ROOT}/train/main.py", "seed=1"]


def test_how_long_machines_wait_for_each_other(call: Any) -> None:
    assert call(LOCAL, JOIN_SECONDS="9")[1][1] == "join_timeout=9,read_timeout=9"
    assert call(LOCAL, PET_RDZV_CONF="read_timeout=3")[1][1] == "read_timeout=3"


@pytest.mark.parametrize(
    ("command", "program"),
    [("train", "train/main.py"), ("sweep", "merge/sweep.py"), ("evaluate", "train/evaluate.py")],
)
def test_commands(call: Any, command: str, program: str) -> None:
    _, words = call(LOCAL, command, "models={a b: c}", "--cfg", "job")
    assert words[-4:] == [f"{ROOT}/{program}", "models={a b: c}", "--cfg", "job"]
    assert (ROOT / program).is_file()


def test_an_override_that_deletes_may_come_first(call: Any) -> None:
    _, words = call(LOCAL, "~data.held_out.numbers", "seed=1")
    assert words[-3:] == [f"{ROOT}/train/main.py", "~data.held_out.numbers", "seed=1"]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ((LOCAL, "merge", "alpha=0.4"), "merge: train, sweep and evaluate run in several"),
        ((TORCHRUN, "seed=1"), "no -- before the command"),
    ],
)
def test_wrong_commands(call: Any, command: tuple[str, ...], message: str) -> None:
    done, words = call(*command)
    assert (done.returncode, words) == (2, [])
    assert re.match(f"error: {message}", done.stderr)


@pytest.mark.parametrize(
    ("told", "torchrun", "code"),
    [
        ("0\n", "0", 0),
        ("75\n", "1", 75),
        ("2\n", "1", 2),
        ("", "1", 1),  # killed, or a fault of ours
        ("0\n", "1", 1),  # the first process has ended well, another one has not
        ("75\n", "0", 0),  # stopped, started again by torchrun, done
    ],
)
def test_exit_codes(call: Any, told: str, torchrun: str, code: int) -> None:
    done, _ = call(LOCAL, TELL=told, CODE=torchrun)
    assert done.returncode == code


def test_from_anywhere(call: Any, tmp_path: Path) -> None:
    """By a link, and with the $TMPDIR of another machine."""
    link = tmp_path / "a link"
    link.symlink_to(LOCAL)
    done, _ = call(str(link), TELL="75\n", CODE="1", TMPDIR="/nowhere")
    assert done.returncode == 75, done.stderr


@pytest.mark.parametrize("number", ["0", "abc", "2.5"])
def test_a_wrong_number_of_processes(call: Any, number: str) -> None:
    done, words = call(LOCAL, NPROC_PER_NODE=number)
    assert (done.returncode, words) == (2, [])
    assert done.stderr.startswith(f"error: NPROC_PER_NODE={number}; give a number")


def test_no_torch_ends_it(call: Any) -> None:
    assert call(LOCAL, NO_TORCH="3")[0].returncode == 1


# ---------------------------------------------------------------------------- real runs


STARTED: "list[subprocess.Popen[str]]" = []


@pytest.fixture(autouse=True)
def nothing_goes_on() -> Iterator[None]:
    """End what a test that failed has left; a signal to the script ends torchrun too."""
    yield
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:
            process.terminate()
            process.wait(timeout=100)


def start(*overrides: str, **env: str) -> "subprocess.Popen[str]":
    """Start two processes of a tiny run, as somebody at a terminal does."""
    process = subprocess.Popen(
        [LOCAL, *FAST, *SCENES, *SHAPES, *TOWER, "evaluation.generate=false", *overrides],
        env={**os.environ, "NPROC_PER_NODE": "2", "OMP_NUM_THREADS": "1", **env}, text=True,
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    STARTED.append(process)
    return process


def wait_for_step(step: int, folder: Path, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 120
    while not (folder / "metrics.jsonl").is_file() or not any(
        line["step"] >= step for line in metrics(folder) if "train/loss" in line
    ):
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_a_wrong_key_is_told_once_with_its_code() -> None:
    process = start("optim.max_step=3")
    _, told = process.communicate(timeout=100)
    assert process.returncode == 2
    assert told.count("no such key (did you mean optim.max_steps?)") == 1, told
    assert "Traceback" not in told
    assert "rank 0 (process " in told and "ended with exit code 2" in told


@pytest.mark.slow
def test_a_second_run_in_the_folder_is_refused_and_an_early_signal_costs_nothing(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    first = start("optim.max_steps=400", f"output_dir={folder}")
    try:
        wait_for_step(1, folder, first)
        second = start("optim.max_steps=400", f"output_dir={folder}", NPROC_PER_NODE="1")
        _, told = second.communicate(timeout=100)
        assert second.returncode == 1, told[-3000:]
        assert f"{folder} is in use by rank 0 (process " in told
        assert first.poll() is None
        third = start("optim.max_steps=400", f"output_dir={tmp_path}/other")
        time.sleep(5)  # somewhere in its imports, or before them
        third.terminate()
        _, told = third.communicate(timeout=60)
        assert third.returncode == 75, told[-3000:]
        assert "run the same command again" in told
    finally:
        os.killpg(first.pid, signal.SIGINT)
        first.communicate(timeout=100)
    assert not (folder / ".running").exists()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_signal_ends_it_with_a_checkpoint_and_the_same_command_goes_on(tmp_path: Path) -> None:
    """SIGUSR1 to the script alone; then SIGINT to all that a terminal gives it to."""
    folder = tmp_path / "run"
    length = ["optim.max_steps=40", "checkpoint.save_steps=100", f"output_dir={folder}"]
    process = start(*length)
    wait_for_step(2, folder, process)
    os.kill(process.pid, signal.SIGUSR1)
    _, told = process.communicate(timeout=100)
    assert process.returncode == 75, told[-3000:]
    assert "stopped by SIGUSR1 after step" in told
    assert len(list((folder / "checkpoints").glob("checkpoint-*"))) == 1
    process = start(*length)
    _, told = process.communicate(timeout=150)
    assert process.returncode == 0, told[-3000:]
    steps = [line["step"] for line in metrics(folder) if "train/loss" in line]
    assert steps == list(range(1, 41))


@pytest.mark.slow
def test_ctrl_c(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start("optim.max_steps=400", f"output_dir={folder}")
    wait_for_step(1, folder, process)
    os.killpg(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=100)
    assert process.returncode == 130, told[-3000:]
    assert "interrupted; the same command goes on" in told
