"""From a text LM to a merged VLM: what each stage may change and leaves behind; that it learns."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pico_runs import FAST, SCENES, SHAPES, TOWER, losses, metrics, run, same_weights, vlm, weights

from configs.command import load_config
from train.model.parts import map_names
from train.saving.run_folder import to_plain


def by_part(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """{part: {canonical name: tensor}} of an export."""
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    tensors = weights(folder)
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name, place in map_names(kind, tensors).items():
        found.setdefault(place.part, {})[place.name] = tensors[name]
    return found


def changed(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    """The share of a part's tensors that differ."""
    assert one.keys() == two.keys()
    return sum(not torch.equal(one[name], two[name]) for name in one) / len(one)


def test_align_leaves_the_text_lm_as_it_is(pipeline):
    text, align = by_part(pipeline.text), by_part(pipeline.align)
    assert text.keys() == {"decoder"}
    assert changed(text["decoder"], align["decoder"]) == 0


def test_sft_moves_projector_and_decoder_alone(pipeline):
    align, sft = by_part(pipeline.align), by_part(pipeline.sft)
    moved = {part: changed(align[part], sft[part]) for part in align}
    assert moved == {"vision_tower": 0, "projector": 1, "decoder": 1}


def test_lora_moves_linear_layers_of_the_decoder_alone(pipeline):
    align, lora = by_part(pipeline.align), by_part(pipeline.lora)
    assert changed(align["vision_tower"], lora["vision_tower"]) == 0
    still = {
        name
        for name, value in align["decoder"].items()
        if torch.equal(value, lora["decoder"][name])
    }
    assert still == {name for name in align["decoder"] if "norm" in name or "embed" in name}


def test_the_merge_is_half_way_in_the_decoder_alone(pipeline):
    text, sft, merged = (by_part(p) for p in (pipeline.text, pipeline.sft, pipeline.merged))
    assert changed(sft["vision_tower"], merged["vision_tower"]) == 0
    assert changed(sft["projector"], merged["projector"]) == 0
    for name, value in merged["decoder"].items():
        if "embed" not in name:
            between = text["decoder"][name] + 0.5 * (sft["decoder"][name] - text["decoder"][name])
            assert torch.equal(value, between), name


def test_a_run_folder_tells_all_about_its_run(pipeline):
    folder = pipeline.sft.parent
    assert {path.name for path in folder.iterdir()} == {
        "checkpoints", "config.yaml", "data.json", "environment.jsonl", "evaluation", "export",
        "finished.json", "metrics.jsonl", "rows.jsonl", "data_summary.json", "report.md",
        "report.html", "report_charts",
    }  # fmt: skip
    lines = metrics(folder)
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4, 4]
    assert {name.split("/")[0] for line in lines for name in line} == {
        "step", "train", "data", "eval", "retention", "caption",
    }  # fmt: skip
    raw = json.loads((folder / "metrics.jsonl").read_text().splitlines()[2])
    for name in ("tokens", "supervised_tokens", "tiles", "images", "samples"):
        assert raw[f"perf/{name}_per_second"] > 0
    for phase in ("forward", "backward", "optimizer"):
        assert raw[f"perf/memory_peak_gib/{phase}"] > 0
    assert 0 <= raw["data/padding_ratio"] < 1
    for part in ("projector", "decoder"):
        assert 0 < raw[f"train/grad_norm/{part}"] <= raw["train/grad_norm"] * (1 + 1e-6)
    assert 0 <= raw["perf/data_wait_ratio"] <= 1
    assert raw["data/epoch"] > 0 and raw["train/learning_rate/decoder"] > 0
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    assert rows == [{"source": "scenes", "used": 60, "bad": 0}]
    environment = json.loads((folder / "environment.jsonl").read_text())
    assert environment["packages"]["torch"] == torch.__version__
    if (Path(__file__).parents[1] / ".git").exists():
        assert re.search(r"[0-9a-f]{40}(-dirty)?$", environment["git_commit"])
    answers = json.loads((folder / "evaluation/step-000004.json").read_text())["groups"]["scenes"][
        "answers"
    ]
    assert answers and answers[0].keys() == {
        "row_id", "language", "question", "reference", "answer", "blind_answer",
    }  # fmt: skip


def test_the_saved_config_is_the_run(pipeline):
    """Every key is in it, and it gives the same config back."""
    saved = yaml.safe_load((pipeline.sft.parent / "config.yaml").read_text())
    overrides = [*FAST, *vlm(pipeline.align), *SCENES, "stage=sft",
                 "stage.parts.decoder.learning_rate=3e-3",
                 "stage.parts.projector.learning_rate=3e-3",
                 f"output_dir={pipeline.sft.parent}"]  # fmt: skip
    assert saved == to_plain(load_config("train", overrides))


def test_the_same_command_gives_the_same_model(pipeline, tmp_path):
    """To the last bit, in another folder; another seed gives another one."""
    command = ["model=pico_vlm", *SHAPES, *TOWER, *SCENES, "evaluation.eval_on_start=false"]
    one, two, other = (
        run(*command, f"seed={seed}", f"output_dir={tmp_path}/{number}")
        for number, seed in enumerate((3, 3, 4))
    )
    assert losses(one) == losses(two) != losses(other)
    assert same_weights(one / "export", two / "export")
    assert not same_weights(one / "export", other / "export")


def test_measuring_changes_nothing(tmp_path):
    command = ["model=pico_vlm", *SHAPES, *TOWER, *SCENES]
    often = run(*command, "evaluation.eval_steps=1", f"output_dir={tmp_path}/often")
    never = run(*command, "evaluation.eval_on_start=false", f"output_dir={tmp_path}/never")
    assert losses(often) == losses(never)
    assert same_weights(often / "export", never / "export")


@pytest.mark.slow
def test_it_learns_to_see(tmp_path: Path) -> None:
    """From nothing to naming a dozen pictures exactly; with the wrong picture it is at a loss."""
    parts = ("vision_tower", "projector", "decoder")
    folder = run(
        "model=pico_vlm", *SHAPES, *TOWER, "data=scenes", "data.sources.scenes.num_rows=12",
        "data.held_out.scenes.num_rows=12", "data.held_out.scenes.held_out=false",  # the same ones
        "~data.held_out.numbers", "~data.held_out.udhr", "data.languages=[en]",
        "evaluation.eval_on_start=false", "evaluation.max_rows=12", "evaluation.max_new_tokens=24",
        *(f"stage.parts.{part}.learning_rate=5e-3" for part in parts), "optim.warmup_steps=10",
        "optim.max_steps=150", "checkpoint.save_steps=150", f"output_dir={tmp_path}",
    )  # fmt: skip
    measured: dict[str, Any] = metrics(folder)[-1]
    assert losses(folder)[150] < 0.3  # measured 0.09
    assert measured["eval/scenes/exact_match"] >= 0.9  # measured 1
    assert measured["eval/scenes/picture_gap"] > 0.3  # nats; measured 0.86
