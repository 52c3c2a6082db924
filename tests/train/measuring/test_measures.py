"""Choice, blind control, KL, retention and its alarm, against short computations by hand."""

import contextlib
import copy
import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from measured_pico import prepare_rows
from peft import LoraConfig, get_peft_model
from pico_runs import FAST, LEARN, SCENES, run, vlm
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from configs.errors import CheckpointError, ConfigError, RetentionError
from configs.schema import Attention
from data.processor import load_processor
from train.measuring.changes import describe_change
from train.measuring.conversations import other_answers, other_pictures, with_answer_of
from train.measuring.evaluation import HeldOut
from train.measuring.held_out import apart
from train.measuring.original import AdaptersOff, adapters_off
from train.measuring.reading import PackedReader
from train.measuring.reference import load_reference
from train.measuring.results import GroupKind, GroupResult, as_json, from_json, stable_metrics
from train.measuring.retention import TextAlarm, add_increase
from train.measuring.shares import Ranks
from train.model.head import Original, chunked_divergence
from train.model.load import load_text_lm
from train.model.loss import add_token_losses
from train.saving.measured import results_at
from train.saving.run_folder import RunFolder

WORST = 5e-6  # nats; float32 sums in another order
HELD_OUT = [
    *FAST, *SCENES, "data.held_out.scenes.num_rows=16", "data.held_out.numbers.num_rows=6",
    "evaluation.max_rows=8", "evaluation.max_answers=3", "evaluation.batch_size=4",
    "evaluation.max_new_tokens=6", "evaluation.num_choices=3",
]  # fmt: skip


def prepare(path: Any, *overrides: str, text_only: bool = False) -> HeldOut:
    return prepare_rows(path, *HELD_OUT, *overrides, text_only=text_only)


@pytest.fixture(scope="module")
def held_out(pipeline) -> HeldOut:
    return prepare(pipeline.sft)


@pytest.fixture(scope="module")
def results(held_out, model) -> Any:
    return held_out.measure(model, blind=True)


@torch.no_grad()
def log_probabilities(plain: Any, sample: Any, pixels: torch.Tensor | None = None) -> torch.Tensor:
    """[S, K] of the supervised tokens, by transformers' own forward."""
    ids = torch.from_numpy(sample.input_ids).long()[None]
    inputs = {} if pixels is None else {"pixel_values": pixels}
    logits = plain(input_ids=ids, **inputs).logits[0, :-1].float()
    if hasattr(plain.config, "text_config"):  # AyaVision leaves out what its text class applies
        logits = logits * plain.config.text_config.logit_scale
    return logits.log_softmax(-1)[torch.from_numpy(sample.supervised)[1:]]


def losses_of(plain: Any, sample: Any, pixels: torch.Tensor | None) -> torch.Tensor:
    wanted = torch.from_numpy(sample.input_ids[sample.supervised]).long()
    return -log_probabilities(plain, sample, pixels).gather(1, wanted[:, None])[:, 0]


# ------------------------------------------------------------------------------ pictures


@pytest.mark.parametrize("blind", [False, True])
def test_the_choice_is_the_lowest_loss_among_captions_of_the_language(
    blind, pipeline, held_out, results
):
    plain = AutoModelForImageTextToText.from_pretrained(pipeline.sft).eval()
    samples = held_out.groups["scenes"]
    right: dict[str, list[bool]] = {"en": [], "fr": []}
    rivals = other_answers(samples, held_out.digests(samples), 2)
    for sample, others in zip(samples, rivals, strict=True):
        assert len(others) == 2
        captions = [sample.row.turns[-1].text, *(samples[j].row.turns[-1].text for j in others)]
        assert len(set(captions)) == 3
        assert {samples[j].row.language for j in others} == {sample.row.language}
        tiles = held_out.pictures.tiles(sample)
        tiles = torch.zeros_like(tiles) if blind else tiles
        asked = [sample, *(with_answer_of(held_out.renderer, sample, samples[j]) for j in others)]
        means = [float(losses_of(plain, each, tiles).mean()) for each in asked]
        right[sample.row.language].append(means[0] < min(means[1:]))
    name = "blind_choice_accuracy" if blind else "choice_accuracy"
    found = results["scenes"].by_language[name]
    assert found == {code: sum(hits) / len(hits) for code, hits in right.items()}
    assert results["scenes"].num_rows[name] == {"en": 8, "fr": 8}


def test_too_few_others_no_choice(pipeline, model):
    assert (
        "choice_accuracy"
        not in prepare(pipeline.sft, "evaluation.num_choices=9")
        .measure(model, generate=False)["scenes"]
        .by_language
    )
    few = prepare(pipeline.sft, "evaluation.num_choices=0").measure(model, generate=False)
    assert "choice_accuracy" not in few["scenes"].by_language


def test_a_blind_model_sees_nothing_of_the_picture(pipeline, held_out, results):
    plain = AutoModelForImageTextToText.from_pretrained(pipeline.sft).eval()
    for code in ("en", "fr"):
        losses = [
            losses_of(plain, s, torch.zeros_like(held_out.pictures.tiles(s)))
            for s in held_out.groups["scenes"]
            if s.row.language == code
        ]
        wanted = float(torch.cat(losses).double().mean())
        found = results["scenes"].by_language["blind_nll"][code]
        assert found == pytest.approx(wanted, abs=WORST)
        assert abs(found - results["scenes"].by_language["nll"][code]) > 1e-4
    assert not any("blind" in name for name in results["numbers"].by_language)
    said = results["scenes"].answers
    assert len(said) == 6 and all(a.blind_answer is not None for a in said)
    assert all(a.blind_answer is None for a in results["numbers"].answers)


def test_blind_answers_are_to_a_blank_picture(pipeline, held_out, results):
    """By the published way, with pixel values of zero."""
    plain = AutoModelForImageTextToText.from_pretrained(pipeline.sft).eval()
    tokenizer = held_out.renderer.tokenizer
    for sample, told in zip(held_out.groups["scenes"], results["scenes"].answers, strict=False):
        ids = tokenizer(held_out.renderer.prompt(sample.row), add_special_tokens=False)
        ids = torch.tensor([ids.input_ids])
        out = plain.generate(
            input_ids=ids, pixel_values=torch.zeros_like(held_out.pictures.tiles(sample)),
            max_new_tokens=6, do_sample=False, eos_token_id=held_out.renderer.stop_token_id,
        )  # fmt: skip
        text = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        assert told.blind_answer == text


def test_answers_are_limited_and_losses_are_not(results):
    assert results["scenes"].num_rows["chrf"] == {"en": 3, "fr": 3}
    assert results["scenes"].num_rows["nll"] == {"en": 8, "fr": 8}


# ------------------------------------------------------------------------------ the original


def naive_kl(original: Any, current: Any, samples: list[Any]) -> float:
    divergences = []
    for sample in samples:
        theirs, ours = log_probabilities(original, sample), log_probabilities(current, sample)
        ours = ours[:, : theirs.shape[1]]
        divergences.append(
            functional.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1)
        )
    return float(torch.cat(divergences).double().mean())


def test_kl_to_a_text_lm(pipeline, held_out, model):
    reference = load_reference(str(pipeline.text), held_out, Attention.sdpa)
    found = held_out.measure(model, generate=False, original=reference)
    original = AutoModelForCausalLM.from_pretrained(pipeline.text).eval()
    current = AutoModelForImageTextToText.from_pretrained(pipeline.sft).eval()
    for group in ("numbers", "udhr"):
        for code in ("en", "fr"):
            samples = [s for s in held_out.groups[group] if s.row.language == code]
            wanted = naive_kl(original, current, samples)
            assert wanted > 1e-3
            assert found[group].by_language["kl"][code] == pytest.approx(wanted, abs=WORST)
    assert "kl" not in found["scenes"].by_language


@pytest.mark.parametrize(("ours", "theirs"), [(9, 7), (7, 9), (7, 7)])
def test_kl_between_vocabularies_of_two_heights(ours, theirs, monkeypatch):
    """What only the current one knows costs it; what only the original pads with is left out."""
    monkeypatch.setattr("train.model.head.DIVERGENCE_CHUNK", 2)
    torch.manual_seed(0)
    states, other = torch.randn(5, 4), torch.randn(5, 3)
    head, other_head = torch.randn(ours, 4), torch.randn(theirs, 3)
    found = chunked_divergence(states, head, 0.5, Original(other, other_head, 2.0))
    common = min(ours, theirs)
    p = (2.0 * other @ other_head[:common].T).softmax(-1)
    q = (0.5 * states @ head.T).softmax(-1)[:, :common]
    assert torch.allclose(found, (p * (p / q).log()).sum(-1), atol=1e-5)
    assert (found > 0).all()


def test_kl_to_itself_is_0(pipeline):
    held_out = prepare(pipeline.text, text_only=True)
    text_lm = load_text_lm(str(pipeline.text), dtype=torch.float32)
    add_token_losses(text_lm)
    reference = load_reference(str(pipeline.text), held_out, Attention.sdpa)
    found = held_out.measure(text_lm, generate=False, original=reference)
    assert all(abs(v) < 1e-6 for v in found["udhr"].by_language["kl"].values())


def test_kl_with_adapters_is_to_the_weights_under_them(pipeline, held_out, model):
    tuned = copy.deepcopy(model)
    add_token_losses(tuned)
    tuned = get_peft_model(tuned, LoraConfig(r=2, target_modules=["q_proj", "up_proj"]))
    torch.manual_seed(0)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.05)
        parameter.requires_grad_("lora_A" in name)  # not what PEFT would set
    before = {name: p.requires_grad for name, p in tuned.named_parameters()}
    found = held_out.measure(tuned, generate=False, original=AdaptersOff(tuned))
    assert {name: p.requires_grad for name, p in tuned.named_parameters()} == before
    original = AutoModelForImageTextToText.from_pretrained(pipeline.sft).eval()
    current = copy.deepcopy(tuned).merge_and_unload().eval()
    current.forward = type(current).forward.__get__(current)
    samples = [s for s in held_out.groups["udhr"] if s.row.language == "fr"]
    wanted = naive_kl(original, current, samples)
    assert wanted > 1e-4
    assert found["udhr"].by_language["kl"]["fr"] == pytest.approx(wanted, abs=WORST)
    with adapters_off(tuned):
        assert held_out.measure(tuned, generate=False)["udhr"].by_language["nll"] == pytest.approx(
            held_out.measure(model, generate=False)["udhr"].by_language["nll"], abs=WORST
        )


def test_another_tokenizer_is_refused(pipeline, held_out, monkeypatch):
    tokenizer = load_processor(str(pipeline.text))
    monkeypatch.setattr("train.measuring.reference.load_processor", lambda _: tokenizer)
    swapped = type(tokenizer).convert_ids_to_tokens
    monkeypatch.setattr(
        type(tokenizer), "convert_ids_to_tokens",
        lambda self, ids: swapped(self, (ids + 1) if isinstance(ids, int) else ids),
    )  # fmt: skip
    with pytest.raises(CheckpointError, match=r"another tokenizer: of \d+ tokens in held-out text"):
        load_reference(str(pipeline.text), held_out, Attention.sdpa)


# ------------------------------------------------------------------------------ retention


def text_result(**nll: float) -> dict[str, GroupResult]:
    result = GroupResult(GroupKind.text)
    result.add("nll", nll, dict.fromkeys(nll, 4))
    return {"udhr": result}


def test_the_increase_is_over_the_same_rows_of_step_0():
    baseline, now = text_result(en=1.0, fr=2.0, hi=3.0), text_result(en=1.5, fr=2.0, ar=1.0)
    baseline["udhr"].num_rows["nll"]["fr"] = 3
    add_increase(now, baseline)
    assert now["udhr"].by_language["nll_increase"] == {"en": 0.5}
    captions = {"udhr": replace(text_result(en=2.0)["udhr"], kind=GroupKind.captions)}
    add_increase(captions, baseline)
    assert "nll_increase" not in captions["udhr"].by_language


def test_the_alarm_names_what_lost_most():
    now = text_result(en=1.1, fr=1.2, hi=1.4, ar=0.9)
    add_increase(now, text_result(en=1.0, fr=1.0, hi=1.0, ar=1.0))
    told = TextAlarm(0.1).check(now, 7)
    assert told is not None and "step 7: held-out text (udhr) has lost 0.150 nats" in told
    assert told.endswith("most in hi +0.400, fr +0.200, en +0.100")
    assert TextAlarm(0.2).check(now, 7) is None and TextAlarm(None).check(now, 7) is None
    assert TextAlarm(0.0).check(text_result(en=9.0), 7) is None  # no step 0 to hold it against


def test_stable_names_do_not_depend_on_how_groups_are_called():
    found = text_result(en=1.0, fr=3.0) | {"more": text_result(en=2.0)["udhr"]}
    found["pictures"] = GroupResult(GroupKind.captions, {"chrf": {"fr": 40.0}}, {"chrf": {"fr": 1}})
    assert stable_metrics(found) == {
        "retention/en/nll": 1.5, "retention/fr/nll": 3.0, "retention/mean/nll": 2.25,
        "caption/fr/chrf": 40.0, "caption/mean/chrf": 40.0,
    }  # fmt: skip


def test_results_come_back_from_their_json(results):
    assert from_json(json.loads(json.dumps(as_json(results)))) == results


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [(None, "a", ""), ("a cat", "a cat ", "same"), ("a dog", "a cat", "better"),
     ("a cat", "a dog", "worse"), ("a cap", "x", "worse"), ("x", "a cap", "better"),
     ("x", "y", "other words")],
)  # fmt: skip
def test_how_an_answer_has_changed(before, now, told):
    assert describe_change(before, now, "a cat") == told


# ------------------------------------------------------------------------------ whole runs


def forgetful(pipeline: Any, out: Any, *more: str) -> list[str]:
    return [
        *vlm(pipeline.align), *SCENES, *LEARN, "stage=sft", "optim.max_steps=4",
        "evaluation.eval_steps=2", "evaluation.max_rows=2", "evaluation.max_new_tokens=2",
        "evaluation.max_text_loss_increase=0", "stage.parts.decoder.learning_rate=0.1",
        "optim.warmup_steps=1", f"output_dir={out}", *more,
    ]  # fmt: skip


def test_the_alarm_stops_a_run_which_then_goes_on(pipeline, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(
        RetentionError, match=r"(?s)step 2: held-out text \(udhr\) has lost .*checkpoint-2 is"
    ):
        run(*forgetful(pipeline, out, "evaluation.on_text_loss_increase=stop"))
    assert (out / "checkpoints/checkpoint-2").is_dir() and not (out / "export").exists()
    assert (out / "report.html").is_file() and not (out / "finished.json").exists()
    run(*forgetful(pipeline, out))
    assert (out / "export").is_dir()
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    told = {line["step"]: line for line in lines if "retention/mean/nll" in line}
    assert told.keys() == {0, 2, 4} and told[0]["retention/mean/nll_increase"] == 0
    for step in (2, 4):
        rise = told[step]["retention/mean/nll"] - told[0]["retention/mean/nll"]
        assert told[step]["retention/mean/nll_increase"] == pytest.approx(rise, abs=1e-9)
    assert "caption/mean/blind_nll" in told[0].keys() & told[4].keys() - told[2].keys()


def test_without_eval_on_start_text_losses_of_step_0_are_there(pipeline, tmp_path, caplog):
    """And the alarm, which then warns."""
    out = tmp_path / "run"
    with caplog.at_level("WARNING"):
        run(*forgetful(pipeline, out, "evaluation.eval_on_start=false"))
    assert "step 2: held-out text (udhr) has lost" in caplog.text
    start = json.loads((out / "evaluation/step-000000.json").read_text())["groups"]
    assert all(
        group["kind"] == "text" and [*group["mean"]][:1] == ["nll"] for group in start.values()
    )
    end = json.loads((out / "evaluation/step-000004.json").read_text())["groups"]
    assert set(end["udhr"]["mean"]) == {"nll", "nll_increase"} and "chrf" in end["scenes"]["mean"]


def test_lora_and_a_reference_tell_kl(pipeline, tmp_path):
    common = ["optim.max_steps=3", "evaluation.generate=false", "evaluation.eval_on_start=false"]
    lora = run(*forgetful(pipeline, tmp_path / "lora", "stage=sft_lora", "adapter.r=2", *common))
    full = run(
        *forgetful(pipeline, tmp_path / "full", f"evaluation.reference={pipeline.text}", *common)
    )
    for folder in (lora, full):
        groups = json.loads((folder / "evaluation/step-000003.json").read_text())["groups"]
        assert all(value > 0 for value in groups["udhr"]["by_language"]["kl"].values())
    with pytest.raises(ConfigError, match="with LoRA the original is at hand"):
        run(*forgetful(pipeline, tmp_path / "no", "stage=sft_lora", "evaluation.reference=given"))


# ------------------------------------------------------------------------------ rows


def test_rows_without_pictures_of_a_source_are_a_group_of_text(pipeline, held_out, model):
    both = [*held_out.groups["scenes"][:4], *held_out.groups["numbers"][:2]]
    groups = apart({"mixed": both, "udhr": held_out.groups["udhr"]})
    assert list(groups) == ["mixed", "mixed_text", "udhr"]
    again = HeldOut(groups, held_out.renderer, batch_size=4, max_new_tokens=2)
    found = again.measure(model)
    assert found["mixed"].kind is GroupKind.captions and "picture_gap" in found["mixed"].by_language
    assert found["mixed_text"].kind is GroupKind.text


def test_the_rows_do_not_depend_on_the_seed_of_a_run(pipeline):
    one, two = (
        [s.row.turns for s in prepare(pipeline.sft, f"seed={seed}").groups["scenes"]]
        for seed in (0, 1)
    )
    assert one == two


def test_a_text_lm_beside_captions_alone_has_nothing_to_measure(pipeline):
    held_out = prepare(
        pipeline.text, "~data.held_out.udhr", "~data.held_out.numbers", text_only=True
    )
    assert held_out.num_rows == 0 and held_out.measure(object()) == {}


def test_the_other_picture_is_of_the_same_language(held_out):
    samples = held_out.groups["scenes"]
    others = other_pictures(samples, held_out.digests(samples))
    assert {samples[j].language == s.language for s, j in zip(samples, others, strict=True)} == {
        True
    }


def test_prompts_answered_together_are_bounded(held_out, model, monkeypatch):
    samples = held_out.groups["scenes"]
    reader = PackedReader(model, held_out.renderer, held_out.pictures, 2)
    longest = max(s.num_tokens for s in samples)
    monkeypatch.setattr("train.measuring.reading.MAX_PROMPT_TOKENS", 3 * longest)
    batches = reader.batches(samples, 32)
    assert sorted(i for b in batches for i in b) == list(range(len(samples)))
    assert all(len(b) * max(samples[i].num_tokens for i in b) <= 3 * longest for b in batches)
    assert max(map(len, batches)) >= 3
    monkeypatch.setattr("train.measuring.reading.MAX_PROMPT_TILES", 2)
    assert {len(b) for b in reader.batches(samples, 32)} == {2}


def test_a_loss_that_is_no_number_is_null_and_rings():
    now = text_result(en=float("nan"), fr=1.0)
    add_increase(now, text_result(en=1.0, fr=1.0))
    told = TextAlarm(0.1).check(now, 3)
    assert told is not None and "has lost nan nats" in told
    text = json.dumps(as_json(now), allow_nan=False)
    assert json.loads(text)["udhr"]["by_language"]["nll"] == {"en": None, "fr": 1.0}
    assert math.isnan(from_json(json.loads(text))["udhr"].by_language["nll"]["en"])


def test_a_group_that_gained_hides_no_other_that_lost():
    now = {**text_result(en=1.3), "numbers": text_result(en=1.0)["udhr"]}
    add_increase(now, {**text_result(en=1.0), "numbers": text_result(en=2.0)["udhr"]})
    told = TextAlarm(0.2).check(now, 3)
    assert told is not None and "held-out text (udhr) has lost 0.300" in told


def test_a_measurement_that_was_cut_is_told_and_not_gone_on_from(tmp_path, caplog):
    folder = RunFolder(tmp_path)
    folder.evaluation.mkdir()
    (folder.evaluation / "step-000000.json").write_text('{"schema": 1, "groups": {"udhr": {')
    assert results_at(folder, 0) == {} and "cannot be read" in caplog.text


def test_the_best_is_not_asked_for_at_step_0(pipeline, tmp_path):
    common = ["evaluation.eval_on_start=false", "optim.max_steps=2"]
    run(*forgetful(pipeline, tmp_path / "run", *common, "checkpoint.best_metric=eval/scenes/nll"))
    with pytest.raises(ConfigError, match="is measured at start and end alone"):
        run(*forgetful(pipeline, tmp_path / "no", "checkpoint.best_metric=caption/mean/blind_nll"))


# ------------------------------------------------------------------------------ shared out


@pytest.mark.parametrize(("count", "in_step"), [(1, False), (2, False), (3, True)])
def test_every_item_is_worked_on_once_and_ranks_stay_in_step(count, in_step, monkeypatch):
    done: list[list[int]] = []

    def rank_alone(rank: int) -> dict[int, int]:
        seen: list[int] = []
        monkeypatch.setattr("train.measuring.shares.gather_objects", lambda found: [found])
        ranks = Ranks(rank, count, in_step)
        with contextlib.suppress(KeyError):  # of what the others would have told
            ranks.map(lambda item: seen.append(item) or item * 10, list(range(7)))
        done.append(seen)
        return {i: i * 10 for i in seen}

    told = [rank_alone(rank) for rank in range(count)]
    assert set().union(*map(set, done)) == set(range(7))
    if in_step:
        assert len({len(seen) for seen in done}) == 1
    monkeypatch.setattr("train.measuring.shares.gather_objects", lambda _: told)
    assert Ranks(0, count, in_step).map(lambda item: item * 10, list(range(7))) == [
        item * 10 for item in range(7)
    ]
