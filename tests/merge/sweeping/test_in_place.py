"""The model at an alpha is bit for bit the checkpoint that a merge writes at that alpha."""

from pathlib import Path
from typing import Any

import pytest
import torch
from merge_pico import DTYPES, Pair, edit, load, make_text, make_vlm, same_bits, save_pair
from transformers import AutoModelForImageTextToText

from merge.api import merge_checkpoints
from merge.matching.plan import plan_merge
from merge.recipe.recipe import make_recipe
from merge.sweeping.in_place import AlphaDial
from train.model.parts import map_names


def load_model(folder: Path) -> Any:
    return AutoModelForImageTextToText.from_pretrained(folder, dtype="auto").eval()


def dial_of(pair: Pair) -> tuple[Any, AlphaDial]:
    model = load_model(pair.vlm)
    return model, AlphaDial(model, plan_merge(pair.vlm, pair.text).table)


def assert_holds(model: Any, folder: Path) -> None:
    stored = load(folder)
    wanted = {place: stored[name] for name, place in map_names("aya_vision", stored).items()}
    parameters = dict(model.named_parameters())
    live = {place: parameters[name] for name, place in map_names("aya_vision", parameters).items()}
    assert live.keys() == wanted.keys()
    for place, value in wanted.items():
        assert same_bits(live[place].detach(), value), place


@pytest.mark.parametrize("alpha", [0, 0.3, 0.4, 0.999, 1])
def test_equals_the_checkpoint(alpha, pair, tmp_path):
    merge_checkpoints(vlm=pair.vlm, text=pair.text, out=tmp_path / "out", alpha=alpha)
    model, dial = dial_of(pair)
    dial.set(make_recipe(alpha=alpha))
    assert_holds(model, tmp_path / "out")


def test_moved_back_and_forth_without_drift(bf16_pair, tmp_path):
    """From the originals each time: no rounding adds up, also where alpha 1 is left for good."""
    model, dial = dial_of(bf16_pair)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for alpha in (0.5, 0, 1, 0.3, 0.7, 0.1, 0.9, 0, 0.4):
        dial.set(make_recipe(alpha=alpha))
    merge_checkpoints(vlm=bf16_pair.vlm, text=bf16_pair.text, out=tmp_path / "out", alpha=0.4)
    assert_holds(model, tmp_path / "out")
    dial.set(make_recipe(alpha=1))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_tied_head_follows(bf16_pair):
    model, dial = dial_of(bf16_pair)
    dial.set(make_recipe(alpha=0.5))
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_an_untied_head_moves_too(tmp_path):
    text = make_text(tie_word_embeddings=False)
    vlm = make_vlm(text)
    vlm.config.tie_word_embeddings = False
    vlm.lm_head.weight = torch.nn.Parameter(text.lm_head.weight + 0.01)
    vlm.save_pretrained(tmp_path / "vlm")
    text.save_pretrained(tmp_path / "text")
    pair = Pair(tmp_path / "vlm", tmp_path / "text")
    merge_checkpoints(vlm=pair.vlm, text=pair.text, out=tmp_path / "out", alpha=0.5)
    model, dial = dial_of(pair)
    dial.set(make_recipe(alpha=0.5))
    assert_holds(model, tmp_path / "out")


def test_a_taller_vlm_keeps_its_rows(copy_pair, tmp_path):
    """Tokens that the text LM does not have come from the VLM at every alpha."""
    import json

    from merge_pico import edit_config

    name = "language_model.model.embed_tokens.weight"
    extra = torch.full((3, 32), 0.125, dtype=torch.bfloat16)
    edit(copy_pair.vlm, lambda tensors: tensors | {name: torch.cat([tensors[name], extra])})
    config = json.loads((copy_pair.vlm / "config.json").read_text())
    edit_config(copy_pair.vlm, text_config=config["text_config"] | {"vocab_size": 67})
    for alpha in (0, 0.4):
        out = tmp_path / f"out{alpha}"
        merge_checkpoints(vlm=copy_pair.vlm, text=copy_pair.text, out=out, alpha=alpha)
        model, dial = dial_of(copy_pair)
        dial.set(make_recipe(alpha=alpha))
        assert_holds(model, out)
        assert torch.equal(model.get_input_embeddings().weight[64:], extra)


def test_a_float32_text_lm_under_a_bfloat16_vlm(copy_pair, tmp_path):
    edit(copy_pair.text, lambda tensors: {k: v.float() * 1.001 for k, v in tensors.items()})
    merge_checkpoints(vlm=copy_pair.vlm, text=copy_pair.text, out=tmp_path / "out", alpha=0.4)
    model, dial = dial_of(copy_pair)
    dial.set(make_recipe(alpha=0.4))
    assert_holds(model, tmp_path / "out")


def test_shards(tmp_path):
    pair = save_pair(tmp_path / "in", DTYPES["bf16"], max_shard_size="20KB")
    assert len(list(pair.vlm.glob("*.safetensors"))) > 3
    merge_checkpoints(vlm=pair.vlm, text=pair.text, out=tmp_path / "out", alpha=0.4)
    model, dial = dial_of(pair)
    dial.set(make_recipe(alpha=0.4))
    assert_holds(model, tmp_path / "out")


def test_nothing_but_the_decoder_moves(bf16_pair):
    model, dial = dial_of(bf16_pair)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    dial.set(make_recipe(alpha=0.5))
    moved = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    assert moved and all("language_model" in n or n == "lm_head.weight" for n in moved)
    assert {n for n in before if "language_model" in n} <= moved
