"""Every family from its folder to a model that plain transformers runs: graft, train, export."""

import json
from typing import Any

import pytest
import torch
from pico_families import FAMILIES, make_tokenizer, save_text_lm
from pico_runs import FAST, losses, run, weights
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    pipeline,
)

from data.render import Renderer
from merge.api import merge_checkpoints
from train.model.load import load_vlm

SIZES = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
RUN = [
    "data=scenes", "data.sources.scenes.num_rows=24", "data.held_out.scenes.num_rows=2",
    "optim.max_steps=3", "optim.warmup_steps=0", "data.max_tokens=1024",
    "model.projector_intermediate_size=64", "stage=sft",
    "stage.parts.decoder.learning_rate=3e-3", "stage.parts.projector.learning_rate=3e-3",
]  # fmt: skip


def save_tower(kind: str, folder: Any) -> None:
    """A tower of 9 x 9 patches of 4 pixels: alone, in a whole SigLIP, or as NaFlex."""
    torch.manual_seed(2)
    if kind == "naflex":
        model: Any = Siglip2VisionModel(Siglip2VisionConfig(**SIZES, num_patches=81, patch_size=4))
    elif kind == "whole":
        vision = SIZES | dict(image_size=36, patch_size=4)
        model = SiglipModel(
            SiglipConfig(text_config=SIZES | dict(vocab_size=32), vision_config=vision)
        )
    else:
        model = SiglipVisionModel(SiglipVisionConfig(**SIZES, image_size=36, patch_size=4))
    model.save_pretrained(folder)


def talk(words: str = "What?") -> list[dict[str, Any]]:
    picture = Image.new("RGB", (40, 30), (200, 30, 60))
    pieces = [{"type": "image", "image": picture}, {"type": "text", "text": words}]
    return [{"role": "user", "content": pieces}]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "tower", "tied"),
    [
        ("cohere2", "whole", True), ("cohere", "alone", True), ("llama", "alone", False),
        ("qwen3", "naflex", True), ("gemma3_text", "whole", True), ("mistral", "naflex", False),
    ],
)  # fmt: skip
def test_from_a_text_lm_to_answers_about_pictures(name, tower, tied, tmp_path):
    text_lm = save_text_lm(name, tmp_path / "text", tied=tied)
    save_tower(tower, tmp_path / "tower")
    run("model=compose", f"model.decoder.path={tmp_path}/text",
        f"model.vision_tower.path={tmp_path}/tower", *RUN,
        f"output_dir={tmp_path}/run")  # fmt: skip
    found = losses(tmp_path / "run")
    assert found[3] < found[1], found
    export = tmp_path / "run/export"
    check_export(export, text_lm, name, tied)
    check_answers(export, name)
    merge_checkpoints(vlm=export, text=tmp_path / "text", out=tmp_path / "merged", alpha=0.0)
    check_text_is_back(tmp_path / "merged", text_lm, name)


def check_export(export: Any, text_lm: Any, name: str, tied: bool) -> None:
    """Loaded by plain transformers it is what we load, with the LM's own template and ending."""
    config = json.loads((export / "config.json").read_text())
    assert config["text_config"]["model_type"] == text_lm.config.model_type
    assert config["text_config"]["vocab_size"] >= text_lm.config.vocab_size
    assert config["vision_config"]["image_size"] == 32
    assert config["vision_config"]["model_type"] == "siglip_vision_model"
    assert ("language_model.lm_head.weight" in weights(export)) is not tied
    processor = AutoProcessor.from_pretrained(export)
    assert processor.chat_template.endswith(FAMILIES[name].template)
    assert processor.image_token == FAMILIES[name].placeholder
    tokenizer = make_tokenizer(name)
    ends = json.loads((export / "generation_config.json").read_text())["eos_token_id"]
    stop = tokenizer.convert_tokens_to_ids(FAMILIES[name].stop)
    assert set(ends if isinstance(ends, list) else [ends]) == {stop, tokenizer.eos_token_id}
    inputs = processor.apply_chat_template(
        talk(), tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    with torch.no_grad():
        plain = AutoModelForImageTextToText.from_pretrained(export)(**inputs).logits
        assert torch.equal(load_vlm(str(export), dtype=torch.float32)(**inputs).logits, plain)
    assert len(inputs["pixel_values"]) == 1
    assert int((inputs["input_ids"] == config["image_token_index"]).sum()) == 16


def check_answers(export: Any, name: str) -> None:
    """`pipeline` answers about a picture, and stops where a turn ends."""
    ask = pipeline("image-text-to-text", model=str(export))
    options = dict(return_full_text=False, max_new_tokens=4)
    answer = ask(text=talk(), **options)[0]["generated_text"]
    assert isinstance(answer, str)
    stop = ask.tokenizer.convert_tokens_to_ids(FAMILIES[name].stop)
    assert Renderer(ask.processor).stop_token_id == stop
    head = ask.model.lm_head
    head.weight = torch.nn.Parameter(torch.zeros_like(head.weight))
    head.bias = torch.nn.Parameter(
        torch.nn.functional.one_hot(torch.tensor(stop), len(head.weight)).float()
    )
    inputs = ask.processor.apply_chat_template(
        talk(), tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    out = ask.model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert out[0, inputs["input_ids"].shape[1] :].tolist() == [stop]


@torch.no_grad()
def check_text_is_back(merged: Any, text_lm: Any, name: str) -> None:
    """At alpha 0 the decoder is the text LM's, so its text logits are, for all tokens it had.

    Rows of picture tokens are the VLM's; Gemma's text LM has one of those too.
    """
    report = json.loads((merged / "merge_report.json").read_text())
    special = {int(row) for row in report["relatives"]["tokens"]["vlm_rows"]}
    ids = torch.tensor([row for row in range(6, 60) if row not in special])[None]
    model: Any = load_vlm(str(merged), dtype=torch.float32)
    scale = getattr(text_lm.config, "logit_scale", None) or 1.0
    known = [row for row in range(len(make_tokenizer(name))) if row not in special]
    found, wanted = model(input_ids=ids).logits * scale, text_lm(input_ids=ids).logits
    assert torch.equal(found[..., known], wanted[..., known])


def test_the_run_is_refused_before_weights_load(tmp_path):
    """A text LM without a chat template: said at once, nothing is written."""
    from configs.command import load_config
    from configs.errors import CheckpointError
    from train.run import train

    save_text_lm("llama", tmp_path / "text")
    (tmp_path / "text/chat_template.jinja").unlink()
    (tmp_path / "text/model.safetensors").unlink()
    overrides = ["model=compose", f"model.decoder.path={tmp_path}/text", *RUN]
    with pytest.raises(CheckpointError, match="tokenizer has no chat template"):
        train(load_config("train", [*FAST, *overrides, f"output_dir={tmp_path}/run"]))
    assert not (tmp_path / "run").exists()
