"""When a job that SLURM starts again and again gives up; and what run.sbatch asks for."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from launch.slurm import progress

ROOT = Path(__file__).resolve().parents[2]


def test_restarts_that_get_no_further_are_counted(tmp_path):
    path = tmp_path / ".slurm-7.mark"
    counted = [progress.count(path, mark) for mark in (0, 0, 40, 40, 40, 60)]
    assert counted == [1, 2, 0, 1, 2, 0]


def test_a_file_that_a_killed_job_has_left_half_written_is_no_mark(tmp_path):
    (tmp_path / "mark").write_text('{"mark": 4')
    assert progress.count(tmp_path / "mark", 0) == 1


def test_what_was_there_before_the_job_is_not_held_against_it(tmp_path):
    assert progress.count(tmp_path / "mark", 500) == 0


def test_a_mark_is_the_newest_step_or_the_number_of_points(tmp_path):
    for step in (90, 100):
        (tmp_path / f"checkpoints/checkpoint-{step}").mkdir(parents=True)
    assert progress.mark("train", ["debug=fast", f"output_dir={tmp_path}"]) == 100
    (tmp_path / "points").mkdir()
    (tmp_path / "points/0.4.json").touch()
    sweep = ["vlm=a", "text=b", "data=demo_held_out", f"out={tmp_path}"]
    assert progress.mark("sweep", sweep) == 1
    assert progress.mark("merge", ["vlm=a", "text=b", "out=c"]) == 0


def test_the_limit_can_be_moved(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["progress", str(tmp_path / "mark"), "merge"])
    monkeypatch.setenv("MAX_FRUITLESS_RESTARTS", "1")
    progress.main()
    with pytest.raises(SystemExit) as ended:
        progress.main()
    assert ended.value.code == 1
    assert "SLURM has started this job 2 times since it last got further" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"SLURM_SUBMIT_DIR": "/nowhere"}, r"no launch/slurm/node\.sh in /nowhere: call sbatch in"),
        (
            {"SLURM_SUBMIT_DIR": str(ROOT), "VISIONGRAFT_SITE": "/nowhere/site.sh"},
            r"VISIONGRAFT_SITE: no file /nowhere/site\.sh",
        ),
    ],
)
def test_what_is_not_there_is_said(variables, told):
    script = ["bash", str(ROOT / "launch/slurm/run.sbatch"), "debug=fast"]
    done = subprocess.run(script, env={**os.environ, **variables}, capture_output=True, text=True)
    assert done.returncode == 2
    assert re.search(told, done.stderr), done.stderr
