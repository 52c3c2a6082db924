"""What a recipe makes of one tensor, worked out again from the inputs, in bounded memory."""

from collections.abc import Iterator

import torch

from merge.reading.inputs import InputReader
from merge.recipe.apply import TensorMerge, read_values
from merge.recipe.interface import MergeMethod, Settings
from merge.recipe.segments import split
from merge.recipe.torch_dtypes import TORCH_DTYPES, as_torch
from merge.writing.output import OutputTensor, pieces


def recompute(
    tensor: OutputTensor, method: MergeMethod, settings: Settings | None, reader: InputReader
) -> Iterator[tuple[int, int, torch.Tensor]]:
    """(first element, end, values in the output's dtype) of every stretch, in order.

    Args:
        tensor: of the output.
        method: of decoder tensors.
        settings: of this tensor; None outside the decoder.
        reader: whose memory is used; values are valid until the next ones.
    """
    plan, dtype = tensor.plan, TORCH_DTYPES.get(tensor.dtype)

    merge = None if settings is None else TensorMerge(plan, method, settings)
    found = list(pieces(tensor, None if merge is None else merge.copies))
    if merge is not None and any(piece.action == "merge" for piece in found):
        merge.prepare(lambda start, stop: read_values(plan, reader, start, stop))
    for piece in found:
        for start, stop in split(plan, piece.start, piece.stop):
            if piece.action == "merge" and merge is not None:
                values = merge.merge(read_values(plan, reader, start, stop))
            elif piece.action == "cast" and piece.side == "vlm":
                values = torch.from_numpy(reader.vlm(plan, start, stop))
            else:
                values = as_torch(reader.raw(piece.source, start, stop), piece.source.dtype)
            yield start, stop, values if dtype is None else values.to(dtype)
