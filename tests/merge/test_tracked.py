"""Merges and sweeps as W&B runs, read back offline: lineage from what was merged to the result."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from sweep_pico import configure
from wandb_file import offline_runs

from configs.command import load_config
from configs.errors import ConfigError
from configs.schema import Artifacts
from merge.api import verify_folder
from merge.run import merge
from merge.sweeping.run import sweep
from train.tracking.artifacts import RECORD, digests_of, fingerprint, recorded_folder
from train.tracking.wandb_run import WandbRun

OFFLINE = ["tracker=wandb", "tracker.mode=offline", "tracker.group=pico"]


@pytest.fixture(autouse=True)
def no_agent(monkeypatch) -> None:
    for name in ("WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)


def merge_config(pipeline: Any, out: Path, *more: str) -> Any:
    return load_config(
        "merge",
        [f"vlm={pipeline.sft}", f"text={pipeline.text}", f"out={out}", "alpha=0.5", *more],
    )


@pytest.mark.slow
def test_a_merge_is_a_run_where_it_is_asked_for(pipeline, tmp_path):
    out = tmp_path / "merged"
    merge(merge_config(pipeline, out, "verify_logits=false", *OFFLINE))
    found = offline_runs(tmp_path)
    (run,) = found.of("run")
    assert (run.job_type, run.run_group, run.display_name) == ("merge", "pico", "merged")
    inputs = found.config()["inputs"]
    assert set(inputs) == {"vlm", "text"} and inputs["vlm"]["path"] == str(pipeline.sft)
    used, made = found.models(used=True), found.models(used=False)
    assert {item["artifact"]: item["digest"] for item in inputs.values()} == {
        name: artifact.digest for name, artifact in used.items()
    }
    assert set(made) == {"pico-merged-merged"}
    entries = {e.path: e.digest for e in made["pico-merged-merged"].manifest.contents}
    assert entries == digests_of(out)
    report = json.loads((out / "merge_report.json").read_text())
    (line,) = found.history().values()
    assert line["merge/changed_ratio"] == report["changes"]["changed_ratio"]
    assert json.loads(found.read("merge_report.json")) == report
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merged", "wandb"]


def test_a_merge_alone_is_no_run(pipeline, tmp_path):
    config = merge_config(pipeline, tmp_path / "merged", "verify=false")
    assert not config.tracker.wandb
    merge(config)
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]
    with pytest.raises(ConfigError, match="there is no curve to show"):
        merge_config(pipeline, tmp_path / "merged", "tracker=tensorboard")


@pytest.mark.slow
def test_a_sweep_is_one_run_with_its_curve_and_its_model(pipeline, tmp_path):
    merged = tmp_path / "one"
    merge(merge_config(pipeline, merged, "verify_logits=false", *OFFLINE))
    made = offline_runs(tmp_path).models(used=False)["pico-one-merged"]
    out, chosen = tmp_path / "out", tmp_path / "chosen"
    given = [*OFFLINE, f"write_to={chosen}", f"vlm={merged}", "tracker.tensorboard=true"]
    sweep(configure(pipeline, out, *given))
    found = offline_runs(out)
    assert {run.job_type for run in found.of("run")} == {"sweep"}
    curve = found.definitions()["sweep/*"]
    assert curve.step_metric == "sweep/alpha" and not curve.options.step_sync
    by_name = {p["name"]: p for p in json.loads((out / "sweep.json").read_text())["points"]}
    lines = list(found.history().values())[: len(by_name)]
    alphas = [line.get("sweep/alpha") for line in lines]
    assert alphas == [by_name[name]["alpha"] for name in ("0", "0.5", "1", "falling")]
    assert alphas[-1] is None  # a schedule is on no curve
    used = found.models(used=True)
    assert used["pico-one-merged"].digest == made.digest  # what the merge has logged
    assert len(used) == 2
    assert set(found.models(used=False)) == {"pico-out-chosen"}
    assert {"sweep.json", "sweep.png", "sweep.csv"} <= set(found.files())
    assert list((out / "tensorboard").glob("events.*"))


# --------------------------------------------------------------------- which artifact a folder is


def test_a_folder_is_known_by_its_record_until_it_changes(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    nameless = recorded_folder(tmp_path)
    digests = digests_of(tmp_path)
    assert nameless.name == f"model-{fingerprint(digests)[:12]}"
    record = {"name": "sft-export", "type": "model", "fingerprint": fingerprint(digests)}
    (tmp_path / RECORD).write_text(json.dumps({**record, "digests": digests}))
    assert recorded_folder(tmp_path).name == "sft-export"
    (tmp_path / "config.json").write_text('{"other": 1}')  # a merge copies records too
    assert recorded_folder(tmp_path).name != "sft-export"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"fingerprint": 1}'])
def test_a_broken_record_is_none(content, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / RECORD).write_text(content)
    assert recorded_folder(tmp_path).name.startswith("model-")


def test_large_files_are_told_apart_without_reading_them_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("train.tracking.artifacts.WHOLE_BYTES", 1000)
    monkeypatch.setattr("train.tracking.artifacts.SAMPLE_BYTES", 8)
    file = tmp_path / "model.safetensors"
    file.write_bytes(bytes(4000))
    first = digests_of(tmp_path)
    file.write_bytes(bytes(4001))
    longer = digests_of(tmp_path)
    file.write_bytes(bytes(3999) + b"1")
    assert len({d["model.safetensors"] for d in (first, longer, digests_of(tmp_path))}) == 3


@pytest.mark.slow
def test_upload_holds_the_files_and_none_holds_nothing(pipeline, tmp_path):
    for mode, count in (("upload", 1), ("none", 0)):
        root = tmp_path / mode
        root.mkdir()
        given = ["verify=false", *OFFLINE, f"tracker.artifacts={mode}"]
        merge(merge_config(pipeline, root / "merged", *given))
        found = offline_runs(root)
        made = found.models(used=False)
        assert len(made) == count
        for artifact in made.values():
            files = {entry.path: entry for entry in artifact.manifest.contents}
            assert Path(files["model.safetensors"].local_path) == root / "merged/model.safetensors"
            assert not any(entry.ref for entry in files.values())
        assert set(found.config()["inputs"]) == {"vlm", "text"}


def test_a_model_that_w_and_b_does_not_take_ends_nothing(tmp_path, caplog):
    class Refusing:
        def _log_artifact(self, *_: Any, **__: Any) -> None:
            raise ConnectionError("no route")

    (tmp_path / "config.json").write_text("{}")
    run = WandbRun(Refusing(), "sft", Artifacts.reference)
    run.run.config = type("Config", (), {"update": lambda self, *_, **__: None})()
    run.use_model("vlm", str(tmp_path))
    run.log_model(tmp_path, "model", label="export")
    assert caplog.text.count("is not told of as an artifact: no route") == 2
    assert run.inputs == {"vlm": {"path": str(tmp_path)}} and not (tmp_path / RECORD).exists()


def test_a_merge_of_a_tracked_model_is_verified_later(pipeline, tmp_path):
    """The record of the VLM's artifact is not the merge's, and what comes after is not compared."""
    vlm, out = tmp_path / "vlm", tmp_path / "merged"
    shutil.copytree(pipeline.sft, vlm)
    (vlm / "wandb_artifact.json").write_text("{}")
    options = ["verify_logits=false", f"vlm={vlm}", *OFFLINE]
    merge(merge_config(pipeline, out, *options))
    assert json.loads((out / "wandb_artifact.json").read_text())
    verify_folder(out, logits=False)
