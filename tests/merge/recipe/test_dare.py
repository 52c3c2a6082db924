"""merge.recipe.dare and dare_ties: the mask by Philox written out, the rest against numpy."""

import hashlib

import numpy as np
import pytest
import torch
from merge_tensors import Inputs, make_inputs, run

from merge.recipe.dare import keep_mask
from merge.recipe.interface import Settings

NAME = "model.layers.0.mlp.up_proj.weight"
MASK = dict(tensor=NAME, vector="vlm", density=0.3, drop_seed=0)


def philox(counter: int, key: list[int]) -> list[int]:
    """The four words of Philox4x64-10 (Salmon et al., SC 2011, section 4.3)."""
    words = [counter, 0, 0, 0]
    for turn in range(10):
        first, second = 0xD2E7470EE14C6C93 * words[0], 0xCA5A826395121157 * words[2]
        bumped = [
            (key[0] + turn * 0x9E3779B97F4A7C15) % 2**64,
            (key[1] + turn * 0xBB67AE8584CAA73B) % 2**64,
        ]
        words = [
            (second >> 64) ^ words[1] ^ bumped[0],
            second % 2**64,
            (first >> 64) ^ words[3] ^ bumped[1],
            first % 2**64,
        ]
    return words


def test_the_mask_is_that_of_philox_written_out():
    digest = hashlib.blake2b(f'[7, "{NAME}", "text"]'.encode(), digest_size=16).digest()
    key = [int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")]
    words = [word for count in range(1, 12) for word in philox(count, key)]
    found = keep_mask(0, 44, tensor=NAME, vector="text", density=0.3, drop_seed=7)
    assert found.tolist() == [word < 0.3 * 2**64 for word in words]


def test_the_mask_never_changes():
    """What a seed gave once it gives for ever: a merge can be made again."""
    found = keep_mask(0, 32, **MASK)
    assert "".join(str(int(keep)) for keep in found) == "11000001010000100001010101101000"


@pytest.mark.parametrize("start", [0, 1, 2, 3, 4, 5, 1001, 2**40 + 3])
@pytest.mark.parametrize("length", [1, 2, 5, 64])
def test_any_stretch_is_a_stretch_of_the_whole(start, length):
    first = start - start % 8
    whole = keep_mask(first, start + length, **MASK)
    assert torch.equal(keep_mask(start, start + length, **MASK), whole[start - first :])


def test_every_part_of_the_key_counts():
    """By chance two masks of 0.3 agree in 58 % of 10,000 places, give or take 0.5 %."""
    masks = [
        keep_mask(0, 10_000, **(MASK | change))
        for change in ({}, {"tensor": NAME + "s"}, {"vector": "text"}, {"drop_seed": 1})
    ]
    for index, mask in enumerate(masks):
        assert float(mask.float().mean()) == pytest.approx(0.3, abs=0.02)
        for other in masks[:index]:
            assert float((mask == other).float().mean()) == pytest.approx(0.58, abs=0.02)


def test_a_higher_density_keeps_what_a_lower_one_does():
    low, high = keep_mask(0, 1000, **MASK), keep_mask(0, 1000, **(MASK | {"density": 0.6}))
    assert bool((high | ~low).all()) and int(high.sum()) > int(low.sum())


def dropped(inputs: Inputs, settings: Settings, vector: str) -> np.ndarray:
    """A task vector thinned out and scaled up."""
    base = inputs["base" if settings.has_base else "text"].numpy()
    mask = keep_mask(
        0,
        base.size,
        tensor=NAME,
        vector=vector,
        density=settings.density,
        drop_seed=settings.drop_seed,
    ).numpy()
    return mask * (inputs[vector].numpy() - base) / np.float32(settings.density)


@pytest.mark.parametrize("name", ["dare", "dare_ties"])
def test_one_task_vector_equals_numpy(name):
    inputs = make_inputs(3000)
    settings = Settings(alpha=0.4, density=0.3, drop_seed=3)
    expected = inputs["text"].numpy() + np.float32(0.4) * dropped(inputs, settings, "vlm")
    assert torch.equal(run(name, settings, inputs), torch.from_numpy(expected))


@pytest.mark.parametrize(("text_weight", "alpha"), [(1, 0.4), (0.7, -0.3), (0, 1)])
def test_dare_equals_numpy(text_weight, alpha):
    inputs = make_inputs(3000)
    settings = Settings(
        alpha=alpha, text_weight=text_weight, density=0.3, drop_seed=3, has_base=True
    )
    text, vlm = (dropped(inputs, settings, key) for key in ("text", "vlm"))
    expected = inputs["base"].numpy() + (np.float32(text_weight) * text + np.float32(alpha) * vlm)
    assert torch.equal(run("dare", settings, inputs), torch.from_numpy(expected))


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(("text_weight", "alpha"), [(1, 0.4), (1, 1), (0.7, -0.3)])
def test_dare_ties_is_ties_of_what_was_not_dropped(text_weight, alpha, normalize):
    """On a base of zeros, so that task vectors go in and come out unrounded."""
    inputs = make_inputs(3000) | {"base": torch.zeros(3000)}
    weights = dict(alpha=alpha, text_weight=text_weight, normalize=normalize, has_base=True)
    settings = Settings(**weights, density=0.3, drop_seed=3)
    thinned = {key: torch.from_numpy(dropped(inputs, settings, key)) for key in ("text", "vlm")}
    expected = run("ties", Settings(**weights), thinned | {"base": torch.zeros(3000)})
    assert torch.equal(run("dare_ties", settings, inputs), expected)


@pytest.mark.parametrize("name", ["dare", "dare_ties"])
def test_by_hand(name):
    """A delta of 3 that is kept becomes 3 / 0.25, times alpha 0.5."""
    inputs = {"text": torch.ones(8), "vlm": torch.full((8,), 4.0)}
    found = run(name, Settings(alpha=0.5, density=0.25), inputs)
    assert found.tolist() == [7.0 if place in {0, 7} else 1.0 for place in range(8)]


def test_the_mean_is_kept():
    """E[dare] = task arithmetic (the paper's reason to divide): over 400 seeds, to 4 sigma."""
    inputs = make_inputs(50)
    settings = [Settings(alpha=1, density=0.5, drop_seed=seed) for seed in range(400)]
    mean = torch.stack([run("dare", item, inputs) for item in settings]).mean(0)
    delta = (inputs["vlm"] - inputs["text"]).abs()
    assert bool(((mean - inputs["vlm"]).abs() <= 4 * delta / 400**0.5).all())
