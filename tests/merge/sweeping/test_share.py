"""Several processes measure one sweep: real torchrun, real signals, a process that dies."""

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sweep_pico import overrides, same_files

from configs.errors import Preempted, VisiongraftError
from merge.sweeping import share
from merge.sweeping.share import ended_by_signals, share_of, wait_until

ROOT = Path(__file__).resolve().parents[3]
TORCHRUN = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
# As merge/sweep.py, but the second process notes what it is to measure, waits until the first one
# has finished a point, and is killed.
DYING = """
import os, signal, sys, time
from pathlib import Path
from configs.command import run_command
from merge.sweeping.in_place import AlphaDial

told = Path(sys.argv.pop(1))
inner = AlphaDial.set

def noting(self, recipe):
    with told.with_suffix(f".rank{os.environ['RANK']}").open("a") as file:
        file.write(f"{recipe.alpha}\\n")
    if os.environ["RANK"] == "1":
        while not told.with_name("out").joinpath("points/alpha-0.json").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGKILL)
    inner(self, recipe)

AlphaDial.set = noting
if __name__ == "__main__":
    run_command("sweep", "merge.sweeping.run:sweep")
"""


def launch(*arguments: str, cwd: Path) -> "subprocess.Popen[str]":
    """Start python from a folder of its own, as a user does."""
    environment = {key: value for key, value in os.environ.items() if key != "RANK"}
    return subprocess.Popen(
        [sys.executable, *arguments], cwd=cwd, env=environment | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_two_processes_leave_what_one_leaves(pipeline, swept, tmp_path):
    """To the last byte: points, tables, picture, metrics. One of them writes the chosen model."""
    script = str(ROOT / "merge/sweep.py")
    arguments = overrides(pipeline, tmp_path / "out", f"write_to={tmp_path}/chosen")
    _, told = (process := launch(*TORCHRUN, script, *arguments, cwd=tmp_path)).communicate(
        timeout=200
    )
    assert process.returncode == 0, told[-3000:]
    same_files(tmp_path / "out", swept)
    assert told.count("chosen: ") == told.count("wrote ") == 1
    assert (tmp_path / "chosen/model.safetensors").is_file()


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others_and_points_are_kept(pipeline, swept, tmp_path):
    (tmp_path / "script.py").write_text(DYING)
    arguments = ["script.py", str(tmp_path / "told"), *overrides(pipeline, tmp_path / "out")]
    started = time.monotonic()
    process = launch(*TORCHRUN, *arguments, cwd=tmp_path)
    _, told = process.communicate(timeout=200)
    assert process.returncode == 1, told[-3000:]
    assert time.monotonic() - started < 150
    assert (tmp_path / "told.rank1").read_text().splitlines() == ["0.5"]
    assert set((tmp_path / "told.rank0").read_text().splitlines()) <= {"0", "1"}
    assert (tmp_path / "out/points/alpha-0.json").exists()
    assert not (tmp_path / "out/sweep.json").exists()
    again = launch("-m", "merge.sweep", *overrides(pipeline, tmp_path / "out"), cwd=tmp_path)
    _, told = again.communicate(timeout=200)
    assert again.returncode == 0, told[-3000:]
    same_files(tmp_path / "out", swept)


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_keeps_what_is_finished(signum, code, pipeline, swept, tmp_path):
    out = tmp_path / "out"
    many = f"alphas=[{','.join(str(i / 200) for i in range(201))}]"
    process = launch("-m", "merge.sweep", *overrides(pipeline, out, many), cwd=tmp_path)
    first = out / "points/alpha-0.json"
    while not first.exists():
        assert process.poll() is None, process.communicate()[1][-3000:]
        time.sleep(0.02)
    process.send_signal(signum)
    _, told = process.communicate(timeout=60)
    assert process.returncode == code, told[-3000:]
    assert "the same command goes on" in told or "run the same command again to go on" in told
    assert "Traceback" not in told
    assert first.read_bytes() == (swept / "points/alpha-0.json").read_bytes()
    assert not (out / "sweep.json").exists()


# ------------------------------------------------------------------------------ in one process


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 8])
def test_each_is_measured_once_and_evenly(num_ranks, monkeypatch):
    shares = []
    monkeypatch.setenv("WORLD_SIZE", str(num_ranks))
    for rank in range(num_ranks):
        monkeypatch.setenv("RANK", str(rank))
        shares.append(share_of(range(11)))
    assert sorted(item for each in shares for item in each) == list(range(11))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert all(b - a == num_ranks for each in shares for a, b in itertools.pairwise(each))


def test_others_are_waited_for_while_points_come(monkeypatch):
    monkeypatch.setattr(share, "LEAST_WAIT", 0.2)
    monkeypatch.setattr(share, "POLL_SECONDS", 0.15)
    there = iter(range(100))
    seen: list[int] = []
    wait_until(lambda: len(seen) > 12, lambda: seen.append(next(there)) or len(seen), longest=0.0)


def test_others_that_come_no_more_are_given_up(monkeypatch):
    monkeypatch.setattr(share, "LEAST_WAIT", 0.1)
    monkeypatch.setattr(share, "POLL_SECONDS", 0.01)
    there = iter([3, 3, 4])
    with pytest.raises(VisiongraftError, match=r"the finished ones \(4\) are kept"):
        wait_until(lambda: False, lambda: next(there, 4), longest=0.0)


def test_others_that_never_come_are_given_up(monkeypatch):
    monkeypatch.setattr(share, "LEAST_WAIT", 0.1)
    monkeypatch.setattr(share, "POLL_SECONDS", 0.01)
    started = time.monotonic()
    with pytest.raises(VisiongraftError, match=r"no other process .* the finished ones \(3\) are"):
        wait_until(lambda: False, lambda: 3, longest=0.02)
    assert 0.2 <= time.monotonic() - started < 5


@ended_by_signals()
def send_myself(signum: int) -> None:
    os.kill(os.getpid(), signum)
    time.sleep(1)


def test_signals_are_ours_for_as_long_as_it_lasts():
    before = signal.getsignal(signal.SIGUSR1)
    with pytest.raises(Preempted, match=r"stopped by SIGUSR1; finished points are kept"):
        send_myself(signal.SIGUSR1)
    assert signal.getsignal(signal.SIGUSR1) is before
