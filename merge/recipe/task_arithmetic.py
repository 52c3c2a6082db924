"""Task vectors added to the model they started from (arXiv 2212.04089, section 2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from merge.recipe.interface import MergeMethod, Settings, Values
from merge.recipe.task_vectors import add_all, only_input, take_vectors

if TYPE_CHECKING:
    from torch import Tensor


def task_arithmetic(values: Values, settings: Settings, _: None = None) -> Tensor:
    """A weighted sum of both task vectors on the base. Overwrites `values`, but for the base."""
    return add_all(values.base, take_vectors(values, settings), settings)


TASK_ARITHMETIC = MergeMethod(
    name="task_arithmetic",
    formula="base + (text_weight * (text - base) + alpha * (vlm - base))",
    url="https://arxiv.org/abs/2212.04089",
    merge=task_arithmetic,
    copies=only_input,
    uses=frozenset({"alpha", "text_weight"}),
    takes_base=True,
    needs_base="with the text LM as the base it is method=linear",
)
