"""Streams both inputs, tensor by tensor, into weight files laid out like the VLM's.

Every output file has the VLM's header, byte for byte: same names, dtypes, order and offsets.
Where the output folder comes from and goes to is `staging`'s job.
"""

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import torch

from configs.errors import CheckpointError
from merge.matching.tensor_table import TensorPlan
from merge.reading.checkpoint import Checkpoint, StoredTensor
from merge.reading.chunks import ChunkReader, is_finite, one_thread, split
from merge.recipe.apply import segments
from merge.recipe.methods import METHODS, Settings, Values
from merge.writing.staging import flush_to_disk

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes total) after every chunk."""

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


class WeightsWriter:
    """Two open readers, alpha, and what was counted. One object a merge; use `write_weights`."""

    def __init__(
        self,
        vlm: ChunkReader,
        text: ChunkReader,
        *,
        alpha: float,
        total_bytes: int,
        progress: Progress | None,
    ) -> None:
        self.num_changed: dict[str, int] = {}
        self._vlm, self._text, self._alpha = vlm, text, alpha
        self._done_bytes, self._total_bytes, self._progress = 0, total_bytes, progress

    def write_tensor(self, plan: TensorPlan, file: BinaryIO) -> None:
        """Appends one tensor to `file` and counts the elements that differ from the text LM's."""
        self.num_changed[plan.vlm.name] = 0
        for start, stop, merged in segments(plan):
            for first, last in split(start, stop):
                self._write_chunk(plan, file, first, last, merged)

    def _write_chunk(
        self, plan: TensorPlan, file: BinaryIO, start: int, stop: int, merged: bool
    ) -> None:
        """Appends the elements `start:stop` of one tensor."""
        output = self._vlm.read(plan.vlm, start, stop)
        if merged and plan.text is not None:
            text = self._text.read(plan.text, start, stop)
            output = self._merge(plan, text, output)
            self.num_changed[plan.vlm.name] += count_different(output, text.to(output.dtype))
        elif not is_finite(output):
            raise _not_finite("vlm", plan.vlm)
        file.write(output.view(torch.uint8).numpy().data)
        self._done_bytes += output.nbytes
        if self._progress is not None:
            self._progress(self._done_bytes, self._total_bytes)

    def _merge(self, plan: TensorPlan, text: torch.Tensor, vlm: torch.Tensor) -> torch.Tensor:
        """Merged values in the VLM's dtype; refuses inputs and results that are not finite."""
        output = merge_values(text, vlm, self._alpha)
        # Between the end points a NaN or Inf of either input always reaches the output.
        if 0 < self._alpha < 1 and is_finite(output):
            return output
        if not is_finite(vlm):
            raise _not_finite("vlm", plan.vlm)
        if plan.text is not None and not is_finite(text):
            raise _not_finite("text", plan.text)
        if not is_finite(output):
            raise CheckpointError(
                f"the merged {plan.vlm.name} does not fit into {plan.vlm.dtype} (Inf or NaN)"
            )
        return output


def write_weights(
    table: list[TensorPlan],
    vlm: Checkpoint,
    folder: Path,
    *,
    alpha: float,
    progress: Progress | None = None,
) -> dict[str, int]:
    """Writes every weight file of the merged checkpoint into `folder`.

    Returns {tensor name: number of elements whose bits differ from the text LM's, as cast to the
    output dtype}; 0 for copied tensors, and rows that only the VLM has are not counted.
    Raises CheckpointError for NaN or Inf in an input and for results that overflow their dtype.
    """
    plans = {plan.vlm.name: plan for plan in table}
    total = sum(plan.vlm.num_bytes for plan in table)
    with one_thread(), ChunkReader() as one, ChunkReader() as two:
        writer = WeightsWriter(one, two, alpha=alpha, total_bytes=total, progress=progress)
        for shard in vlm.shards:
            with (folder / shard.file.name).open("wb") as file:
                file.write(shard.header)
                for tensor in shard.tensors:
                    writer.write_tensor(plans[tensor.name], file)
                flush_to_disk(file)
    return writer.num_changed


def merge_values(text: torch.Tensor, vlm: torch.Tensor, alpha: float) -> torch.Tensor:
    """Merges one chunk: fp32 arithmetic, one cast; the end points are copies.

    Args:
        text: values of the text LM, any of BF16, F16, F32.
        vlm: values of the VLM, any of BF16, F16, F32, same shape.
        alpha: the VLM's share, in [0, 1].

    Returns:
        Values in the dtype of `vlm`; may share the memory of an input.
    """
    if alpha == 0:
        return text.to(vlm.dtype)
    if alpha == 1:
        return vlm
    text32, vlm32 = text.float(), vlm.to(torch.float32, copy=True)
    values = Values(text=text32, vlm=vlm32, base=text32)
    return METHODS["linear"].merge(values, Settings(alpha=alpha), None).to(vlm.dtype)


def count_different(first: torch.Tensor, second: torch.Tensor) -> int:
    """Number of elements whose bits differ; both of one dtype and shape."""
    bits = BITS[first.element_size()]
    return int(first.view(bits).ne(second.view(bits)).count_nonzero())


def _not_finite(role: str, tensor: StoredTensor) -> CheckpointError:
    """The error for a NaN or Inf in an input."""
    return CheckpointError(f"{role}: {tensor.name} in {tensor.file} holds NaN or Inf")
