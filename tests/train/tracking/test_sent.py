"""Offline W&B runs of real trainings, sent by `visiongraft sync` to a server of the test."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import wandb
from wandb_server import FakeServer, Received

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def server(stages) -> Iterator[FakeServer]:
    """What it has of both stages."""
    wandb.teardown()  # W&B's own process writes the files
    fake = FakeServer()
    done = subprocess.run(
        [sys.executable, "-m", "launch.sync", str(stages["sft"].parent)], cwd=ROOT, timeout=120,
        env=os.environ | fake.environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2 of 2 runs sent" in done.stderr
    yield fake
    fake.close()


def sent(server: FakeServer, folder: Path) -> Received:
    return server.runs[(folder / "wandb_id.txt").read_text()]


@pytest.mark.slow
def test_every_metric_of_a_run_that_was_gone_on_with_is_there_once(stages, server):
    run = sent(server, stages["sft"])
    told = [
        (step, name, value)
        for line in map(json.loads, (stages["sft"] / "metrics.jsonl").read_text().splitlines())
        for step in [line.pop("step")]
        for name, value in line.items()
    ]
    received = [
        (line["_step"], name, value)
        for line in run.lines
        for name, value in line.items()
        if not name.startswith("_") and not isinstance(value, dict)
    ]
    assert sorted(received) == sorted(told)
    assert run.steps == sorted(run.steps) and set(run.steps) == {0, 1, 2, 3, 4}
    assert run.exit_codes == [0]


@pytest.mark.slow
def test_tables_files_and_models_are_there(stages, server):
    run = sent(server, stages["sft"])
    tables = {a["name"]: a for a in server.artifacts.values() if "answers" in a["name"]}
    assert tables and all(a["state"] == "COMMITTED" for a in server.artifacts.values())
    assert any(raw.startswith(b"\x89PNG") for a in tables.values() for raw in a["files"].values())
    for name in ("rows.jsonl", "environment.jsonl"):
        assert run.files[name] == (stages["sft"] / name).read_bytes()
    assert run.files["resolved_config.yaml"] == (stages["sft"] / "config.yaml").read_bytes()
    aligned = next(a for a in server.artifacts.values() if a["name"] == "pico-align-export")
    ids = [(stages[name] / "wandb_id.txt").read_text() for name in ("align", "sft")]
    assert (aligned["run"], set(aligned["used_by"]), server.order) == (ids[0], {ids[1]}, ids)
