"""Reads what a merge computes with: stretches of every input, widened to float32, in reused memory.

An adapter's low-rank change is added to the VLM's values here, in float32, before anything else is
done with them; nothing is rounded in between. Only that needs torch.
"""

from contextlib import closing
from typing import Protocol

import numpy as np

from merge.reading.adapter import LowRank
from merge.reading.bits import Bits, Floats, Memory, widen
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
        self._memory = Memory(np.float32)

    def read(self, tensor: StoredTensor, start: int, stop: int) -> Floats:
        """Elements `start:stop` as float32, flat; may be overwritten."""
        return widen(self.chunks.read(tensor, start, stop), tensor.dtype, self._memory)


class InputReader:
    """One thread's readers of every input."""

    def __init__(self) -> None:
        self._text, self._vlm, self._base, self._factor = (Widened() for _ in range(4))
        self._a: tuple[StoredTensor, Floats] | None = None

    def close(self) -> None:
        """Closes every file."""
        for reader in (self._text, self._vlm, self._base, self._factor):
            reader.chunks.close()

    def text(self, tensor: StoredTensor, start: int, stop: int) -> Floats:
        """Values of the text LM."""
        return self._text.read(tensor, start, stop)

    def raw_text(self, num_elements: int, dtype: str) -> Bits:
        """What `text` has read last, as it is stored."""
        return self._text.chunks.last(num_elements, dtype)

    def base(self, tensor: StoredTensor, start: int, stop: int) -> Floats:
        """Values of the third model."""
        return self._base.read(tensor, start, stop)

    def vlm(self, plan: Sources, start: int, stop: int) -> Floats:
        """Values of the VLM with the adapter's change; whole rows where there is one."""
        values = self._vlm.read(plan.source, start, stop)
        if plan.low_rank is not None:
            width = plan.source.row_elements
            self._add_low_rank(plan.low_rank, values.reshape(-1, width), start // width)
        return values

    def raw(self, tensor: StoredTensor, start: int, stop: int) -> Bits:
        """Elements as they are stored."""
        return self._vlm.chunks.read(tensor, start, stop)

    def _add_low_rank(self, change: LowRank, rows: Floats, first: int) -> None:
        """`rows + scale * (b @ a)` in place, then DoRA's norms (arXiv 2402.09353, eq. 5).

        Args:
            change: of the whole weight.
            rows: [n, in] of the weight, from row `first`.
        """
        import torch  # its product runs on one thread where it is told to; numpy's does not

        values, (last, rank) = torch.from_numpy(rows), (first + len(rows), change.rank)
        b = self._factor.read(change.b, first * rank, last * rank).reshape(-1, rank)
        product = torch.mm(torch.from_numpy(b), torch.from_numpy(self._read_a(change)))
        values.add_(product.mul_(change.scale))
        if change.magnitude is not None:
            norms = torch.linalg.vector_norm(values, dim=1)
            magnitude = torch.from_numpy(self._factor.read(change.magnitude, first, last))
            values.mul_((magnitude / norms).unsqueeze(1))

    def _read_a(self, change: LowRank) -> Floats:
        """The factor [r, in]; kept while its weight is worked on."""
        if self._a is None or self._a[0] != change.a:
            with closing(ChunkReader()) as reader:
                bits = reader.read(change.a, 0, change.a.num_elements)
                values = widen(bits, change.a.dtype, Memory(np.float32))  # in memory of its own
            self._a = (change.a, values.reshape(change.a.shape))
        return self._a[1]
