"""merge.recipe.methods: the algebra of each method, bit for bit."""

import numpy as np
import torch

from merge.recipe.linear import linear
from merge.recipe.methods import METHODS, Settings, Values


def test_linear_is_three_rounded_operations():
    torch.manual_seed(0)
    text, vlm = torch.randn(100_000), torch.randn(100_000)
    expected = text.numpy() + np.float32(0.4) * (vlm.numpy() - text.numpy())
    before = text.clone()
    found = linear(Values(text=text, vlm=vlm.clone(), base=text), Settings(alpha=0.4))
    assert torch.equal(found, torch.from_numpy(expected))
    assert torch.equal(text, before)
    assert all(method.name == key for key, method in METHODS.items())
