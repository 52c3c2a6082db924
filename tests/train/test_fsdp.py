"""FSDP2: who holds how much, and what its checkpoints say when they do not fit.

That it learns what one process learns is in test_engines.py.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pico_models import make_aya
from transformers import AyaVisionForConditionalGeneration

from train.build_model import empty_vlm, load_vlm
from train.fsdp import copy_into

ROOT = Path(__file__).resolve().parents[2]
# How much each rank holds at most while it makes and shares out a model, and how much at the end.
SCRIPT = """
import json, os, sys
from pathlib import Path
import torch
from configs.command import load_config
from train import fsdp, run
from train.arguments import build_arguments

def held(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) * 1024

torch.set_num_threads(1)
config = load_config("train", sys.argv[2:])
Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
before = held("VmRSS")
model, _ = run.prepare_model(config, None)
fsdp.shard(model, build_arguments(config, Path(sys.argv[1]), 1).device)
weights = sum(p.numel() * p.element_size() for p in model.parameters())
found = {"peak": (held("VmHWM") - before) / weights, "end": (held("VmRSS") - before) / weights}
Path(sys.argv[1], os.environ["RANK"]).write_text(json.dumps(found))
"""


@pytest.mark.slow
def test_only_rank_0_holds_a_model_whole(tmp_path):
    """Of two, the other never holds much more than its half."""
    config = make_aya().config
    text = config.text_config
    text.hidden_size, text.intermediate_size, text.head_dim = 768, 4096, 192
    AyaVisionForConditionalGeneration(config).save_pretrained(tmp_path / "model")
    (tmp_path / "script.py").write_text(SCRIPT)
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    model = ["model=vlm", f"model.path={tmp_path}/model", "stage=sft", "engine=fsdp2"]
    done = subprocess.run(
        [sys.executable, *launch, str(tmp_path / "script.py"), str(tmp_path), *model],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-6000:]
    first, other = (json.loads((tmp_path / str(rank)).read_text()) for rank in (0, 1))
    print(first, other)
    assert first["peak"] > 1.0
    assert other["peak"] < 0.8  # of the whole model's bytes


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


def test_values_are_copied_into_a_tensor_that_nobody_shares():
    tensor = torch.nn.Parameter(torch.zeros(3, 2))
    copy_into(tensor, torch.arange(6.0).reshape(3, 2))
    assert tensor.detach().flatten().tolist() == [0, 1, 2, 3, 4, 5]
