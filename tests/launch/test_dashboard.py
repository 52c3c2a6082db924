"""The W&B workspace: its panels show what runs log, and nothing that no run logs."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pico_runs import SCENES, run, vlm

from configs.command import load_config
from configs.errors import ConfigError
from configs.schema import DashboardConfig
from launch.workspace import build_workspace, save_workspace, specification
from merge.sweeping.run import sweep as run_sweep
from train.measuring.results import BLIND

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def logged(pipeline, tmp_path_factory) -> set[str]:
    """The names in metrics.jsonl of a training that leaves rows out, and of a sweep."""
    root = tmp_path_factory.mktemp("logged")
    folder = run(
        *vlm(pipeline.align), *SCENES, "data.held_out.numbers.num_rows=4", "stage=sft_lora",
        "data.held_out.scenes.num_rows=16", "evaluation.max_rows=8", "adapter.r=2",
        "optim.max_steps=2", "evaluation.max_new_tokens=2", "engine.peak_tflops=1",
        "data.on_bad_row=skip", f"output_dir={root}/sft",
    )  # fmt: skip
    names = {
        name
        for line in (folder / "metrics.jsonl").read_text().splitlines()
        for name in json.loads(line)
    }
    sweep = [
        f"vlm={pipeline.sft}", f"text={pipeline.text}", f"out={root}/sweep", "alphas=[0,1]",
        "tracker=jsonl", "data.languages=[en,fr]", "data.held_out.scenes.num_rows=2",
        "data.held_out.numbers.num_rows=2", "evaluation.max_rows=2", "evaluation.max_new_tokens=2",
        "engine.num_threads=1",
    ]  # fmt: skip
    run_sweep(load_config("sweep", sweep))
    lines = (root / "sweep/metrics.jsonl").read_text().splitlines()
    return names | {name for line in lines for name in json.loads(line)}


@pytest.fixture(scope="module")
def spec() -> dict[str, Any]:
    return specification(build_workspace(DashboardConfig(entity="team")))


def panels_of(spec: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    sections = spec["spec"]["section"]["panelBankConfig"]["sections"]
    return {section["name"]: section["panels"] for section in sections}


def lines_of(spec: dict[str, Any]) -> list[dict[str, Any]]:
    panels = [panel for panels in panels_of(spec).values() for panel in panels]
    return [panel["config"] for panel in panels if panel["viewType"] == "Run History Line Plot"]


def test_the_sections(spec):
    assert list(panels_of(spec)) == [
        "Training", "Retention", "Captioning", "Speed", "Data", "Sweep", "Tables",
    ]  # fmt: skip
    assert (spec["entity"], spec["project"]) == ("team", "visiongraft")
    assert spec["spec"]["section"]["settings"]["shouldAutoGeneratePanels"] is False


@pytest.mark.slow
def test_every_panel_shows_what_runs_really_log(spec, logged):
    # What may be left out where answers are as short as a pico model's references.
    scarce = {f"caption/{at}/{b}{m}" for at in ("en", "mean") for m in ("bleu", "cider")
              for b in ("", BLIND)}  # fmt: skip
    assert {"perf/mfu", "data/rows_left_out", "sweep/text_nll", "sweep/alpha"} <= logged
    for line in lines_of(spec):
        if line.get("useMetricRegex"):
            shown = [n for n in logged | scarce if re.search(line["metricRegex"], n)]
            assert shown, line["metricRegex"]
            continue
        names = [*line["metrics"], line.get("xAxis") or "_step"]
        absent = set(names) - logged - scarce - {"_step"}
        assert not absent, line["chartTitle"]


@pytest.mark.slow
def test_every_curve_is_shown_by_some_panel(spec, logged):
    def is_shown(name: str) -> bool:
        return any(
            re.search(line["metricRegex"], name) if line.get("useMetricRegex")
            else name in line["metrics"]
            for line in lines_of(spec)
        )  # fmt: skip

    unseen = {name for name in logged if not is_shown(name)}
    assert {name.split("/")[0] for name in unseen} <= {
        "eval", "perf", "sweep", "step", "retention", "caption",
    }  # fmt: skip
    wanted = {n for n in unseen if n.startswith(("perf/", "retention/", "caption/"))}
    wanted -= {"perf/samples_per_second", "perf/evaluation_seconds"}
    wanted -= {n for n in wanted if f"/{BLIND}" in n and "/mean/" not in n}  # chrF stands for them
    answers = ("exact_match", "chrf", "bleu")  # of questions without pictures
    assert {n for n in wanted if not n.endswith(answers)} == set()


def test_the_sweep_is_drawn_against_alpha_and_as_a_curve(spec):
    curve, *others = [panel["config"] for panel in panels_of(spec)["Sweep"]]
    assert (curve["xAxis"], curve["metrics"]) == ("sweep/caption_chrf", ["sweep/text_nll"])
    assert {panel["xAxis"] for panel in others} == {"sweep/alpha"}


def test_tables_have_the_names_of_held_out_groups():
    config = DashboardConfig(held_out=["xm3600"])
    told = json.dumps(panels_of(specification(build_workspace(config)))["Tables"])
    for name in ("eval/xm3600/answers", "sweep/points", "sweep/languages"):
        assert name in told


def test_the_specification_is_printed_without_an_account(tmp_path):
    command = [sys.executable, "-m", "launch.dashboard", "project=mine", "dry_run=true"]
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["project"] == "mine"


def test_who_is_not_logged_in_is_told(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="nobody is logged in here: `wandb login`"):
        save_workspace(DashboardConfig())


def test_it_says_how_to_install_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    with pytest.raises(ConfigError, match=r'pip install "wandb-workspaces>=0\.4"'):
        save_workspace(DashboardConfig(dry_run=True))


def test_what_is_sent_is_the_specification(monkeypatch):
    """Up to the one call that leaves the machine."""
    from wandb_workspaces.workspaces import internal

    sent: list[Any] = []

    def upsert(view: Any) -> Any:
        sent.append(view)
        return {"upsertView": {"view": {"name": "nw-abc-v", "id": "1"}}}

    monkeypatch.setattr(internal, "upsert_view2", upsert)
    monkeypatch.setattr("wandb_workspaces.workspaces.interface.get_app_url", lambda _: "https://x")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr("wandb.Api", lambda *a, **k: None)
    save_workspace(DashboardConfig(entity="team", project="mine"))
    (view,) = sent
    assert (view.entity, view.project, view.display_name) == ("team", "mine", "visiongraft")
    assert len(view.spec.section.panel_bank_config.sections) == 7
