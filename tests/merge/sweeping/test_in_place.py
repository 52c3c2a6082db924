"""The model at an alpha is bit for bit the checkpoint that a merge writes at that alpha."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapter_pico import PROJECTOR, save_adapter
from merge_pico import (
    DTYPES,
    IMAGE_TOKEN,
    Pair,
    edit,
    load,
    same_bits,
    save_pair,
    save_untied_pair,
)
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


SCHEDULES: dict[str, dict[str, Any]] = {
    "falling": {"alpha": [0.8, 0.2]},
    "points": {"alpha": [[0, 0.9], [0.5, 0.3], [1, 0.6]]},
    "kinds": {"alpha": 0.4, "alpha_overrides": {"embeddings": 0, "mlp": 1, "norms": 0.7}},
    "names": {"alpha": 0, "alpha_overrides": {r"layers\.[12]\.": [0.1, 0.9]}},
}


def alpha_of(name: str, schedule: dict[str, Any], number_of_layers: int = 4) -> float:
    """The alpha of a tensor, in the plainest way."""
    found = re.search(r"layers\.(\d+)\.", name)
    depth = int(found.group(1)) / (number_of_layers - 1) if found else float("embed" not in name)
    kinds = {"embeddings": "embed_tokens", "mlp": r"\.mlp\.", "norms": r"norm\.weight$"}
    alpha = schedule["alpha"]
    for key, value in schedule.get("alpha_overrides", {}).items():
        if re.search(kinds.get(key, key), name):
            alpha = value
    if not isinstance(alpha, list):
        return float(alpha)
    points = alpha if isinstance(alpha[0], list) else [[0, alpha[0]], [1, alpha[1]]]
    return float(np.interp(depth, *zip(*points, strict=True)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_schedules_without_drift_in_every_dtype(dtype, tmp_path):
    """Whatever was set before, each is the formula in fp32 by numpy, and one cast."""
    pair = save_pair(tmp_path / "in", dtype)
    text, vlm = load(pair.text), load(pair.vlm)
    model = AutoModelForImageTextToText.from_pretrained(pair.vlm, dtype=dtype).eval()
    dial = AlphaDial(model, plan_merge(pair.vlm, pair.text).table)
    live = dict(model.named_parameters())
    for key in ("falling", "kinds", "points", "falling", "names", "points", "kinds"):
        dial.set(make_recipe(**SCHEDULES[key]))
        for name, before in text.items():
            alpha = np.float32(alpha_of(name, SCHEDULES[key]))
            start, end = before.float().numpy(), vlm[f"language_model.{name}"].float().numpy()
            mixed = start + alpha * (end - start)
            wanted = torch.from_numpy(end if alpha == 1 else start if alpha == 0 else mixed)
            wanted = wanted.to(dtype)
            if "embed_tokens" in name:
                wanted[IMAGE_TOKEN] = vlm[f"language_model.{name}"][IMAGE_TOKEN]
            found = live[f"model.language_model.{name.removeprefix('model.')}"].detach()
            assert same_bits(found, wanted), (key, name)
    dial.set(make_recipe(alpha=1))
    assert_holds(model, pair.vlm)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_schedule_equals_the_checkpoint(dtype, tmp_path):
    pair = save_pair(tmp_path / "in", DTYPES[dtype])
    schedule = SCHEDULES["kinds"]
    merge_checkpoints(
        vlm=pair.vlm, text=pair.text, out=tmp_path / "out", alpha=schedule["alpha"],
        recipe={"alpha_overrides": schedule["alpha_overrides"]}, verify_logits=False,
    )  # fmt: skip
    model, dial = dial_of(pair)
    dial.set(make_recipe(**schedule))
    assert_holds(model, tmp_path / "out")


@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_threads_change_no_bit(num_threads, bf16_pair, tmp_path):
    merge_checkpoints(vlm=bf16_pair.vlm, text=bf16_pair.text, out=tmp_path / "out", alpha=0.4)
    model = load_model(bf16_pair.vlm)
    table = plan_merge(bf16_pair.vlm, bf16_pair.text).table
    AlphaDial(model, table, num_threads=num_threads).set(make_recipe(alpha=0.4))
    assert_holds(model, tmp_path / "out")
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("variant", [{}, dict(use_dora=True)])
def test_an_adapter_in_place(variant, pair, tmp_path):
    """The decoder's change at every alpha, the projector's in full: what a merge writes."""
    adapter = save_adapter(pair.vlm, tmp_path / "adapter", modules_to_save=PROJECTOR, **variant)
    model = load_model(pair.vlm)
    dial = AlphaDial(model, plan_merge(pair.vlm, pair.text, lora=adapter).table, num_threads=2)
    for alpha in (1, 0.4, 0, 0.4):
        out = tmp_path / f"out{alpha}"
        if not out.exists():
            merge_checkpoints(
                vlm=pair.vlm, text=pair.text, lora=adapter, out=out, alpha=alpha, verify=False
            )
        dial.set(make_recipe(alpha=alpha))
        assert_holds(model, out)


def test_what_a_thread_cannot_do_is_an_error(bf16_pair, monkeypatch):
    """Else a decoder would be half of one candidate and half of another."""
    _, dial = dial_of(bf16_pair)

    def broken(*_: object, **__: object) -> torch.Tensor:
        raise MemoryError("no room")

    monkeypatch.setattr("merge.sweeping.in_place.merge_whole", broken)
    with pytest.raises(MemoryError, match="no room"):
        dial.set(make_recipe(alpha=0.4))


def test_the_tied_head_follows(bf16_pair):
    model, dial = dial_of(bf16_pair)
    dial.set(make_recipe(alpha=0.5))
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_an_untied_head_moves_too(tmp_path):
    pair = save_untied_pair(tmp_path)
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
