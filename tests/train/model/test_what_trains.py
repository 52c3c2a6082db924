"""The exact set of what trains, for every preset and mode; frozen parts build no graph."""

import itertools
from typing import Any

import pytest
import torch
from pico_models import gradients, make_aya, make_samples, make_text_lm, pack
from pico_runs import MIXED, make_trainer, vlm
from torch import nn

import train.model.what_trains
from configs.command import load_config
from configs.errors import CheckpointError, ConfigError
from configs.schema import AdapterConfig, PartConfig, PartMode, PartsConfig
from train.model.loss import add_token_losses
from train.model.parts import PARTS
from train.model.what_trains import (
    format_table,
    hold_in_float32,
    part_of,
    set_what_trains,
    trainable_by_part,
)

FROZEN, LORA, FULL = PartMode.frozen, PartMode.lora, PartMode.full
LINEARS = [
    *(f"self_attn.{x}_proj" for x in "qkvo"), *(f"mlp.{x}_proj" for x in ("gate", "up", "down")),
]  # fmt: skip
TOWER_LINEARS = [
    *(f"self_attn.{x}" for x in ("q_proj", "k_proj", "v_proj", "out_proj")), "mlp.fc1", "mlp.fc2",
]  # fmt: skip


def preset(stage: str) -> PartsConfig:
    model = ["model=pico_text", "data=text"] if stage == "text" else []
    return load_config("train", [f"stage={stage}", *model]).stage.parts


def modes(tower: PartMode, projector: PartMode, decoder: PartMode) -> PartsConfig:
    return PartsConfig(*(PartConfig(mode) for mode in (tower, projector, decoder)))


def trains(model: Any) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def below(model: Any, module: str) -> set[str]:
    return {name for name, _ in model.named_parameters() if name.startswith(f"{module}.")}


def adapters(module: str, num_layers: int, linears: list[str]) -> set[str]:
    return {
        f"base_model.model.{module}.layers.{layer}.{linear}.lora_{matrix}.default.weight"
        for layer in range(num_layers)
        for linear in linears
        for matrix in "AB"
    }


PROJECTOR, DECODER, TOWER = (
    "model.multi_modal_projector",
    "model.language_model",
    "model.vision_tower",
)
COPY = f"base_model.model.{PROJECTOR}.modules_to_save.default."


def copied_projector(model: Any) -> set[str]:
    return {COPY + name.removeprefix(f"{PROJECTOR}.") for name in below(model, PROJECTOR)}


def unreached(model: Any) -> set[str]:
    """Pictures take the state before these: there is no gradient, and DDP would wait for one."""
    return {name for name in below(model, TOWER) if ".post_layernorm." in name}


# ------------------------------------------------------------------------------ presets


def test_text():
    model = make_text_lm("cohere2")
    everything = {name for name, _ in model.named_parameters()}
    model, table = set_what_trains(model, preset("text"), AdapterConfig())
    assert trains(model) == everything
    assert [(row.part, row.mode) for row in table] == [("decoder", FULL)]


def test_align():
    model, _ = set_what_trains(make_aya(), preset("align"), AdapterConfig())
    assert trains(model) == below(model, PROJECTOR)


@pytest.mark.parametrize("tied", [True, False])
def test_sft(tied):
    model, _ = set_what_trains(make_aya(tied=tied), preset("sft"), AdapterConfig())
    head = set() if tied else {"lm_head.weight"}
    assert trains(model) == below(model, PROJECTOR) | below(model, DECODER) | head


def test_scratch():
    model = make_aya()
    everything = {name for name, _ in model.named_parameters()}
    model, _ = set_what_trains(model, preset("scratch"), AdapterConfig())
    assert len(unreached(model)) == 2
    assert trains(model) == everything - unreached(model)


@pytest.mark.parametrize("tied", [True, False])
def test_sft_lora(tied):
    plain = make_aya(tied=tied)
    copy = copied_projector(plain)
    model, _ = set_what_trains(plain, preset("sft_lora"), AdapterConfig(r=2))
    assert trains(model) == adapters(DECODER, 4, LINEARS) | copy


# ------------------------------------------------------------------------------ lora, by part


def test_lora_on_a_text_lm():
    parts = modes(FROZEN, FROZEN, LORA)
    model, _ = set_what_trains(make_text_lm("llama"), parts, AdapterConfig(r=2))
    assert trains(model) == adapters("model", 4, LINEARS)


def test_lora_on_the_tower_alone():
    plain = make_aya()
    model, _ = set_what_trains(plain, modes(LORA, FROZEN, FROZEN), AdapterConfig(r=2))
    assert trains(model) == adapters(f"{TOWER}.encoder", 2, TOWER_LINEARS)


def test_lora_on_tower_and_decoder_beside_a_full_projector():
    """Both have a `q_proj`; each part keeps its own."""
    plain = make_aya()
    wanted = adapters(f"{TOWER}.encoder", 2, TOWER_LINEARS) | adapters(DECODER, 4, LINEARS)
    wanted |= copied_projector(plain)
    model, _ = set_what_trains(plain, modes(LORA, FULL, LORA), AdapterConfig(r=2))
    assert trains(model) == wanted


@pytest.mark.parametrize("options", [dict(use_dora=True), dict(use_rslora=True)])
def test_other_adapters_stay_in_their_part_too(options):
    model, _ = set_what_trains(
        make_aya(), modes(FROZEN, FROZEN, LORA), AdapterConfig(r=2, **options)
    )
    assert all(part_of(model, name) == "decoder" and "lora_" in name for name in trains(model))
    assert adapters(DECODER, 4, LINEARS) <= trains(model)


def test_lora_on_a_part_without_linear_layers():
    model = make_aya()
    for name, module in list(model.model.vision_tower.named_modules()):
        if isinstance(module, nn.Linear):
            parent = model.model.vision_tower.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], nn.Identity())
    message = r"stage\.parts\.vision_tower\.mode: is lora, but the part has no linear layer"
    with pytest.raises(ConfigError, match=message):
        set_what_trains(model, modes(LORA, FULL, FROZEN), AdapterConfig())


@pytest.mark.parametrize("part", ["vision_tower", "projector"])
def test_lora_beside_a_full_decoder_is_refused_by_the_config(part):
    """PEFT would train a copy of the decoder, and the tied head would stay behind."""
    given = ["model=vlm", "model.path=x", "stage=sft", f"stage.parts.{part}.mode=lora"]
    with pytest.raises(ConfigError, match=rf"decoder\.mode: is full beside {part}\.mode=lora"):
        load_config("train", given)


def test_lora_on_a_fresh_projector_is_refused_by_the_config():
    given = ["stage=sft_lora", "stage.parts.projector.mode=lora"]
    with pytest.raises(ConfigError, match=r"stage\.parts\.projector\.mode: lora is for pretrained"):
        load_config("train", given)
    assert load_config("train", [*given, "model=vlm", "model.path=x"])


def test_lora_on_a_loaded_projector():
    model, table = set_what_trains(make_aya(), modes(FROZEN, LORA, LORA), AdapterConfig(r=2))
    trained = trainable_by_part(model)
    assert set(trained) == {"projector", "decoder"}
    assert all("lora_" in name for named in trained.values() for name, _ in named)
    assert [row.mode for row in table] == [FROZEN, LORA, LORA]


# ------------------------------------------------------------------------------ what it does


ALLOWED = [
    combination
    for combination in itertools.product(PartMode, (FROZEN, FULL), PartMode)
    if set(combination) != {FROZEN} and combination[::2] != (LORA, FULL)
]


@pytest.mark.parametrize(("tower", "projector", "decoder"), ALLOWED)
def test_every_mode_gives_gradients_to_just_what_trains(tower, projector, decoder):
    """With pictures and without: the same set, for engines wait for all of it on every rank."""
    model = make_aya()
    add_token_losses(model)
    model, table = set_what_trains(model, modes(tower, projector, decoder), AdapterConfig(r=2))
    model.train()
    for pictures in (True, False):
        model(**pack(make_samples(pictures=pictures)), token_losses=True).sum().backward()
        assert set(gradients(model)) == trains(model), pictures
    counted = {row.part: row.num_trainable for row in table}
    named = trainable_by_part(model)
    assert counted == {part: sum(p.numel() for _, p in named.get(part, [])) for part in PARTS}


@pytest.mark.parametrize("decoder", PartMode)
def test_a_step_changes_just_what_trains(decoder):
    """Also tied weights: the head follows the embedding where it trains, else neither moves."""
    model = make_aya()
    add_token_losses(model)
    model, _ = set_what_trains(model, modes(FROZEN, FULL, decoder), AdapterConfig(r=2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):  # the first step of a LoRA moves B alone
        model.train()(**pack(make_samples(pictures=True)), token_losses=True).sum().backward()
        optimizer.step()
    changed = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    head = {"lm_head.weight"} if decoder is FULL else set()
    assert changed == trains(model) | head


@pytest.mark.parametrize("stage", ["align", "sft", "sft_lora", "scratch"])
def test_what_trains_is_held_in_float32(stage):
    model, _ = set_what_trains(make_aya().bfloat16(), preset(stage), AdapterConfig(r=2))
    hold_in_float32(model, preset(stage))
    dtypes = {p.requires_grad: set() for p in model.parameters()}
    for parameter in model.parameters():
        dtypes[parameter.requires_grad].add(parameter.dtype)
    rest = torch.float32 if stage == "scratch" else torch.bfloat16  # two norms of the tower
    assert dtypes == {True: {torch.float32}, False: {rest}}


def test_the_table_says_it():
    _, table = set_what_trains(make_aya(), preset("align"), AdapterConfig())
    total = sum(p.numel() for p in make_aya().parameters())
    assert sum(row.num_total for row in table) == total
    lines = format_table(table).splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [
        ["vision_tower", "frozen", "0.00e+00"],
        ["projector", "full", "1.00e-04"],
        ["decoder", "frozen", "0.00e+00"],
    ]


@pytest.mark.parametrize("protected", [True, False])
def test_a_frozen_tower_builds_no_graph_in_a_real_run(protected, pipeline, tmp_path, monkeypatch):
    """PEFT and checkpointing make embeddings require gradients; unprotected, the tower builds a
    graph and is run backwards, as this test shows of itself."""
    if not protected:
        monkeypatch.setattr(train.model.what_trains, "frozen_without_graph", lambda module: None)
    trainer = make_trainer(
        *vlm(pipeline.align), *MIXED, "stage=sft_lora", "engine.gradient_checkpointing=true",
        "optim.max_steps=2", f"output_dir={tmp_path}",
    )  # fmt: skip
    base = trainer.model.get_base_model()
    inner, backwards, given = [], [], []
    layer = base.model.vision_tower.encoder.layers[0]
    layer.register_forward_hook(lambda m, args, out: inner.append(torch.is_grad_enabled()))
    layer.mlp.fc1.register_full_backward_hook(lambda *_: backwards.append(1))
    base.model.multi_modal_projector.register_forward_pre_hook(
        lambda m, args: given.append(args[0].requires_grad)
    )
    trainer.train()
    assert base.model.language_model.layers[0].gradient_checkpointing
    assert len(given) == 4 and set(given) == {not protected}
    assert set(inner) == {not protected}
    assert bool(backwards) is not protected


def test_a_family_that_is_only_merged_is_refused():
    from pico_vlms import make_text, make_vlm

    model = make_vlm("qwen3_vl", make_text("qwen3"))
    with pytest.raises(CheckpointError, match=r"'qwen3_vl' cannot be trained, only merged; .*aya_"):
        set_what_trains(model, preset("sft"), AdapterConfig())
