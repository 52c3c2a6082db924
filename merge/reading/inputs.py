"""Reads what a merge computes with: stretches of every input, widened to float32, in reused memory.

An adapter's low-rank change is added to the VLM's values here, in float32, before anything else is
done with them; nothing is rounded in between.
"""

from typing import Protocol

import torch

from merge.reading.adapter import LowRank
from merge.reading.checkpoint import StoredTensor
from merge.reading.chunks import ChunkReader


class Sources(Protocol):
    """What of a tensor plan is read here."""

    @property
    def source(self) -> StoredTensor: ...
    @property
    def low_rank(self) -> LowRank | None: ...


class Widened:
    """A reader and float32 memory. What `read` returns is valid until the next `read`."""

    def __init__(self) -> None:
        self.chunks = ChunkReader()
        self._memory = torch.empty(0)

    def read(self, tensor: StoredTensor, start: int, stop: int) -> torch.Tensor:
        """Elements `start:stop` as float32, flat; may be overwritten."""
        raw = self.chunks.read(tensor, start, stop)
        if raw.dtype == torch.float32:
            return raw
        if raw.numel() > self._memory.numel():
            self._memory = torch.empty(raw.numel())
        return self._memory[: raw.numel()].copy_(raw)


class InputReader:
    """One thread's readers of every input, and memory for what it writes."""

    def __init__(self) -> None:
        self._output = torch.empty(0, dtype=torch.uint8)
        self._text, self._vlm, self._base, self._factor = (Widened() for _ in range(4))
        self._a: tuple[StoredTensor, torch.Tensor] | None = None

    def close(self) -> None:
        """Closes every file."""
        for reader in (self._text, self._vlm, self._base, self._factor):
            reader.chunks.close()

    def text(self, tensor: StoredTensor, start: int, stop: int) -> torch.Tensor:
        """Values of the text LM, float32."""
        return self._text.read(tensor, start, stop)

    def raw_text(self, num_elements: int, dtype: str) -> torch.Tensor:
        """What `text` has read last, as it is stored."""
        return self._text.chunks.last(num_elements, dtype)

    def base(self, tensor: StoredTensor, start: int, stop: int) -> torch.Tensor:
        """Values of the third model, float32."""
        return self._base.read(tensor, start, stop)

    def vlm(self, plan: Sources, start: int, stop: int) -> torch.Tensor:
        """Values of the VLM, float32, with the adapter's change; whole rows where there is one."""
        values = self._vlm.read(plan.source, start, stop)
        if plan.low_rank is not None:
            width = plan.source.row_elements
            rows = values.view(-1, width)
            self._add_low_rank(plan.low_rank, rows, start // width)
        return values

    def raw(self, tensor: StoredTensor, start: int, stop: int) -> torch.Tensor:
        """Elements as they are stored, of one of the floating dtypes; else bytes."""
        return self._vlm.chunks.read(tensor, start, stop)

    def output(self, num_elements: int, dtype: torch.dtype) -> torch.Tensor:
        """Memory for a result, valid until the next call."""
        if num_elements * dtype.itemsize > self._output.numel():
            self._output = torch.empty(num_elements * dtype.itemsize, dtype=torch.uint8)
        return self._output[: num_elements * dtype.itemsize].view(dtype)

    def _add_low_rank(self, change: LowRank, rows: torch.Tensor, first: int) -> None:
        """`rows + scale * (b @ a)` in place, then DoRA's norms (arXiv 2402.09353, eq. 5).

        Args:
            change: of the whole weight.
            rows: [n, in] of the weight, from row `first`.
        """
        last, rank = first + len(rows), change.rank
        b = self._factor.read(change.b, first * rank, last * rank).view(-1, rank)
        rows.add_(torch.mm(b, self._read_a(change)).mul_(change.scale))
        if change.magnitude is not None:
            norms = torch.linalg.vector_norm(rows, dim=1)
            magnitude = self._factor.read(change.magnitude, first, last)
            rows.mul_((magnitude / norms).unsqueeze(1))

    def _read_a(self, change: LowRank) -> torch.Tensor:
        """The factor [r, in] as float32; kept while its weight is worked on."""
        if self._a is None or self._a[0] != change.a:
            values = self._factor_copy(change.a)
            self._a = (change.a, values.view(change.a.shape))
        return self._a[1]

    def _factor_copy(self, tensor: StoredTensor) -> torch.Tensor:
        with ChunkReader() as reader:
            return reader.read(tensor, 0, tensor.num_elements).float()
