"""Single tensors for the merge methods: seeded inputs, and a method run over any cut of them."""

from collections.abc import Iterator
from itertools import pairwise

import torch

from merge.recipe.interface import Settings, Values
from merge.recipe.methods import METHODS

Inputs = dict[str, torch.Tensor]


def make_inputs(size: int, *, seed: int = 0, delta: float = 0.5) -> Inputs:
    """A base and two models trained from it, flat float32."""
    torch.manual_seed(seed)
    base = torch.randn(size)
    return {
        "text": base + delta * torch.randn(size),
        "vlm": base + delta * torch.randn(size),
        "base": base,
    }


def run(
    name: str,
    settings: Settings,
    inputs: Inputs,
    *,
    cuts: tuple[int, ...] = (),
    tensor: str = "model.layers.0.mlp.up_proj.weight",
) -> torch.Tensor:
    """The merged tensor, without looking at `copies`; `cuts` are the inner ends of stretches.

    Without a base in the settings the one of `inputs` is not handed over, and shares the memory of
    the text LM's values, which a method has to bear.
    """
    method = METHODS[name]
    size = inputs["text"].numel()
    places = list(pairwise((0, *cuts, size)))

    def stretches() -> Iterator[Values]:
        for start, stop in places:
            text, vlm = (inputs[key][start:stop].clone() for key in ("text", "vlm"))
            base = inputs["base"][start:stop].clone() if settings.has_base else text
            yield Values(text=text, vlm=vlm, base=base, tensor=tensor, start=start)

    found = method.prepare(stretches, settings, size) if method.prepare else None
    return torch.cat([method.merge(values, settings, found) for values in stretches()])
