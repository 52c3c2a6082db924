"""merge.recipe.ties against numpy and by hand."""

import numpy as np
import pytest
import torch
from merge_tensors import Inputs, make_inputs, run

from merge.recipe.interface import Settings

HAND = {
    "base": torch.zeros(4),
    "text": torch.tensor([4.0, -1.0, 2.0, 0.5]),
    "vlm": torch.tensor([-6.0, -3.0, 0.25, 1.0]),
}


def trim(vector: np.ndarray, density: float) -> np.ndarray:
    k = max(1, int(density * vector.size))
    threshold = np.sort(np.abs(vector))[-k]
    return np.where(np.abs(vector) >= threshold, vector, np.float32(0))


def naive(inputs: Inputs, settings: Settings) -> np.ndarray:
    text, vlm, base = (inputs[key].numpy() for key in ("text", "vlm", "base"))
    weights = [np.float32(settings.text_weight), np.float32(settings.alpha)]
    vectors = [trim(model - base, settings.density) for model in (text, vlm)]
    weighted = [weight * vector for weight, vector in zip(weights, vectors, strict=True)]
    elected = np.where(weighted[0] + weighted[1] >= 0, 1, -1)
    acts = [np.sign(vector) == elected for vector in weighted]
    total = weighted[0] * acts[0] + weighted[1] * acts[1]
    divisor = acts[0] * weights[0] + acts[1] * weights[1]
    return base + (total / np.where(divisor == 0, 1, divisor) if settings.normalize else total)


def test_by_hand():
    """k = 2: text [4, 0, 2, 0]; alpha vlm [-3, -1.5, 0, 0]; elected + - + +."""
    settings = Settings(alpha=0.5, density=0.5, has_base=True)
    assert run("ties", settings, HAND).tolist() == [4, -1.5, 2, 0]
    settings = Settings(alpha=0.5, density=0.5, has_base=True, normalize=True)
    assert run("ties", settings, HAND).tolist() == [4, -3, 2, 0]


def test_the_disjoint_mean_of_the_paper():
    """Both weights 1: the mean of those that agree."""
    inputs = HAND | {"text": torch.tensor([4.0, 1.0, -2.0, 3.0])}
    settings = Settings(alpha=1, text_weight=1, has_base=True, normalize=True)
    assert run("ties", settings, inputs).tolist() == [-6, -3, -2, 2]


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("density", [1e-9, 0.2, 0.5, 0.999, 1])
@pytest.mark.parametrize(
    ("text_weight", "alpha"), [(1, 0.4), (1, 1), (0.7, -0.3), (1, -1), (0, 0.4), (0.7, 0), (0, 0)]
)
def test_equals_numpy(text_weight, alpha, density, normalize):
    inputs = make_inputs(3000)
    settings = Settings(
        alpha=alpha,
        text_weight=text_weight,
        density=density,
        normalize=normalize,
        has_base=True,
    )
    assert torch.equal(run("ties", settings, inputs), torch.from_numpy(naive(inputs, settings)))


def test_one_task_vector():
    inputs = make_inputs(3000)
    text, vlm = inputs["text"].numpy(), inputs["vlm"].numpy()
    expected = text + np.float32(0.4) * trim(vlm - text, 0.2)
    found = run("ties", Settings(alpha=0.4, density=0.2), inputs)
    assert torch.equal(found, torch.from_numpy(expected))
    assert int((found != inputs["text"]).sum()) == 600


def test_all_that_equal_the_threshold_stay():
    inputs = {"text": torch.zeros(6), "vlm": torch.tensor([1.0, -1.0, 1.0, 2.0, 0.5, -1.0])}
    found = run("ties", Settings(alpha=1, density=0.34), inputs)
    assert found.tolist() == [1, -1, 1, 2, 0, -1]


def test_a_tie_of_signs_goes_to_plus():
    inputs = {"base": torch.zeros(2), "text": torch.tensor([2.0, -2.0])}
    inputs["vlm"] = -inputs["text"]
    found = run("ties", Settings(alpha=1, text_weight=1, has_base=True), inputs)
    assert found.tolist() == [2, 2]
