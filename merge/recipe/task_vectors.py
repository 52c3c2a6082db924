"""What the methods on task vectors share: taking them, and adding them to the base.

The text LM's is `text - base`, the VLM's `vlm - base`. Without a third model the base is the text
LM, and the VLM's is the only one. Every operation is rounded on its own, as in `linear`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from merge.recipe.interface import Settings, Source, Values

if TYPE_CHECKING:
    from torch import Tensor

Vectors = dict[Source, "Tensor"]
"""Task vectors, or stretches of them; the text LM's first, where there is one."""


def take_vectors(values: Values, settings: Settings) -> Vectors:
    """The task vectors of one stretch, in the memory of `values.text` and `values.vlm`."""
    vlm = values.vlm.sub_(values.base)
    if not settings.has_base:
        return {"vlm": vlm}
    return {"text": values.text.sub_(values.base), "vlm": vlm}


def add_all(base: Tensor, vectors: Vectors, settings: Settings) -> Tensor:
    """`base + (text_weight * text + alpha * vlm)`, overwriting `vectors`.

    Args:
        base: values of the base, one stretch, float32; not changed.
        vectors: task vectors of that stretch.
        settings: with the weights.
    """
    total = vectors["vlm"].mul_(settings.alpha)
    if "text" in vectors:
        total = vectors["text"].mul_(settings.text_weight).add_(total)
    return total.add_(base)


def only_input(settings: Settings) -> Source | None:
    """The input that a weighted sum of whole task vectors gives back, or None."""
    if not settings.has_base:
        if settings.alpha == 0:
            return "text"
        return "vlm" if settings.alpha == 1 and settings.density == 1 else None
    if settings.density != 1:
        return None
    weights = (settings.text_weight, settings.alpha)
    if settings.normalize:  # a weight that acts alone is divided by itself
        weights = (float(weights[0] != 0), float(weights[1] != 0))
    if weights == (1, 0):
        return "text"
    return "vlm" if weights == (0, 1) else None
