"""The chosen model is written: what `python -m merge` writes, and what the sweep has measured."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from sweep_pico import HELD_OUT, configure, same_files

import merge.sweeping.run
from configs.command import load_config
from configs.errors import ConfigError
from merge.run import merge as merge_command
from merge.sweeping.run import sweep
from train.evaluate_run import evaluate

ANY = "max_text_loss_increase=100"


def choose(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the rule choose one of our own."""
    from merge.sweeping.choose import Choice, point_of

    def chosen(points: Any, **_: Any) -> Choice:
        return Choice(name, point_of(points, name).alpha, "one we want")

    monkeypatch.setattr(merge.sweeping.run, "choose_candidate", chosen)


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("0", ["alpha=0"]),
        ("0.5", ["alpha=0.5"]),
        ("falling", ["alpha=[0.8,0.2]", "alpha_overrides={embeddings: 0}"]),
    ],
)
def test_equals_what_merge_writes(name, same, pipeline, swept, tmp_path, monkeypatch):
    shutil.copytree(swept, tmp_path / "out")
    choose(name, monkeypatch)
    sweep(configure(pipeline, tmp_path / "out", f"write_to={tmp_path}/chosen"))
    merge_command(load_config("merge", [
        f"vlm={pipeline.sft}", f"text={pipeline.text}", f"out={tmp_path}/merged", *same,
    ]))  # fmt: skip
    ours, theirs = tmp_path / "chosen", tmp_path / "merged"
    names = {path.name for path in theirs.iterdir()}
    assert {path.name for path in ours.iterdir()} == names >= {"model.safetensors"}
    for each in names - {"merge_report.json", "README.md"}:
        assert (ours / each).read_bytes() == (theirs / each).read_bytes(), each
    reports = [json.loads((folder / "merge_report.json").read_text()) for folder in (ours, theirs)]
    for report in reports:
        assert report["verified"]["loads_in_transformers"]
    for key in ("method", "alpha", "dtype", "inputs", "tensors"):
        assert reports[0][key] == reports[1][key], key


def test_what_is_written_is_what_was_measured(pipeline, tmp_path):
    """With a third model, by a method that looks at whole tensors: the point is `evaluate`'s."""
    base = tmp_path / "base"
    shutil.copytree(pipeline.text, base)
    torch.manual_seed(0)
    tensors = load_file(base / "model.safetensors")
    changed = {k: v + 0.3 * v.std() * torch.randn_like(v) for k, v in tensors.items() if v.ndim > 1}
    save_file(tensors | changed, base / "model.safetensors", metadata={"format": "pt"})
    sweep(configure(
        pipeline, tmp_path / "out", "alphas=[0,0.7]", "method=ties", "density=0.5", f"base={base}",
        ANY, f"write_to={tmp_path}/chosen", "~schedules",
    ))  # fmt: skip
    found = json.loads((tmp_path / "out/sweep.json").read_text())
    assert [point["name"] for point in found["points"]] == ["text_lm", "0", "0.7"]
    assert len({point["text_nll"] for point in found["points"]}) == 3
    assert found["text_lm"] == "text_lm"
    evaluate(load_config("evaluate", [
        f"models={{chosen: {tmp_path}/chosen}}", f"out={tmp_path}/evaluation", *HELD_OUT,
    ]))  # fmt: skip
    name = found["chosen"]["name"]
    file = "text_lm.json" if name == "text_lm" else f"alpha-{name}.json"
    point = json.loads((tmp_path / "out/points" / file).read_text())
    evaluated = json.loads((tmp_path / "evaluation/evaluation.json").read_text())
    assert evaluated["models"]["chosen"]["groups"] == point["results"]


def test_a_target_that_is_taken_is_told_before_anything_loads(pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr(merge.sweeping.run, "plan_merge", lambda *_, **__: pytest.fail("planned"))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/notes.txt").touch()
    (tmp_path / "file").touch()
    for target in ("taken", "file"):
        for more in ("dry_run=true", "dry_run=false"):
            with pytest.raises(ConfigError, match=rf"write_to='.*/{target}' is taken; remove it"):
                sweep(configure(pipeline, tmp_path / "out", f"write_to={tmp_path}/{target}", more))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("key", ["vlm", "text", "out"])
def test_a_target_that_is_something_else(key, pipeline, tmp_path):
    target = {"vlm": pipeline.sft, "text": pipeline.text, "out": tmp_path / "x/../out"}[key]
    with pytest.raises(ConfigError, match=rf"write_to=.* is {key} too; give a new folder"):
        sweep(configure(pipeline, tmp_path / "out", f"write_to={target}"))


def test_a_target_inside_the_folder_of_the_sweep(pipeline, swept, tmp_path, monkeypatch):
    """Then the sweep goes on as before."""
    out: Path = tmp_path / "out"
    shutil.copytree(swept, out)
    choose("1", monkeypatch)
    sweep(configure(pipeline, out, f"write_to={out}/chosen"))
    assert (out / "chosen/model.safetensors").is_file()
    monkeypatch.undo()
    sweep(configure(pipeline, out))
    same_files(out, swept)
