"""How commands answer: quickly, with one message and an exit code, before anything loads."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest
from command_line import MODULES, ROOT, run, run_and_list

from configs.command import AGAIN, CONFIG_DIR, SCHEMAS

# Wall time on an idle machine is about that; CPU time does not depend on who else is busy.
MOST_SECONDS = 2.0
FAKE_TASK = """
import os, signal, sys
from configs.command import run_command
from configs.errors import CheckpointError

def bug(config): raise RuntimeError("a bug of ours")
def user_error(config): raise CheckpointError("no weights in there")
def interrupt(config): os.kill(os.getpid(), signal.SIGINT); import time; time.sleep(5)
def show(config): print("SHOWN", config.output_dir, config.seed)

if __name__ == "__main__":
    task, command = sys.argv.pop(1), sys.argv.pop(1)
    run_command(command, f"fake_task:{task}")
"""


@pytest.fixture
def fake_task(tmp_path: Path) -> Path:
    """A folder with tasks that end in each way a task can end."""
    (tmp_path / "fake_task.py").write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})" + FAKE_TASK
    )
    return tmp_path / "fake_task.py"


@pytest.mark.parametrize("command", MODULES)
def test_help_names_every_key_and_group_and_loads_nothing(command: str) -> None:
    ended, imported = run_and_list(command, "--help")
    assert (ended.code, ended.error, imported) == (0, "", [])
    for item in fields(SCHEMAS[command]):
        assert f"\n{item.name}:" in ended.out
    if command not in ("merge", "export", "judge"):
        for option in (CONFIG_DIR / "data").glob("*.yaml"):
            assert option.stem in ended.out
    assert ended.cpu_seconds < MOST_SECONDS


@pytest.mark.parametrize("command", MODULES)
def test_the_config_of_a_command_is_shown_and_nothing_loads(command: str) -> None:
    ended, imported = run_and_list(command, "--cfg", "job")
    assert (ended.code, ended.error, imported) == (0, "", [])
    assert "seed: 0" in ended.out or command in ("merge", "export")
    assert "hydra:" not in ended.out
    assert ended.cpu_seconds < MOST_SECONDS


def test_a_wrong_key_ends_at_once() -> None:
    ended, imported = run_and_list("train", "optm.max_steps=1", "data.max_tokenz=5")
    assert ended.code == 2
    assert imported == []
    assert ended.message.splitlines() == [
        "2 problems",
        "  optm.max_steps=1: no such key (did you mean optim.max_steps?)",
        "  data.max_tokenz=5: no such key (did you mean data.max_tokens?)",
    ]
    assert ended.cpu_seconds < MOST_SECONDS


def test_a_wrong_value_ends_before_anything_loads() -> None:
    ended, imported = run_and_list("sweep", "alphas=[0,2]", "vlm=a", "text=b", "out=c")
    assert (ended.code, imported) == (2, [])
    assert ended.message == (
        "alphas: is 2.0, but it is the share of the VLM, between 0 and 1 (extrapolate=true allows "
        "it)"
    )


def test_what_is_required_is_told_together() -> None:
    ended = run("-m", "merge", "alpha=0.3")
    assert ended.code == 2
    assert [line.split(":")[0].strip() for line in ended.message.splitlines()[1:]] == [
        "vlm",
        "text",
        "out",
    ]


def test_an_unknown_option_of_a_group_is_told_with_the_known_ones() -> None:
    ended = run("train/main.py", "model=pico")
    assert ended.code == 2
    assert "Could not find 'model/pico'" in ended.message
    assert "pico_vlm" in ended.message


@pytest.mark.parametrize(
    "argument", ["optim.max_steps=[1", "model", "hydra.no_such=1", "--config-dir=/no/such"]
)
def test_what_hydra_itself_refuses_is_one_message(argument: str) -> None:
    ended = run("train/main.py", argument)
    assert ended.code == 2
    assert ended.message


def test_unknown_keys_of_the_users_own_files(tmp_path: Path) -> None:
    (tmp_path / "stage").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "stage/mine.yaml").write_text("name: mine\nparts: {decoder: {lerning_rate: 1.0}}\n")
    (tmp_path / "data/ours.yaml").write_text("sources: {a: {kind: udhr, wieght: 1}}\nmax_tile: 3\n")
    ended = run("train/main.py", "--config-dir", str(tmp_path), "stage=mine", "data=ours")
    assert ended.code == 2
    first, *rest = ended.message.splitlines()
    assert [first, *sorted(rest)] == [
        "3 problems",
        "  data.max_tile: no such key (did you mean data.max_tiles?)",
        "  data.sources.a.wieght: no such key (did you mean data.sources.a.weight?)",
        "  stage.parts.decoder.lerning_rate: no such key (did you mean "
        "stage.parts.decoder.learning_rate?)",
    ]


def test_a_users_file_that_is_no_yaml(tmp_path: Path) -> None:
    (tmp_path / "stage").mkdir()
    (tmp_path / "stage/broken.yaml").write_text("parts: [1\n")
    ended = run("train/main.py", "--config-dir", str(tmp_path), "stage=broken")
    assert ended.code == 2
    assert "broken.yaml" in ended.message


def test_a_path_that_is_not_there_is_the_users_to_mend(tmp_path: Path) -> None:
    ended = run("-m", "merge", "vlm=/no/such", "text=/none", f"out={tmp_path / 'out'}")
    assert ended.code == 1
    assert "Traceback" not in ended.error
    assert "error: vlm=/no/such is not a folder" in ended.error
    assert not (tmp_path / "out").exists()


def test_only_the_first_process_tells_an_error() -> None:
    ended = run("train/main.py", "optm=1", RANK="1")
    assert (ended.code, ended.out, ended.error) == (2, "", "")


def test_an_error_of_the_user_is_told_and_a_bug_of_ours_shows_its_frames(fake_task: Path) -> None:
    ended = run(str(fake_task), "user_error", "train")
    assert (ended.code, ended.message) == (1, "no weights in there")
    ended = run(str(fake_task), "bug", "train")
    assert ended.code == 1
    assert "Traceback" in ended.error
    assert "RuntimeError: a bug of ours" in ended.error


def test_ctrl_c_is_one_message(fake_task: Path) -> None:
    ended = run(str(fake_task), "interrupt", "train")
    assert ended.code == 130
    assert ended.error.strip().startswith("interrupted;")
    assert len(ended.error.strip().splitlines()) == 1


def test_what_an_earlier_start_has_told_torchrun_sh_is_over(
    fake_task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "told"
    monkeypatch.setenv("VISIONGRAFT_EXIT_FILE", str(told))
    for task, text in (("bug", ""), ("user_error", "1\n"), ("show", "0\n")):
        told.write_text("75\n")
        run(str(fake_task), task, "train")
        assert told.read_text() == text


def test_each_run_of_a_multirun_has_its_own_folder(fake_task: Path, tmp_path: Path) -> None:
    ended = run(str(fake_task), "show", "train", "-m", "seed=3,4", "output_dir=x", cwd=tmp_path)
    assert ended.code == 0
    shown = [line for line in ended.out.splitlines() if line.startswith("SHOWN")]
    assert shown == ["SHOWN x/0 3", "SHOWN x/1 4"]


def test_a_run_leaves_no_folder_of_hydras(fake_task: Path, tmp_path: Path) -> None:
    assert run(str(fake_task), "show", "train", cwd=tmp_path).code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["fake_task.py"]


@pytest.mark.parametrize("script", ["train/main.py", "train/evaluate.py", "merge/__main__.py"])
def test_our_packages_win_when_a_script_is_run_by_path(tmp_path: Path, script: str) -> None:
    """Contract: scripts run by path put the repository root first, before PYTHONPATH."""
    for name in ("configs", "data", "train", "merge", "launch"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('a foreign package')")
    look = (
        "import runpy, sys; sys.path[0] = sys.argv[1].rpartition('/')[0];"
        "runpy.run_path(sys.argv[1], run_name='run_by_path');"
        "import data, merge, train; print(data.__file__, merge.__file__, train.__file__)"
    )
    ended = run("-c", look, str(ROOT / script), cwd=tmp_path, python_path=tmp_path)
    assert (ended.code, ended.error) == (0, "")
    assert ended.out.split() == [str(ROOT / f"{name}/__init__.py") for name in
                                 ("data", "merge", "train")]  # fmt: skip
    ended = run(str(ROOT / script), "no_such_key=1", cwd=tmp_path, python_path=tmp_path)
    assert (ended.code, ended.message) == (2, "no_such_key=1: no such key")


@pytest.mark.parametrize("command", ["sweep", "inspect"])
def test_a_module_runs_from_the_repository(command: str) -> None:
    assert run("-m", MODULES[command], "no_such_key=1").message == "no_such_key=1: no such key"


@pytest.mark.slow
def test_ctrl_c_in_a_training_run(tmp_path: Path) -> None:
    """The run is interrupted between two steps, when Python handles signals."""
    arguments = "debug=fast tracker=jsonl engine.num_threads=1 optim.max_steps=100000"
    less = "~data.held_out evaluation.eval_on_start=false checkpoint.save_steps=100000"
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train/main.py"), f"output_dir={tmp_path / 'run'}",
         "data.sources.scenes.num_rows=64", *arguments.split(), *less.split()],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
        env={key: value for key, value in os.environ.items() if key != "RANK"},
    )  # fmt: skip
    metrics, deadline = tmp_path / "run/metrics.jsonl", time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count("\n") > 1):
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "Traceback" not in out + error
    told = [line for line in error.splitlines() if line.startswith("interrupted;")]
    assert told == [f"interrupted{AGAIN['train']}"]
