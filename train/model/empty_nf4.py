"""Weights in 4 bits that hold no values: shapes, dtypes and bytes of what bitsandbytes would make.

Of n values there are n/2 bytes of pairs, and a scale for each block of 64. Scales are held in 8
bits, in blocks of 256 with a float32 each (double quantization, arXiv 2305.14314, section 3):
n * (1/2 + 1/64 + 4/(64*256)) bytes, and 1,092 a layer: tables of both number formats, and a mean.
"""

import math
from typing import Any

import torch
from torch import nn

BLOCK = 64  # values that share a scale
SCALES = 256  # that share one themselves
CODES, SCALE_CODES = 16, 256  # entries of the tables of both number formats


def empty_packed(num_values: int) -> torch.Tensor:
    """Return uint8 [n/2, 1], on the default device."""
    return torch.empty((math.ceil(num_values / 2), 1), dtype=torch.uint8)


def empty_state(shape: torch.Size, dtype: torch.dtype) -> Any:
    """Return bitsandbytes' state of a weight, on the default device.

    Args:
        shape: of the weight before it was packed.
        dtype: it had, and is unpacked to in backward.
    """
    from bitsandbytes.functional import QuantState

    num_blocks = math.ceil(shape.numel() / BLOCK)
    scales = QuantState(
        absmax=torch.empty(math.ceil(num_blocks / SCALES), dtype=torch.float32),
        code=torch.empty(SCALE_CODES, dtype=torch.float32),
        blocksize=SCALES,
        dtype=torch.float32,
    )
    return QuantState(
        absmax=torch.empty(num_blocks, dtype=torch.uint8),
        shape=shape,
        code=torch.empty(CODES, dtype=torch.float32),
        blocksize=BLOCK,
        quant_type="nf4",
        dtype=dtype,
        offset=torch.empty((), dtype=torch.float32),
        state2=scales,
    )


def state_tensors(parameter: nn.Parameter) -> list[torch.Tensor]:
    """Return what a parameter in 4 bits holds beside its packed values; nothing for others."""
    state = getattr(parameter, "quant_state", None)
    if state is None:
        return []
    return [state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]


def held_bytes(parameter: nn.Parameter) -> int:
    """Return what a parameter takes of memory, scales included, on `meta` or any device."""
    return sum(p.numel() * p.element_size() for p in (parameter, *state_tensors(parameter)))


def loaded_bytes(parameter: nn.Parameter) -> int:
    """Return what a parameter took as it was loaded, before it was packed."""
    state = getattr(parameter, "quant_state", None)
    if state is None:
        return parameter.numel() * parameter.element_size()
    return int(state.shape.numel()) * int(state.dtype.itemsize)
