"""Proves a merged checkpoint: reads it back and compares it with what was asked for.

Contract: shares no arithmetic with `writer`. Numpy instead of torch, its own bfloat16 conversion,
its own reading through a memory map. Loading needs transformers and accelerate, imported late.
"""

from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import CheckpointError
from merge.matching.tensor_table import TensorPlan
from merge.reading.checkpoint import Checkpoint, StoredTensor, read_checkpoint, same_bytes
from train.model.parts import list_first

Bits = np.ndarray[Any, np.dtype[Any]]

BLOCK_ELEMENTS = 4096
BLOCKS_PER_TENSOR = 8
NUMPY_BITS = {"BF16": "<u2", "F16": "<u2", "F32": "<u4"}


def verify_merge(
    folder: Path, vlm: Checkpoint, text: Checkpoint, table: list[TensorPlan], alpha: float
) -> dict[str, Any]:
    """Checks the written checkpoint in `folder` against its inputs; returns what was checked.

    Vision tower and projector: every byte. Decoder: blocks of every tensor, recomputed. Loading:
    every key, through transformers. Raises CheckpointError at the first failure.
    """
    out = read_checkpoint(folder, "out").tensors
    layout = {name: (tensor.dtype, tensor.shape) for name, tensor in out.items()}
    if layout != {name: (tensor.dtype, tensor.shape) for name, tensor in vlm.tensors.items()}:
        raise CheckpointError(f"verification failed: {folder} has not the vlm's tensors")
    copied = [plan for plan in table if plan.text is None]
    merged = [plan for plan in table if plan.text is not None]
    wrong = [plan.vlm.name for plan in copied if not same_bytes(plan.vlm, out[plan.vlm.name])]
    wrong += [plan.vlm.name for plan in merged if not _is_merged(plan, out[plan.vlm.name], alpha)]
    if wrong:
        raise CheckpointError(
            f"verification failed: {len(wrong)} of {len(table)} tensors in {folder} are not what "
            f"alpha={alpha} asks for: {list_first(wrong)}; nothing was kept. Is the disk sound?"
        )
    check_loads(folder)
    return {
        "num_tensors_compared_whole": len(copied),
        "num_tensors_recomputed_in_blocks": len(merged),
        "num_elements_recomputed": sum(_blocks(plan).size for plan in merged),
        "loads_in_transformers": True,
    }


def check_loads(folder: Path) -> None:
    """Loads the checkpoint in transformers onto the meta device: all keys, no memory for weights.

    Raises CheckpointError for missing, unexpected or mismatched keys. (Measured, 5.23:
    `device_map="meta"` reports the same keys as a real load.)
    """
    from transformers import AutoModelForImageTextToText
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # the merge shows its own
    try:
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            folder, device_map="meta", output_loading_info=True, local_files_only=True
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(
            f"verification failed: {folder} does not load in transformers: {error}"
        ) from error
    problems = {key: sorted(map(str, value)) for key, value in loaded[1].items() if value}
    if problems:
        told = "; ".join(f"{key}: {list_first(names)}" for key, names in problems.items())
        raise CheckpointError(f"verification failed: {folder} loads with {told}")


def naive_merge(text: Bits, vlm: Bits, text_dtype: str, vlm_dtype: str, alpha: float) -> Bits:
    """The merge formula written out in numpy. Arguments and result are bit patterns.

    Args:
        text: bits of the text LM's values, uint16 or uint32, any shape.
        vlm: bits of the VLM's values, same shape.
        text_dtype: safetensors name of the dtype of `text`: BF16, F16 or F32.
        vlm_dtype: the same of `vlm` and of the result.
        alpha: the VLM's share, in [0, 1].
    """
    if alpha == 1:
        return vlm
    values = _decode(text, text_dtype)
    if alpha > 0:
        values = values + np.float32(alpha) * (_decode(vlm, vlm_dtype) - values)
    return _encode(values, vlm_dtype)


def _is_merged(plan: TensorPlan, out: StoredTensor, alpha: float) -> bool:
    """Whether blocks of one written decoder tensor hold what the inputs ask for."""
    assert plan.text is not None, plan.name
    positions = _blocks(plan)
    vlm = _map(plan.vlm)[positions]
    rows = positions // max(1, plan.vlm.row_elements)
    keep = np.zeros(len(positions), dtype=bool)
    for start, stop in plan.vlm_rows:
        keep |= (rows >= start) & (rows < stop)
    expected = vlm.copy()
    text = _map(plan.text)[positions[~keep]]
    expected[~keep] = naive_merge(text, vlm[~keep], plan.text.dtype, plan.vlm.dtype, alpha)
    return bool(np.array_equal(_map(out)[positions], expected))


def _blocks(plan: TensorPlan) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Element positions to look at: evenly spread blocks, and both sides of every kept row."""
    size = plan.vlm.num_elements
    starts = list(np.linspace(0, max(0, size - BLOCK_ELEMENTS), BLOCKS_PER_TENSOR, dtype=np.int64))
    edges = [row * plan.vlm.row_elements for pair in plan.vlm_rows for row in pair]
    starts += [max(0, edge - BLOCK_ELEMENTS // 2) for edge in edges]
    blocks = [np.arange(start, min(size, start + BLOCK_ELEMENTS)) for start in starts]
    return np.unique(np.concatenate(blocks))


def _map(tensor: StoredTensor) -> Bits:
    """The tensor's bit patterns, flat, as a read-only memory map."""
    if tensor.num_elements == 0:
        return np.empty(0, NUMPY_BITS[tensor.dtype])
    return np.memmap(
        tensor.file, NUMPY_BITS[tensor.dtype], "r", tensor.offset, (tensor.num_elements,)
    )


def _decode(bits: Bits, dtype: str) -> Bits:
    """Bit patterns to float32 values; exact."""
    if dtype == "BF16":
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return bits.view(np.float16).astype(np.float32) if dtype == "F16" else bits.view(np.float32)


def _encode(values: Bits, dtype: str) -> Bits:
    """Finite float32 values to bit patterns, rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    if dtype == "BF16":
        tie = (bits >> np.uint32(16)) & np.uint32(1)
        return ((bits + np.uint32(0x7FFF) + tie) >> np.uint32(16)).astype(np.uint16)
    return values.astype(np.float16).view(np.uint16) if dtype == "F16" else bits
