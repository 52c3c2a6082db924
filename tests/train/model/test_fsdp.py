"""FSDP2: who holds how much, and what its checkpoints say when they do not fit.

That it learns what one process learns is in test_engines.py.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pico_models import make_aya, make_samples, pack
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor
from transformers import AyaVisionForConditionalGeneration

from configs.errors import CheckpointError
from configs.schema import AdapterConfig, PartConfig, PartMode, PartsConfig
from train.model.fsdp import (
    copy_into,
    load_adapter,
    load_optimizer,
    shard,
    unshard,
    whole,
    whole_optimizer,
    whole_weights,
)
from train.model.load import empty_vlm, load_vlm
from train.model.loss import add_token_losses
from train.model.what_trains import set_what_trains

ROOT = Path(__file__).resolve().parents[3]
# How much each rank holds at most while it makes and shares out a model, and how much at the end.
SCRIPT = """
import json, os, sys
from pathlib import Path
import torch
from configs.command import load_config
from train import run
from train.model import fsdp
from train.arguments import build_arguments

def held(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) * 1024

torch.set_num_threads(1)
config = load_config("train", sys.argv[2:])
arguments = build_arguments(config, Path(sys.argv[1]), 1)
torch.distributed.broadcast(torch.zeros(1), src=0)
Path("/proc/self/clear_refs").write_text("5")  # forget the peak of imports and connections
before = held("VmRSS")
model, _ = run.prepare_model(config, None)
fsdp.shard(model, arguments.device)
weights = sum(p.numel() * p.element_size() for p in model.parameters())
found = {"peak": (held("VmHWM") - before) / weights, "end": (held("VmRSS") - before) / weights}
Path(sys.argv[1], os.environ["RANK"]).write_text(json.dumps(found))
"""


@pytest.mark.slow
def test_only_rank_0_holds_a_model_whole(tmp_path):
    """Of two, the other never holds more than its half and the layer it is about to cut."""
    config = make_aya().config
    text = config.text_config
    text.hidden_size, text.intermediate_size, text.head_dim = 768, 4096, 192
    AyaVisionForConditionalGeneration(config).save_pretrained(tmp_path / "model")
    (tmp_path / "script.py").write_text(SCRIPT)
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    model = ["model=vlm", f"model.path={tmp_path}/model", "stage=sft", "engine=fsdp2"]
    done = subprocess.run(
        [sys.executable, *launch, str(tmp_path / "script.py"), str(tmp_path), *model],
        # malloc gives back what is freed at once: freed memory is not held.
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        | {"MALLOC_MMAP_THRESHOLD_": "65536"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-6000:]
    first, other = (json.loads((tmp_path / str(rank)).read_text()) for rank in (0, 1))
    assert first["peak"] > 1.0  # of the model's bytes; measured 1.93, the file's pages counted
    assert other["peak"] < 0.95  # measured 0.82: its half, and the layer (of four) it is given
    assert other["end"] < 0.7  # measured 0.58


def test_an_empty_model_is_the_loaded_one_without_weights(tmp_path):
    make_aya().save_pretrained(tmp_path)
    empty, loaded = (f(str(tmp_path), dtype=torch.bfloat16) for f in (empty_vlm, load_vlm))
    assert {p.device.type for p in empty.parameters()} == {"meta"}
    assert type(empty) is type(loaded) and not empty.training
    shapes = [{n: (p.shape, p.dtype) for n, p in m.named_parameters()} for m in (empty, loaded)]
    assert shapes[0] == shapes[1]  # tied weights are one in both
    assert [n for n, _ in empty.named_buffers()] == [n for n, _ in loaded.named_buffers()]
    assert empty.generation_config.to_dict() == loaded.generation_config.to_dict()
    assert empty.config.to_diff_dict() == loaded.config.to_diff_dict()


@pytest.fixture
def group():
    """A process group of this process alone: everything is shared out, in one part."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def prepared(mode: PartMode) -> Any:
    """A model with a frozen tower and projector, and a decoder of one mode."""
    model = make_aya()
    add_token_losses(model)
    parts = PartsConfig(decoder=PartConfig(mode))
    return set_what_trains(model, parts, AdapterConfig(r=2))[0].train()


@pytest.mark.parametrize("mode", [PartMode.full, PartMode.lora])
def test_frozen_parts_are_called_on_every_rank(mode, group):
    """Each is gathered by all ranks together: one without pictures would leave the others alone."""
    model = prepared(mode)
    batch = pack(make_samples(pictures=False))
    expected = model(**batch, token_losses=True)
    called: list[str] = []
    for name, module in model.named_modules():
        if name.endswith(("vision_tower", "multi_modal_projector")):
            module.register_forward_hook(lambda *_, leaf=name: called.append(leaf))
    model(**batch, token_losses=True)
    assert not called  # each rank has them whole
    shard(model, torch.device("cpu"))
    losses = model(**batch, token_losses=True)
    assert [name.rsplit(".", 1)[-1] for name in called] == ["vision_tower", "multi_modal_projector"]
    torch.testing.assert_close(losses, expected, rtol=0, atol=1e-6)  # measured 0


@pytest.mark.parametrize("mode", [PartMode.full, PartMode.lora])
def test_what_was_shared_out_is_the_same_again(mode, group):
    model = prepared(mode)
    kinds = {name: type(module) for name, module in model.named_modules()}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    shard(model, torch.device("cpu"))
    assert all(isinstance(p, DTensor) for p in model.parameters())
    state = whole_weights(model)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert state.keys() == (before.keys() if mode is PartMode.full else trained)
    if mode is PartMode.full:  # tied weights are one
        embedding = state["model.language_model.embed_tokens.weight"]
        assert state["lm_head.weight"] is embedding
    unshard(model)
    assert {name: type(module) for name, module in model.named_modules()} == kinds
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_what_an_optimizer_keeps_is_the_same_again(group, tmp_path):
    """Also the step counts, and the keys of its groups."""
    model = prepared(PartMode.full)
    shard(model, torch.device("cpu"))
    trained = [p for p in model.parameters() if p.requires_grad]
    one, two = (torch.optim.AdamW([{"params": trained, "part": "decoder"}]) for _ in range(2))
    model(**pack(make_samples(pictures=False)), token_losses=True).sum().backward()
    one.step()
    state = whole_optimizer(one)
    assert not any(
        isinstance(v, DTensor) for kept in state["state"].values() for v in kept.values()
    )
    torch.save(state, tmp_path / "optimizer.pt")
    load_optimizer(two, tmp_path / "optimizer.pt")
    assert two.param_groups[0]["part"] == "decoder"
    for parameter in trained:
        assert two.state[parameter].keys() == {"step", "exp_avg", "exp_avg_sq"}
        for name, value in one.state[parameter].items():
            found = two.state[parameter][name]
            assert type(found) is type(value) and torch.equal(whole(found), whole(value))


def test_an_adapter_of_another_run_is_refused(group, tmp_path):
    model = prepared(PartMode.lora)
    model.save_pretrained(tmp_path)
    values = load_file(tmp_path / "adapter_model.safetensors")
    lost = next(iter(values))
    del values[lost]
    save_file(values, tmp_path / "adapter_model.safetensors")
    shard(model, torch.device("cpu"))
    with pytest.raises(CheckpointError, match=f"does not hold this run's adapter.*{lost}"):
        load_adapter(model, tmp_path)


def test_values_are_copied_into_a_tensor_that_nobody_shares():
    tensor = torch.nn.Parameter(torch.zeros(3, 2))
    copy_into(tensor, torch.arange(6.0).reshape(3, 2))
    assert tensor.detach().flatten().tolist() == [0, 1, 2, 3, 4, 5]
