"""The merge methods against PEFT's, which take task vectors (peft.utils.merge_utils, 0.21)."""

from collections.abc import Callable

import pytest
import torch
from merge_tensors import Inputs, make_inputs, run
from peft.utils import merge_utils

from merge.recipe.dare import keep_mask
from merge.recipe.interface import Settings

SIZE = 5000
TENSOR = "model.norm.weight"
WEIGHTS = [(1.0, 0.4), (0.7, -0.3), (1.0, 1.0)]


def peft(name: str, inputs: Inputs, weights: tuple[float, float], **density: float) -> torch.Tensor:
    """The base and what PEFT makes of both task vectors."""
    vectors = [inputs[key] - inputs["base"] for key in ("text", "vlm")]
    return inputs["base"] + getattr(merge_utils, name)(vectors, torch.tensor(weights), **density)


def ours(
    name: str, inputs: Inputs, weights: tuple[float, float], **settings: float
) -> torch.Tensor:
    return run(
        name,
        Settings(text_weight=weights[0], alpha=weights[1], has_base=True, **settings),
        inputs,
        tensor=TENSOR,
    )


@pytest.fixture
def our_masks(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Hands PEFT our masks where it draws its own, which its generator's state decides."""

    def hand_over(density: float) -> None:
        left = ["text", "vlm"]

        def draw(probabilities: torch.Tensor) -> torch.Tensor:
            assert torch.equal(probabilities, torch.full((SIZE,), density))
            mask = keep_mask(
                0, SIZE, tensor=TENSOR, vector=left.pop(0), density=density, drop_seed=0
            )
            return mask.float()

        monkeypatch.setattr(torch, "bernoulli", draw)

    return hand_over


@pytest.mark.parametrize("weights", WEIGHTS)
def test_task_arithmetic(weights):
    """Worst difference: none."""
    inputs = make_inputs(SIZE)
    found = ours("task_arithmetic", inputs, weights)
    assert torch.equal(found, peft("task_arithmetic", inputs, weights))


@pytest.mark.parametrize("weights", WEIGHTS)
def test_dare(weights, our_masks):
    """Worst difference: none."""
    inputs = make_inputs(SIZE)
    our_masks(0.3)
    theirs = peft("dare_linear", inputs, weights, density=0.3)
    assert torch.equal(ours("dare", inputs, weights, density=0.3), theirs)


@pytest.mark.parametrize("density", [0.2, 0.5])
def test_ties(density):
    """Worst difference: none, with both weights 1 and normalize."""
    inputs = make_inputs(SIZE)
    theirs = peft("ties", inputs, (1, 1), density=density)
    assert torch.equal(ours("ties", inputs, (1, 1), density=density, normalize=True), theirs)


def test_dare_ties(our_masks):
    """Worst difference: none, with both weights 1 and normalize."""
    inputs = make_inputs(SIZE)
    our_masks(0.3)
    theirs = peft("dare_ties", inputs, (1, 1), density=0.3)
    assert torch.equal(ours("dare_ties", inputs, (1, 1), density=0.3, normalize=True), theirs)


def test_ties_with_weights_differs():
    """PEFT elects by the vectors without weights, and divides by how many act, not by weights.

    So weights of 0.5 halve its mean, while ours stays the mean; and where the two disagree, a
    weight of 0.1 on the larger one turns our election and not PEFT's.
    """
    inputs = {
        "base": torch.zeros(3),
        "text": torch.tensor([2.0, 2.0, 2.0]),
        "vlm": torch.tensor([4.0, -4.0, 0.0]),
    }
    half = (0.5, 0.5)
    assert ours("ties", inputs, half, normalize=True).tolist() == [3, -4, 2]
    with pytest.warns(UserWarning, match="no pruning"):
        assert peft("ties", inputs, half, density=1.0).tolist() == [1.5, -2, 1]
    assert ours("ties", inputs, (1, 0.25)).tolist() == [3, 2, 2]
    with pytest.warns(UserWarning, match="no pruning"):
        assert peft("ties", inputs, (1, 0.25), density=1.0).tolist() == [1.5, -1, 2]


def test_equal_magnitudes_and_small_shares_differ():
    """PEFT keeps k elements, whichever of the equal ones its sort puts first, and k may be 0."""
    inputs = {"base": torch.zeros(4), "text": torch.ones(4), "vlm": torch.ones(4)}
    assert ours("ties", inputs, (1, 1), density=0.5).tolist() == [2, 2, 2, 2]
    assert float(peft("ties", inputs, (1, 1), density=0.5).sum()) == 2
    inputs["vlm"] = torch.tensor([1.0, 5.0, 2.0, 1.0])
    assert ours("ties", inputs, (0, 1), density=0.1).tolist() == [0, 5, 0, 0]
    assert float(peft("ties", inputs, (0, 1), density=0.1).abs().sum()) == 0
