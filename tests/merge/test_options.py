"""What a merge can be asked for: dtypes, schedules, methods, threads, what is not finite."""

import errno
import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from merge_pico import (
    IMAGE_TOKEN,
    Pair,
    Tensors,
    edit,
    load,
    make_text,
    make_vlm,
    same_bits,
    save_pair,
    text_name,
)
from transformers import AutoModelForImageTextToText

from configs.errors import CheckpointError, ConfigError, DiskError
from merge.api import merge_checkpoints, verify_folder
from merge.matching.plan import plan_merge
from merge.recipe import segments
from merge.recipe.apply import merge_whole
from merge.recipe.recipe import make_recipe
from merge.writing import copies, writer

EMBEDDING = "language_model.model.embed_tokens.weight"
UP = "model.layers.0.mlp.up_proj.weight"
WEIGHTS = "model.safetensors"


def merge(pair: Pair, out: Path, alpha: object = 0.4, **options: Any) -> dict[str, Any]:
    return merge_checkpoints(vlm=pair.vlm, text=pair.text, out=out, alpha=alpha, **options)


def naive(pair: Pair, alpha_of: Any, dtype: torch.dtype) -> Tensors:
    """Every tensor of the merged checkpoint, one operation after the other, in numpy."""
    vlm, text = load(pair.vlm), load(pair.text)
    wanted = {}
    for name, value in vlm.items():
        result = value.float()
        if decoder_name := text_name(name):
            one, two = text[decoder_name].float().numpy(), result.numpy()
            alpha = np.float32(alpha_of(decoder_name))
            result = torch.from_numpy(one + alpha * (two - one))
            if name == EMBEDDING:
                result[IMAGE_TOKEN] = value[IMAGE_TOKEN].float()
        wanted[name] = result.to(dtype)
    return wanted


def assert_equal(out: Path, wanted: Tensors) -> None:
    found = load(out)
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if not same_bits(found[name], wanted[name])] == []


# --------------------------------------------------------------------------------- dtype


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_dtype_of_the_output(dtype, pair, tmp_path):
    report = merge(pair, tmp_path / "out", dtype=dtype)
    assert_equal(tmp_path / "out", naive(pair, lambda _: 0.4, getattr(torch, dtype)))
    config = json.loads((tmp_path / "out/config.json").read_text())
    stated = [part.get("dtype", part.get("torch_dtype"))
              for part in (config, config["text_config"], config["vision_config"])]  # fmt: skip
    assert {name for name in stated if name} == {dtype}
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype="auto")
    assert model.dtype == getattr(torch, dtype)
    assert report["verified"]["logits_compared"] == "text"
    assert verify_folder(tmp_path / "out")["every_element"]


@pytest.mark.parametrize("alpha", [0, 1])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_end_points_in_another_dtype_are_casts(alpha, dtype, pair, tmp_path):
    merge(pair, tmp_path / "out", alpha, dtype=dtype)
    wanted = naive(pair, lambda _: alpha, getattr(torch, dtype))
    vlm, text, found = load(pair.vlm), load(pair.text), load(tmp_path / "out")
    for name, value in found.items():
        source = vlm[name]
        if alpha == 0 and (decoder_name := text_name(name)):
            source = text[decoder_name].clone()
            if name == EMBEDDING:
                source[IMAGE_TOKEN] = vlm[name][IMAGE_TOKEN]
        assert same_bits(value, source.to(value.dtype)), name
    assert found.keys() == wanted.keys()


def test_a_dtype_that_there_is_not(bf16_pair, tmp_path):
    with pytest.raises(ConfigError, match=r"dtype='fp16': give one of same, bfloat16"):
        merge(bf16_pair, tmp_path / "out", dtype="fp16")


def test_headers_of_another_dtype_are_read_by_safetensors(tmp_path):
    sharded = save_pair(tmp_path, torch.bfloat16, max_shard_size="20KB")
    merge(sharded, tmp_path / "out", dtype="float32")
    assert_equal(tmp_path / "out", naive(sharded, lambda _: 0.4, torch.float32))
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in load(tmp_path / "out").values())
    before = json.loads((sharded.vlm / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == before["weight_map"]
    for path in (tmp_path / "out").glob("*.safetensors"):
        header = path.read_bytes()
        assert (8 + int.from_bytes(header[:8], "little")) % 8 == 0


def test_a_wrong_total_size_is_mended(tmp_path):
    sharded = save_pair(tmp_path, torch.bfloat16, max_shard_size="20KB")
    path = sharded.vlm / "model.safetensors.index.json"
    content = json.loads(path.read_text())
    size = content["metadata"]["total_size"]
    content["metadata"]["total_size"] = 7
    path.write_text(json.dumps(content))
    merge(sharded, tmp_path / "out")
    written = json.loads((tmp_path / "out" / path.name).read_text())
    assert written["metadata"]["total_size"] == size


def test_how_much_of_a_small_change_bfloat16_keeps(tmp_path):
    """A relative delta of 1 %, alpha 0.3: a quarter of the values that should move do not."""
    text = make_text(hidden_size=128, intermediate_size=256)
    make_vlm(text, delta=0.01).to(torch.bfloat16).save_pretrained(tmp_path / "vlm")
    text.to(torch.bfloat16).save_pretrained(tmp_path / "text")
    pair = Pair(tmp_path / "vlm", tmp_path / "text")
    half = merge(pair, tmp_path / "bf16", 0.3)["rounding"]
    whole = merge(pair, tmp_path / "fp32", 0.3, dtype="float32")["rounding"]
    assert {*half} == {"all", "model.embed_tokens.weight", "model.norm.weight",
                       *(f"layer {i}" for i in range(4))}  # fmt: skip
    measured = half["layer 1"]
    vlm, start, out = load(pair.vlm), load(pair.text), load(tmp_path / "bf16")
    intended = kept = error = same = count = 0.0
    for name in start:
        if name.startswith("model.layers.1."):
            one, stored = start[name].float(), out[f"language_model.{name}"].float()
            wanted = 0.3 * (vlm[f"language_model.{name}"].float() - one)
            intended += float((wanted**2).sum())
            kept += float(((stored - one) * wanted).sum())
            error += float(((stored - one - wanted) ** 2).sum())
            same += float(((stored == one) & (wanted != 0)).sum())
            count += one.numel()
    assert measured["num_sampled"] == count
    assert measured["unchanged_ratio"] == pytest.approx(same / count, abs=1e-3)
    assert measured["kept_ratio"] == pytest.approx(kept / intended, rel=1e-3)
    assert measured["error_ratio"] == pytest.approx((error / intended) ** 0.5, rel=1e-3)
    assert 0.2 < measured["unchanged_ratio"] < 0.4 and measured["error_ratio"] > 0.3
    assert whole["all"]["kept_ratio"] == pytest.approx(1, abs=1e-4)
    assert whole["all"]["error_ratio"] < 1e-4


# ------------------------------------------------------------------------- schedules, methods


def test_a_schedule_over_depth_with_overrides(pair, tmp_path):
    overrides = {"embeddings": 0.9, "norms": 0.0, r"layers\.3\.mlp": [0.1, 0.3]}
    report = merge(pair, tmp_path / "out", [0.8, 0.2], recipe={"alpha_overrides": overrides})

    def alpha_of(name: str) -> float:
        if name == "model.embed_tokens.weight":
            return 0.9
        if "norm" in name:
            return 0.0
        layer = int(name.split(".")[2])
        if layer == 3 and ".mlp." in name:
            return 0.1 + (0.3 - 0.1) * 1.0
        return 0.8 + (0.2 - 0.8) * (layer / 3)

    out, wanted = load(tmp_path / "out"), naive(pair, alpha_of, load(pair.vlm)[EMBEDDING].dtype)
    for name, value in wanted.items():
        apart = (out[name].float() - value.float()).abs().max()  # the alpha's last bit
        assert apart <= 1e-2 * value.float().abs().max() and same_bits(out[name], value), name
    alphas = {entry["name"]: entry["alpha"] for entry in report["tensors"]}
    assert alphas[EMBEDDING] == 0.9 and alphas["language_model.model.norm.weight"] == 0
    assert report["alpha"] == (
        r"0.8 -> 0.2 (embeddings: 0.9, norms: 0, layers\.3\.mlp: 0.1 -> 0.3)"
    )
    assert verify_folder(tmp_path / "out")["every_element"]


def test_unused_overrides_are_refused_before_anything_is_written(bf16_pair, tmp_path):
    with pytest.raises(ConfigError, match=r"1 of 1 decide about no tensor .*: layers.9"):
        merge(bf16_pair, tmp_path / "out", recipe={"alpha_overrides": {"layers.9": 0.1}})
    assert list(tmp_path.iterdir()) == []


RECIPES: dict[str, dict[str, Any]] = {
    "slerp": {},
    "task_arithmetic": {},
    "ties": dict(density=0.4),
    "dare": dict(density=0.5, drop_seed=3),
    "dare_ties": dict(density=0.5, normalize=True),
}


@pytest.mark.parametrize("method", RECIPES)
def test_every_method_writes_what_it_makes_of_whole_tensors(method, pair, tmp_path):
    has_base = method != "slerp"
    base = None
    if has_base:
        torch.manual_seed(5)
        noisy = {name: (value.float() + 0.005 * torch.randn(value.shape)).to(value.dtype)
                 for name, value in load(pair.text).items()}  # fmt: skip
        base = tmp_path / "base"
        base.mkdir()
        (base / "config.json").write_bytes((pair.text / "config.json").read_bytes())
        from safetensors.torch import save_file

        save_file(noisy, base / WEIGHTS, metadata={"format": "pt"})
    recipe = {"method": method, **RECIPES[method]}
    report = merge(pair, tmp_path / "out", recipe=recipe, base=base)
    made = make_recipe(alpha=0.4, has_base=has_base, **recipe)
    table = plan_merge(pair.vlm, pair.text, base=base).table
    settings = made.for_tensors(table)
    vlm, text, out = load(pair.vlm), load(pair.text), load(tmp_path / "out")
    third = load(base) if base else None
    for plan in table:
        wanted = vlm[plan.vlm.name]
        if plan.text is not None:
            wanted = merge_whole(
                plan, made.method, settings[plan.name],
                text=text[plan.text.name], vlm=wanted,
                base=third[plan.text.name] if third else None, dtype=wanted.dtype,
            )  # fmt: skip
        assert same_bits(out[plan.vlm.name], wanted), plan.name
    assert report["method"]["name"] == method and report["verified"]
    assert verify_folder(tmp_path / "out")["num_elements_recomputed"] > 0


def test_extrapolation_has_to_be_asked_for(bf16_pair, tmp_path):
    with pytest.raises(ConfigError, match=r"extrapolate=true allows it"):
        merge(bf16_pair, tmp_path / "out", 1.3)
    merge(bf16_pair, tmp_path / "out", 1.3, recipe={"extrapolate": True})
    assert_equal(tmp_path / "out", naive(bf16_pair, lambda _: 1.3, torch.bfloat16))


# ---------------------------------------------------------------------------- not finite


@pytest.mark.parametrize("alpha", [0, 0.4, 1])
def test_nan_and_inf_are_merged_where_they_are_allowed(alpha, copy_pair, tmp_path):
    def poison(name: str, value: float):
        def change(tensors: Tensors) -> Tensors:
            tensors[name].view(-1)[7] = value
            return tensors

        return change

    edit(copy_pair.text, poison(UP, float("inf")))
    edit(copy_pair.vlm, poison("vision_tower.head.probe", float("nan")))
    report = merge(copy_pair, tmp_path / "out", alpha, allow_nonfinite=True)
    assert f"text: {UP}" in report["nonfinite"]
    assert "vlm: vision_tower.head.probe" in report["nonfinite"]
    out, vlm = load(tmp_path / "out"), load(copy_pair.vlm)
    value = float(out[f"language_model.{UP}"].view(-1)[7])
    assert {0: value == float("inf"), 1: value == float(vlm[f"language_model.{UP}"].view(-1)[7]),
            0.4: value != value}[alpha]  # fmt: skip


def test_slerp_keeps_a_nan_in_its_place(copy_pair, tmp_path, monkeypatch):
    """The angle of a tensor that holds one is NaN: the whole tensor would be."""
    monkeypatch.setattr(segments, "CHUNK_ELEMENTS", 128)

    def poison(tensors: Tensors) -> Tensors:
        tensors[UP].view(-1)[1000] = float("nan")
        return tensors

    edit(copy_pair.text, poison)
    recipe = {"method": "slerp"}
    with pytest.raises(CheckpointError, match=rf"text: {UP} in .* holds NaN or Inf"):
        merge(copy_pair, tmp_path / "out", recipe=recipe)
    merge(copy_pair, tmp_path / "out", recipe=recipe, allow_nonfinite=True)
    assert int(load(tmp_path / "out")[f"language_model.{UP}"].isnan().sum()) == 1


# ------------------------------------------------------------------------------- writing


@pytest.mark.parametrize("alpha", [0, 0.4, 1])
def test_threads_and_plain_copies_give_the_same_bytes(alpha, tmp_path, monkeypatch):
    sharded = save_pair(tmp_path, torch.bfloat16, max_shard_size="20KB")
    monkeypatch.setattr(writer, "JOB_ELEMENTS", 100)
    merge(sharded, tmp_path / "one", alpha, num_threads=1)

    def not_there(*_: object) -> int:
        raise OSError(errno.EXDEV, "cross-device")

    def nothing(*_: object) -> int:  # some file systems say so where they cannot
        return 0

    monkeypatch.setattr(os, "copy_file_range", nothing)
    merge(sharded, tmp_path / "three", alpha)
    monkeypatch.setattr(os, "copy_file_range", not_there)
    monkeypatch.setattr(copies, "PLAIN_STEP_BYTES", 99)
    merge(sharded, tmp_path / "two", alpha, num_threads=7)
    for path in (tmp_path / "one").glob("model*"):
        for other in ("two", "three"):
            assert path.read_bytes() == (tmp_path / other / path.name).read_bytes(), path.name


def test_inputs_on_read_only_media(copy_pair, tmp_path):
    for folder in (copy_pair.vlm, copy_pair.text):
        for path in folder.iterdir():
            path.chmod(stat.S_IRUSR)
        folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        merge(copy_pair, tmp_path / "out")
    finally:
        for folder in (copy_pair.vlm, copy_pair.text):
            folder.chmod(0o755)
    assert os.access(tmp_path / "out" / WEIGHTS, os.W_OK)


def test_a_disk_that_fills_up_on_the_way(bf16_pair, tmp_path, monkeypatch):
    """The free space was there when it was checked."""

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "copy_file_range", full)
    with pytest.raises(DiskError, match="no space left on the disk while writing the merged model"):
        merge(bf16_pair, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_input_that_shrinks_while_it_is_read(copy_pair, tmp_path):
    """No hang, no zeros in the output."""
    from merge.reading.checkpoint import read_checkpoint

    last = read_checkpoint(copy_pair.vlm, "vlm").shards[0].tensors[-1]
    seen = []

    def progress(done: int, total: int) -> None:
        if not seen:
            os.truncate(copy_pair.vlm / WEIGHTS, last.offset)
        seen.append(done)

    with pytest.raises(CheckpointError, match=r"ended (early|inside)"):
        merge(copy_pair, tmp_path / "out", progress=progress, num_threads=1)
    assert not (tmp_path / "out").exists()


def test_rows_of_other_tokens_in_the_base_stay_the_vlms(copy_pair, tmp_path):
    """What the message of the refusal says that force=true does."""
    base = tmp_path / "base"
    shutil.copytree(copy_pair.text, base)
    for folder, shift in ((copy_pair.vlm, 0), (copy_pair.text, 0), (base, 7)):
        words = {f"w{(row + shift) % 64}": row for row in range(64)}
        content = {"added_tokens": [], "model": {"vocab": words}}
        (folder / "tokenizer.json").write_text(json.dumps(content))
    options = dict(vlm=copy_pair.vlm, text=copy_pair.text, base=base, alpha=0.5,
                   recipe={"method": "task_arithmetic"}, verify_logits=False)  # fmt: skip
    with pytest.raises(CheckpointError, match="force=true to keep all these rows from the vlm"):
        merge_checkpoints(out=tmp_path / "refused", **options)
    report = merge_checkpoints(out=tmp_path / "out", force=True, **options)
    name = "language_model.model.embed_tokens.weight"
    rows = {entry["name"]: entry["vlm_rows"] for entry in report["tensors"]}
    assert rows[name] == [[0, 64]]
    assert same_bits(load(tmp_path / "out")[name], load(copy_pair.vlm)[name])
