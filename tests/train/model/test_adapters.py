"""Adapters: what they add to a layer, which layers have one, and no other."""

from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from pico_models import make_aya, make_samples, make_text_lm, pack
from torch.nn import functional

import train.model.what_trains
from configs.errors import ConfigError
from configs.schema import AdapterConfig, PartConfig, PartMode, PartsConfig
from train.model.loss import add_token_losses
from train.model.what_trains import set_what_trains

FROZEN, LORA, FULL = PartMode.frozen, PartMode.lora, PartMode.full
R, ALPHA = 4, 12
LAYER = "base_model.model.model.layers.1.mlp.up_proj"


def modes(tower: PartMode, projector: PartMode, decoder: PartMode) -> PartsConfig:
    return PartsConfig(*(PartConfig(mode) for mode in (tower, projector, decoder)))


def adapted(**options: Any) -> Any:
    """A text LM with adapters that are not 0."""
    parts = modes(FROZEN, FROZEN, LORA)
    config = AdapterConfig(r=R, lora_alpha=ALPHA, **options)
    model, _ = set_what_trains(make_text_lm("cohere2"), parts, config)
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    return model


def pieces(layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """W and B A of an adapted layer."""
    product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    return layer.base_layer.weight, product


@pytest.mark.parametrize(
    ("options", "scale"), [({}, ALPHA / R), ({"use_rslora": True}, ALPHA / R**0.5)]
)
def test_a_layer_is_the_old_one_plus_scaled_b_a(options, scale):
    """LoRA scales by alpha / r (arXiv 2106.09685), rsLoRA by alpha / sqrt(r) (arXiv 2312.03732)."""
    layer = adapted(**options).get_submodule(LAYER)
    weight, product = pieces(layer)
    x = torch.randn(5, weight.shape[1])
    expected = functional.linear(x, weight + scale * product)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-5)  # measured 9.5e-7 of 5
    assert not torch.allclose(layer(x), functional.linear(x, weight), atol=0.1)


def test_dora_learns_a_magnitude_for_each_row():
    """W' = m (W + s B A) / ||W + s B A||, rows apart (arXiv 2402.09353); m starts as ||W||."""
    model = adapted(use_dora=True)
    layer = model.get_submodule(LAYER)
    weight, product = pieces(layer)
    magnitude = layer.lora_magnitude_vector["default"].weight
    torch.testing.assert_close(magnitude.detach(), weight.norm(dim=1))
    with torch.no_grad():
        magnitude *= 1.5
    moved = weight + ALPHA / R * product
    expected = functional.linear(
        x := torch.randn(5, weight.shape[1]), moved * (magnitude / moved.norm(dim=1))[:, None]
    )
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=2e-5)  # measured 1.7e-6 of 7


def test_dora_trains_the_magnitude_in_a_step():
    model = adapted(use_dora=True)
    add_token_losses(model.get_base_model())
    magnitude = model.get_submodule(LAYER).lora_magnitude_vector["default"].weight
    before = magnitude.detach().clone()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.train()(**pack(make_samples(pictures=False)), token_losses=True).sum().backward()
    optimizer.step()
    assert not torch.equal(magnitude, before)


# ------------------------------------------------------------------------------ which layers


def adapted_layers(model: Any) -> set[str]:
    return {
        name.removeprefix("base_model.model.")
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }


def test_chosen_layers_alone_have_adapters():
    config = AdapterConfig(r=2, target_modules=["q_proj", "v_proj"])
    model, _ = set_what_trains(make_aya(), modes(FROZEN, FULL, LORA), config)
    decoder = "model.language_model.layers"
    assert adapted_layers(model) == {
        f"{decoder}.{layer}.self_attn.{leaf}" for layer in range(4) for leaf in ("q_proj", "v_proj")
    }


def test_a_name_may_be_of_one_part_alone():
    """`fc1` is the tower's, `up_proj` the decoder's; `q_proj` is in both."""
    config = AdapterConfig(r=2, target_modules=["fc1", "up_proj", "q_proj"])
    model, _ = set_what_trains(make_aya(), modes(LORA, FROZEN, LORA), config)
    leaves = {(name.split(".")[1], name.rsplit(".", 1)[-1]) for name in adapted_layers(model)}
    assert leaves == {
        ("vision_tower", "fc1"), ("vision_tower", "q_proj"),
        ("language_model", "up_proj"), ("language_model", "q_proj"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("parts", "names", "message"),
    [
        (modes(FROZEN, FULL, LORA), ["q_proj", "fc1"], r"fc1 names no linear layer of a part"),
        (modes(FROZEN, FULL, LORA), ["qkv"], r"\['qkv'\] names no linear layer of the decoder"),
        (modes(LORA, FULL, LORA), ["up_proj"], r"no linear layer of the vision_tower"),
    ],
)
def test_a_name_that_matches_nothing_is_refused(parts, names, message):
    with pytest.raises(ConfigError, match=rf"adapter\.target_modules: .*{message}"):
        set_what_trains(make_aya(), parts, AdapterConfig(r=2, target_modules=names))


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (r".*\.q_proj", r"6 layers have one, 28 were to; they differ in .*, of vision_tower"),
        (r"model\.language_model\..*\.q_proj", r"4 layers have one, 28 were to; they differ in"),
    ],
)
def test_a_leak_or_a_gap_is_refused(pattern, message, monkeypatch):
    """A pattern that matches a layer of another part, and one that misses some of its own."""
    monkeypatch.setattr(train.model.what_trains, "_pattern", lambda names: pattern)
    with pytest.raises(ConfigError, match=message):
        set_what_trains(make_aya(), modes(FROZEN, FULL, LORA), AdapterConfig(r=2))
