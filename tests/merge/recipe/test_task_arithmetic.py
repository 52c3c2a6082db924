"""merge.recipe.task_arithmetic against numpy and by hand."""

import numpy as np
import pytest
import torch
from merge_tensors import make_inputs, run

from merge.recipe.interface import Settings


def test_by_hand():
    inputs = {
        key: torch.tensor([value]) for key, value in dict(base=1.0, text=2.0, vlm=5.0).items()
    }
    settings = Settings(alpha=0.25, text_weight=0.5, has_base=True)
    assert run("task_arithmetic", settings, inputs).tolist() == [1 + 0.5 * 1 + 0.25 * 4]


@pytest.mark.parametrize(("text_weight", "alpha"), [(1, 0.4), (0.7, 0.3), (-0.5, 1.3), (0, 0.4)])
def test_equals_numpy(text_weight, alpha):
    inputs = make_inputs(10_000)
    text, vlm, base = (inputs[key].numpy() for key in ("text", "vlm", "base"))
    expected = base + (np.float32(text_weight) * (text - base) + np.float32(alpha) * (vlm - base))
    settings = Settings(alpha=alpha, text_weight=text_weight, has_base=True)
    assert torch.equal(run("task_arithmetic", settings, inputs), torch.from_numpy(expected))


@pytest.mark.parametrize("name", ["ties", "dare", "dare_ties"])
def test_what_the_others_are_when_nothing_is_taken_away(name):
    """At density 1 dare is task arithmetic; so is TIES where no two task vectors disagree."""
    inputs = make_inputs(10_000)
    if name != "dare":
        inputs["vlm"] = inputs["base"] + (inputs["text"] - inputs["base"]) * torch.rand(10_000)
    settings = Settings(alpha=0.4, text_weight=0.7, has_base=True)
    assert torch.equal(run(name, settings, inputs), run("task_arithmetic", settings, inputs))
