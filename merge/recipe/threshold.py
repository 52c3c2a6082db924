"""The k-th largest magnitude of a tensor that is only ever seen in stretches, exact.

The bits of a float32 without its sign are a number that rises with its magnitude. Their upper half
is counted in a first pass, the lower half of those that share the upper half of the wanted one in a
second: a radix selection with two digits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from merge.recipe.interface import Source
from merge.recipe.task_vectors import Vectors

if TYPE_CHECKING:
    from torch import Tensor

NUM_UPPER, NUM_LOWER = 1 << 15, 1 << 16  # values of the upper 15 and of the lower 16 bits


def kth_largest(stretches: Callable[[], Iterable[Vectors]], k: int) -> dict[Source, float]:
    """{task vector: k-th largest magnitude} of whole tensors, found in two passes over all of them.

    Args:
        stretches: called once a pass; gives task vectors, flat float32, to be overwritten.
        k: 1 is the largest; at most the number of elements.
    """
    import torch

    upper: dict[Source, Tensor] = {}
    for vectors in stretches():
        for name, vector in vectors.items():
            _count(upper, name, _magnitude_bits(vector) >> 16, NUM_UPPER)
    places = {name: _descend(counts, k) for name, counts in upper.items()}
    lower: dict[Source, Tensor] = {}
    for vectors in stretches():
        for name, vector in vectors.items():
            bits = _magnitude_bits(vector)
            inside = bits[(bits >> 16) == places[name][0]]
            _count(lower, name, inside & (NUM_LOWER - 1), NUM_LOWER)
    found: dict[Source, float] = {}
    for name, (high, rank) in places.items():
        bits = torch.tensor((high << 16) | _descend(lower[name], rank)[0], dtype=torch.int32)
        found[name] = float(bits.view(torch.float32))
    return found


def _magnitude_bits(vector: Tensor) -> Tensor:
    import torch

    return vector.abs_().view(torch.int32)


def _count(counts: dict[Source, Tensor], name: Source, digits: Tensor, num_digits: int) -> None:
    """Adds how often each digit occurs to the int64 `counts[name]`."""
    new = digits.bincount(minlength=num_digits)
    counts[name] = counts[name].add_(new) if name in counts else new


def _descend(counts: Tensor, rank: int) -> tuple[int, int]:
    """(digit of the element of that rank from the top, its rank among those of the same digit)."""
    from_top = counts.flip(0).cumsum(0)  # elements whose digit is at least this one
    place = int((from_top < rank).sum())
    above = int(from_top[place - 1]) if place else 0
    return len(counts) - 1 - place, rank - above
