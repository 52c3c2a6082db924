"""W&B's sweep agent, its own code, drives our command line; the server alone is not there."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from wandb import wandb_agent
from wandb_file import offline_runs

from configs.command import load_config
from configs.schema import PartMode, TrackerConfig
from train.tracking.tracker import start_tracker
from train.tracking.wandb_run import summary_of

ROOT = Path(__file__).resolve().parents[2]
SWEEP = ROOT / "launch/wandb_sweep.yaml"
VALUES = {
    "stage.parts.decoder.learning_rate": 3.2e-06,
    "stage.parts.projector.learning_rate": 0.0003,
    "optim.weight_decay": 0.0,
    "adapter.use_rslora": True,
}


@pytest.fixture
def agent(monkeypatch, tmp_path) -> Any:
    """An agent that notes what it would start, and the environment that it would start it in."""
    started: list[tuple[list[str], dict[str, str]]] = []

    class Process:
        def __init__(self, command: list[str], env: dict[str, str], **_: Any) -> None:
            started.append((command, env))

    monkeypatch.setattr(wandb_agent, "AgentProcess", Process)
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep123")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_RUN_ID", "one-before")  # as on an agent's second trial
    monkeypatch.delenv("WANDB_SWEEP_PARAM_PATH", raising=False)
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", "")  # set by the agent, and taken back after us
    agent: Any = wandb_agent.Agent(None, None, sweep_id="sweep123")
    agent._sweep_command = yaml.safe_load(SWEEP.read_text())["command"]
    agent.started = started
    return agent


def start(agent: Any, run_id: str) -> tuple[list[str], dict[str, str]]:
    arguments = {name: {"value": value} for name, value in VALUES.items()}
    agent._command_run({"run_id": run_id, "program": "train/main.py", "args": arguments})
    found: tuple[list[str], dict[str, str]] = agent.started[-1]
    return found


def test_what_an_agent_starts_is_our_command(agent):
    for run_id in ("trial-a", "trial-b"):  # _command_run sets $WANDB_RUN_ID for each
        command, environment = start(agent, run_id)
        assert command[:4] == ["/usr/bin/env", "python", "-m", "train.main"]
        assert environment["WANDB_RUN_ID"] == run_id
        config = load_config("train", command[4:])
        assert config.output_dir == f"outputs/wandb_sweep/{run_id}"
        assert config.stage.parts.decoder.learning_rate == 3.2e-06
        assert config.stage.parts.projector.learning_rate == 0.0003
        assert (config.optim.weight_decay, config.adapter.use_rslora) == (0.0, True)
        assert config.stage.parts.decoder.mode is PartMode.lora


@pytest.mark.slow
def test_the_command_line_is_taken_as_the_agent_types_it(agent, tmp_path):
    """In a process, through the entry point: `--cfg job` shows what Hydra has made of it."""
    command, environment = start(agent, "trial-a")
    done = subprocess.run(
        [sys.executable, *command[2:], "--cfg", "job", "--resolve"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load(done.stdout)
    assert config["output_dir"] == "outputs/wandb_sweep/trial-a"
    assert float(config["stage"]["parts"]["decoder"]["learning_rate"]) == 3.2e-06


def test_every_parameter_and_the_goal_are_names_of_ours():
    sweep = yaml.safe_load(SWEEP.read_text())
    assert set(sweep["parameters"]) == set(VALUES)
    assert sweep["metric"]["name"] == "caption/mean/chrf"
    assert (ROOT / sweep["program"]).is_file()


def test_the_agents_own_variable_would_name_another_trials_folder(agent):
    """Why the example has ${oc.env:...}; where this fails, W&B has mended it."""
    agent._sweep_command = ["${env}", "output_dir=outputs/${envvar:WANDB_RUN_ID}"]
    command, _ = start(agent, "trial-a")
    assert command[-1] == "output_dir=outputs/one-before"


@pytest.mark.slow
def test_a_trial_is_the_agents_run_and_its_goal_a_plain_number(agent, tmp_path, monkeypatch):
    import wandb

    wandb.teardown()  # it has read the environment where another test has used it
    _, environment = start(agent, "trial-a")
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):
        monkeypatch.setenv(name, environment[name])
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "wandb_id.txt").write_text("ours")
    tracker = start_tracker(
        TrackerConfig(), folder, job_type="sft", run_config={"seed": 0}, first_process=True
    )
    tracker.log({"caption/mean/chrf": 12.5}, 1)
    tracker.finish()
    found = offline_runs(folder)
    assert {(r.run_id, r.sweep_id) for r in found.of("run")} == {("trial-a", "sweep123")}
    assert (folder / "wandb_id.txt").read_text() == "trial-a"
    assert found.config()["stage.parts.decoder.learning_rate"] == 3.2e-06
    assert "caption/mean/chrf" not in found.definitions()
    monkeypatch.delenv("WANDB_SWEEP_ID")
    assert summary_of("caption/mean/chrf") == "max,last"
    wandb.teardown()
