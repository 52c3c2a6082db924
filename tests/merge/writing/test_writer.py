"""merge.recipe.methods, merge.writing.writer and merge.proof.verify: values, refusals, memory."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from adapter_pico import save_adapter
from merge_pico import edit
from safetensors.torch import load_file, save_file

from configs.errors import CheckpointError
from merge.api import merge_checkpoints, verify_folder
from merge.matching.plan import plan_merge
from merge.proof.verify import as_bits
from merge.reading.bits import (
    BITS,
    Memory,
    count_different,
    fits,
    is_finite,
    narrow,
    narrow_nan,
    widen,
)
from merge.reading.checkpoint import read_checkpoint
from merge.recipe.linear import LINEAR
from merge.recipe.recipe import make_recipe
from merge.recipe.slerp import SLERP
from merge.recipe.torch_dtypes import TORCH_DTYPES
from merge.writing import writer
from merge.writing.output import plan_output
from merge.writing.writer import choose_threads, plan_work, uses_torch

UP = "model.layers.0.mlp.up_proj.weight"


def merge(pair, out, alpha=0.4, **kwargs):
    return merge_checkpoints(vlm=pair.vlm, text=pair.text, out=out, alpha=alpha, **kwargs)


def poison(name, value, part=slice(0, 1)):
    def change(tensors):
        tensors[name][part] = value
        return tensors

    return change


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("alpha", [0.3, 0.4, 0.999, 1.7, -0.2])
def test_numpy_interpolates_as_torch_does(dtype, alpha):
    """Two implementations, bit for bit, over many magnitudes, signed zeros and ties."""
    torch.manual_seed(0)
    scale = torch.logspace(-30, 4, 200_000)
    stored = [(torch.randn(200_000) * scale).to(TORCH_DTYPES[dtype]) for _ in range(2)]
    stored[0][:2] = -0.0
    text, vlm = (
        widen(as_bits(x).numpy().view(BITS[dtype]), dtype, Memory(np.float32)) for x in stored
    )
    merged = text + np.float32(alpha) * (vlm - text)
    for wanted in TORCH_DTYPES:
        mine = narrow(merged, wanted, Memory(np.uint16), Memory(np.uint32))
        one, two = stored[0].float(), stored[1].float()
        naive = as_bits((one + alpha * (two - one)).to(TORCH_DTYPES[wanted]))
        assert np.array_equal(mine, naive.numpy().view(BITS[wanted])), wanted


def test_rounding_of_every_upper_half_and_its_neighbours():
    """To bfloat16 as torch rounds: every pattern of the upper half with telling lower halves."""
    upper = np.arange(1 << 16, dtype=np.uint32) << 16
    for lower in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        values = (upper | np.uint32(lower)).view(np.float32)
        mine = narrow(values, "BF16", Memory(np.uint16), Memory(np.uint32)).copy()
        narrow_nan(values, mine, "BF16")
        theirs = as_bits(torch.from_numpy(values).to(torch.bfloat16)).numpy().view(np.uint16)
        is_nan = np.isnan(values)
        assert np.array_equal(mine[~is_nan], theirs[~is_nan])
        assert np.isnan(widen(mine, "BF16", Memory(np.float32))[is_nan]).all()
        finite = torch.from_numpy(values).to(torch.bfloat16).isfinite().numpy()
        for value, good in zip(values[::911], finite[::911], strict=True):
            assert fits(np.array([value]), "BF16") == good, value


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_every_pattern_that_is_not_finite_is_found(dtype):
    patterns = np.arange(1 << 16, dtype=np.uint16)
    finite = torch.from_numpy(patterns.view(np.int16)).view(TORCH_DTYPES[dtype]).isfinite().numpy()
    for pattern, good in zip(patterns[::7], finite[::7], strict=True):
        assert is_finite(np.array([0, pattern, 1], np.uint16), dtype) == good, hex(pattern)
    for value in (np.nan, np.inf, -np.inf, 1e38):
        bits = np.array([0, value], np.float32).view(np.uint32)
        assert is_finite(bits, "F32") == np.isfinite(value)


def test_the_largest_numbers_that_fit():
    for dtype, kind in (("F16", torch.float16), ("BF16", torch.bfloat16)):
        limit = np.array([torch.finfo(kind).max], np.float32)
        for _ in range(70_000 if dtype == "BF16" else 9_000):
            good = bool(torch.from_numpy(limit).to(kind).isfinite())
            assert fits(limit, dtype) == fits(-limit, dtype) == good, limit
            limit = np.nextafter(limit, np.float32(np.inf))


def test_the_callers_thread_count_comes_back(bf16_pair, tmp_path):
    torch.set_num_threads(2)
    merge(bf16_pair, tmp_path / "out", verify=False)
    assert torch.get_num_threads() == 2


def test_count_different_sees_signed_zero():
    one, two = (np.array(x, np.float32).view(np.uint32) for x in ([0.0, 1.0], [-0.0, 1.0]))
    assert count_different(one, two) == 1


@pytest.mark.parametrize("alpha", [0, 0.4, 1])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite_inputs(copy_pair, tmp_path, alpha, value):
    edit(copy_pair.text, poison(UP, value))
    with pytest.raises(CheckpointError, match=rf"text: {UP} in .* holds NaN or Inf"):
        merge(copy_pair, tmp_path / "out", alpha)
    edit(copy_pair.text, poison(UP, 0.0))
    edit(copy_pair.vlm, poison("multi_modal_projector.linear_1.bias", value))
    with pytest.raises(CheckpointError, match=r"vlm: multi_modal_projector.linear_1.bias in"):
        merge(copy_pair, tmp_path / "out", alpha)
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == []


def test_overflow_of_a_narrower_output(copy_pair, tmp_path):
    edit(copy_pair.vlm, lambda tensors: {k: v.half() for k, v in tensors.items()})
    edit(copy_pair.text, lambda tensors: {k: v.float() for k, v in tensors.items()})
    edit(copy_pair.text, poison(UP, 1e6))
    with pytest.raises(CheckpointError, match=r"up_proj.weight does not fit into F16"):
        merge(copy_pair, tmp_path / "out", force=True)


def test_verify_finds_a_wrong_bit(bf16_pair, tmp_path):
    for name in (f"language_model.{UP}", "vision_tower.head.probe"):
        out = tmp_path / name
        merge(bf16_pair, out, verify=False)
        stored = read_checkpoint(out, "out").tensors[name]
        data = bytearray(stored.file.read_bytes())
        data[stored.offset + stored.num_bytes // 2] ^= 1
        stored.file.write_bytes(data)
        with pytest.raises(CheckpointError, match=f"verification failed: 1 of 88 .*: {name}"):
            verify_folder(out, logits=False)


def test_verify_refuses_what_does_not_load(copy_pair, tmp_path):
    """A tensor that the VLM lacks passes every comparison with the VLM, but not loading."""
    for folder, name in ((copy_pair.vlm, f"language_model.{UP}"), (copy_pair.text, UP)):
        edit(folder, lambda tensors, name=name: {k: v for k, v in tensors.items() if k != name})
    with pytest.raises(CheckpointError, match=r"loads with missing_keys: .*up_proj"):
        merge(copy_pair, tmp_path / "out")
    assert not (tmp_path / "out").exists()


MEMORY = """
import json, sys
from pathlib import Path
folder, options, needs_torch = Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3] == "torch"
if needs_torch:
    import torch, merge.recipe.apply
    torch.set_num_threads(1)
from merge.api import merge_checkpoints
def private():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(x.split()[1]) for x in lines if x.startswith("Private_Dirty")) // 1024
start, peak = private() if needs_torch else 0, [0]
def progress(done, total):
    peak[0] = max(peak[0], private())
merge_checkpoints(vlm=folder / "vlm", text=folder / "text", out=folder / "out", alpha=0.4,
                  verify=False, progress=progress, **options)
assert needs_torch or "torch" not in sys.modules
print(peak[0] - start)
"""


@pytest.mark.parametrize(
    ("options", "most"),
    [
        ({}, 64),  # all of the process, which imports no torch: measured 32
        ({"dtype": "float32"}, 64),
        ({"recipe": {"method": "slerp"}}, 64),  # beside torch: measured 10 to 27
        ({"recipe": {"method": "ties", "density": 0.3}}, 64),
        ({"recipe": {"method": "dare", "density": 0.3}}, 64),
        ({"lora": "adapter"}, 64),
    ],
    ids=["linear", "float32", "slerp", "ties", "dare", "lora"],
)
def test_private_memory_is_bounded(options, most, copy_pair, tmp_path):
    """A 128 MiB tensor, whatever is done with it."""
    big = torch.randn(1 << 16, 1 << 10, dtype=torch.bfloat16)
    edit(copy_pair.vlm, lambda tensors: tensors | {"language_model.model.big.weight": big})
    edit(copy_pair.text, lambda tensors: tensors | {"model.big.weight": big + 0.01})
    if "lora" in options:
        adapter = save_adapter(bf16_of(copy_pair), tmp_path / "adapter")
        options = {"lora": str(adapter), "force": True}
        file = tmp_path / "adapter/adapter_model.safetensors"
        name = "base_model.model.model.language_model.big.lora_{}.weight"
        more = {
            name.format("A"): torch.randn(4, 1 << 10),
            name.format("B"): torch.randn(1 << 16, 4),
        }
        save_file(load_file(file) | more, file)
    kind = "torch" if {"recipe", "lora"} & options.keys() else "none"
    command = [sys.executable, "-c", MEMORY, str(tmp_path), json.dumps(options), kind]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert int(done.stdout) < most


def bf16_of(pair):
    """A VLM that transformers loads, of which `pair` is a copy with one tensor more."""
    edited = pair.vlm.with_name("plain")
    shutil.copytree(pair.vlm, edited)
    edit(edited, lambda t: {name: value for name, value in t.items() if ".big." not in name})
    return edited


def work_of(plan):
    settings = make_recipe().for_tensors(plan.table)
    return plan_work(plan_output(plan.vlm, plan.table, "same"), LINEAR, settings)


def test_as_many_threads_as_memory_allows(bf16_pair, tmp_path, monkeypatch):
    """Torch takes 150 MiB; a thread 3 without it, 13 with it; an adapter's factors come on top."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    work = work_of(plan_merge(bf16_pair.vlm, bf16_pair.text))
    assert not uses_torch(work, LINEAR) and uses_torch(work, SLERP)
    assert choose_threads(work, with_torch=False) == 8
    adapter = save_adapter(bf16_pair.vlm, tmp_path / "adapter")
    plan = plan_merge(bf16_pair.vlm, bf16_pair.text, lora=adapter)
    work = work_of(plan)
    assert uses_torch(work, LINEAR)
    assert choose_threads(work, with_torch=True) == 4
    monkeypatch.setattr(writer, "MAX_FACTOR_BYTES", 2 * 4 * 48 * 4)  # two of [4, 48]
    assert choose_threads(work, with_torch=True) == 2
    monkeypatch.setattr(writer, "MAX_FACTOR_BYTES", 1)
    assert choose_threads(work, with_torch=True) == 1


def test_a_kernel_that_copies_nothing(bf16_pair, tmp_path, monkeypatch):
    """Some file systems answer 0 for "not here"; then bytes go through memory."""
    monkeypatch.setattr(os, "copy_file_range", lambda *_: 0)
    merge(bf16_pair, tmp_path / "out", alpha=1)
    name = "model.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (bf16_pair.vlm / name).read_bytes()
