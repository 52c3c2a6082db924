"""Reads stretches of stored tensors into one reused buffer, as bit patterns.

`pread` into a reused buffer rather than a memory map: private memory stays at one chunk a reader,
whatever the size of the model, and a file that was cut short is an error instead of a SIGBUS.
"""

import os
from pathlib import Path

import numpy as np

from configs.errors import CheckpointError
from merge.reading.bits import BITS, RAW, Bits
from merge.reading.checkpoint import DTYPE_BYTES, StoredTensor


class ChunkReader:
    """Open files and one buffer. A chunk is valid until the next `read`; `close` it."""

    def __init__(self) -> None:
        self._buffer = np.empty(0, np.uint8)
        self._files: dict[Path, int] = {}

    def close(self) -> None:
        """Closes every file."""
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()

    def read(self, tensor: StoredTensor, start: int, stop: int) -> Bits:
        """Elements `start:stop` of `tensor`, flat, as bit patterns; of what is no float as bytes.

        Raises CheckpointError when the file ends early.
        """
        width = DTYPE_BYTES[tensor.dtype]
        num_bytes = (stop - start) * width
        self._fill(tensor, tensor.offset + start * width, num_bytes)
        return self._buffer[:num_bytes].view(BITS.get(tensor.dtype, RAW))

    def last(self, num_elements: int, dtype: str) -> Bits:
        """What was read last, again."""
        return self._buffer[: num_elements * DTYPE_BYTES[dtype]].view(BITS[dtype])

    def _fill(self, tensor: StoredTensor, offset: int, num_bytes: int) -> None:
        """Fills the buffer's first `num_bytes` from the file; the buffer grows to the largest."""
        if num_bytes > len(self._buffer):
            self._buffer = np.empty(num_bytes, np.uint8)
        if tensor.file not in self._files:
            self._files[tensor.file] = os.open(tensor.file, os.O_RDONLY)
        done = 0
        while done < num_bytes:
            target = [self._buffer.data[done:num_bytes]]
            count = os.preadv(self._files[tensor.file], target, offset + done)
            if count == 0:
                raise CheckpointError(f"{tensor.file} ended inside {tensor.name}; was it changed?")
            done += count
