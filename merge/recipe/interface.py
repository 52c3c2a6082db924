"""What a merge method is: float32 tensors in, float32 tensor out. No IO, no config, no casting.

A method works on one stretch of a tensor at a time, so that memory stays bounded whatever the size
of the tensor; what it must know of the whole tensor first (a norm, a threshold), its `prepare`
finds by going over the stretches. Where a method would only give an input back, its `copies` says
so, and the caller copies bytes: arithmetic spreads Inf and NaN and can flip the sign of zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

Source = Literal["text", "vlm"]


@dataclass
class Values:
    """One stretch of a tensor from every input: float32, flat, all of one length.

    A method may overwrite these tensors.
    """

    text: Tensor
    vlm: Tensor
    base: Tensor
    """What `text` and `vlm` were both trained from; the text LM itself where there is no third, and
    then it may share the memory of `text`."""
    tensor: str = ""
    """Canonical name of the tensor, for what is drawn at random; `TensorMerge` sets it."""
    start: int = 0
    """Place of the first element in the whole tensor, in elements."""


@dataclass(frozen=True)
class Settings:
    """How one tensor is merged."""

    alpha: float = 0.4
    """Share of the VLM, or the weight of its task vector `vlm - base`."""
    text_weight: float = 1.0
    """Weight of the text LM's task vector `text - base`."""
    density: float = 1.0
    """Share of each task vector that is kept, in (0, 1]."""
    normalize: bool = False
    """Divide by the sum of the weights that act on an element."""
    drop_seed: int = 0
    """Of what is dropped at random."""
    has_base: bool = False
    """Whether `base` is a third model; else it is the text LM and its task vector is zero."""


Stretches = Callable[[], Iterable[Values]]
"""Called once for every pass over the stretches of one tensor, in order."""


@dataclass(frozen=True)
class MergeMethod:
    """A method and where it comes from."""

    name: str
    formula: str
    url: str
    merge: Callable[[Values, Settings, Any], Tensor]
    """(one stretch, settings, what `prepare` found) to its merged values."""
    copies: Callable[[Settings], Source | None]
    """The input whose bytes are the result, or None where there is something to compute."""
    prepare: Callable[[Stretches, Settings, int], Any] | None = None
    """(stretches, settings, number of elements they hold) to what `merge` needs to know."""
    uses: frozenset[str] = frozenset({"alpha"})
    """Names of the settings it reads; others that the user gives are refused."""
    takes_base: bool = False
    """Whether a third model can be given."""
    needs_base: str | None = None
    """Why it cannot do without a third model, for the error; None: it can."""
