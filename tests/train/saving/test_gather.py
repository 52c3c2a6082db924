"""What rank 0 holds after weights that were shared out are gathered."""

import pytest
import torch
from pico_models import make_aya

from train.saving.gather import gather_weights


@pytest.mark.parametrize("engine", ["fsdp2", "zero3"])
def test_buffers_come_to_the_cpu_with_the_weights(engine, monkeypatch):
    """Weights on the CPU beside rotary frequencies on a GPU would compute nothing."""
    model = make_aya()
    gathered = []
    monkeypatch.setattr("train.model.fsdp.is_sharded", lambda _: engine == "fsdp2")
    monkeypatch.setattr("train.model.fsdp.unshard", gathered.append)
    monkeypatch.setattr("train.saving.gather._gather_zero3", gathered.append)
    if engine == "zero3":
        next(model.parameters()).ds_id = 0
    inner = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: inner(self).clone())  # as from a GPU
    before = {name: buffer.data_ptr() for name, buffer in model.named_buffers()}
    gather_weights(model)
    assert gathered == [model]
    after = {name: buffer.data_ptr() for name, buffer in model.named_buffers()}
    assert before and after.keys() == before.keys()
    assert all(after[name] != address for name, address in before.items())
