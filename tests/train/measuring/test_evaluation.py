"""What is measured, against a loop over samples with transformers' own forward and generate."""

import copy
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from measured_pico import prepare_rows
from pico_runs import FAST, SCENES
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

import train.evaluate_run
import train.measuring.reading
from configs.command import load_config
from configs.errors import CheckpointError, ConfigError, DataError
from data.render import Sample
from data.rows import question
from train.evaluate_run import evaluate
from train.measuring.conversations import other_pictures
from train.measuring.evaluation import HeldOut
from train.measuring.reading import PackedReader
from train.measuring.results import as_json, flat_metrics
from train.model.load import load_text_lm, load_vlm
from train.model.loss import add_token_losses

WORST_NLL = 2e-6  # nats; measured 4.8e-7
HELD_OUT = [
    *FAST, *SCENES, "data.held_out.scenes.num_rows=10", "data.held_out.numbers.num_rows=6",
    "evaluation.max_rows=5", "evaluation.batch_size=4", "evaluation.max_new_tokens=12",
]  # fmt: skip


def prepare(path: Any, *overrides: str, text_only: bool = False) -> HeldOut:
    return prepare_rows(path, *HELD_OUT, *overrides, text_only=text_only)


@pytest.fixture(scope="module")
def held_out(pipeline) -> HeldOut:
    return prepare(pipeline.sft)


@torch.no_grad()
def naive_nll(plain: Any, sample: Any, pixels: torch.Tensor | None) -> torch.Tensor:
    ids = torch.from_numpy(sample.input_ids).long()[None]
    inputs = {} if pixels is None else {"pixel_values": pixels}
    logits = plain(input_ids=ids, **inputs).logits[0, :-1]
    if hasattr(plain.config, "text_config"):  # AyaVision leaves out what its text class applies
        logits = logits * plain.config.text_config.logit_scale
    losses = functional.cross_entropy(logits, ids[0, 1:], reduction="none")
    return losses[torch.from_numpy(sample.supervised)[1:]]


def mean(losses: list[torch.Tensor]) -> float:
    return float(torch.cat(losses).double().mean())


def tiles_of(held_out: HeldOut, sample: Sample) -> Any:
    """The tiles of a sample's pictures, or None."""
    return held_out.pictures.tiles(sample) if sample.row.images else None


@pytest.mark.parametrize("max_batch_tokens", [2048, 100])
def test_losses_are_those_of_each_sample_alone(
    max_batch_tokens, pipeline, held_out, model, monkeypatch
):
    monkeypatch.setattr(train.measuring.reading, "MAX_BATCH_TOKENS", max_batch_tokens)
    plain = AutoModelForImageTextToText.from_pretrained(pipeline.sft).eval()
    results = held_out.measure(model, generate=False)
    assert results.keys() == {"scenes", "numbers", "udhr"}
    for name, samples in held_out.groups.items():
        for code in ("en", "fr"):
            group = [s for s in samples if s.row.language == code]
            losses = [naive_nll(plain, s, tiles_of(held_out, s)) for s in group]
            assert results[name].by_language["nll"][code] == pytest.approx(
                mean(losses), abs=WORST_NLL
            )


def test_a_text_lm_is_measured_on_text(pipeline):
    held_out = prepare(pipeline.text, text_only=True)
    model = load_text_lm(str(pipeline.text), dtype=torch.float32)
    add_token_losses(model)
    plain = AutoModelForCausalLM.from_pretrained(pipeline.text).eval()
    results = held_out.measure(model, generate=False)
    assert results.keys() == {"numbers", "udhr"}
    for name, samples in held_out.groups.items():
        losses = [naive_nll(plain, s, None) for s in samples if s.row.language == "fr"]
        assert results[name].by_language["nll"]["fr"] == pytest.approx(mean(losses), abs=WORST_NLL)


# ------------------------------------------------------------------------------ the picture gap


def test_the_gap_is_the_loss_with_another_picture_minus_the_loss(pipeline, held_out, model):
    plain = AutoModelForImageTextToText.from_pretrained(pipeline.sft).eval()
    result = held_out.measure(model, generate=False)["scenes"]
    samples = held_out.groups["scenes"]
    digests = [held_out.pictures.digest(s) for s in samples]
    others = [i or 0 for i in other_pictures(samples, digests)]
    for code in ("en", "fr"):
        group = [(s, samples[i]) for s, i in zip(samples, others, strict=True)
                 if s.row.language == code]  # fmt: skip
        assert all(s.row.turns[-1] != other.row.turns[-1] for s, other in group)
        right, wrong = (
            mean([naive_nll(plain, s, tiles_of(held_out, (s, other)[which]))
                  for s, other in group])
            for which in (0, 1)
        )  # fmt: skip
        assert result.by_language["picture_gap"][code] == pytest.approx(
            wrong - right, abs=WORST_NLL
        )
    assert any(abs(gap) > 1e-5 for gap in result.by_language["picture_gap"].values())


def test_the_gap_of_a_blind_model_is_0(pipeline, held_out):
    """A projector that says the same of every picture."""
    blind: Any = load_vlm(str(pipeline.sft), dtype=torch.float32)
    add_token_losses(blind)
    with torch.no_grad():
        blind.model.multi_modal_projector.linear_2.weight.zero_()
        blind.model.multi_modal_projector.linear_2.bias.normal_()
    result = held_out.measure(blind, generate=False)["scenes"]
    assert result.by_language["picture_gap"] == {"en": 0.0, "fr": 0.0}


def test_no_other_picture_no_gap(held_out, model):
    """Rows with one answer: nothing is known of whether the picture was used."""
    samples = [
        replace(s, row=replace(s.row, turns=question("?", "same", num_images=1)))
        for s in held_out.groups["scenes"]
    ]
    digests = [held_out.pictures.digest(s) for s in held_out.groups["scenes"]]
    assert other_pictures(samples, digests) == [None] * len(samples)


def test_one_picture_in_many_languages_is_one_picture(held_out):
    """Else the gap of the commonest multilingual set, captions by language, would go to 0."""
    samples = held_out.groups["scenes"]
    same = [held_out.pictures.digest(samples[0])] * len(samples)
    assert other_pictures(samples, same) == [None] * len(samples)


def test_another_picture_has_as_many_tiles(held_out):
    samples = [replace(s, num_tiles=(1 + i % 2,)) for i, s in enumerate(held_out.groups["scenes"])]
    digests = [held_out.pictures.digest(s) for s in held_out.groups["scenes"]]
    others = other_pictures(samples, digests)
    assert any(other is not None for other in others)
    for i, other in enumerate(others):
        assert other is None or (other != i and samples[other].num_tiles == samples[i].num_tiles)


# ------------------------------------------------------------------------------ answers


@pytest.mark.parametrize("early", [False, True])
def test_batched_answers_are_greedy_answers_one_at_a_time(early, pipeline):
    """By the published way: AutoProcessor, apply_chat_template, generate.

    Early: answers end at different lengths, for what some would say first counts as the end.
    """
    held_out = prepare(pipeline.sft)
    plain = AutoModelForImageTextToText.from_pretrained(pipeline.sft).eval()
    torch.manual_seed(0)
    with torch.no_grad():  # a few steps of training taught it one answer to everything
        for parameter in plain.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model = load_vlm(str(pipeline.sft), dtype=torch.float32)
    add_token_losses(model)
    model.load_state_dict(plain.state_dict())
    processor = AutoProcessor.from_pretrained(pipeline.sft)
    samples = [*held_out.groups["scenes"], *held_out.groups["numbers"]]

    def told(sample: Any) -> list[int]:
        pictures = [{"type": "image", "image": image.load()} for image in sample.row.images]
        content = [*pictures, {"type": "text", "text": sample.row.turns[0].text}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True,
            return_dict=True, return_tensors="pt",
        )  # fmt: skip
        end = held_out.renderer.stop_token_id
        out = plain.generate(**inputs, max_new_tokens=12, do_sample=False, eos_token_id=end)
        return out[0, inputs["input_ids"].shape[1] :].tolist()

    if early:
        said = [told(sample) for sample in samples]
        ends = [  # tokens at which answers would end after different numbers of tokens
            token
            for token in {token for tokens in said for token in tokens}
            if len({[*tokens[:11], token].index(token) for tokens in said}) > 1
        ]
        held_out.renderer.stop_token_id = ends[0]
    wanted = [told(sample) for sample in samples]
    assert len({len(tokens) for tokens in wanted}) > 1 or not early
    reader = PackedReader(model.eval(), held_out.renderer, held_out.pictures, 12)
    answers = [""] * len(samples)
    for batch in reader.batches(samples, 4):
        for index, text in zip(batch, reader.answers([samples[i] for i in batch]), strict=True):
            answers[index] = text
    assert len(set(answers)) > 1
    decode = held_out.renderer.tokenizer.decode
    for answer, tokens in zip(answers, wanted, strict=True):
        assert answer == decode(tokens, skip_special_tokens=True)
    told = held_out.measure(model)["scenes"].answers  # as many, in the rows' order
    for sample, text, each in zip(samples, answers, told, strict=False):
        assert (each.row_id, each.question) == (str(sample.row), sample.row.turns[0].text)
        assert (each.answer, each.reference) == (text, sample.row.turns[1].text)


# ------------------------------------------------------------------------------ the results


def test_everything_measured_is_told(held_out, model):
    results = held_out.measure(model)
    names = flat_metrics(results)
    for name in ("nll", "picture_gap", "exact_match", "chrf"):
        values = [names[f"scenes/{name}/{code}"] for code in ("en", "fr")]
        assert names[f"scenes/{name}"] == pytest.approx(sum(values) / 2)
    assert {name for name in names if name.startswith("udhr")} == {
        "udhr/nll", "udhr/nll/en", "udhr/nll/fr",
    }  # fmt: skip
    assert not any("picture_gap" in name for name in names if not name.startswith("scenes"))
    plain = json.loads(json.dumps(as_json(results)))
    assert plain["scenes"]["mean"]["nll"] == names["scenes/nll"]
    assert len(plain["scenes"]["answers"]) == 10 and len(plain["numbers"]["answers"]) == 6
    assert all(math.isfinite(value) for value in names.values())


def test_measuring_leaves_the_model_as_it_was(held_out, model):
    before = copy.deepcopy(model.state_dict())
    model.train()
    held_out.measure(model)
    assert model.training and model.model.language_model.training
    assert all(torch.equal(v, before[name]) for name, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    model.eval()


def test_rows_are_limited_for_each_language(pipeline):
    held_out = prepare(pipeline.sft, "evaluation.max_rows=2")
    for samples in held_out.groups.values():
        assert [s.row.language for s in samples].count("en") == 2
        assert [s.row.language for s in samples].count("fr") == 2


# ------------------------------------------------------------------------------ side by side


def side_by_side(out: Any, models: dict[str, Any], *overrides: str) -> Any:
    listed = ", ".join(f"{name}: {path}" for name, path in models.items())
    config = load_config("evaluate", [
        f"models={{{listed}}}", f"out={out}", "engine.num_threads=1", "data.languages=[en,fr]",
        "data.held_out.scenes.num_rows=4", "data.held_out.numbers.num_rows=4",
        "evaluation.max_rows=2", "evaluation.max_new_tokens=4", *overrides,
    ])  # fmt: skip
    evaluate(config)
    return json.loads((out / "evaluation.json").read_text()) if out.exists() else None


def test_models_side_by_side(pipeline, tmp_path):
    models = {"text": pipeline.text, "sft": pipeline.sft, "merged": pipeline.merged}
    found = {
        name: model["groups"]
        for name, model in side_by_side(tmp_path / "out", models)["models"].items()
    }
    assert found["text"].keys() == {"numbers", "udhr"}
    assert found["sft"].keys() == found["merged"].keys() == {"scenes", "numbers", "udhr"}
    means = [found[name]["udhr"]["mean"]["nll"] for name in models]
    assert len(set(means)) == 3
    report = (tmp_path / "out/report.md").read_text()
    assert all(f"{value:.3f}" in report for value in means)
    pictures = sorted((tmp_path / "out/pictures").iterdir())
    assert [path.name for path in pictures] == ["1.png", "2.png", "3.png", "4.png"]
    rows = json.loads((tmp_path / "out/pictures.json").read_text())
    assert sorted(rows.values()) == [path.name for path in pictures]
    assert "data:image" in (tmp_path / "out/report.html").read_text()


@pytest.mark.slow
def test_two_processes_measure_what_one_does(pipeline, tmp_path):
    """Under torchrun, the script by its path, from another folder: every figure and answer."""
    options = [
        f"model={pipeline.sft}", "engine.num_threads=1", "data.languages=[en,fr]",
        "data.held_out.scenes.num_rows=8", "data.held_out.numbers.num_rows=4",
        "evaluation.max_rows=4", "evaluation.max_new_tokens=4", "evaluation.batch_size=1",
        "evaluation.num_choices=2", f"evaluation.reference={pipeline.text}",
    ]  # fmt: skip
    evaluate(load_config("evaluate", [*options, f"out={tmp_path}/one"]))
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone",
        str(Path(train.evaluate_run.__file__).with_name("evaluate.py")), *options,
        f"out={tmp_path}/two",
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (
        json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("one", "two")
    )
    assert two["environment"]["world_size"] == 2
    groups = one["models"]["model"]["groups"]
    assert two["models"]["model"]["groups"] == groups
    assert {"kl", "nll"} <= groups["udhr"]["mean"].keys() and groups["scenes"]["answers"]


def test_a_dry_run_names_the_models(pipeline, tmp_path, caplog):
    with caplog.at_level("INFO"):
        assert side_by_side(tmp_path / "out", {"a": pipeline.sft}, "dry_run=true") is None
    assert f"a: {pipeline.sft} (aya_vision)" in caplog.text


def test_nothing_to_measure_is_told(pipeline, tmp_path):
    captions = ["~data.held_out.udhr", "~data.held_out.numbers"]
    with pytest.raises(DataError, match=r"nothing was measured: data\.held_out has no rows"):
        side_by_side(tmp_path / "out", {"a": pipeline.text}, *captions)


def test_what_was_measured_before_an_error_is_kept(pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr(train.evaluate_run, "load_text_lm", lambda *_, **__: pytest.fail("broken"))
    with pytest.raises(pytest.fail.Exception):
        side_by_side(tmp_path / "out", {"a": pipeline.sft, "b": pipeline.text})
    kept = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert kept["models"].keys() == {"a"}


def test_what_is_refused(pipeline, tmp_path):
    with pytest.raises(CheckpointError, match=r"no model in '/nowhere'"):  # before a is measured
        side_by_side(tmp_path / "out", {"a": pipeline.sft, "b": "/nowhere"})
    assert not (tmp_path / "out").exists()
    with pytest.raises(CheckpointError, match=r"no evaluation\.reference in '/nowhere'"):
        side_by_side(tmp_path / "out", {"a": pipeline.sft}, "evaluation.reference=/nowhere")
    with pytest.raises(CheckpointError, match=r"no model in '/nowhere'"):
        side_by_side(tmp_path / "out", {"a": "/nowhere"})
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("")
    with pytest.raises(ConfigError, match=r"out='.*full' is not empty; give a new folder"):
        side_by_side(tmp_path / "full", {"a": pipeline.sft})
