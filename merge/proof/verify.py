"""Proves a merged checkpoint: reads it back and compares it with what was asked for.

Contract: linear interpolation shares no arithmetic with `writing`: torch instead of numpy, its own
reading through a memory map. Other methods, and tensors with an adapter's change, are worked out
again by the same functions, which tests prove against references.
"""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch

from configs.errors import CheckpointError
from merge.matching.plan import MergePlan
from merge.proof.recompute import recompute
from merge.reading.checkpoint import Checkpoint, StoredTensor, read_checkpoint, same_bytes
from merge.reading.inputs import InputReader
from merge.recipe.interface import Settings
from merge.recipe.recipe import Recipe
from merge.recipe.torch_dtypes import TORCH_DTYPES
from merge.writing.output import OutputFile, OutputTensor, Piece, pieces
from train.model.parts import list_first

BLOCK_ELEMENTS = 4096
BLOCKS_PER_PIECE = 8
WHOLE_BLOCK_ELEMENTS = 1 << 20
NUMPY_BITS = {"BF16": "<i2", "F16": "<i2", "F32": "<i4"}


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
            if not _same(_map(stored, start, stop), _expected(piece, start, stop, settings)):
                return False
    return True


def _is_copied(piece: Piece, stored: StoredTensor) -> bool:
    return same_bytes(piece.source, stored, piece.start, piece.stop)


def _expected(piece: Piece, start: int, stop: int, settings: Settings | None) -> torch.Tensor:
    """A stretch that is cast, or interpolated: the formula as it is written down."""
    plan, dtype = piece.tensor.plan, TORCH_DTYPES[piece.tensor.dtype]
    if piece.action == "cast":
        return _map(piece.source, start, stop).to(dtype)
    assert plan.text is not None and settings is not None
    text, vlm = _map(plan.text, start, stop).float(), _map(plan.source, start, stop).float()
    return (text + settings.alpha * (vlm - text)).to(dtype)


def _is_recomputed(
    tensor: OutputTensor,
    stored: StoredTensor,
    recipe: Recipe,
    settings: Settings | None,
    counts: dict[str, int],
) -> bool:
    """Whether a tensor is what the same functions make of the inputs once more."""
    with closing(InputReader()) as reader:
        for start, stop, values in recompute(tensor, recipe.method, settings, reader):
            counts["computed"] += stop - start
            if not _same(_map(stored, start, stop), values):
                return False
    return True


def _same(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Equal bits; a NaN may have others, which differ between CPUs."""
    if torch.equal(as_bits(found), as_bits(expected)):
        return True
    apart = as_bits(found) != as_bits(expected)
    return bool((found[apart].isnan() & expected[apart].isnan()).all())


def as_bits(values: torch.Tensor) -> torch.Tensor:
    """The same memory as whole numbers."""
    return values.view(torch.int32 if values.itemsize == 4 else torch.int16)


def _blocks(piece: Piece, whole: bool) -> list[tuple[int, int]]:
    """Stretches to look at: all, or evenly spread blocks with both ends of the piece."""
    if whole or piece.stop - piece.start <= BLOCKS_PER_PIECE * BLOCK_ELEMENTS:
        step = WHOLE_BLOCK_ELEMENTS
        return [(i, min(piece.stop, i + step)) for i in range(piece.start, piece.stop, step)]
    last = piece.stop - BLOCK_ELEMENTS
    starts = np.linspace(piece.start, last, BLOCKS_PER_PIECE, dtype=np.int64)
    return [(int(start), int(start) + BLOCK_ELEMENTS) for start in starts]


def _map(tensor: StoredTensor, start: int, stop: int) -> torch.Tensor:
    """A stretch as it is stored, as a read-only memory map."""
    bits = np.dtype(NUMPY_BITS[tensor.dtype])
    mapped: Any = np.memmap(
        tensor.file, bits, "c", tensor.offset + start * bits.itemsize, (stop - start,)
    )
    return torch.from_numpy(mapped).view(TORCH_DTYPES[tensor.dtype])
