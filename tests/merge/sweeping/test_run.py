"""`python -m merge.sweep` from end to end, on the small pipeline."""

import csv
import json
import os
import shutil
import signal
from typing import Any

import pytest
import torch
import wandb
from PIL import Image
from sweep_pico import FILES, HELD_OUT, NAMES, POINTS, configure, points_of, same_files
from transformers import AutoModelForCausalLM
from wandb_file import read_wandb

import merge.sweeping.run
from configs.command import load_config
from configs.errors import CheckpointError, ConfigError, DataError, Preempted
from configs.schema import Attention
from data.processor import load_processor
from data.render import Renderer
from merge.api import merge_checkpoints
from merge.matching.plan import plan_merge
from merge.sweeping.run import sweep
from train.evaluate_run import evaluate
from train.measuring.held_out import prepare_held_out
from train.model.attention import set_attention
from train.model.load import load_text_lm, load_vlm
from train.model.loss import add_token_losses
from train.tracking.tracker import Tracker

ALPHAS = [0, 0.5, 1, None]


def test_every_output_is_there(swept):
    assert {path.name for path in swept.iterdir()} == {
        *FILES,
        "metrics.jsonl",
        "points",
        "report.html",
        "report.md",
        "report_charts",
        "sweep.png",
    }
    assert sorted(path.name for path in (swept / "points").iterdir()) == POINTS
    points = points_of(swept)
    assert [(p["name"], p["alpha"]) for p in points] == list(zip(NAMES, ALPHAS, strict=True))
    assert len({point["text_nll"] for point in points}) == len(points)
    with Image.open(swept / "sweep.png") as picture:
        picture.load()
        assert picture.size == (1300, 728) and len(set(picture.convert("L").getdata())) > 50


def test_curves_by_candidate(swept):
    lines = [json.loads(line) for line in (swept / "metrics.jsonl").read_text().splitlines()]
    for step, (line, point) in enumerate(zip(lines[:-1], points_of(swept), strict=True)):
        point.pop("name")
        known = {f"sweep/{name}": value for name, value in point.items() if value is not None}
        assert line == known | {"step": step}
    chosen = json.loads((swept / "sweep.json").read_text())["chosen"]
    number = {} if chosen["alpha"] is None else {"sweep/chosen_alpha": chosen["alpha"]}
    assert lines[-1] == {"step": 4, "sweep/chosen": chosen["name"], **number}


def test_each_language_is_kept(swept):
    """Every number of every point, and the means are the means of them."""
    with (swept / "sweep_languages.csv").open() as file:
        rows = list(csv.DictReader(file))
    for name, file_name in zip(NAMES, ("alpha-0", "alpha-0.5", "alpha-1", "falling"), strict=True):
        results = json.loads((swept / f"points/{file_name}.json").read_text())["results"]
        ours = [row for row in rows if row["candidate"] == name]
        wanted = {
            (group, code, measure): value
            for group, result in results.items()
            for measure, values in result["by_language"].items()
            for code, value in values.items()
        }
        found = {(r["group"], r["language"], r["measure"]): float(r["value"]) for r in ours}
        assert found == wanted and len(ours) == len(wanted)
        assert {group for group, _, _ in found} == {"scenes", "numbers", "udhr"}
        assert {code for _, code, _ in found} == {"en", "fr"}
    counts = {(r["group"], r["language"], r["measure"]): r["count"] for r in rows}
    assert counts["scenes", "en", "nll"] == counts["numbers", "fr", "exact_match"] == "2"
    at_half = [r for r in rows if r["candidate"] == "0.5" and r["measure"] == "nll"]
    text = {
        group: [float(r["value"]) for r in at_half if r["group"] == group]
        for group in ("numbers", "udhr")
    }
    means = [sum(values) / len(values) for values in text.values()]
    assert points_of(swept)[1]["text_nll"] == pytest.approx(sum(means) / 2)


def test_the_table_of_means(swept):
    with (swept / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    points = points_of(swept)
    assert [row["name"] for row in rows] == NAMES
    assert [row["alpha"] for row in rows] == ["0.0", "0.5", "1.0", ""]
    for row, point in zip(rows, points, strict=True):
        assert float(row["text_nll"]) == point["text_nll"]
        assert float(row["text_loss_increase"]) == point["text_nll"] - points[0]["text_nll"]


def test_the_report_tells_rule_choice_and_languages(swept):
    told, chosen = (swept / "sweep.md").read_text(), json.loads((swept / "sweep.json").read_text())
    name = chosen["chosen"]["name"]
    assert f"Chosen: **{name if name == 'falling' else f'alpha {name}'}**, the largest chrF" in told
    assert chosen["chosen"]["rule"] in told and "![sweep](sweep.png)" in told
    assert "- `falling`: alpha 0.8 -> 0.2 (embeddings: 0)" in told
    assert [line.split("|")[1].strip() for line in told.splitlines() if line.startswith("|")] == [
        "alpha", "---:", *(f"**{n}**" if n == name else n for n in NAMES),
        "language", "---", "en", "fr",
    ]  # fmt: skip


def test_no_model_is_written(swept):
    assert not list(swept.rglob("*.safetensors"))


def test_each_point_is_what_evaluate_says_of_the_merged_checkpoint(pipeline, swept, tmp_path):
    merge_checkpoints(vlm=pipeline.sft, text=pipeline.text, out=tmp_path / "half", alpha=0.5)
    config = load_config("evaluate", [
        f"models={{half: {tmp_path}/half, vlm: {pipeline.sft}}}", f"out={tmp_path}/out", *HELD_OUT,
    ])  # fmt: skip
    evaluate(config)
    found = json.loads((tmp_path / "out/evaluation.json").read_text())
    for name, alpha in (("half", "0.5"), ("vlm", "1")):
        ours = json.loads((swept / f"points/alpha-{alpha}.json").read_text())
        assert ours["results"] == found["models"][name]["groups"]


@pytest.mark.parametrize("keep_image_row", [True, False])
def test_alpha_0_is_the_text_lm(keep_image_row, pipeline, swept):
    """Its own loss on held-out text: to the last bit with the picture tokens' rows of the VLM.

    Those rows are the VLM's at every alpha, and the tied head sees them; left as they are, the
    worst measured is 5e-4 nats, at a vocabulary of 400.
    """
    config = configure(pipeline, swept)
    tokenizer = load_processor(str(pipeline.text))
    held_out = prepare_held_out(config.data, config.evaluation, Renderer(tokenizer), text_only=True)
    model: Any = load_text_lm(str(pipeline.text), dtype=torch.float32)
    if keep_image_row:
        from safetensors.torch import load_file

        name = "language_model.model.embed_tokens.weight"
        rows = load_file(pipeline.sft / "model.safetensors")[name]
        kept = next(
            plan.vlm_rows
            for plan in plan_merge(pipeline.sft, pipeline.text).table
            if plan.vlm.name == name
        )
        token = tokenizer.convert_tokens_to_ids("<|IMG_PATCH|>")
        assert any(start <= token < stop for start, stop in kept)
        with torch.no_grad():
            for start, stop in kept:
                model.model.embed_tokens.weight[start:stop] = rows[start:stop]
    add_token_losses(model)
    set_attention(model, Attention.auto)
    wanted = held_out.measure(model, generate=False)
    found = json.loads((swept / "points/alpha-0.json").read_text())["results"]
    assert AutoModelForCausalLM.from_pretrained(pipeline.text).config.logit_scale == 0.25
    for group, result in wanted.items():
        for code, value in result.by_language["nll"].items():
            tolerance = 0 if keep_image_row else 1e-3
            assert found[group]["by_language"]["nll"][code] == pytest.approx(
                value, abs=tolerance, rel=0
            )


# ------------------------------------------------------------------------------ going on


def test_an_interrupted_sweep_keeps_its_points(pipeline, swept, tmp_path, monkeypatch):
    measured = []
    inner = merge.sweeping.run.AlphaDial.set

    def dying(self, recipe):
        measured.append(recipe.alpha.number)
        if len(measured) == 2:
            raise KeyboardInterrupt
        inner(self, recipe)

    with monkeypatch.context() as patch:
        patch.setattr(merge.sweeping.run.AlphaDial, "set", dying)
        with pytest.raises(KeyboardInterrupt):
            sweep(configure(pipeline, tmp_path / "out"))
    assert [path.name for path in (tmp_path / "out/points").iterdir()] == ["alpha-0.json"]

    def counting(self, recipe):
        measured.append(recipe.alpha.number)
        inner(self, recipe)

    monkeypatch.setattr(merge.sweeping.run.AlphaDial, "set", counting)
    sweep(configure(pipeline, tmp_path / "out"))
    assert measured == [0, 0.5, 0.5, 1, None]
    same_files(tmp_path / "out", swept)


def test_a_signal_tells_weights_and_biases_that_the_run_goes_on(pipeline, tmp_path, monkeypatch):
    told: list[dict[str, bool]] = []
    monkeypatch.setattr(Tracker, "finish", lambda self, **how: told.append(how))
    monkeypatch.setattr(
        merge.sweeping.run.AlphaDial, "set", lambda *_: os.kill(os.getpid(), signal.SIGTERM)
    )
    with pytest.raises(Preempted, match=r"stopped by SIGTERM; .* \(exit code 75\)"):
        sweep(configure(pipeline, tmp_path / "out"))
    assert told == [{"failed": True, "preempted": True}]


def test_pictures_go_through_the_tower_once(pipeline, tmp_path, monkeypatch):
    """However many candidates there are; what comes of it is compared with `evaluate` above."""
    counts = []
    for name, alphas in (("one", "[0]"), ("three", "[0,0.3,0.6]")):
        batches: list[int] = []

        def loading(path, *, dtype, batches=batches):
            model: Any = load_vlm(path, dtype=dtype)
            model.model.vision_tower.register_forward_hook(lambda *_: batches.append(1))
            return model

        monkeypatch.setattr(merge.sweeping.run, "load_vlm", loading)
        sweep(configure(pipeline, tmp_path / name, f"alphas={alphas}", "~schedules"))
        counts.append(len(batches))
    assert counts[0] == counts[1] > 0


@pytest.fixture
def measured(monkeypatch) -> list[str]:
    """What is measured, in order."""
    told: list[str] = []
    inner = merge.sweeping.run.AlphaDial.set
    monkeypatch.setattr(
        merge.sweeping.run.AlphaDial,
        "set",
        lambda dial, recipe: (told.append(str(recipe.alpha)), inner(dial, recipe)),
    )
    return told


def test_more_candidates_are_added_to_a_sweep(pipeline, swept, tmp_path, measured):
    shutil.copytree(swept, tmp_path / "out")
    more = ["alphas=[0,0.25,0.5,1]", "schedules.late.alpha=[0,0.5]"]
    sweep(configure(pipeline, tmp_path / "out", *more))
    assert measured == ["0.25", "0 -> 0.5"]
    names = [point["name"] for point in points_of(tmp_path / "out")]
    assert names == ["0", "0.25", "0.5", "1", "falling", "late"]
    kept = [point for point in points_of(tmp_path / "out") if point["name"] in NAMES]
    assert kept == points_of(swept)


def test_a_finished_sweep_is_reported_again_without_loading(pipeline, swept, tmp_path, monkeypatch):
    shutil.copytree(swept, tmp_path / "out")
    monkeypatch.setattr(merge.sweeping.run, "load_vlm", lambda *_, **__: pytest.fail("loaded"))
    (tmp_path / "out/sweep.md").unlink()
    sweep(configure(pipeline, tmp_path / "out"))
    same_files(tmp_path / "out", swept)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("schedules.falling.alpha=[0.8,0.3]",
         r"falling: .*falling.json was measured with alpha \[\[0.0, 0.8\], \[1.0, 0.2\]\], now"),
        ("schedules.falling.alpha_overrides.norms=1", r"was measured with alpha_ov.*, now .*norms"),
    ],
)  # fmt: skip
def test_another_recipe_of_the_same_name(change, told, pipeline, swept, tmp_path, measured):
    shutil.copytree(swept, tmp_path / "out")
    with pytest.raises(ConfigError, match=told):
        sweep(configure(pipeline, tmp_path / "out", change))
    assert measured == []
    same_files(tmp_path / "out", swept)


def test_alphas_that_look_alike_are_two_points(pipeline, tmp_path):
    """One file each: a rounded name would give the second the measurement of the first."""
    out = tmp_path / "out"
    sweep(configure(pipeline, out, "alphas=[0,0.33333331,0.33333339]", "evaluation.generate=false"))
    assert len(list((out / "points").glob("alpha-*.json"))) == 3


# ------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("evaluation.max_rows=1", "evaluation.max_rows 2 there, 1 now"),
        ("data.languages=[en]", r"data.languages \['en', 'fr'\] there, \['en'\] now"),
        ("seed=1", "seed 0 there, 1 now; give a new folder"),
        ("extrapolate=true", "extrapolate False there, True now"),
    ],
)
def test_the_folder_of_another_sweep(change, told, pipeline, swept):
    with pytest.raises(ConfigError, match=rf"holds something else than this sweep: {told}"):
        sweep(configure(pipeline, swept, change))


def test_the_folder_of_something_else(pipeline, tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ConfigError, match=r"holds something else than a sweep; give a new folder"):
        sweep(configure(pipeline, tmp_path))


@pytest.mark.parametrize(
    ("removed", "left"), [("scenes", "numbers, udhr"), ("numbers ~data.held_out.udhr", "scenes")]
)
def test_held_out_rows_without_captions_or_without_text(removed, left, pipeline, tmp_path):
    changes = [f"~data.held_out.{name.removeprefix('~data.held_out.')}" for name in removed.split()]
    overrides = [item for item in HELD_OUT if not any(c[1:] in item for c in changes)]
    config = load_config("sweep", [
        f"vlm={pipeline.sft}", f"text={pipeline.text}", f"out={tmp_path}/out", "tracker=jsonl",
        *overrides, *changes,
    ])  # fmt: skip
    with pytest.raises(DataError, match=rf"with pictures and one without; there are {left}$"):
        sweep(config)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_there(pipeline, tmp_path):
    with pytest.raises(CheckpointError, match=r"text='/nowhere' is not a folder"):
        sweep(configure(pipeline, tmp_path / "out", "text=/nowhere"))


def test_strangers(pipeline, tmp_path):
    shutil.copytree(pipeline.text, tmp_path / "text")
    path = tmp_path / "text/config.json"
    path.write_text(path.read_text().replace('"logit_scale": 0.25', '"logit_scale": 0.125'))
    with pytest.raises(CheckpointError, match=r"logit_scale: vlm 0.25, text 0.125"):
        sweep(configure(pipeline, tmp_path / "out", f"text={tmp_path}/text"))


def test_an_override_that_decides_about_nothing(pipeline, tmp_path):
    change = "schedules.falling.alpha_overrides={norms: 0.1, no_such: 0.1}"
    with pytest.raises(ConfigError, match=r"decide about no tensor of the decoder: no_such"):
        sweep(configure(pipeline, tmp_path / "out", change))
    assert not (tmp_path / "out").exists()


def test_a_dry_run_measures_nothing(pipeline, tmp_path, caplog):
    with caplog.at_level("INFO"):
        sweep(configure(pipeline, tmp_path / "out", "dry_run=true", f"write_to={tmp_path}/new"))
    told = "would measure 0, 0.5, 1, falling (0.8 -> 0.2 (embeddings: 0))"
    assert told in caplog.text
    assert "on scenes (4 rows), numbers (4 rows), udhr (4 rows)" in caplog.text
    assert f"and write the chosen model to {tmp_path}/new" in caplog.text
    assert not list(tmp_path.iterdir())


def test_a_dry_run_tells_what_is_finished(pipeline, swept, caplog):
    with caplog.at_level("INFO"):
        sweep(configure(pipeline, swept, "dry_run=true", "alphas=[0,0.75]"))
    assert "would measure 0 (finished), 0.75, falling (0.8 -> 0.2" in caplog.text


# ------------------------------------------------------------------------------ W&B


@pytest.mark.slow
def test_weights_and_biases_has_curves_and_tables(pipeline, swept, tmp_path):
    """An offline run, read back: one of job type `sweep`, a step each candidate, two tables."""
    out = tmp_path / "out"
    shutil.copytree(swept, out)
    sweep(configure(pipeline, out, "tracker=wandb", "tracker.mode=offline"))
    wandb.teardown()  # W&B's own process writes the file: as when a command ends, wait for it
    (folder,) = (out / "wandb").glob("offline-run-*")
    records = read_wandb(next(folder.glob("*.wandb")))
    (run,) = (r.run for r in records if r.WhichOneof("record_type") == "run")
    assert run.job_type == "sweep"
    history = [
        {
            "/".join(item.nested_key) or item.key: json.loads(item.value_json)
            for item in r.history.item
        }
        for r in records
        if r.WhichOneof("record_type") == "history"
    ]
    for line, point in zip(history, points_of(swept), strict=False):
        assert line["sweep/text_nll"] == point["text_nll"]
        assert line["sweep/caption_chrf"] == point["caption_chrf"]
        assert line.get("sweep/alpha") == point["alpha"]
    assert len(history) == 5 and history[-1]["sweep/chosen"] in NAMES
    assert [r.exit.exit_code for r in records if r.WhichOneof("record_type") == "exit"] == [0]
    tables = folder / "files/media/table/sweep"
    points = json.loads(next(tables.glob("points_*.json")).read_text())
    assert points["columns"][:2] == ["name", "alpha"] and len(points["data"]) == 4
    languages = json.loads(next(tables.glob("languages_*.json")).read_text())
    assert languages["columns"] == ["candidate", "group", "language", "measure", "value", "count"]
    with (out / "sweep_languages.csv").open() as file:
        rows = list(csv.reader(file))[1:]
    assert [[str(cell) for cell in row] for row in languages["data"]] == rows
    assert (folder / "files/sweep.png").read_bytes() == (out / "sweep.png").read_bytes()
