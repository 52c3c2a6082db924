"""DARE's drop in place of the trim, then the election of TIES (arXiv 2311.03099, section 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from merge.recipe.dare import drop
from merge.recipe.interface import MergeMethod, Settings, Values
from merge.recipe.task_vectors import only_input, take_vectors
from merge.recipe.ties import add_elected

if TYPE_CHECKING:
    from torch import Tensor


def dare_ties(values: Values, settings: Settings, _: None = None) -> Tensor:
    """Drops, scales up, and adds by `add_elected`. Overwrites `values`."""
    vectors = drop(take_vectors(values, settings), values, settings)
    return add_elected(values.base, vectors, settings)


DARE_TIES = MergeMethod(
    name="dare_ties",
    formula=(
        "base + (text_weight * drop(text - base) + alpha * drop(vlm - base)), drop: zero with "
        "probability 1 - density, else divided by density; only terms that have the sign of that "
        "sum; normalize: the sum divided by the weights of those terms"
    ),
    url="https://arxiv.org/abs/2311.03099",
    merge=dare_ties,
    copies=only_input,
    uses=frozenset({"alpha", "text_weight", "density", "normalize", "drop_seed"}),
    takes_base=True,
)
