"""merge.recipe.methods, merge.writing.writer and merge.proof.verify: values, refusals, memory."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from merge_pico import edit

from configs.errors import CheckpointError
from merge.api import merge_checkpoints, verify_folder
from merge.matching.tensor_table import TensorClass, TensorPlan
from merge.proof.verify import naive_merge
from merge.reading.checkpoint import StoredTensor, read_checkpoint
from merge.recipe.apply import merge_whole
from merge.recipe.interface import Settings
from merge.recipe.methods import METHODS
from merge.writing.compute import count_different

UP = "model.layers.0.mlp.up_proj.weight"


def merge(pair, out, alpha=0.4, **kwargs):
    return merge_checkpoints(vlm=pair.vlm, text=pair.text, out=out, alpha=alpha, **kwargs)


def poison(name, value, part=slice(0, 1)):
    def change(tensors):
        tensors[name][part] = value
        return tensors

    return change


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("alpha", [0, 0.3, 1])
def test_verifiers_formula_is_the_writers(dtype, alpha):
    """Two independent implementations, bit for bit, over many magnitudes and signed zeros."""
    names = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}
    torch.manual_seed(0)
    scale = torch.logspace(-8, 4, 50_000)
    text, vlm = ((torch.randn(50_000) * scale).to(dtype) for _ in range(2))
    text[:2] = -0.0
    bits = torch.int32 if dtype == torch.float32 else torch.int16
    raw = [x.view(bits).numpy().view("u4" if bits == torch.int32 else "u2") for x in (text, vlm)]
    naive = naive_merge(raw[0], raw[1], names[dtype], names[dtype], alpha)
    tensor = StoredTensor("model.norm.weight", Path(), names[dtype], (50_000,), 0)
    plan = TensorPlan("decoder", tensor.name, TensorClass.MERGED, tensor, tensor)
    settings = Settings(alpha=alpha)
    ours = merge_whole(plan, METHODS["linear"], settings, text=text, vlm=vlm, dtype=dtype)
    assert ours.dtype == dtype and np.array_equal(ours.view(bits).numpy().view(naive.dtype), naive)


def test_the_callers_thread_count_comes_back(bf16_pair, tmp_path):
    torch.set_num_threads(2)
    merge(bf16_pair, tmp_path / "out", verify=False)
    assert torch.get_num_threads() == 2


def test_count_different_sees_signed_zero():
    assert count_different(torch.tensor([0.0, 1.0]), torch.tensor([-0.0, 1.0])) == 1


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
import resource, sys, torch
from pathlib import Path
from safetensors.torch import load_file, save_file
from merge.api import merge_checkpoints
import merge.writing.writer, merge.matching.distance
folder = Path(sys.argv[1])
def private():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(x.split()[1]) for x in lines if x.startswith("Private_Dirty")) // 1024
torch.set_num_threads(1)
start, peak = private(), [0]
def progress(done, total):
    peak[0] = max(peak[0], private())
merge_checkpoints(vlm=folder / "vlm", text=folder / "text", out=folder / "out", alpha=0.4,
                  verify=False, progress=progress)
print(peak[0] - start)
"""


def test_private_memory_is_bounded(copy_pair, tmp_path):
    """A 128 MiB tensor is merged within 32 MiB (measured 8) of private memory."""
    big = torch.zeros(1 << 16, 1 << 10, dtype=torch.bfloat16)
    edit(copy_pair.vlm, lambda tensors: tensors | {"language_model.model.big.weight": big})
    edit(copy_pair.text, lambda tensors: tensors | {"model.big.weight": big})
    command = [sys.executable, "-c", MEMORY, str(tmp_path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert int(done.stdout) < 32
