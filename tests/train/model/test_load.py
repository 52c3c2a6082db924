"""Loading: weights are those of the files, whatever their layout; what is made up, left over or
untied is refused."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pico_families import FAMILIES, save_text_lm
from pico_models import make_aya
from pico_runs import FAST, SCENES, vlm, weights
from safetensors.torch import save_file

from configs.command import load_config
from configs.errors import CheckpointError
from data.processor import load
from train.model.load import load_text_lm, load_vlm, load_weights
from train.model.parts import map_names
from train.run import train

F32 = torch.float32
POSITIONS = "embeddings.position_embedding.weight"


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, Any]]) -> None:
    """Change the tensors of a one-file checkpoint."""
    tensors = change(weights(folder))
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip


def add(**tensors: torch.Tensor) -> Any:
    return lambda old: old | {name.replace("__", "."): value for name, value in tensors.items()}


@pytest.fixture
def aya(tmp_path: Path) -> Path:
    make_aya().save_pretrained(tmp_path / "aya")
    return tmp_path / "aya"


def test_a_text_lm_is_no_vlm(pipeline, tmp_path):
    overrides = [*FAST, *vlm(pipeline.text), *SCENES, "stage=sft", f"output_dir={tmp_path}/run"]
    with pytest.raises(CheckpointError, match=r"holds no processor for pictures"):
        train(load_config("train", overrides))
    message = r"is a cohere2 without vision, but .* grafted with model=compose model.decoder.path="
    with pytest.raises(CheckpointError, match=message):
        load_vlm(str(pipeline.text), dtype=F32)
    assert not (tmp_path / "run").exists()


def test_a_vlm_is_no_text_lm(pipeline, tmp_path):
    message = r"is a vision-language model \(aya_vision\), but a text LM .* model=vlm model.path="
    with pytest.raises(CheckpointError, match=message):
        load_text_lm(str(pipeline.sft), dtype=F32)
    overrides = ["model=compose", f"model.decoder.path={pipeline.sft}", *SCENES, "stage=align"]
    with pytest.raises(CheckpointError, match=message):
        train(load_config("train", [*FAST, *overrides, f"output_dir={tmp_path}/run"]))


@pytest.mark.parametrize(
    "name", ["layers.1.mlp.up_proj.weight", "multi_modal_projector.linear_1.bias", POSITIONS]
)
def test_a_missing_weight_is_refused(name, aya):
    rewrite(aya, lambda old: {key: value for key, value in old.items() if not key.endswith(name)})
    with pytest.raises(CheckpointError, match=rf"lacks 1 weights .*random: .*{name}"):
        load_vlm(str(aya), dtype=F32)


def test_a_weight_of_another_shape_is_refused(tmp_path):
    save_text_lm("cohere2", tmp_path)
    rewrite(tmp_path, add(model__norm__weight=torch.ones(33)))
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight \(there \[33\], wanted \[32\]"):
        load_text_lm(str(tmp_path), dtype=F32)


def test_a_file_that_was_not_copied_to_its_end_is_named(aya):
    (file,) = aya.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-100])
    message = rf"{file.name}: .*\n  fetch it again"
    with pytest.raises(CheckpointError, match=message):
        load_vlm(str(aya), dtype=F32)


def test_a_hub_that_cannot_be_reached_is_told():
    class Unreachable:
        @staticmethod
        def from_pretrained(path):
            raise OSError("We couldn't connect to 'https://huggingface.co' to load the files")

    with pytest.raises(CheckpointError, match="no folder 'ORG/NAME' is here, and the hub cannot"):
        load("processor", Unreachable, "ORG/NAME")


def test_weights_of_another_model_are_not_copied_in(aya):
    model = load_vlm(str(aya), dtype=F32)
    rewrite(aya, add(model__language_model__layers__9__mlp__up_proj__weight=torch.ones(2, 2)))
    with pytest.raises(CheckpointError, match=r"holds .*layers\.9.*, which the model has not"):
        load_weights(model, aya)


def test_a_weight_left_over_is_refused(aya, tmp_path):
    rewrite(aya, add(language_model__model__layers__4__input_layernorm__weight=torch.ones(32)))
    message = r"holds 1 weights that a AyaVision.* no place for, .*layers\.4\.input_layernorm"
    with pytest.raises(CheckpointError, match=message):
        load_vlm(str(aya), dtype=F32)
    save_text_lm("llama", tmp_path / "text")
    rewrite(tmp_path / "text", add(model__layers__0__self_attn__q_proj__bias=torch.ones(32)))
    with pytest.raises(
        CheckpointError, match=r"no place for, .* model\.layers\.0\.self_attn\.q_pr"
    ):
        load_text_lm(str(tmp_path / "text"), dtype=F32)


def test_tables_of_old_files_may_be_left_over(tmp_path):
    save_text_lm("llama", tmp_path)
    rewrite(tmp_path, add(model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(4)))
    load_text_lm(str(tmp_path), dtype=F32)


def test_a_folder_that_is_not_there():
    with pytest.raises(CheckpointError, match="no text LM in '/nowhere': there is no such folder"):
        load_text_lm("/nowhere", dtype=F32)


# ------------------------------------------------------------------------------ tied heads


@pytest.mark.parametrize("name", FAMILIES)
def test_a_head_that_differs_in_a_tied_file_is_refused(name, tmp_path):
    """transformers (5.23) keeps both, with a warning; an equal one is nothing but tied."""
    model = save_text_lm(name, tmp_path)
    head = model.lm_head.weight.detach().clone()
    rewrite(tmp_path, lambda old: old | {"lm_head.weight": head})
    load_text_lm(str(tmp_path), dtype=F32)
    rewrite(tmp_path, lambda old: old | {"lm_head.weight": head + 1})
    message = r"holds an lm_head that differs from the word embeddings, .*\(tie_word_embeddings\)"
    with pytest.raises(CheckpointError, match=message):
        load_text_lm(str(tmp_path), dtype=F32)


def test_so_it_is_in_a_vlm(aya):
    head = weights(aya)["language_model.model.embed_tokens.weight"]
    rewrite(aya, lambda old: old | {"language_model.lm_head.weight": head + 1})
    with pytest.raises(
        CheckpointError, match=r"set that to false in its config.json, or take lm_h"
    ):
        load_vlm(str(aya), dtype=F32)
    config = json.loads((aya / "config.json").read_text())
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = False
    (aya / "config.json").write_text(json.dumps(config))
    model: Any = load_vlm(str(aya), dtype=F32)
    assert torch.equal(model.lm_head.weight, head + 1)


# --------------------------------------------------------------------------------- layouts


def before_4_52(name: str) -> str:
    """As the released files of Aya Vision have it."""
    return re.sub(r"^vision_tower\.(?!vision_model\.)", "vision_tower.vision_model.", name)


def from_4_52(name: str) -> str:
    """As modules were called in memory from then on, and saved by some."""
    name = re.sub(r"^language_model\.lm_head\.", "lm_head.", name)
    name = re.sub(r"^language_model\.model\.", "model.language_model.", name)
    return re.sub(r"^(vision_tower|multi_modal_projector)\.", r"model.\1.", name)


def both(name: str) -> str:
    """In memory, with the tower's older names."""
    return re.sub(r"^model\.vision_tower\.", "model.vision_tower.vision_model.", from_4_52(name))


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("layout", [str, before_4_52, from_4_52, both], ids=lambda f: f.__name__)
def test_every_layout_loads_to_the_same_weights(layout, tied, tmp_path):
    original = make_aya(tied=tied)
    original.save_pretrained(tmp_path)
    changed = {layout(name): value for name, value in weights(tmp_path).items()}
    assert (set(changed) == set(weights(tmp_path))) is (layout is str)
    rewrite(tmp_path, lambda _: changed)
    model = load_vlm(str(tmp_path), dtype=F32)
    wanted, found = original.state_dict(), model.state_dict()
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)
    assert map_names("aya_vision", changed).keys() == changed.keys()


def test_a_whole_pooling_head_that_the_config_has_no_use_for(aya):
    """Released files may hold one beside vision_use_head=false."""
    rewrite(aya, add(vision_tower__vision_model__head__probe=torch.ones(1, 1, 16)))
    load_vlm(str(aya), dtype=F32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_dtype_is_the_one_asked_for(dtype, aya):
    """Whatever config.json says: that of the released 8B says float16."""
    config = json.loads((aya / "config.json").read_text())
    for part in (config, config["text_config"], config["vision_config"]):
        part["dtype"] = "float16"
    (aya / "config.json").write_text(json.dumps(config))
    model = load_vlm(str(aya), dtype=dtype)
    assert {p.dtype for p in model.parameters()} == {dtype}


def test_a_loaded_vlm_is_the_file(pipeline):
    model = load_vlm(str(pipeline.sft), dtype=F32)
    stored = weights(pipeline.sft)
    places = map_names("aya_vision", dict(model.named_parameters()))
    live = {place: model.get_parameter(name) for name, place in places.items()}
    wanted = {place: stored[name] for name, place in map_names("aya_vision", stored).items()}
    assert live.keys() == wanted.keys()
    assert all(torch.equal(live[place], wanted[place]) for place in live)
