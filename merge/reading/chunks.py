"""Reads stretches of stored tensors into one reused buffer, as torch tensors.

`pread` into a reused buffer rather than a memory map: private memory stays at one chunk a reader,
whatever the size of the model.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import torch

from configs.errors import CheckpointError
from merge.reading.checkpoint import DTYPE_BYTES, StoredTensor

TORCH_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


class ChunkReader:
    """Open files and one buffer. A chunk is valid until the next `read`. Use as a context."""

    def __init__(self) -> None:
        self._buffer = torch.empty(0, dtype=torch.uint8)
        self._memory = self._buffer.numpy().data
        self._files: dict[Path, int] = {}

    def __enter__(self) -> "ChunkReader":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes every file."""
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()

    def last(self, num_elements: int, dtype: str) -> torch.Tensor:
        """What was read last, again."""
        return self._buffer[: num_elements * DTYPE_BYTES[dtype]].view(TORCH_DTYPES[dtype])

    def read(self, tensor: StoredTensor, start: int, stop: int) -> torch.Tensor:
        """Elements `start:stop` of `tensor`, flat.

        bfloat16, float16 and float32 tensors come in their dtype, all others as raw uint8.
        Raises CheckpointError when the file ends early.
        """
        width = DTYPE_BYTES[tensor.dtype]
        num_bytes = (stop - start) * width
        self._fill(tensor, tensor.offset + start * width, num_bytes)
        raw = self._buffer[:num_bytes]
        dtype = TORCH_DTYPES.get(tensor.dtype)
        return raw if dtype is None else raw.view(dtype)

    def _fill(self, tensor: StoredTensor, offset: int, num_bytes: int) -> None:
        """Fills the buffer's first `num_bytes` from the file; the buffer grows to the largest."""
        if num_bytes > self._buffer.numel():
            self._buffer = torch.empty(num_bytes, dtype=torch.uint8)
            self._memory = self._buffer.numpy().data
        if tensor.file not in self._files:
            self._files[tensor.file] = os.open(tensor.file, os.O_RDONLY)
        done = 0
        while done < num_bytes:
            target = [self._memory[done:num_bytes]]
            count = os.preadv(self._files[tensor.file], target, offset + done)
            if count == 0:
                raise CheckpointError(f"{tensor.file} ended inside {tensor.name}; was it changed?")
            done += count


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch works on one thread inside; the caller's setting comes back after.

    Chunks are small, so that with more threads the time goes into OpenMP's barriers: on two cores
    1.35 s a GB when idle against 1.95 s on one thread, but 25-60 s when another job wants them.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def is_finite(values: torch.Tensor) -> bool:
    """Whether a floating tensor holds neither NaN nor Inf; True for raw uint8.

    A NaN or Inf always shows in the sum, so that one pass clears almost every chunk; a sum that
    overflows on its own is looked at element by element.
    """
    if not values.is_floating_point():
        return True
    total = values.sum(dtype=torch.float32)
    return bool(total.isfinite()) or bool(values.isfinite().all())
