"""The weight files to come: names, headers, and where each stretch of their bytes comes from.

With the VLM's dtypes the files have the VLM's headers byte for byte; with another dtype the same
names in the same order. No torch.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from merge.matching.tensor_table import MERGED_DTYPES, TensorPlan
from merge.reading.checkpoint import DTYPE_BYTES, Checkpoint, Shard, StoredTensor
from merge.recipe.interface import Source
from merge.recipe.segments import segments

DTYPE_NAMES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
HEADER_ALIGNMENT = 8


@dataclass(frozen=True)
class OutputTensor:
    """One tensor to write. `offset` is in bytes from the start of its file."""

    plan: TensorPlan
    dtype: str
    offset: int

    @property
    def num_bytes(self) -> int:
        """Size of the data in bytes."""
        return self.plan.vlm.num_elements * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True)
class OutputFile:
    """One safetensors file to write."""

    name: str
    header: bytes = field(repr=False)
    tensors: tuple[OutputTensor, ...] = field(repr=False)

    @property
    def num_bytes(self) -> int:
        """Size of the file in bytes."""
        return len(self.header) + sum(tensor.num_bytes for tensor in self.tensors)


def plan_output(vlm: Checkpoint, table: Sequence[TensorPlan], dtype: str) -> list[OutputFile]:
    """The files of the merged checkpoint.

    Args:
        vlm: gives the files, their order and, with dtype "same", their headers.
        table: one plan a tensor of the VLM.
        dtype: "same", or the dtype of all floating tensors: bfloat16, float16, float32.
    """
    plans = {plan.vlm.name: plan for plan in table}
    return [_plan_file(shard, plans, DTYPE_NAMES.get(dtype)) for shard in vlm.shards]


def _plan_file(shard: Shard, plans: Mapping[str, TensorPlan], dtype: str | None) -> OutputFile:
    """One file; its tensors lie as in the VLM's, one after the other."""
    stored = [
        replace(tensor, dtype=dtype) if dtype and tensor.dtype in MERGED_DTYPES else tensor
        for tensor in shard.tensors
    ]
    header = shard.header if stored == list(shard.tensors) else _write_header(shard, stored)
    offset, tensors = len(header), []
    for tensor in stored:
        tensors.append(OutputTensor(plans[tensor.name], tensor.dtype, offset))
        offset += tensor.num_bytes
    return OutputFile(shard.file.name, header, tuple(tensors))


def _write_header(shard: Shard, stored: Sequence[StoredTensor]) -> bytes:
    """A safetensors header of these tensors, with the metadata of the VLM's file."""
    metadata = json.loads(shard.header[8:]).get("__metadata__", {"format": "pt"})
    entries: dict[str, object] = {"__metadata__": metadata}
    start = 0
    for tensor in stored:
        stop = start + tensor.num_bytes
        entries[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [start, stop],
        }
        start = stop
    body = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    body += b" " * (-(8 + len(body)) % HEADER_ALIGNMENT)
    return len(body).to_bytes(8, "little") + body


@dataclass(frozen=True)
class Piece:
    """A stretch of one output tensor and what is done for it. Places count elements."""

    tensor: OutputTensor
    start: int
    stop: int
    action: Literal["copy", "cast", "merge"]
    """Copy bytes; take one input's values in another dtype or with its adapter; merge."""
    side: Source = "vlm"
    """Whose values are copied or cast."""
    is_merged: bool = False
    """Whether the recipe decides here; false for rows and parts that are the VLM's in any case."""

    @property
    def source(self) -> StoredTensor:
        """Where copied bytes lie, or cast values before a low-rank change."""
        plan = self.tensor.plan
        return plan.text if self.side == "text" and plan.text is not None else plan.source

    @property
    def num_bytes(self) -> int:
        """Bytes that are written."""
        return (self.stop - self.start) * DTYPE_BYTES[self.tensor.dtype]

    def offset_of(self, element: int) -> int:
        """Where an element is written, in bytes from the start of the file."""
        return self.tensor.offset + element * DTYPE_BYTES[self.tensor.dtype]


def pieces(tensor: OutputTensor, copies: Source | None) -> Iterator[Piece]:
    """The stretches that cover one output tensor, in order.

    Args:
        tensor: to write.
        copies: the input that the recipe gives back as it is, or None where it merges.
    """
    plan = tensor.plan
    for start, stop, merged in segments(plan):
        if start == stop:
            continue
        side: Source = copies if merged and copies is not None else "vlm"
        if merged and copies is None:
            yield Piece(tensor, start, stop, "merge", is_merged=True)
            continue
        source = plan.text if side == "text" else plan.source
        assert source is not None
        as_it_is = source.dtype == tensor.dtype and (side == "text" or plan.low_rank is None)
        yield Piece(tensor, start, stop, "copy" if as_it_is else "cast", side, merged)
