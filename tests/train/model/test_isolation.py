"""A pack is its samples: their losses and gradients to rounding, and nothing passes between them.

In float32, as trained, and in float64: there rounding shrinks by 10^9, and a leak would not.
flex_attention is torch's own reference sum here, under transformers' own mask; its compiled kernel
is in test_attention.py.
"""

import contextlib
import functools
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from pico_models import (
    IGNORED,
    IMAGE_SIZE,
    IMAGE_TOKEN,
    TOKENS_A_TILE,
    VOCABULARY,
    WINDOW,
    PicoSample,
    gradients,
    largest_difference,
    make_aya,
    make_text_lm,
    pack,
)
from pico_runs import MIXED, SHAPES, TOWER, make_trainer
from torch.nn.attention import flex_attention
from torch.overrides import TorchFunctionMode
from transformers import TrainerCallback

import train.model.attention
from configs.schema import Attention
from train.model.attention import FLASH, SUPPORTED, set_attention
from train.model.loss import add_token_losses

# FlashAttention runs on GPUs alone: test_attention.py beside this has what can be said of it here.
HERE = [item for item in Attention if item is not Attention.auto and item not in FLASH]
ATTENTIONS = pytest.mark.parametrize("attention", HERE, ids=lambda item: item.value)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])

# What the samples are made of, in tokens, or in tiles of one picture. 149 tokens, more than the
# 128 of a flex block, with the sixty across its border.
SAMPLES = [
    [("text", 3), ("tiles", 3), ("text", 5), ("tiles", 1), ("text", 4), ("answer", 6),
     ("text", 2), ("answer", 7)],  # two pictures, two turns
    [("text", 1), ("answer", 1)],  # the shortest that is asked for anything
    [("text", 1)],  # one token, asked for nothing
    [("text", 1), ("answer", WINDOW - 1)],
    [("text", 1), ("tiles", 5), ("answer", 3)],
    [("text", 1), ("answer", WINDOW)],  # one token more than the window
    [("text", 30), ("answer", 30)],  # ten windows
    [("tiles", 1), ("answer", 2)],  # begins with its picture
]  # fmt: skip
LENGTHS = [43, 2, 1, 6, 24, 7, 60, 6]
NUM_TARGETS = [13, 1, 0, 5, 3, 6, 30, 2]


class Worst(NamedTuple):
    """How far two runs are apart."""

    token: float  # nats of a supervised token
    sample: float  # nats of a sample, summed
    gradient: float  # share of the largest gradient of a tensor

    def is_below(self, limits: "Worst") -> bool:
        """Whether each of the three is."""
        return all(value < limit for value, limit in zip(self, limits, strict=True))


class Run(NamedTuple):
    """Nats of each supervised token, by sample, and {name: gradient} of their sum."""

    losses: list[torch.Tensor]
    gradients: dict[str, torch.Tensor]

    def distance(self, other: "Run") -> Worst:
        """How far the other run is from this one."""
        pairs = list(zip(self.losses, other.losses, strict=True))
        return Worst(
            max(float((one - two).abs().max()) for one, two in pairs if len(one)),
            max(abs(float(one.double().sum() - two.double().sum())) for one, two in pairs),
            largest_difference(other.gradients, self.gradients),
        )


# Over all attentions; float64 over all families too (with them float32: 7.2e-6, 2.0e-5, 2.7e-5).
LIMITS = {
    torch.float32: Worst(5e-6, 1e-5, 1e-4),  # measured 9.5e-7, 1.2e-6, 2.7e-5
    torch.float64: Worst(1e-13, 2e-13, 2e-13),  # measured 2.5e-14, 4.3e-14, 2.8e-14
}


class Float64(TorchFunctionMode):
    """Makes float64 of every float32 that transformers and our loss ask for on their way."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        func = torch.Tensor.double if func is torch.Tensor.float else func
        args = [torch.float64 if value is torch.float32 else value for value in args]
        kwargs = {k: torch.float64 if v is torch.float32 else v for k, v in (kwargs or {}).items()}
        return func(*args, **kwargs)


@pytest.fixture(autouse=True)
def flex_without_a_gpu(monkeypatch):
    """Lift what refuses flex's backward on the CPU, torch's refusal and ours; compile nothing."""
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    monkeypatch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setattr(train.model.attention, "check_attention", lambda _: None)
    with torch.compiler.set_stance("force_eager"):
        yield


def make_sample(pieces: list[tuple[str, int]]) -> PicoSample:
    ids, labels, num_tiles = [], [], 0
    for kind, size in pieces:
        words = torch.randint(IMAGE_TOKEN + 1, VOCABULARY, (size,))
        if kind == "tiles":
            words = torch.full((size * TOKENS_A_TILE,), IMAGE_TOKEN)
            num_tiles += size
        ids.append(words)
        labels.append(words if kind == "answer" else torch.full_like(words, IGNORED))
    tiles = torch.randn(num_tiles, 3, IMAGE_SIZE, IMAGE_SIZE) if num_tiles else None
    return PicoSample(torch.cat(ids), torch.cat(labels), tiles)


def make(kind: str, dtype: torch.dtype = torch.float32) -> tuple[Any, list[PicoSample]]:
    """A model, all of it training, and the samples above; to a text LM tiles are words."""
    model = (make_aya() if kind == "aya" else make_text_lm(kind)).to(dtype)
    add_token_losses(model)
    torch.manual_seed(1)
    samples = [make_sample(pieces) for pieces in SAMPLES]
    if kind != "aya":
        return model, [replace(sample, tiles=None) for sample in samples]
    return model, [
        sample if sample.tiles is None else replace(sample, tiles=sample.tiles.to(dtype))
        for sample in samples
    ]


def run_on(model: Any, batches: list[dict[str, torch.Tensor]], dtype: torch.dtype) -> Run:
    """Forward and backward of each batch in turn; gradients add up, as in accumulation."""
    losses = []
    with Float64() if dtype is torch.float64 else contextlib.nullcontext():
        for batch in batches:
            losses.append(model(**batch, token_losses=True))
            losses[-1].sum().backward()
    nats = torch.cat(losses).detach()
    assert nats.dtype == dtype
    return Run(list(nats.split(NUM_TARGETS)), gradients(model))


@functools.cache
def alone(kind: str, dtype: torch.dtype) -> Run:
    """Each sample by itself, as transformers takes it: eager, no pack, no positions."""
    model, samples = make(kind, dtype)
    model.set_attn_implementation("eager")
    return run_on(model, [sample.batch() for sample in samples], dtype)


def without_borders(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The deliberate break: positions run on, so that all is one long sample."""
    return batch | {"position_ids": torch.arange(batch["input_ids"].shape[1])[None]}


# ------------------------------------------------------------------- losses and gradients


def test_what_is_compared():
    """Samples as said above, and the gradient of every parameter there is."""
    model, samples = make("aya")
    assert [len(sample.ids) for sample in samples] == LENGTHS
    assert [int((sample.labels != IGNORED).sum()) for sample in samples] == NUM_TARGETS
    unused = {name for name, _ in model.named_parameters() if "post_layernorm" in name}
    names = {name for name, _ in model.named_parameters()}
    found = alone("aya", torch.float32).gradients
    assert found.keys() == names - unused
    assert all(value.any() for value in found.values())


@ATTENTIONS
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("aya", torch.float32), *((kind, torch.float64) for kind in ("aya", *SUPPORTED))],
    ids=str,
)
def test_a_pack_is_its_samples(kind, dtype, attention):
    model, samples = make(kind, dtype)
    set_attention(model, attention)
    found = run_on(model, [pack(samples)], dtype)
    worst = alone(kind, dtype).distance(found)
    assert worst.is_below(LIMITS[dtype]), worst


@ATTENTIONS
@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_also_in_training_and_when_recomputed(checkpointing, attention):
    dtype = torch.float32  # recomputing leaves the mode that makes float64
    model, samples = make("aya", dtype)
    set_attention(model, attention)
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    worst = alone("aya", dtype).distance(run_on(model, [pack(samples)], dtype))
    assert worst.is_below(LIMITS[dtype]), worst


@ATTENTIONS
@DTYPES
def test_positions_that_run_on_fail_the_comparison(dtype, attention):
    model, samples = make("aya", dtype)
    set_attention(model, attention)
    found = run_on(model, [without_borders(pack(samples))], dtype)
    worst = alone("aya", dtype).distance(found)
    assert Worst(*(1000 * limit for limit in LIMITS[dtype])).is_below(worst), worst


@ATTENTIONS
@pytest.mark.parametrize("border", [1, 3, 4, 5, 6, 7])  # 2 would join a token without a target
def test_one_lost_border_fails_the_comparison(border, attention):
    """Positions that run on into one sample change that sample alone, and it shows."""
    model, samples = make("aya")
    set_attention(model, attention)
    batch = pack(samples)
    start = sum(LENGTHS[:border])
    batch["position_ids"][0, start : start + LENGTHS[border]] += LENGTHS[border - 1]
    with torch.no_grad():
        losses = model(**batch, token_losses=True).split(NUM_TARGETS)
    for index, (one, two) in enumerate(
        zip(alone("aya", torch.float32).losses, losses, strict=True)
    ):
        assert bool(torch.allclose(one, two, rtol=0, atol=1e-3)) is (index != border), index


# -------------------------------------------------------------------------- bit for bit


def change(sample: PicoSample, what: str) -> PicoSample:
    """The sample with another first word, or with the negatives of its pictures."""
    if what == "tiles":
        return replace(sample, tiles=-sample.tiles)
    return sample.with_token(int((sample.ids != IMAGE_TOKEN).nonzero()[0]), 63)


@ATTENTIONS
@pytest.mark.parametrize(
    ("what", "places"), [("token", range(8)), ("tiles", (0, 4, 7))], ids=["token", "tiles"]
)
def test_a_changed_sample_changes_no_bit_of_another(what, places, attention):
    model, samples = make("aya")
    set_attention(model, attention)

    def losses(batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        with torch.no_grad():
            return model(**batch, token_losses=True).split(NUM_TARGETS)

    def changed_samples(before: Any, after: Any) -> list[bool]:
        return [not torch.equal(one, two) for one, two in zip(before, after, strict=True)]

    before = losses(pack(samples))
    others = {at: [*samples] for at in places}
    for at, packed in others.items():
        packed[at] = change(packed[at], what)
        changed = changed_samples(before, losses(pack(packed)))
        assert changed == [i == at and NUM_TARGETS[i] > 0 for i in range(8)], at
    broken = (losses(without_borders(pack(packed))) for packed in (samples, others[0]))
    assert changed_samples(*broken) == [count > 0 for count in NUM_TARGETS]


def reach_of(model: Any, samples: list[PicoSample], at: int) -> list[list[int]]:
    """After each layer, the places of the pack that a changed word at one place has changed."""
    batch = pack(samples)
    ids, positions = batch["input_ids"], batch["position_ids"]
    other = ids.clone()
    other[0, at] = 63
    with torch.no_grad():
        before, after = (
            model.model(
                input_ids=x, position_ids=positions, output_hidden_states=True, use_cache=False
            ).hidden_states
            for x in (ids, other)
        )
    return [
        (one != two).any(-1)[0].nonzero()[:, 0].tolist()
        for one, two in zip(before[1:], after[1:], strict=True)
    ]


@ATTENTIONS
@pytest.mark.parametrize("sample", [0, 5, 6])
def test_a_word_reaches_as_far_as_the_window_and_its_sample(sample, attention):
    """Three sliding layers: one window more each; the full one: to the end of the sample."""
    model, samples = make("cohere2", torch.float64)
    set_attention(model, attention)
    start = sum(LENGTHS[:sample])
    end, at = start + LENGTHS[sample], start + 2
    windows = [min(end, at + 1 + layer * (WINDOW - 1)) for layer in (1, 2, 3)]
    with Float64():
        found = reach_of(model, samples, at)
    assert found == [list(range(at, stop)) for stop in (*windows, end)]


@ATTENTIONS
def test_no_gradient_crosses_a_border(attention):
    """d(states of one sample) / d(words of another) is 0, not small, through all layers."""
    model, samples = make("cohere2")
    set_attention(model, attention)
    batch = pack(samples)
    for broken in (False, True):
        positions = (without_borders(batch) if broken else batch)["position_ids"]
        words = model.get_input_embeddings()(batch["input_ids"]).detach().requires_grad_()
        states = model.model(
            inputs_embeds=words, position_ids=positions, use_cache=False
        ).last_hidden_state
        for at, part in enumerate(states.split(LENGTHS, 1)):
            (found,) = torch.autograd.grad(part[0, -1].sum(), words, retain_graph=True)
            reached = [bool(x.any()) for x in found.split(LENGTHS, 1)]
            first = 0 if broken else at
            assert reached == [first <= i <= at for i in range(8)], at


# ------------------------------------------------------------------------- the whole stack


class KeepGradients(TrainerCallback):
    """Copies what the optimizer is given at the first step."""

    def __init__(self) -> None:
        self.found: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.found:
            self.found = {n: p.grad.clone() for n, p in kwargs["model"].named_parameters()
                          if p.grad is not None}  # fmt: skip


def train_three_steps(*overrides: str) -> tuple[list[float], dict[str, torch.Tensor], list[int]]:
    """Losses of the steps, gradients of the first, and the sizes of its packs in samples."""
    keep = KeepGradients()
    trainer = make_trainer(
        "model=pico_vlm", *SHAPES, *TOWER, *MIXED, "data.sources.scenes.num_rows=4",
        "data.sources.numbers.num_rows=4", "optim.max_steps=3",
        "optim.warmup_steps=0", "optim.max_grad_norm=0",
        *overrides, callbacks=(keep,),
    )  # fmt: skip
    assert trainer.plan.num_steps(1) == 1  # every global batch is all rows
    sizes = [len(trainer.plan.pack(index)) for index in range(trainer.plan.packs_per_step)]
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return losses, keep.found, sizes


@pytest.fixture(scope="module")
def one_by_one(tmp_path_factory):
    """The run whose packs hold one sample each: no two of them fit into 40 tokens."""
    folder = tmp_path_factory.mktemp("one_by_one")
    losses, found, sizes = train_three_steps(
        "data.max_tokens=40", "data.packs_per_step=8", f"output_dir={folder}"
    )
    assert sizes == [1] * 8
    return losses, found


@ATTENTIONS
def test_training_on_a_pack_is_training_on_its_samples(attention, one_by_one, tmp_path):
    """From rows to the optimizer: the same eight rows a step, in one pack or one by one."""
    wanted, gradients_wanted = one_by_one
    losses, found, sizes = train_three_steps(
        "data.max_tokens=1024", "data.max_tiles=64", "data.packs_per_step=1",
        f"model.attn_implementation={attention.value}", f"output_dir={tmp_path}",
    )  # fmt: skip
    assert sizes == [8]
    apart = max(abs(one - two) for one, two in zip(wanted, losses, strict=True))
    assert apart < 2e-6  # nats; measured 4.8e-7
    assert largest_difference(found, gradients_wanted) < 2e-5  # measured 4.3e-6
    assert wanted[2] < wanted[0] - 0.1  # it did learn in between
