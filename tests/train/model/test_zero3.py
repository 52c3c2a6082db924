"""A model is shared out from the CPU of each rank, tensor by tensor."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
# What is counted: whole parameters that lie on the device at a time. It is the CPU here, so a
# tensor counts from when DeepSpeed brings it to its device until it is cut.
SCRIPT = """
import json
import os
import sys
import torch
import deepspeed
import deepspeed.comm.torch
from deepspeed.runtime.zero.partition_parameters import Init
from pico_models import make_aya
from train.model.zero3 import num_dimensions, share_out

deepspeed.comm.torch.build_shm_op = lambda: None
deepspeed.init_distributed("gloo", verbose=False)
model = make_aya()
shapes = {name: list(p.shape) for name, p in model.named_parameters()}
values = {name: p.detach().clone() for name, p in model.named_parameters()}
whole, inner = [], Init._zero_init_param
def spy(self, parameter):
    inner(self, parameter)
    whole.append(sum(p.numel() for p in model.parameters() if hasattr(p, "ds_id")))
Init._zero_init_param = spy
share_out(model, torch.device("meta"), torch.bfloat16)
told = {
    "cut": whole,
    "dtypes": sorted({str(p.ds_tensor.dtype) for p in model.parameters()}),
    "devices": sorted({str(b.device) for b in model.buffers()}),
    "dimensions": all(
        num_dimensions(p) == len(shapes[n]) and list(p.ds_shape) == shapes[n]
        for n, p in model.named_parameters()
    ),
    "shares": [p.ds_tensor.numel() for p in model.parameters()],
}
same = True
for name, parameter in model.named_parameters():
    with deepspeed.zero.GatheredParameters([parameter]):
        same &= torch.equal(parameter, values[name].bfloat16())
told["same"] = same
with open(f"{sys.argv[1]}/{torch.distributed.get_rank()}.json", "w") as file:
    json.dump(told, file)
torch.distributed.barrier()
os._exit(0)  # in one of 20 tries gloo's threads abort a process that ends right after a collective
"""


def test_a_model_is_cut_up_one_tensor_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    done = subprocess.run(
        [sys.executable, *launch, str(tmp_path / "script.py"), str(tmp_path)],
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
            "OMP_NUM_THREADS": "1",
            "DS_ACCELERATOR": "cpu",
        },
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    for rank in (0, 1):
        of_rank = json.loads((tmp_path / f"{rank}.json").read_text())
        assert set(of_rank["cut"]) == {0}  # of those cut so far none is whole
        assert of_rank["dtypes"] == ["torch.bfloat16"] and of_rank["same"]
        assert of_rank["devices"] == ["meta"]  # where a GPU would be
        assert of_rank["dimensions"] and min(of_rank["shares"]) > 0
