"""A recipe applied to one tensor, stretch by stretch: what the writer writes, the sweep measures.

Arithmetic in float32, one rounding to the stored dtype.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from merge.matching.tensor_table import EMBEDDING, TensorClass, TensorPlan
from merge.reading.inputs import InputReader
from merge.recipe.interface import MergeMethod, Settings, Source, Values
from merge.recipe.segments import segments, split

Read = Callable[[int, int], Values]
"""(first element, end) to the values of every input, as copies that may be overwritten."""


def read_values(plan: TensorPlan, reader: InputReader, start: int, stop: int) -> Values:
    """All inputs of one stretch, from their files, in the reader's memory."""
    assert plan.text is not None
    text = torch.from_numpy(reader.text(plan.text, start, stop))
    base = text
    if plan.base is not None:
        base = torch.from_numpy(reader.base(plan.base, start, stop))
    vlm = torch.from_numpy(reader.vlm(plan, start, stop))
    return Values(text=text, vlm=vlm, base=base, tensor=plan.name, start=start)


class TensorMerge:
    """The merge of one decoder tensor."""

    def __init__(self, plan: TensorPlan, method: MergeMethod, settings: Settings) -> None:
        self.plan, self.method, self.settings = plan, method, settings
        self.copies: Source | None = method.copies(settings)
        # What is drawn at random goes by name, and a tied head has to stay equal to its embedding.
        self.name = EMBEDDING if plan.tensor_class is TensorClass.TIED else plan.name
        self._found: Any = None

    @property
    def needs_preparing(self) -> bool:
        """Whether `prepare` has to go over the tensor first."""
        return self.copies is None and self.method.prepare is not None

    def prepare(self, read: Read) -> None:
        """Goes over the merged stretches as often as the method asks for."""
        if not self.needs_preparing:
            return
        assert self.method.prepare is not None
        stretches = [pair for pair in split_segments(self.plan) if pair[2]]

        def merged() -> Iterator[Values]:
            for start, stop, _ in stretches:
                values = read(start, stop)
                values.tensor = self.name
                yield values

        size = sum(stop - start for start, stop, _ in stretches)
        self._found = self.method.prepare(merged, self.settings, size)

    def merge(self, values: Values) -> torch.Tensor:
        """Merged values of one stretch, float32; may share the memory of `values`."""
        values.tensor = self.name
        return self.method.merge(values, self.settings, self._found)


def merge_whole(
    plan: TensorPlan,
    method: MergeMethod,
    settings: Settings,
    *,
    text: torch.Tensor,
    vlm: torch.Tensor,
    base: torch.Tensor | None = None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """One tensor in memory, bit for bit what the writer writes.

    Args:
        plan: of this tensor.
        method: how it is merged.
        settings: with what.
        text: the text LM's, any float dtype; may have fewer rows than `vlm`.
        vlm: the VLM's, any float dtype.
        base: of the model both were trained from, as `text`; None: it is the text LM.
        dtype: of the result.

    Returns:
        A new tensor of `dtype` in the shape of `vlm`.
    """
    work = TensorMerge(plan, method, settings)
    flat = {"text": text.reshape(-1), "vlm": vlm.reshape(-1)}
    flat["base"] = flat["text"] if base is None else base.reshape(-1)
    out = vlm.to(dtype, copy=True).reshape(-1)

    def read(start: int, stop: int) -> Values:
        def part(name: str) -> torch.Tensor:
            return flat[name][start:stop].to(torch.float32, copy=True)

        return Values(text=part("text"), vlm=part("vlm"), base=part("base"), start=start)

    work.prepare(read)
    for start, stop, merged in split_segments(plan):
        if merged and work.copies is not None:
            out[start:stop] = flat[work.copies][start:stop].to(dtype)
        elif merged:
            out[start:stop] = work.merge(read(start, stop)).to(dtype)
    return out.reshape(vlm.shape)


def split_segments(plan: TensorPlan) -> Iterator[tuple[int, int, bool]]:
    """(first element, end, whether merged) stretches of at most a chunk that cover the tensor."""
    for start, stop, merged in segments(plan):
        for first, last in split(plan, start, stop):
            yield first, last, merged
