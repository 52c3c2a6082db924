"""Proves a merged checkpoint: reads it back and compares it with what was asked for.

Contract: linear interpolation shares no arithmetic with `writing`: numpy instead of torch, its own
bfloat16 conversion, its own reading through a memory map. Other methods, and tensors with an
adapter's change, are worked out again by the same functions and proven by tests against references.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import CheckpointError
from merge.matching.plan import MergePlan
from merge.reading.checkpoint import Checkpoint, StoredTensor, read_checkpoint, same_bytes
from merge.recipe.interface import Settings
from merge.recipe.recipe import Recipe
from merge.writing.output import OutputFile, OutputTensor, Piece, pieces
from train.model.parts import list_first

Bits = np.ndarray[Any, np.dtype[Any]]

BLOCK_ELEMENTS = 4096
BLOCKS_PER_PIECE = 8
WHOLE_BLOCK_ELEMENTS = 1 << 20
NUMPY_BITS = {"BF16": "<u2", "F16": "<u2", "F32": "<u4"}


def verify_tensors(
    folder: Path,
    plan: MergePlan,
    files: Sequence[OutputFile],
    recipe: Recipe,
    *,
    whole: bool = False,
) -> dict[str, Any]:
    """Checks the files in `folder` against the inputs; returns what was checked.

    Args:
        folder: the merged checkpoint.
        plan: of the inputs.
        files: what was planned to be written.
        recipe: what was asked for.
        whole: compare every element; else copied bytes whole, computed values in blocks.

    Raises CheckpointError, naming the tensors that are wrong.
    """
    out = read_checkpoint(folder, "out")
    _check_layout(out, files)
    settings = recipe.for_tensors(plan.table)
    written, wrong, counts = out.tensors, [], dict.fromkeys(("copied", "computed"), 0)
    for tensor in (tensor for file in files for tensor in file.tensors):
        stored = written[tensor.plan.vlm.name]
        if not _is_right(tensor, stored, recipe, settings.get(tensor.plan.name), whole, counts):
            wrong.append(tensor.plan.vlm.name)
    if wrong:
        raise CheckpointError(
            f"verification failed: {len(wrong)} of {len(written)} tensors in {folder} are not what "
            f"{recipe.method.name} at alpha {recipe.alpha} asks for: {list_first(wrong)}. Is the "
            "disk sound? Were the inputs changed?"
        )
    return {
        "num_tensors": len(written),
        "num_elements_copied": counts["copied"],
        "num_elements_recomputed": counts["computed"],
        "every_element": whole,
    }


def naive_merge(text: Bits, vlm: Bits, text_dtype: str, vlm_dtype: str, alpha: float) -> Bits:
    """Linear interpolation written out in numpy. Arguments and result are bit patterns.

    Args:
        text: bits of the text LM's values, uint16 or uint32, any shape.
        vlm: bits of the VLM's values, same shape.
        text_dtype: safetensors name of the dtype of `text`: BF16, F16 or F32.
        vlm_dtype: the same of `vlm` and of the result.
        alpha: the VLM's share.
    """
    if alpha == 1:
        return vlm
    return encode(_interpolate(text, vlm, text_dtype, vlm_dtype, alpha), vlm_dtype)


def _interpolate(text: Bits, vlm: Bits, text_dtype: str, vlm_dtype: str, alpha: float) -> Bits:
    values = decode(text, text_dtype)
    if alpha == 0:
        return values
    return values + np.float32(alpha) * (decode(vlm, vlm_dtype) - values)


def _check_layout(out: Checkpoint, files: Sequence[OutputFile]) -> None:
    """Every planned tensor is in its planned file, with its dtype and shape, and no other."""
    found = {name: (t.file.name, t.dtype, t.shape) for name, t in out.tensors.items()}
    meant = {
        tensor.plan.vlm.name: (file.name, tensor.dtype, tensor.plan.vlm.shape)
        for file in files
        for tensor in file.tensors
    }
    wrong = sorted(name for name in found | meant if found.get(name) != meant.get(name))
    if wrong:
        raise CheckpointError(
            f"verification failed: {len(wrong)} tensors in {out.folder} are missing, too many, or "
            f"of another file, dtype or shape: {list_first(wrong)}"
        )


def _is_right(
    tensor: OutputTensor,
    stored: StoredTensor,
    recipe: Recipe,
    settings: Settings | None,
    whole: bool,
    counts: dict[str, int],
) -> bool:
    """Whether one written tensor holds what was asked for; counts what was compared."""
    copies = None if settings is None else recipe.method.copies(settings)
    found = list(pieces(tensor, copies))
    counts["copied"] += sum(piece.stop - piece.start for piece in found if piece.action == "copy")
    if not all(_is_copied(piece, stored) for piece in found if piece.action == "copy"):
        return False
    computed = [piece for piece in found if piece.action != "copy"]
    if not computed:
        return True
    if tensor.plan.low_rank is not None or (recipe.method.name != "linear" and copies is None):
        return _is_recomputed(tensor, stored, recipe, settings, counts)
    for piece in computed:
        for start, stop in _blocks(piece, whole):
            counts["computed"] += stop - start
            expected = _expected(piece, start, stop, settings)
            if not _same(_map(stored, start, stop), expected, tensor.dtype):
                return False
    return True


def _is_copied(piece: Piece, stored: StoredTensor) -> bool:
    return same_bytes(piece.source, stored, piece.start, piece.stop)


def _expected(piece: Piece, start: int, stop: int, settings: Settings | None) -> Bits:
    """Bits of a stretch that is cast, or interpolated."""
    plan, dtype = piece.tensor.plan, piece.tensor.dtype
    if piece.action == "cast":
        source = piece.source
        return encode(decode(_map(source, start, stop), source.dtype), dtype)
    assert plan.text is not None and settings is not None
    text, vlm = _map(plan.text, start, stop), _map(plan.source, start, stop)
    values = _interpolate(text, vlm, plan.text.dtype, plan.source.dtype, settings.alpha)
    return encode(values, dtype)


def _is_recomputed(
    tensor: OutputTensor,
    stored: StoredTensor,
    recipe: Recipe,
    settings: Settings | None,
    counts: dict[str, int],
) -> bool:
    """Whether a tensor is what the same functions make of the inputs once more."""
    import torch

    from merge.proof.recompute import recompute
    from merge.reading.inputs import InputReader

    reader = InputReader()
    try:
        for start, stop, values in recompute(tensor, recipe.method, settings, reader):
            counts["computed"] += stop - start
            bits = torch.int32 if values.itemsize == 4 else torch.int16
            expected = values.view(bits).numpy().view(NUMPY_BITS[tensor.dtype])
            if not _same(_map(stored, start, stop), expected, tensor.dtype):
                return False
    finally:
        reader.close()
    return True


def _same(found: Bits, expected: Bits, dtype: str) -> bool:
    """Equal bits; a NaN may have others, which differ between CPUs."""
    if np.array_equal(found, expected):
        return True
    apart = found != expected
    both = decode(found[apart], dtype), decode(expected[apart], dtype)
    return bool(np.all(np.isnan(both[0]) & np.isnan(both[1])))


def _blocks(piece: Piece, whole: bool) -> list[tuple[int, int]]:
    """Stretches to look at: all, or evenly spread blocks with both ends of the piece."""
    if whole or piece.stop - piece.start <= BLOCKS_PER_PIECE * BLOCK_ELEMENTS:
        step = WHOLE_BLOCK_ELEMENTS
        return [(i, min(piece.stop, i + step)) for i in range(piece.start, piece.stop, step)]
    last = piece.stop - BLOCK_ELEMENTS
    starts = np.linspace(piece.start, last, BLOCKS_PER_PIECE, dtype=np.int64)
    return [(int(start), int(start) + BLOCK_ELEMENTS) for start in starts]


def _map(tensor: StoredTensor, start: int, stop: int) -> Bits:
    """The bit patterns of a stretch, as a read-only memory map."""
    dtype = np.dtype(NUMPY_BITS[tensor.dtype])
    return np.memmap(
        tensor.file, dtype, "r", tensor.offset + start * dtype.itemsize, (stop - start,)
    )


def decode(bits: Bits, dtype: str) -> Bits:
    """Bit patterns to float32 values; exact."""
    if dtype == "BF16":
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return bits.view(np.float16).astype(np.float32) if dtype == "F16" else bits.view(np.float32)


def encode(values: Bits, dtype: str) -> Bits:
    """Finite float32 values to bit patterns, rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    if dtype == "BF16":
        tie = (bits >> np.uint32(16)) & np.uint32(1)
        return ((bits + np.uint32(0x7FFF) + tie) >> np.uint32(16)).astype(np.uint16)
    return values.astype(np.float16).view(np.uint16) if dtype == "F16" else bits
