"""Exports are plain Hugging Face folders: loaded by transformers alone, ours out of reach."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from pico_runs import FAST, SCENES, losses, run, vlm, weights
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from configs.command import load_config
from data.processor import load_processor
from data.render import Renderer
from train.measuring.held_out import prepare_held_out
from train.measuring.reading import PackedReader
from train.model.load import load_vlm
from train.model.parts import map_names
from train.model.prepare import prepare_model
from train.saving.card import model_card
from train.saving.export import export_model

FP32 = torch.float32
OUTSIDE = """
import importlib.util, json, os, sys
# An editable install puts the repository on the path, also under -I.
sys.path[:] = [p for p in sys.path if not os.path.isfile(os.path.join(p, "configs", "schema.py"))]
import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText, AutoProcessor, AutoTokenizer, AutoModelForCausalLM,
    BitsAndBytesConfig, pipeline,
)

torch.set_num_threads(1)
ours = [name for name in ("configs", "data", "train", "merge") if importlib.util.find_spec(name)]
folders, picture_paths, asked = json.loads(sys.argv[1])
pictures = [Image.open(path) for path in picture_paths]
told = {"ours": ours}


def message(question, *shown):
    images = [{"type": "image", "image": picture} for picture in shown]
    return [{"role": "user", "content": [*images, {"type": "text", "text": question}]}]


def generate(model, processor, conversations, num=8):
    inputs = processor.apply_chat_template(
        conversations, add_generation_prompt=True, tokenize=True, return_dict=True,
        return_tensors="pt", padding=True, padding_side="left",
    )
    out = model.generate(**inputs.to(model.device), max_new_tokens=num, do_sample=False)
    texts = processor.batch_decode(out[:, inputs["input_ids"].shape[1]:], skip_special_tokens=True)
    return texts, len(inputs["pixel_values"])


sft = folders["sft"]
pipe = pipeline("image-text-to-text", model=sft, device="cpu")
answered = pipe(text=message(asked[0], pictures[0]), max_new_tokens=8, do_sample=False,
                return_full_text=False)
told["pipeline"] = answered[0]["generated_text"]

processor = AutoProcessor.from_pretrained(sft)
model = AutoModelForImageTextToText.from_pretrained(sft).eval()
told["class"] = [type(model).__name__, type(processor).__name__, str(model.dtype)]
told["alone"] = [generate(model, processor, [message(q, p)])[0][0] for q, p in zip(asked, pictures)]
told["two"], told["two_tiles"] = generate(model, processor, [message("?", *pictures[:2])])
mixed = [message(asked[0], pictures[0]), message("? ?", *pictures), message(asked[1], pictures[1])]
told["batch"], told["batch_tiles"] = generate(model, processor, mixed)
told["each"] = [generate(model, processor, [one])[0][0] for one in mixed]

for name in ("merged", "lora"):
    other = AutoModelForImageTextToText.from_pretrained(folders[name]).eval()
    told[name] = generate(other, AutoProcessor.from_pretrained(folders[name]),
                          [message(asked[0], pictures[0])])[0][0]

four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4",
                          bnb_4bit_compute_dtype=torch.float32)
small = AutoModelForImageTextToText.from_pretrained(sft, quantization_config=four).eval()
told["4bit"] = generate(small, processor, [message(asked[0], pictures[0])])[0][0]
kinds = {type(m).__name__ for m in small.model.language_model.modules()}
told["4bit_kinds"] = sorted(kinds & {"Linear4bit", "Linear"})
ids = processor.tokenizer(asked[0], return_tensors="pt").input_ids
with torch.no_grad():
    one, two = (m(input_ids=ids).logits[0].float() for m in (model, small))
told["4bit_cosine"] = torch.nn.functional.cosine_similarity(one, two, dim=-1).min().item()

tokenizer = AutoTokenizer.from_pretrained(folders["text"])
text = AutoModelForCausalLM.from_pretrained(folders["text"]).eval()
ids = tokenizer.apply_chat_template(
    [{"role": "user", "content": asked[2]}], tokenize=True, add_generation_prompt=True,
    return_tensors="pt", return_dict=True,
)
out = text.generate(**ids, max_new_tokens=8, do_sample=False)
told["text"] = tokenizer.decode(out[0, ids["input_ids"].shape[1]:], skip_special_tokens=True)
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def asked(pipeline) -> Any:
    """Held-out rows with our own answers in this process."""
    config = load_config("train", [*FAST, *SCENES])

    def answers(path: Path, group: str) -> Any:
        renderer = Renderer(load_processor(str(path)))
        text_only = group != "scenes"
        held_out = prepare_held_out(config.data, config.evaluation, renderer, text_only=text_only)
        load = AutoModelForCausalLM if text_only else AutoModelForImageTextToText
        model = load.from_pretrained(path).eval()
        samples = held_out.groups[group]
        reader = PackedReader(model, held_out.renderer, held_out.pictures, held_out.max_new_tokens)
        said = dict(
            item
            for batch in reader.batches(samples, held_out.batch_size)
            for item in zip(batch, reader.answers([samples[i] for i in batch]), strict=True)
        )
        return samples, [said[i] for i in range(len(samples))]

    return {
        "sft": answers(pipeline.sft, "scenes"),
        "lora": answers(pipeline.lora, "scenes"),
        "merged": answers(pipeline.merged, "scenes"),
        "text": answers(pipeline.text, "numbers"),
    }


@pytest.fixture(scope="module")
def outside(pipeline, asked, tmp_path_factory) -> dict[str, Any]:
    """What a stranger's machine says: isolated mode, another folder, ours out of reach."""
    folder = tmp_path_factory.mktemp("outside")
    samples, _ = asked["sft"]
    paths = [str(folder / f"{i}.png") for i in range(2)]
    for sample, path in zip(samples, paths, strict=False):
        sample.row.images[0].load().save(path)
    questions = [s.row.turns[0].text for s in (*samples[:2], asked["text"][0][0])]
    folders = {name: str(path) for name, path in vars(pipeline).items()}
    done = subprocess.run(
        [sys.executable, "-I", "-c", OUTSIDE, json.dumps([folders, paths, questions])],
        cwd=folder, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


@pytest.mark.slow
def test_nothing_of_ours_is_needed(outside):
    assert outside["ours"] == []
    assert outside["class"] == [
        "AyaVisionForConditionalGeneration", "AyaVisionProcessor", "torch.float32",
    ]  # fmt: skip


@pytest.mark.slow
def test_pipeline_and_generate_answer_as_we_do(outside, asked):
    ours = asked["sft"][1]
    assert outside["alone"] == ours[:2]
    assert outside["pipeline"] == ours[0]
    for name in ("merged", "lora", "text"):
        assert outside[name] == asked[name][1][0]


@pytest.mark.slow
def test_several_pictures_in_a_message_and_in_a_batch(outside):
    assert outside["two_tiles"] == 2 and len(outside["two"]) == 1
    assert outside["batch_tiles"] == 4
    assert outside["batch"] == outside["each"]


@pytest.mark.slow
def test_4_bits(outside):
    """bitsandbytes nf4 on the CPU; the head and norms keep their precision."""
    assert outside["4bit_kinds"] == ["Linear4bit"]
    assert isinstance(outside["4bit"], str)
    assert outside["4bit_cosine"] > 0.85  # the least of all positions; measured 0.936


# ------------------------------------------------------------------------------ what is written


def test_the_folder(pipeline):
    names = {path.name for path in pipeline.sft.iterdir()}
    assert names == {
        "README.md", "chat_template.jinja", "config.json", "generation_config.json",
        "model.safetensors", "processor_config.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    config = json.loads((pipeline.sft / "config.json").read_text())
    assert config["model_type"] == "aya_vision"
    assert config["architectures"] == ["AyaVisionForConditionalGeneration"]
    assert "sdpa_by_sample" not in json.dumps(config)


def test_weights_have_the_published_names(pipeline):
    """As CohereLabs/aya-vision-8b: what vLLM and merges look for. The tied head is not written."""
    names = set(weights(pipeline.sft))
    prefixes = {name.split(".")[0] for name in names}
    assert prefixes == {"language_model", "multi_modal_projector", "vision_tower"}
    assert "language_model.model.embed_tokens.weight" in names
    assert not any("lm_head" in name for name in names)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("language_field: lang", "files (my.jsonl), languages by its column `lang`"),
        ("language: hi", "files (my.jsonl), in hi"),
        ("weight: 2", "files (my.jsonl)\n"),
    ],
)
def test_the_card_names_the_languages_of_the_rows(given, told):
    """Not those of the rows that ship."""
    source = f"+data.sources.mine={{kind: files, path: my.jsonl, {given}}}"
    config = load_config("train", [source, "output_dir=x", "data.languages=[en,fr]"])
    card = model_card(config, [], {})
    assert f"- `mine`: {told}" in card and "- `scenes`: emoji_scenes, in en, fr" in card


def test_the_card_tells_what_was_done(pipeline):
    card = (pipeline.sft / "README.md").read_text(encoding="utf-8")
    head, body = card.split("---\n")[1:3]
    assert "pipeline_tag: image-text-to-text" in head and "library_name: transformers" in head
    assert "stage `sft`, seed 0" in body and "- `scenes`: emoji_scenes" in body
    assert "| scenes | loss, nats a token |" in body and "| udhr | loss, nats a token |" in body
    assert "pipeline_tag: text-generation" in (pipeline.text / "README.md").read_text()


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o007])
def test_modes_follow_the_umask(umask, pipeline, tmp_path):
    before = os.umask(umask)
    try:
        model = load_vlm(str(pipeline.sft), dtype=torch.float32)
        out = export_model(
            model, load_processor(str(pipeline.sft)), tmp_path / "out", dtype=FP32, card=""
        )
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in out.iterdir()} == {0o666 & ~umask}
    assert out.stat().st_mode & 0o777 == 0o777 & ~umask


def test_an_export_replaces_the_one_before_and_leaves_nothing(pipeline, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/stale.txt").write_text("")
    (tmp_path / ".export-writing").mkdir()
    (tmp_path / ".export-writing/half.safetensors").write_text("")
    model = load_vlm(str(pipeline.sft), dtype=torch.float32)
    export_model(model, load_processor(str(pipeline.sft)), tmp_path / "out", dtype=FP32, card="x")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not (tmp_path / "out/stale.txt").exists()
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        p.name for p in pipeline.sft.iterdir()
    }
    assert all(torch.equal(value, weights(tmp_path / "out")[name])
               for name, value in weights(pipeline.sft).items())  # fmt: skip


# ------------------------------------------------------------------------------ adapters


def test_a_folded_adapter_is_base_plus_adapter(pipeline):
    """W + (alpha / r) B A by hand on the decoder, the projector's own weights, the tower's base."""
    base, folded = weights(pipeline.align), weights(pipeline.lora)
    adapter = weights_of_adapter(pipeline.lora / "adapter")
    assert base.keys() == folded.keys()
    scale = 32 / 4  # lora_alpha / r
    changed = 0
    for name, place in map_names("aya_vision", base).items():
        stem = f"base_model.model.model.language_model.{place.name.removeprefix('model.')}"
        stem = stem.removesuffix(".weight")
        wanted = base[name]
        if place.part == "projector":
            wanted = adapter[f"base_model.model.model.multi_modal_projector.{place.name}"]
        elif f"{stem}.lora_A.weight" in adapter:
            delta = adapter[f"{stem}.lora_B.weight"] @ adapter[f"{stem}.lora_A.weight"]
            wanted = wanted + scale * delta
            changed += 1
        assert torch.equal(folded[name], wanted), name
    assert changed == 4 * 7


def weights_of_adapter(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


def test_the_adapter_beside_is_for_peft(pipeline):
    """On its base it gives the logits of the folded model."""
    base = AutoModelForImageTextToText.from_pretrained(pipeline.align)
    adapted = PeftModel.from_pretrained(base, pipeline.lora / "adapter").eval()
    folded = AutoModelForImageTextToText.from_pretrained(pipeline.lora).eval()
    ids = torch.arange(20, 50)[None]
    with torch.no_grad():
        ours, theirs = folded(input_ids=ids).logits, adapted(input_ids=ids).logits
        apart = (ours - AutoModelForImageTextToText.from_pretrained(pipeline.align).eval()(
            input_ids=ids).logits).abs().max()  # fmt: skip
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)  # measured 2.5e-6, of 3
    assert apart > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [[], ["adapter.use_dora=true"], ["adapter.use_rslora=true"]])
def test_folding_is_done_in_float32_and_keeps_the_dtype(dtype, options, pipeline, tmp_path):
    overrides = [*FAST, *vlm(pipeline.align), *SCENES, "stage=sft_lora", "adapter.r=4", *options,
                 f"model.dtype={str(dtype).removeprefix('torch.')}"]  # fmt: skip
    config = load_config("train", [*overrides, f"output_dir={tmp_path}"])
    processor = load_processor(str(pipeline.align))
    model, _ = prepare_model(config, processor)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    model.eval()
    ids = torch.arange(20, 50)[None]
    with torch.no_grad():
        wanted = model.float()(input_ids=ids).logits
    export_model(model, processor, tmp_path / "out", dtype=dtype, card="")
    stored = weights(tmp_path / "out")
    assert {value.dtype for value in stored.values()} == {dtype}
    again: Any = load_vlm(str(tmp_path / "out"), dtype=torch.float32).eval()
    with torch.no_grad():
        found = again(input_ids=ids).logits
    worst = {torch.float32: 2e-5, torch.bfloat16: 0.2}[dtype]  # measured 3.5e-6 and 0.053, of 3.2
    assert float((found - wanted).abs().max()) < worst


@pytest.mark.parametrize("stage", ["align", "sft", "sft_lora", "scratch"])
def test_bfloat16(stage, pipeline, tmp_path):
    """What trains is held in float32, else steps of 1e-5 are lost; exports are in bfloat16."""
    rates = [f"stage.parts.{part}.learning_rate=1e-5" for part in ("projector", "decoder")]
    command = [*vlm(pipeline.align), *SCENES, f"stage={stage}", *rates, "optim.warmup_steps=0"]
    half = run(*command, "model.dtype=bfloat16", f"output_dir={tmp_path}/half")
    full = run(*command, f"output_dir={tmp_path}/full")
    assert losses(half) == pytest.approx(losses(full), abs=0.02)  # measured 0.003

    before, after = weights(pipeline.align), {}
    if stage != "sft_lora":
        after = weights(half / "checkpoints/checkpoint-4")
        trained = {name for name, value in after.items() if value.dtype == torch.float32}
        assert any("multi_modal_projector" in name for name in trained)
        assert any("language_model" in name for name in trained) is (stage != "align")
        for name in (name for name in trained if "post_layernorm" not in name):
            start = before[name].bfloat16().float()
            assert (after[name] != start).float().mean() > 0.9, name
    assert {value.dtype for value in weights(half / "export").values()} == {torch.bfloat16}
    model = AutoModelForImageTextToText.from_pretrained(half / "export")
    assert model.dtype == torch.bfloat16
    answers = (half / "evaluation/step-000004.json").read_text()
    assert json.loads(answers)["groups"]["scenes"]["answers"]  # generated beside float32 projectors
