"""A stand-alone evaluation as an offline W&B run, where it is asked for."""

import json

import pytest
from wandb_file import offline_runs

from configs.command import load_config
from train.evaluate_run import evaluate
from train.measuring.results import from_json, stable_metrics


@pytest.mark.slow
def test_models_side_by_side_are_a_run(pipeline, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_SWEEP_ID", raising=False)
    given = [
        f"models={{before: {pipeline.align}, text: {pipeline.text}}}", f"out={tmp_path}/out",
        "data.languages=[en]", "data.held_out.scenes.num_rows=2", "engine.num_threads=1",
        "data.held_out.numbers.num_rows=2", "evaluation.max_rows=2", "evaluation.max_new_tokens=2",
    ]  # fmt: skip
    assert not load_config("evaluate", given).tracker.wandb
    more = ["tracker=wandb", "tracker.mode=offline", "tracker.group=pico"]
    evaluate(load_config("evaluate", [*given, *more]))
    found = offline_runs(tmp_path / "out")
    (run,) = found.of("run")
    assert (run.job_type, run.run_group) == ("evaluate", "pico")
    assert set(found.config()["inputs"]) == {"before", "text"}
    models = json.loads(found.read("evaluation.json"))["models"]
    (line,) = found.history().values()
    for model, told in models.items():
        for name, value in stable_metrics(from_json(told["groups"])).items():
            assert line[f"evaluate/{model}/{name}"] == value
    table = json.loads(found.read(line["evaluate/results"]["path"]))
    assert ["text", "numbers", "nll", "en"] in [row[:4] for row in table["data"]]
