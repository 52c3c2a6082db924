"""How much of the intended change the stored dtype kept.

A bfloat16 file cannot hold a small change: at a relative delta of 1 % and alpha 0.3, 27 % of the
values that should have moved stay where they were (measured; of all values, also those that the VLM
has as the text LM, 43-47 %). Sampled, because it costs as much as merging.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from merge.reading.bits import Floats

SAMPLE_EVERY = 16  # chunks; the first of every tensor is always looked at
BLOCK = 32768  # elements whose differences stay in the L2 cache


@dataclass
class Rounding:
    """Sums over sampled elements."""

    num_elements: int = 0
    num_unchanged: int = 0
    """Elements that a change was meant for and that are stored as the text LM has them."""
    intended: float = 0.0
    """Sum of squares of merged - text, before rounding."""
    error: float = 0.0
    """Sum of squares of stored - merged."""
    kept: float = 0.0
    """Sum of (stored - text) * (merged - text)."""

    def __add__(self, other: "Rounding") -> "Rounding":
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Rounding(*(one + two for one, two in pairs))

    def describe(self) -> dict[str, Any]:
        """Ratios for the report; None where no change was meant, or one that is not finite."""
        changed = 0 < self.intended < float("inf")  # not where NaN or Inf is allowed, and there
        return {
            "num_sampled": self.num_elements,
            "unchanged_ratio": self.num_unchanged / self.num_elements if changed else None,
            "kept_ratio": self.kept / self.intended if changed else None,
            "error_ratio": (self.error / self.intended) ** 0.5 if changed else None,
        }


def look_at_rounding(merged: Floats, stored: Floats, text: Floats) -> Rounding:
    """Counts one stretch.

    Args:
        merged: what was meant, before rounding.
        stored: what is written, widened again.
        text: values of the text LM.
    """
    found = Rounding()
    for start in range(0, len(merged), BLOCK):
        part = slice(start, start + BLOCK)
        wanted, got = merged[part] - text[part], stored[part] - text[part]
        off = stored[part] - merged[part]
        found += Rounding(
            num_elements=len(wanted),
            num_unchanged=int(np.count_nonzero((wanted != 0) & (got == 0))),
            intended=_dot(wanted, wanted),
            error=_dot(off, off),
            kept=_dot(got, wanted),
        )
    return found


def _dot(one: Floats, two: Floats) -> float:
    """By einsum, for `dot` may use threads; a float32 sum of a block is good to about 1e-5."""
    return float(np.einsum("i,i->", one, two))


def by_layer(found: Mapping[str, Rounding], layer_of: Mapping[str, str]) -> dict[str, Any]:
    """{layer, or name outside the layers: ratios}, and `all`."""
    layers: dict[str, Rounding] = {}
    for name in layer_of:  # in the order of the files, whichever thread was first
        if name in found:
            layers[layer_of[name]] = layers.get(layer_of[name], Rounding()) + found[name]
    return {
        "all": total(found.values()).describe(),
        **{layer: item.describe() for layer, item in layers.items()},
    }


def total(items: Iterable[Rounding]) -> Rounding:
    """The sum of all."""
    return sum(items, Rounding())
