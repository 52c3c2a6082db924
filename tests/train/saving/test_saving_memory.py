"""What saves memory changes no number: checkpointing, offloading; bfloat16 changes it little."""

from typing import Any

import pytest
import torch
from pico_runs import LEARN, MIXED, losses, make_trainer, run, same_weights, vlm
from transformers.models.cohere2.modeling_cohere2 import Cohere2MLP

import train.trainer
from configs.command import load_config
from configs.errors import ConfigError
from train.model.offload import offloading

STEPS = [*MIXED, *LEARN, "optim.max_steps=3", "evaluation.eval_on_start=false"]
STEPS += ["evaluation.max_rows=1", "evaluation.generate=false", "data.sources.scenes.num_rows=6"]
CHECKPOINTING = "engine.gradient_checkpointing=true"
STAGES = {"full": ["stage=scratch"], "lora": ["stage=sft_lora", "adapter.r=4"]}


@pytest.fixture(scope="module")
def plain(pipeline, tmp_path_factory) -> dict[str, Any]:
    """{mode: a run that keeps every activation}"""
    root = tmp_path_factory.mktemp("plain")
    return {
        mode: run(*vlm(pipeline.align), *STEPS, *stage, f"output_dir={root}/{mode}")
        for mode, stage in STAGES.items()
    }


def same_run(one: Any, two: Any) -> bool:
    return losses(one) == losses(two) and same_weights(one / "export", two / "export")


@pytest.mark.slow
@pytest.mark.parametrize("mode", STAGES)
def test_gradient_checkpointing_changes_no_bit(mode, plain, pipeline, tmp_path, monkeypatch):
    """Recomputed activations are the same numbers, of parts that train and of those that do not."""
    inner, called = Cohere2MLP.forward, []

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        called.append(torch.is_grad_enabled())
        return inner(self, x)

    monkeypatch.setattr(Cohere2MLP, "forward", forward)
    command = [*vlm(pipeline.align), *STEPS, *STAGES[mode], f"output_dir={tmp_path}"]
    assert same_run(run(*command, CHECKPOINTING), plain[mode])
    assert called.count(True) == 2 * 3 * 2 * 4  # twice each: of steps, packs, layers


@pytest.mark.slow
@pytest.mark.parametrize("mode", STAGES)
def test_activation_offloading_changes_no_bit(mode, plain, pipeline, tmp_path, monkeypatch):
    """Every tensor that backward needs goes out and comes back, however small."""
    moved: list[int] = []

    def all_of_them() -> Any:
        context = offloading(smallest=1)
        inner = context.pack_hook
        context.pack_hook = lambda tensor: moved.append(tensor.numel()) or inner(tensor)
        return context

    monkeypatch.setattr(train.trainer, "offloading", all_of_them)
    command = [*vlm(pipeline.align), *STEPS, *STAGES[mode], f"output_dir={tmp_path}"]
    offloaded = run(*command, CHECKPOINTING, "engine.activation_offloading=true")
    assert same_run(offloaded, plain[mode])
    assert moved


def test_offloading_moves_large_tensors_and_no_parameters():
    kept = []
    context = offloading(smallest=64)
    inner = context.pack_hook

    def look(tensor: torch.Tensor) -> Any:
        kept.append(inner(tensor))
        return kept[-1]

    context.pack_hook = look
    weight = torch.nn.Parameter(torch.randn(8, 8))
    large, small = torch.randn(8, 8, requires_grad=True), torch.randn(2, requires_grad=True)
    with context:
        result = (large @ weight).exp().sum() + (small * small).sum()
    moved = [item for item in kept if isinstance(item, tuple)]
    assert [host.shape for _, host in moved] == [(8, 8), (8, 8)]  # of matmul and of exp
    assert all(host.device.type == "cpu" and host is not large for _, host in moved)
    result.backward()
    expected = torch.autograd.grad((large @ weight).exp().sum(), weight)[0]
    assert torch.equal(weight.grad, expected)


def test_a_view_of_a_parameter_stays_too():
    """`nn.Linear` keeps its weight transposed, which is no parameter."""
    layer, x = torch.nn.Linear(8, 16), torch.randn(4, 8, requires_grad=True)
    kept = []
    context = offloading(smallest=1)
    inner = context.pack_hook
    context.pack_hook = lambda tensor: kept.append(inner(tensor)) or kept[-1]
    with context:
        layer(x)
    moved = [item[1].shape for item in kept if isinstance(item, tuple)]
    assert moved == [(4, 8)] and len(kept) == 2


def test_offloading_without_checkpointing_is_refused():
    with pytest.raises(ConfigError, match=r"set engine\.gradient_checkpointing=true too"):
        load_config("train", ["engine.activation_offloading=true"])


@pytest.mark.slow
@pytest.mark.parametrize("mode", STAGES)
def test_bfloat16_stays_near_float32(mode, plain, pipeline, tmp_path):
    """Autocast rounds what is computed; weights, their steps and what AdamW keeps are float32."""
    command = [*vlm(pipeline.align), *STEPS, *STAGES[mode], "engine.bf16=true"]
    trainer = make_trainer(*command, f"output_dir={tmp_path}/looked_at")
    trainer.train()
    assert {p.dtype for p in trainer.model.parameters() if p.requires_grad} == {torch.float32}
    moments = [
        value
        for state in trainer.optimizer.state.values()
        for value in state.values()
        if value.ndim
    ]
    assert {value.dtype for value in moments} == {torch.float32}
    found = {line["step"]: line["loss"] for line in trainer.state.log_history if "loss" in line}
    expected = losses(plain[mode])
    assert found.keys() == expected.keys()
    assert found != expected
    worst = max(abs(found[step] - expected[step]) for step in found)
    assert worst < 1e-3, worst  # nats, of 5.8; measured 1.3e-4
