"""TIES: trim, elect a sign an element, add what agrees with it (arXiv 2306.01708, section 4.2).

Trimmed tensor by tensor, as in mergekit and PEFT; the authors' code trims a whole model at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from merge.recipe.interface import MergeMethod, Settings, Source, Stretches, Values
from merge.recipe.task_vectors import Vectors, add_all, only_input, take_vectors
from merge.recipe.threshold import kth_largest

if TYPE_CHECKING:
    from torch import Tensor

Thresholds = dict[Source, float]
"""{task vector: smallest magnitude that stays}; empty: all stay."""


def find_thresholds(stretches: Stretches, settings: Settings, num_elements: int) -> Thresholds:
    """The k-th largest magnitude of each task vector, k = max(1, int(density * num_elements)).

    k is that of mergekit and PEFT, which keep k elements whichever; here, as in the authors' code
    (github.com/prateeky2806/ties-merging), all that equal the k-th stay: no order decides.
    """
    if settings.density == 1:
        return {}

    def vectors() -> Iterator[Vectors]:
        for values in stretches():
            yield take_vectors(values, settings)

    return kth_largest(vectors, max(1, int(settings.density * num_elements)))


def ties(values: Values, settings: Settings, thresholds: Thresholds) -> Tensor:
    """Trims the task vectors and adds them by `add_elected`. Overwrites `values`.

    By multiplying with a mask: `masked_fill` and `where` branch on each element, at 7 ns each.
    """
    vectors = take_vectors(values, settings)
    for name, vector in vectors.items():
        if name in thresholds:
            vector.mul_(vector.abs() >= thresholds[name])
    return add_elected(values.base, vectors, settings)


def add_elected(base: Tensor, vectors: Vectors, settings: Settings) -> Tensor:
    """Adds to the base what agrees with the sign of the weighted sum, overwriting `vectors`.

    Elected is the sign of `text_weight * text + alpha * vlm`, plus where that is zero, as in
    mergekit and PEFT. Weighted vectors are what is compared and added, as in mergekit; zero never
    agrees. With one task vector everything agrees.

    Args:
        base: values of the base, one stretch, float32; not changed.
        vectors: task vectors of that stretch.
        settings: with the weights, and whether to divide by the sum of those that act.
    """
    if "text" not in vectors:
        return add_all(base, vectors, settings)
    text = vectors["text"].mul_(settings.text_weight)
    vlm = vectors["vlm"].mul_(settings.alpha)
    total = text + vlm
    # 1 or -1. The sum of opposites is +0.0; it is -0.0 only where both are, and none acts.
    elected = total.new_ones(()).copysign(total)
    # Times the elected sign, what agrees is above zero; products with 1 and -1 are exact.
    for vector in (text, vlm):
        vector.mul_(elected).clamp_(min=0)
    total = (text + vlm).mul_(elected)
    if settings.normalize:
        weights = text.sign_().mul_(settings.text_weight).add_(vlm.sign_().mul_(settings.alpha))
        total.div_(weights.add_(weights == 0))  # by 1 where none acts, or the weights cancel
    return total.add_(base)


TIES = MergeMethod(
    name="ties",
    formula=(
        "base + (text_weight * trim(text - base) + alpha * trim(vlm - base)), trim: the `density` "
        "share of largest magnitude, ties kept; only terms that have the sign of that sum; "
        "normalize: the sum divided by the weights of those terms"
    ),
    url="https://arxiv.org/abs/2306.01708",
    merge=ties,
    copies=only_input,
    prepare=find_thresholds,
    uses=frozenset({"alpha", "text_weight", "density", "normalize"}),
    takes_base=True,
)
