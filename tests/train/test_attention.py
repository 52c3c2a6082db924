"""Samples of a pack never see each other: equal to transformers' plain forward of each alone."""

from typing import Any

import pytest
import torch
from pico_models import (
    WINDOW,
    gradients,
    largest_difference,
    make_aya,
    make_sample,
    make_samples,
    make_text_lm,
    pack,
)

from configs.errors import ConfigError
from configs.schema import Attention
from train.attention import SUPPORTED, set_attention
from train.loss import add_token_losses

WORST_LOSS = 5e-6  # nats; measured 2.9e-6 (mistral), aya 4.8e-7
WORST_GRADIENT = 2e-5  # share of the largest gradient of a tensor; measured 6.6e-6
FAMILIES = ["aya", *SUPPORTED]


def make(kind: str) -> Any:
    model = make_aya() if kind == "aya" else make_text_lm(kind)
    add_token_losses(model)
    return model


def losses_and_gradients(model: Any, batches: list[dict[str, torch.Tensor]]) -> tuple[Any, Any]:
    losses = torch.cat([model(**batch, token_losses=True) for batch in batches])
    losses.sum().backward()
    return losses.detach(), gradients(model)


@pytest.mark.parametrize("attention", Attention, ids=lambda item: item.value)
@pytest.mark.parametrize("kind", FAMILIES)
def test_a_pack_equals_its_samples_alone(kind, attention):
    model = make(kind)
    samples = make_samples(pictures=kind == "aya")
    model.set_attn_implementation("eager")
    alone, wanted = losses_and_gradients(model, [sample.batch() for sample in samples])
    set_attention(model, attention)
    packed, found = losses_and_gradients(model, [pack(samples)])

    assert float((packed - alone).abs().max()) < WORST_LOSS
    assert largest_difference(found, wanted) < WORST_GRADIENT


@pytest.mark.parametrize("attention", Attention, ids=lambda item: item.value)
@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_also_in_training_and_when_recomputed(attention, checkpointing):
    model = make("aya")
    samples = make_samples(pictures=True)
    set_attention(model, attention)
    _, wanted = losses_and_gradients(model, [sample.batch() for sample in samples])
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    _, found = losses_and_gradients(model, [pack(samples)])
    assert largest_difference(found, wanted) < WORST_GRADIENT


def test_the_measure_sees_a_pack_that_is_not_kept_apart():
    """Positions that run on are one long sample: the losses above must then differ."""
    model, samples = make("aya"), make_samples(pictures=True)
    batch = pack(samples)
    apart = model(**batch, token_losses=True)
    batch["position_ids"] = torch.arange(batch["input_ids"].shape[1])[None]
    together = model(**batch, token_losses=True)
    assert torch.equal(apart[:7], together[:7])
    assert (apart[7:] - together[7:]).abs().min() > 1e-3


@pytest.mark.parametrize("attention", Attention, ids=lambda item: item.value)
@pytest.mark.parametrize("changed", [0, 1, 2, 3])
def test_a_changed_token_changes_no_other_sample(attention, changed):
    """Not in a single bit, through sliding and through position-free layers."""
    model, samples = make("aya"), make_samples(pictures=True)
    set_attention(model, attention)
    bounds = torch.tensor([7, 2, 1, 3]).cumsum(0).tolist()
    with torch.no_grad():
        before = model(**pack(samples), token_losses=True).tensor_split(bounds[:-1])
        place = len(samples[changed].ids) - 2
        samples[changed] = samples[changed].with_token(place, 63)
        after = model(**pack(samples), token_losses=True).tensor_split(bounds[:-1])
    for index, (one, two) in enumerate(zip(before, after, strict=True)):
        assert torch.equal(one, two) is (index != changed), index


@pytest.mark.parametrize("attention", Attention, ids=lambda item: item.value)
def test_a_changed_picture_changes_no_other_sample(attention):
    model, samples = make("aya"), make_samples(pictures=True)
    set_attention(model, attention)
    with torch.no_grad():
        before = model(**pack(samples), token_losses=True)
        samples[2].tiles.neg_()
        after = model(**pack(samples), token_losses=True)
    same = before == after
    assert same.tolist() == [True] * 9 + [False] + [True] * 3


@pytest.mark.parametrize("length", [1, 2, WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW])
def test_the_window_counts_from_the_start_of_each_sample(length):
    model = make("cohere2")
    set_attention(model, Attention.sdpa_by_sample)
    torch.manual_seed(2)
    samples = [make_sample(WINDOW + 3), make_sample(length, num_supervised=length - 1)]
    with torch.no_grad():
        alone = torch.cat([model(**s.batch(), token_losses=True) for s in samples])
        packed = model(**pack(samples), token_losses=True)
    assert len(packed) == 4 + length - 1
    assert float((packed - alone).abs().max()) < WORST_LOSS


def test_a_pack_of_one_is_that_sample():
    model, sample = make("aya"), make_sample(3 * WINDOW)
    set_attention(model, Attention.sdpa_by_sample)
    with torch.no_grad():
        alone = model(**sample.batch(), token_losses=True)
        assert torch.equal(model(**pack([sample]), token_losses=True), alone)


def test_no_mask_of_the_whole_pack_is_made(monkeypatch):
    """What makes it cheaper than sdpa: no [T, T] anywhere, each sample attended on its own."""
    model, samples = make("aya"), make_samples(pictures=True)
    set_attention(model, Attention.sdpa_by_sample)
    shapes = []
    inner = torch.nn.functional.scaled_dot_product_attention

    def spy(query, *args, attn_mask=None, **kwargs):
        shapes.append((query.shape[2], None if attn_mask is None else attn_mask.shape[-1]))
        return inner(query, *args, attn_mask=attn_mask, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    model(**pack(samples), token_losses=True)
    tower, decoder = shapes[:2], shapes[2:]
    assert tower == [(16, None)] * 2  # one call a layer for all tiles
    sliding = [(23, 23), (5, None), (11, 11), (6, None)]
    assert decoder == sliding * 3 + [(n, None) for n, _ in sliding]


@pytest.mark.parametrize("lengths", [(9, 9), (9, 14, 5)])
def test_padded_batches_and_generation_are_those_of_sdpa(lengths):
    model = make("aya")
    torch.manual_seed(3)
    ids = [make_sample(length).ids for length in lengths]
    longest = max(lengths)
    padded = torch.stack([torch.cat([x.new_zeros(longest - len(x)), x]) for x in ids])
    inputs = {"input_ids": padded, "attention_mask": (padded != 0).long()}
    kwargs = dict(max_new_tokens=2 * WINDOW, do_sample=False, eos_token_id=None, pad_token_id=0)
    model.generation_config.eos_token_id = None
    set_attention(model, Attention.sdpa)
    wanted = model.generate(**inputs, **kwargs)
    set_attention(model, Attention.sdpa_by_sample)
    assert torch.equal(model.generate(**inputs, **kwargs), wanted)
    assert wanted.shape == (len(lengths), longest + 2 * WINDOW)


def test_the_tower_keeps_sdpa():
    model = make("aya")
    set_attention(model, Attention.sdpa_by_sample)
    assert model.config.text_config._attn_implementation == "sdpa_by_sample"
    assert model.config.vision_config._attn_implementation == "sdpa"


def test_a_decoder_with_another_mask_is_refused():
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=32, n_embd=16, n_layer=1, n_head=2)
    with pytest.raises(
        ConfigError, match=r"proven for cohere, cohere2, .*, not for gpt2; use sdpa"
    ):
        set_attention(GPT2LMHeadModel(config), Attention.sdpa_by_sample)
