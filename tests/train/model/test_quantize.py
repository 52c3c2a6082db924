"""QLoRA: 4-bit weights in the decoder alone, that stay; an export over the weights as they were."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from pico_runs import LEARN, MIXED, losses, make_trainer, run, same_weights, vlm, weights
from safetensors.torch import load_file
from torch import nn

from configs.command import load_config
from configs.errors import ConfigError
from train.model.quantize import is_quantized, num_values, quantize
from train.model.what_trains import part_of
from train.trainer import GraftTrainer

QLORA = [*MIXED, *LEARN, "stage=sft_lora", "adapter.r=4", "adapter.quantization=nf4"]
QLORA += ["evaluation.max_rows=1", "evaluation.generate=false", "data.sources.scenes.num_rows=6"]
FOUR = ["optim.max_steps=4", "checkpoint.save_steps=2"]


def test_a_layer_computes_with_its_unpacked_weights():
    """To the bit; each block of 64 is within half a step of NF4 of what it was."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(128, 64), nn.GELU(), nn.Linear(64, 32, bias=False))
    before = [module[i].weight.detach().clone() for i in (0, 2)]
    device = torch.device("cpu")
    assert quantize(module, device=device, compute_dtype=torch.float32) == 2
    for layer, old in zip((module[0], module[2]), before, strict=True):
        weight = layer.weight
        assert is_quantized(weight) and num_values(weight) == old.numel() == 2 * weight.numel()
        unpacked = dequantize_4bit(weight.data, weight.quant_state)
        x = torch.randn(3, layer.in_features)
        assert torch.equal(layer(x), nn.functional.linear(x, unpacked, layer.bias))
        blocks = old.reshape(-1, 64).abs().amax(1)
        error = (unpacked - old).reshape(-1, 64).abs().amax(1) / blocks
        assert 0.01 < error.max() < 0.16  # the widest gap of NF4 is 0.304; measured 0.15


def test_the_decoder_alone_is_packed(pipeline, tmp_path):
    command = [*vlm(pipeline.align), *QLORA, "optim.max_steps=1", f"output_dir={tmp_path}"]
    trainer = make_trainer(*command)
    model = trainer.model
    packed = {name for name, p in model.named_parameters() if is_quantized(p)}
    assert len(packed) == 28  # seven in each of four layers
    assert {part_of(model, name) for name in packed} == {"decoder"}
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    plain: Any = make_trainer(*command, "adapter.quantization=none").model
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert names == {name for name, p in plain.named_parameters() if p.requires_grad}


@pytest.fixture(scope="module")
def learned(pipeline, tmp_path_factory) -> Path:
    """A run of four steps, with a checkpoint after the second."""
    folder = tmp_path_factory.mktemp("qlora")
    return run(*vlm(pipeline.align), *QLORA, *FOUR, f"output_dir={folder}")


@pytest.mark.slow
def test_it_learns_and_is_folded_into_the_weights_as_they_were(learned, pipeline):
    assert losses(learned)[4] < losses(learned)[1] - 0.05  # nats; measured 0.13
    adapter = load_file(learned / "export" / "adapter" / "adapter_model.safetensors")
    folded, first = weights(learned / "export"), weights(pipeline.align)
    num_folded = 0
    for name, value in first.items():
        module = name.replace("language_model.model", "base_model.model.model.language_model")
        a, b = (adapter.get(module.replace("weight", f"lora_{x}.weight")) for x in "AB")
        if a is not None and b is not None:
            num_folded += 1
            expected = value + 32 / 4 * (b @ a)  # lora_alpha over r
            torch.testing.assert_close(folded[name], expected, rtol=0, atol=1e-6)  # measured 0
        elif not name.startswith("multi_modal_projector"):
            assert torch.equal(folded[name], value), name
    assert num_folded == 28


@pytest.mark.slow
def test_it_goes_on_to_the_bit(learned, pipeline, tmp_path, monkeypatch, caplog):
    """Weights are packed again from the same file; and what is packed never changes."""
    caplog.set_level("INFO", "train")
    command = [*vlm(pipeline.align), *QLORA, *FOUR, f"output_dir={tmp_path}/run"]
    fetch, packed = GraftTrainer.get_batch_samples, []

    def stop(self: Any, *args: Any) -> Any:
        packed.append({n: p.data.clone() for n, p in self.model.named_parameters()
                       if is_quantized(p)})  # fmt: skip
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return fetch(self, *args)

    monkeypatch.setattr(GraftTrainer, "get_batch_samples", stop)
    with pytest.raises(KeyboardInterrupt):
        run(*command)
    monkeypatch.setattr(GraftTrainer, "get_batch_samples", fetch)
    broken = run(*command)
    assert losses(broken) == losses(learned)
    assert same_weights(broken / "export", learned / "export")
    assert all(torch.equal(packed[0][name], value) for name, value in packed[-1].items())
    told = "\n".join(record.getMessage() for record in caplog.records)
    assert "28 linear layers of the decoder are held in 4 bits" in told
    assert "not into their 4-bit copies" in told


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stage=sft"], r"adapter: is given, but no part has mode lora"),
        (["stage=sft_lora", "engine=zero3"], r"quantization: packs .* engine=zero3 does not"),
        (["stage=sft_lora", "engine=fsdp2"], r"quantization: packs .* engine=fsdp2 does not"),
        (["stage=sft", "stage.parts.vision_tower.mode=lora"], r"needs stage.parts.decoder.mode"),
    ],
)
def test_what_it_cannot_be_is_refused(overrides, message):
    model = ["model=vlm", "model.path=somewhere", "adapter.quantization=nf4"]
    with pytest.raises(ConfigError, match=message):
        load_config("train", [*model, *overrides])


def test_a_fresh_decoder_is_not_packed():
    with pytest.raises(ConfigError, match=r"is for a decoder that is loaded"):
        load_config("train", ["stage=sft_lora", "adapter.quantization=nf4"])


def test_without_bitsandbytes_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match=r"pip install 'visiongraft\[quant\]'"):
        quantize(nn.Linear(64, 64), device=torch.device("cpu"), compute_dtype=torch.float32)
