"""Metrics on disk and W&B without a key: nothing is asked, nothing is lost."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from configs.errors import ConfigError
from configs.schema import TrackerConfig, WandbMode
from train.tracking.metrics_file import truncate_metrics
from train.tracking.tracker import Tracker, start_tracker
from train.tracking.wandb_run import resolve_mode

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def no_key(monkeypatch, tmp_path):
    """A machine on which nobody has logged in."""
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return tmp_path / "netrc"


def test_offline_without_a_key(no_key):
    assert resolve_mode(WandbMode.auto) == "offline"


def test_online_with_a_key_in_the_environment(no_key, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert resolve_mode(WandbMode.auto) == "online"


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("machine api.wandb.ai\n  login user\n  password 123\n", "online"),
        ("machine github.com\n  login user\n  password 123\n", "offline"),
        ("machine api.wandb.ai login user\n", "offline"),  # without a key
        ("machine\n", "offline"),  # broken
    ],
)
def test_a_key_in_netrc(text, mode, no_key):
    no_key.write_text(text)
    no_key.chmod(0o600)
    assert resolve_mode(WandbMode.auto) == mode


@pytest.mark.parametrize("named", ["online", "offline", "disabled"])
def test_auto_follows_wandbs_own_variable(named, no_key, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", named)
    assert resolve_mode(WandbMode.auto) == named


def test_the_config_wins_over_the_environment(no_key, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert resolve_mode(WandbMode.offline) == "offline"
    assert resolve_mode(WandbMode.online) == "online"


WANDB_RUN = """
import sys
from pathlib import Path
from PIL import Image
from configs.schema import TrackerConfig
from train.tracking.tracker import start_tracker

for step in (1, 2):  # the second is the run that goes on
    folder = Path(sys.argv[1])
    tracker = start_tracker(
        TrackerConfig(), folder, job_type="sft", run_config={"seed": 0}, first_process=True
    )
    tracker.log({"train/loss": 1.5}, step)
    tracker.log_table("eval/answers", ["picture"], [[Image.new("RGB", (4, 4))]], step)
    tracker.save_file(folder / "config.yaml")
    tracker.finish()
"""


@pytest.mark.slow
def test_wandb_without_a_key_or_a_prompt(no_key, tmp_path):
    """The default tracker on a fresh machine: an offline run that can be synced later."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("seed: 0\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", WANDB_RUN, str(folder)], env=environment, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    runs = sorted((folder / "wandb").glob("offline-run-*"))
    run_id = (folder / "wandb_id.txt").read_text()
    assert runs and all(f"-{run_id}" in path.name for path in runs)  # "-1" after it in one second
    assert all(list(path.glob("*.wandb")) for path in runs)
    assert (runs[0] / "files/resolved_config.yaml").read_text() == "seed: 0\n"
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 1, "train/loss": 1.5},
        {"step": 2, "train/loss": 1.5},
    ]


def test_metrics_alone(tmp_path):
    tracker = start_tracker(
        TrackerConfig(wandb=False), tmp_path, job_type="sft", run_config={}, first_process=True
    )
    tracker.log({"train/loss": 0.5}, 3)
    tracker.log_table("eval/answers", ["picture"], [[Image.new("RGB", (4, 4))]], 3)
    tracker.save_file(tmp_path / "absent.yaml")
    tracker.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 3, "train/loss": 0.5}


def test_a_sink_that_has_gone_does_not_end_the_run(tmp_path, caplog):
    """SLURM may send W&B's process the SIGTERM that is to stop the run with a checkpoint."""

    class Gone:
        shows_pictures = True

        def log(self, metrics, step):
            raise ConnectionResetError("Connection lost")

    tracker = Tracker(tmp_path / "metrics.jsonl", [Gone()])
    for step in (1, 2):
        tracker.log({"train/loss": 1.0}, step)
    tracker.finish(preempted=True)
    assert caplog.text.count("going on without Gone: Connection lost") == 1
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_other_processes_write_nothing(tmp_path):
    tracker = start_tracker(
        TrackerConfig(), tmp_path, job_type="sft", run_config={}, first_process=False
    )
    tracker.log({"train/loss": 0.5}, 3)
    tracker.finish()
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------ after a kill

LINES = [
    {"step": 0, "eval/nll": 5.0},
    {"step": 1, "train/loss": 4.0},
    {"step": 2, "eval/nll": 4.0},
    {"step": 2, "train/loss": 3.0},
    {"step": 3, "train/loss": 2.0},
]


@pytest.mark.parametrize(
    ("step", "is_last", "kept"),
    [(2, False, 4), (1, False, 2), (3, False, 5), (-1, False, 0), (3, True, 5)],
)
def test_lines_past_the_checkpoint_are_dropped(step, is_last, kept, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES) + '{"step": 3, "tra')
    truncate_metrics(path, step, is_last=is_last)
    assert [json.loads(line) for line in path.read_text().splitlines()] == LINES[:kept]
    assert [item.name for item in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_the_last_measurement_is_dropped_where_it_is_made_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    last = {"step": 3, "eval/nll": 2.0}
    path.write_text("".join(json.dumps(line) + "\n" for line in [*LINES, last]))
    truncate_metrics(path, 3, is_last=True)
    assert [json.loads(line) for line in path.read_text().splitlines()] == LINES


def test_nothing_to_truncate(tmp_path):
    truncate_metrics(tmp_path / "metrics.jsonl", 3)
    assert not list(tmp_path.iterdir())


def test_numbers_survive_to_the_last_bit(tmp_path):
    tracker = Tracker(tmp_path / "metrics.jsonl")
    tracker.log({"x": 0.1 + 0.2}, 1)
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["x"] == 0.1 + 0.2


def test_no_connection_does_not_end_the_run(tmp_path, monkeypatch):
    """The usual compute node: a key in the environment and no network."""
    asked = []

    def init(config, run_dir, job_type, run_config, mode, name, run_id):
        asked.append(mode)
        if mode == "online":
            raise ConnectionError("no route")
        return

    monkeypatch.setattr("train.tracking.wandb_run._init_wandb", init)
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    options = {"job_type": "sft", "run_config": {}, "first_process": True}
    tracker = start_tracker(TrackerConfig(), tmp_path, **options)
    assert asked == ["online", "offline"]
    tracker.log({"a": 1.0}, 1)
    with pytest.raises(ConfigError, match=r"tracker\.mode=online: W&B does not start: no route"):
        start_tracker(TrackerConfig(mode=WandbMode.online), tmp_path, **options)


@pytest.mark.parametrize("host", ["api.wandb.ai", "api.forge.coreweave.com", "own.example.org"])
def test_logged_in_at_any_of_the_hosts(host, tmp_path, monkeypatch):
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine {host}\n  login user\n  password {'k' * 40}\n")
    netrc.chmod(0o600)
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("WANDB_BASE_URL", "https://own.example.org")
    assert resolve_mode(WandbMode.auto) == "online"


def test_disabled_is_no_wandb_run(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    tracker = start_tracker(
        TrackerConfig(), tmp_path, job_type="sft", run_config={}, first_process=True
    )
    assert tracker.sinks == []
