"""Between numpy and torch: names of dtypes, bit patterns as tensors, work on one thread."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from merge.reading.bits import Bits

TORCH_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
SIGNED = {1: np.int8, 2: np.int16, 4: np.int32}


def as_torch(bits: Bits, dtype: str) -> torch.Tensor:
    """Bit patterns as a tensor that shares their memory; of what is no float as int8.

    Args:
        bits: flat.
        dtype: their safetensors name.
    """
    signed = torch.from_numpy(bits.view(SIGNED[bits.dtype.itemsize]))
    return signed.view(TORCH_DTYPES[dtype]) if dtype in TORCH_DTYPES else signed


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
