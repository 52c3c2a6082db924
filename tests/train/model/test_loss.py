"""train.model.loss against transformers' own logits and a naive cross entropy."""

from typing import Any

import pytest
import torch
from pico_models import (
    IGNORED,
    IMAGE_TOKEN,
    gradients,
    largest_difference,
    make_aya,
    make_sample,
    make_samples,
    make_text_lm,
    pack,
)
from torch.nn import functional

import train.model.head
import train.model.loss
from configs.errors import CheckpointError
from train.model.attention import set_attention  # noqa: F401 (registers sdpa_by_sample)
from train.model.loss import add_token_losses, black_tile_features, check_against_text_class

MODELS = [
    pytest.param(lambda tied=tied, kind=kind: make(kind, tied), id=f"{kind}-{name}")
    for kind in ("aya", "cohere2", "cohere", "llama")
    for tied, name in ((True, "tied"), (False, "untied"))
]
WORST_LOSS = 1e-6  # nats; measured 2.4e-7
WORST_GRADIENT = (
    3e-5  # share of a tensor's largest gradient; measured 5.4e-7, on another CPU 5.6e-6
)


def make(kind: str, tied: bool) -> Any:
    return make_aya(tied=tied) if kind == "aya" else make_text_lm(kind, tied=tied)


def naive_losses(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Nats of each supervised token, from all logits of transformers' own forward."""
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    # With a cache transformers does not tell packed samples apart (masking_utils, 5.23).
    logits = model(**inputs, use_cache=False).logits.float()
    if hasattr(model.config, "vision_config"):  # AyaVision leaves out what its text class applies
        logits = logits * model.config.get_text_config().logit_scale
    wanted = batch["labels"][0, 1:]
    losses = functional.cross_entropy(
        logits[0, :-1], wanted, ignore_index=IGNORED, reduction="none"
    )
    return losses[wanted != IGNORED]


def gradients_of(model: Any, losses: torch.Tensor) -> dict[str, torch.Tensor]:
    losses.mean().backward()
    return gradients(model)


@pytest.mark.parametrize("chunk", [1024, 3])
@pytest.mark.parametrize("make_model", MODELS)
def test_losses_and_gradients_are_the_naive_ones(make_model, chunk, monkeypatch):
    monkeypatch.setattr(train.model.head, "CHUNK", chunk)
    model = make_model()
    batch = pack(make_samples(pictures=hasattr(model.config, "vision_config")))
    theirs = naive_losses(model, batch)
    wanted = gradients_of(model, theirs)
    add_token_losses(model)
    ours = model(**batch, token_losses=True)

    assert ours.shape == (7 + 2 + 1 + 3,) and ours.dtype == torch.float32
    assert float((ours - theirs).detach().abs().max()) < WORST_LOSS
    assert largest_difference(gradients_of(model, ours), wanted) < WORST_GRADIENT


@pytest.mark.parametrize("frozen", [True, False])
def test_chunks_are_never_larger_and_change_nothing(frozen, monkeypatch):
    """Logits of a frozen head are computed once; those of one that trains again in backward."""
    model = make_aya()
    model.get_output_embeddings().weight.requires_grad_(not frozen)
    add_token_losses(model)
    batch = pack(make_samples(pictures=True))
    whole = model(**batch, token_losses=True)
    sizes = []
    inner = train.model.head._logits

    def spy(states, *args):
        sizes.append(len(states))
        return inner(states, *args)

    monkeypatch.setattr(train.model.head, "_logits", spy)
    monkeypatch.setattr(train.model.head, "CHUNK", 5)
    chunked = model(**batch, token_losses=True)
    assert sizes == [5, 5, 3]
    torch.testing.assert_close(chunked, whole, rtol=0, atol=WORST_LOSS)
    chunked.sum().backward()
    assert sizes == ([5, 5, 3] if frozen else [5, 5, 3, 5, 5, 3])


@pytest.mark.parametrize("make_model", MODELS)
def test_a_frozen_head_passes_on_the_same_gradient(make_model):
    """What LoRA and align use; a token's weight in the loss is known in backward alone."""
    model = make_model()
    model.get_output_embeddings().weight.requires_grad_(False)
    batch = pack(make_samples(pictures=hasattr(model.config, "vision_config")))
    weights = torch.linspace(-1, 2, 13)
    (naive_losses(model, batch) * weights).sum().backward()
    wanted = gradients(model)
    add_token_losses(model)
    (model(**batch, token_losses=True) * weights).sum().backward()
    assert largest_difference(gradients(model), wanted) < WORST_GRADIENT


@pytest.mark.parametrize("head_trains", [True, False])
def test_the_head_in_double_precision(head_trains):
    """Against autograd's own finite differences, each token with a weight of its own."""
    torch.manual_seed(0)
    states = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    head = torch.randn(6, 3, dtype=torch.float64, requires_grad=head_trains)
    wanted = torch.tensor([0, 5, 2, 2])

    def losses(one, two):
        return train.model.head.chunked_losses(one, wanted, two, 0.5)

    naive = functional.cross_entropy(0.5 * states @ head.T, wanted, reduction="none")
    assert float((losses(states, head) - naive).detach().abs().max()) < 1e-6  # they are float32
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    ours = torch.autograd.grad(
        (losses(states, head) * weights).sum(), [states, head][: 1 + head_trains]
    )
    theirs = torch.autograd.grad((naive * weights).sum(), [states, head][: 1 + head_trains])
    for one, two in zip(ours, theirs, strict=True):
        assert float((one - two).abs().max()) < 1e-6


@pytest.mark.parametrize("frozen", [True, False])
def test_under_autocast_it_multiplies_as_autocast_does(frozen):
    torch.manual_seed(0)
    states = torch.randn(9, 32, requires_grad=True)
    head = torch.randn(64, 32, requires_grad=not frozen)
    wanted = torch.arange(9)
    with torch.autocast("cpu", torch.bfloat16):
        ours = train.model.head.chunked_losses(states, wanted, head, 0.25)
        logits = functional.linear(states, head).float() * 0.25
        theirs = functional.cross_entropy(logits, wanted, reduction="none")
    assert float((ours - theirs).detach().abs().max()) < WORST_LOSS
    inputs = [states] if frozen else [states, head]
    for one, two in zip(
        torch.autograd.grad(ours.sum(), inputs),
        torch.autograd.grad(theirs.sum(), inputs),
        strict=True,
    ):
        assert float((one - two).abs().max()) < 0.01 * float(two.abs().max())  # bfloat16's own


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_supervised_positions_reach_the_head(dtype, monkeypatch):
    """[S, K] logits, never [T, K]; float32 whatever the weights are."""
    model = make_aya().to(dtype)
    add_token_losses(model)
    shapes = []
    inner = train.model.head._logits

    def spy(*args):
        logits = inner(*args)
        shapes.append((logits.shape, logits.dtype))
        return logits

    monkeypatch.setattr(train.model.head, "_logits", spy)
    losses = model(**pack(make_samples(pictures=False)), token_losses=True)
    assert shapes == [((13, 64), torch.float32)]
    assert losses.dtype == torch.float32


def test_no_supervised_token_is_no_loss_and_no_gradient():
    model = make_aya()
    add_token_losses(model)
    batch = pack(make_samples(pictures=True))
    batch["labels"] = torch.full_like(batch["labels"], IGNORED)
    losses = model(**batch, token_losses=True)
    assert losses.shape == (0,)
    losses.sum().backward()
    assert not any(float(g.abs().max()) for g in gradients(model).values())


def test_logit_scale_is_applied_once():
    """Ours is the text class's loss; AyaVision's own (5.23) is that of logits 4 times as large."""
    model, ids = make_aya(), make_sample(20).ids[None]
    own = model(input_ids=ids, labels=ids).loss
    logits = model(input_ids=ids).logits[0, :-1]
    add_token_losses(model)
    ours = model(input_ids=ids, labels=ids, token_losses=True).mean()
    once = functional.cross_entropy(logits * 0.25, ids[0, 1:])
    assert abs(ours.item() - once.item()) < WORST_LOSS
    assert check_against_text_class(model) < WORST_LOSS
    if torch.allclose(own, once):
        pytest.skip("transformers applies logit_scale to AyaVision's logits now")
    torch.testing.assert_close(own, functional.cross_entropy(logits, ids[0, 1:]))
    assert abs(own.item() - ours.item()) > 1


@pytest.mark.parametrize("scale", [1.0, 0.25 * 0.25, 0.26])
def test_a_wrong_scale_is_found_at_start(scale, monkeypatch):
    model = make_aya()
    monkeypatch.setattr(train.model.loss, "logit_scale_of", lambda _: scale)
    add_token_losses(model)
    with pytest.raises(CheckpointError, match="differs from the text class Cohere2ForCausalLM"):
        check_against_text_class(model)


def test_the_check_leaves_the_model_as_it_was():
    model = make_aya().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    add_token_losses(model)
    check_against_text_class(model)
    assert model.training and model.model.language_model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(p.grad is not None for p in model.parameters())


def test_without_the_flag_the_forward_is_the_one_it_was():
    model, batch = make_aya(), pack(make_samples(pictures=True))
    before = model(**batch)
    add_token_losses(model)
    after = model(**batch)
    assert torch.equal(before.loss, after.loss) and torch.equal(before.logits, after.logits)


def test_text_alone_touches_every_vision_parameter_with_zero():
    """Else a rank without pictures would hang the others; values stay those of text alone."""
    model = make_aya().train()
    add_token_losses(model)
    batch = pack(make_samples(pictures=False))
    losses = model(**batch, token_losses=True)
    assert torch.equal(losses, model.eval()(**batch, token_losses=True))
    found = gradients_of(model, losses)
    vision = {name for name in found if "vision_tower" in name or "projector" in name}
    reached = {
        name
        for name, _ in model.named_parameters()
        if ("vision_tower" in name or "projector" in name) and "post_layernorm" not in name
    }
    assert vision == reached
    assert all(not found[name].any() for name in vision)


def test_text_alone_costs_nothing_where_vision_is_frozen(monkeypatch):
    model = make_aya().train()
    for module in (model.model.vision_tower, model.model.multi_modal_projector):
        module.requires_grad_(False)
    add_token_losses(model)
    monkeypatch.setattr(
        train.model.loss, "black_tile_features", None
    )  # would fail if it were called
    assert model(**pack(make_samples(pictures=False)), token_losses=True).requires_grad


def test_black_tile_goes_through_tower_and_projector():
    model = make_aya()
    tile = torch.zeros(1, 3, 16, 16)
    wanted = model.get_image_features(pixel_values=tile, return_dict=True).pooler_output
    assert torch.equal(black_tile_features(model), wanted[0])


def test_image_tokens_are_no_targets_of_the_samples():
    """What the tests above rest on: pictures are there, and not supervised."""
    batch = pack(make_samples(pictures=True))
    assert int((batch["input_ids"] == IMAGE_TOKEN).sum()) == 12
    assert not (batch["labels"] == IMAGE_TOKEN).any()
