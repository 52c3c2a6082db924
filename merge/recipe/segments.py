"""Cuts a tensor into stretches: what is merged and what stays the VLM's. No torch."""

from collections.abc import Iterator

from merge.matching.tensor_table import TensorPlan
from merge.reading.checkpoint import CHUNK_ELEMENTS


def segments(plan: TensorPlan) -> Iterator[tuple[int, int, bool]]:
    """(first element, end, whether merged) stretches that cover the tensor in order."""
    if plan.text is None:
        yield 0, plan.vlm.num_elements, False
        return
    width = plan.vlm.row_elements
    position = 0
    for start, stop in plan.vlm_rows:
        yield position, start * width, True
        yield start * width, stop * width, False
        position = stop * width
    yield position, plan.vlm.num_elements, True


def split(plan: TensorPlan, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Half-open stretches of about a chunk that cover `start:stop`; whole rows under an adapter."""
    step = CHUNK_ELEMENTS
    if plan.low_rank is not None:
        step = max(1, CHUNK_ELEMENTS // plan.vlm.row_elements) * plan.vlm.row_elements
    for first in range(start, stop, step):
        yield first, min(first + step, stop)
