"""Linear interpolation, as in Aya Vision (arXiv 2505.08751)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from merge.recipe.interface import MergeMethod, Settings, Source, Values

if TYPE_CHECKING:
    from torch import Tensor


def linear(values: Values, settings: Settings, _: None = None) -> Tensor:
    """`text + alpha * (vlm - text)` in three separate fp32 operations, each rounded.

    `torch.lerp`, `addcmul` and `add(alpha=)` may fuse two of them and then differ between CPUs in
    up to 2.8e-4 of the elements (measured). Overwrites `values.vlm` with the result.
    """
    return values.vlm.sub_(values.text).mul_(settings.alpha).add_(values.text)


def end_points(settings: Settings) -> Source | None:
    """At alpha 0 an interpolation is the text LM, at alpha 1 the VLM."""
    if settings.alpha == 0:
        return "text"
    return "vlm" if settings.alpha == 1 else None


LINEAR = MergeMethod(
    name="linear",
    formula="text + alpha * (vlm - text)",
    url="https://arxiv.org/abs/2505.08751",
    merge=linear,
    copies=end_points,
)
