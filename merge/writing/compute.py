"""Computes the pieces that are not plain copies: read, merge in float32, round once, hand on.

One `Computer` serves several threads, each with memory of its own. Linear interpolation is numpy's,
so that torch need not be imported; other methods go through `TensorMerge`.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from configs.errors import CheckpointError
from merge.matching.tensor_table import TensorPlan
from merge.reading.bits import (
    Bits,
    Floats,
    Memory,
    count_different,
    fits,
    is_finite,
    narrow,
    narrow_nan,
    widen,
)
from merge.reading.checkpoint import CHUNK_ELEMENTS, StoredTensor
from merge.reading.inputs import InputReader
from merge.recipe.interface import MergeMethod, Settings
from merge.recipe.linear import LINEAR
from merge.recipe.segments import split
from merge.writing.output import OutputTensor, Piece
from merge.writing.rounding import SAMPLE_EVERY, Rounding, look_at_rounding

if TYPE_CHECKING:
    from merge.recipe.apply import TensorMerge

Write = Callable[[memoryview, int], None]
"""(bytes, place in the output file): writes them."""
Merge = Callable[[int, int], tuple[Floats, Floats]]
"""(first element, end) to (merged values, values of the text LM)."""


@dataclass
class Computed:
    """What was counted on the way, by name of the output tensor."""

    num_changed: dict[str, int] = field(default_factory=dict)
    """Merged elements whose bits are not the text LM's, as cast to the output's dtype."""
    rounding: dict[str, Rounding] = field(default_factory=dict)
    nonfinite: set[str] = field(default_factory=set)
    """Inputs and results with NaN or Inf, where they are allowed: "vlm: name"."""


class Workspace(threading.local):
    """A thread's reader and memory."""

    def __init__(self) -> None:
        self.reader = InputReader()
        self.output, self.scratch = Memory(np.uint16), Memory(np.uint32)
        self.text, self.text_bits = Memory(np.float32), Memory(np.uint16)


class Computer:
    """Method, settings, counts, and a workspace a thread."""

    def __init__(
        self, method: MergeMethod, settings: Mapping[str, Settings], *, allow_nonfinite: bool
    ) -> None:
        self.counted = Computed()
        self._method, self._settings, self._allow = method, settings, allow_nonfinite
        self._space, self._lock = Workspace(), threading.Lock()

    def run(self, tensor: OutputTensor, found: Sequence[Piece], write: Write) -> None:
        """Computes and writes pieces of one tensor; looks copied ones through."""
        plan, space = tensor.plan, self._space
        try:
            merge = self._merge_of(plan, found)
            with np.errstate(all="ignore"):  # what is not finite is found out below
                for piece in found:
                    for start, stop in split(plan, piece.start, piece.stop):
                        if piece.action == "copy":
                            self._look(piece, start, stop)
                        elif piece.action == "cast":
                            self._cast(piece, start, stop, write)
                        else:
                            self._merge(merge, piece, start, stop, write)
        finally:
            space.reader.close()

    def _merge_of(self, plan: TensorPlan, found: Sequence[Piece]) -> Merge:
        """How stretches of one tensor are merged."""
        reader = self._space.reader
        if self._method is LINEAR or not any(piece.action == "merge" for piece in found):
            return lambda start, stop: self._interpolate(plan, start, stop)
        from merge.recipe.apply import TensorMerge, read_values  # imports torch

        work = TensorMerge(plan, self._method, self._settings[plan.name])
        work.prepare(lambda start, stop: read_values(plan, reader, start, stop))
        return lambda start, stop: self._merge_by_torch(work, start, stop)

    def _interpolate(self, plan: TensorPlan, start: int, stop: int) -> tuple[Floats, Floats]:
        """`text + alpha * (vlm - text)`, in the three operations of `merge.recipe.linear`.

        Contract: bit for bit what that makes in torch, by test_writer.py and by each verification.
        """
        assert plan.text is not None
        reader = self._space.reader
        text = reader.text(plan.text, start, stop)
        vlm = reader.vlm(plan, start, stop)
        np.subtract(vlm, text, out=vlm)
        np.multiply(vlm, np.float32(self._settings[plan.name].alpha), out=vlm)
        np.add(vlm, text, out=vlm)
        return vlm, text

    def _merge_by_torch(self, work: "TensorMerge", start: int, stop: int) -> tuple[Floats, Floats]:
        from merge.recipe.apply import read_values

        values = read_values(work.plan, self._space.reader, start, stop)
        text = self._space.text.take(stop - start)
        text[:] = values.text.numpy()  # which the method may overwrite
        return work.merge(values).numpy(), text

    def _merge(self, merge: Merge, piece: Piece, start: int, stop: int, write: Write) -> None:
        """One merged stretch."""
        plan, dtype = piece.tensor.plan, piece.tensor.dtype
        merged, text = merge(start, stop)
        output = self._round(piece, merged, start, stop)
        write(output.view(np.uint8).data, piece.offset_of(start))
        self._count(plan, output, self._text_bits(plan, text, dtype))
        if start // CHUNK_ELEMENTS % SAMPLE_EVERY == 0:
            stored = widen(output, dtype, Memory(np.float32))
            self._add_rounding(plan.vlm.name, look_at_rounding(merged, stored, text))

    def _cast(self, piece: Piece, start: int, stop: int, write: Write) -> None:
        """One stretch of one input, in another dtype or with its adapter's change."""
        plan, reader = piece.tensor.plan, self._space.reader
        if piece.side == "text" and plan.text is not None:
            values = reader.text(plan.text, start, stop)
        else:
            values = reader.vlm(plan, start, stop)
        output = self._round(piece, values, start, stop)
        write(output.view(np.uint8).data, piece.offset_of(start))
        self._look_at_other(piece, output, start, stop)

    def _look(self, piece: Piece, start: int, stop: int) -> None:
        """One copied stretch: NaN, Inf, and what is not the text LM's."""
        bits = self._space.reader.raw(piece.source, start, stop)
        if not is_finite(bits, piece.source.dtype):
            self._refuse(piece.side, piece.source)
        self._look_at_other(piece, bits, start, stop)

    def _look_at_other(self, piece: Piece, output: Bits, start: int, stop: int) -> None:
        """Where one input is the result: the other must be finite all the same.

        And counts what the recipe took from the VLM as it is.
        """
        plan, reader = piece.tensor.plan, self._space.reader
        if not piece.is_merged or plan.text is None:
            return
        if piece.side == "text":
            if not is_finite(reader.raw(plan.source, start, stop), plan.source.dtype):
                self._refuse("vlm", plan.source)
            return
        text = reader.text(plan.text, start, stop)
        if not fits(text, "F32"):
            self._refuse("text", plan.text)
        self._count(plan, output, self._text_bits(plan, text, piece.tensor.dtype))

    def _text_bits(self, plan: TensorPlan, text: Floats, dtype: str) -> Bits:
        """The text LM's stretch, just read, in the output's dtype."""
        assert plan.text is not None
        if plan.text.dtype == dtype != "F32":
            return self._space.reader.raw_text(len(text), dtype)
        return narrow(text, dtype, self._space.text_bits, self._space.scratch)

    def _round(self, piece: Piece, values: Floats, start: int, stop: int) -> Bits:
        """The one rounding, into memory that is used again; refuses what is not finite."""
        dtype = piece.tensor.dtype
        output = narrow(values, dtype, self._space.output, self._space.scratch)
        if not fits(values, dtype):
            narrow_nan(values, output, dtype)
            self._explain(piece, fits(values, "F32"), start, stop)
        return output

    def _explain(self, piece: Piece, overflows: bool, start: int, stop: int) -> None:
        """Names the input that holds NaN or Inf, or tells that the result overflows."""
        plan, reader = piece.tensor.plan, InputReader()  # what was read last is still needed
        inputs = {"vlm": plan.source, "text": plan.text, "base": plan.base}
        if piece.action == "cast":
            inputs = {piece.side: piece.source}
        try:
            for role, tensor in inputs.items():
                if tensor is None or is_finite(reader.raw(tensor, start, stop), tensor.dtype):
                    continue
                self._refuse(role, tensor)
                return
            for tensor in plan.low_rank.factors if plan.low_rank is not None else ():
                if not is_finite(reader.raw(tensor, 0, tensor.num_elements), tensor.dtype):
                    self._refuse("lora", tensor)
                    return
        finally:
            reader.close()
        name, dtype = plan.vlm.name, piece.tensor.dtype
        if self._allow:
            with self._lock:
                self.counted.nonfinite.add(f"out: {name}")
            return
        why = f"does not fit into {dtype}" if overflows else "is NaN or Inf"
        raise CheckpointError(
            f"the merged {name} {why}; its inputs are finite. "
            + ("Ask for dtype=bfloat16 or float32" if overflows else "Is alpha far outside [0, 1]?")
        )

    def _refuse(self, role: str, tensor: StoredTensor) -> None:
        """An input with NaN or Inf: an error, or noted where that is allowed."""
        if not self._allow:
            raise CheckpointError(
                f"{role}: {tensor.name} in {tensor.file} holds NaN or Inf; such weights come from "
                "a training that diverged or a damaged file. allow_nonfinite=true merges them as "
                "they are"
            )
        with self._lock:
            self.counted.nonfinite.add(f"{role}: {tensor.name}")

    def _count(self, plan: TensorPlan, output: Bits, text: Bits) -> None:
        number, name = count_different(output, text), plan.vlm.name
        with self._lock:
            self.counted.num_changed[name] = self.counted.num_changed.get(name, 0) + number

    def _add_rounding(self, name: str, rounding: Rounding) -> None:
        with self._lock:
            self.counted.rounding[name] = self.counted.rounding.get(name, Rounding()) + rounding
