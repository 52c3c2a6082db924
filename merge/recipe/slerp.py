"""Along the great circle from the text LM to the VLM, each tensor as one vector.

Shoemake, Animating Rotation with Quaternion Curves (SIGGRAPH 1985), section 3.3; for weights as in
mergekit (https://github.com/arcee-ai/mergekit, merge_methods/slerp.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from merge.recipe.interface import MergeMethod, Settings, Stretches, Values
from merge.recipe.linear import end_points, linear

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 1 << 15  # elements in float64 at a time: 1 MiB with their products, a thread
# Above this |cos| the circle is a line to within rounding (or, for opposite vectors, undefined).
MAX_COSINE = 0.9995  # mergekit's `dot_threshold`


@dataclass(frozen=True)
class Coefficients:
    """What both vectors are multiplied by."""

    text: float
    vlm: float


def find_coefficients(stretches: Stretches, settings: Settings, _: int = 0) -> Coefficients | None:
    """From the angle between the two whole tensors; None: interpolate linearly.

    Products of two float32 are exact in float64. Their sums are numpy's, which never uses threads,
    added in the order of the stretches. Other cuts change a sum by some 1e-16 of it, which shows in
    the rounded coefficients about once in 1e8 tensors; the writer and `merge_whole` cut alike.
    """
    text_square = vlm_square = product = 0.0
    for values in stretches():
        for first in range(0, len(values.text), BLOCK):
            text = values.text[first : first + BLOCK].double().numpy()
            vlm = values.vlm[first : first + BLOCK].double().numpy()
            text_square += float((text * text).sum())
            vlm_square += float((vlm * vlm).sum())
            product += float((text * vlm).sum())
    if text_square == 0 or vlm_square == 0:
        return None  # a zero vector has no direction
    cosine = product / (math.sqrt(text_square) * math.sqrt(vlm_square))
    if not abs(cosine) <= MAX_COSINE:
        return None  # also where it is NaN: one bad element would make the whole tensor NaN
    angle = math.acos(cosine)
    return Coefficients(
        text=math.sin((1 - settings.alpha) * angle) / math.sin(angle),
        vlm=math.sin(settings.alpha * angle) / math.sin(angle),
    )


def slerp(values: Values, settings: Settings, found: Coefficients | None) -> Tensor:
    """`text_coefficient * text + vlm_coefficient * vlm` in three separate fp32 operations.

    The coefficients are rounded to fp32 by `mul_`. Overwrites both tensors.
    """
    if found is None:
        return linear(values, settings)
    return values.text.mul_(found.text).add_(values.vlm.mul_(found.vlm))


SLERP = MergeMethod(
    name="slerp",
    formula=(
        "sin((1 - alpha) * angle) / sin(angle) * text + sin(alpha * angle) / sin(angle) * vlm, "
        "angle between the two as whole tensors; text + alpha * (vlm - text) where "
        f"|cos(angle)| > {MAX_COSINE} or one is zero"
    ),
    url="https://github.com/arcee-ai/mergekit",
    merge=slerp,
    copies=end_points,
    prepare=find_coefficients,
)
