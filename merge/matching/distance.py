"""How far two checkpoints' weights are apart, layer by layer: relatives or strangers.

Looks at stretches of a few matrices only; settings are compared in `relatives`.
"""

import re
from collections.abc import Iterator
from contextlib import closing
from statistics import median

import numpy as np

from configs.errors import CheckpointError
from merge.matching.tensor_table import TensorClass, TensorPlan
from merge.reading.bits import Memory, widen
from merge.reading.checkpoint import CHUNK_ELEMENTS, DTYPE_BYTES
from merge.reading.chunks import ChunkReader
from train.model.parts import list_first

# Independent weights of equal norm lie at sqrt(2); a fine-tuned decoder well below 1 of its start.
MAX_DISTANCE = 1.0
# Full fine-tuning moves a decoder by some per cent; beyond this it is worth a question.
FAR_DISTANCE = 0.5
# Read of both files together: the look is not to be felt beside a merge, which reads gigabytes.
MAX_BYTES = 16 << 20
NUM_MATRICES = 2  # the largest of a layer
NUM_STRETCHES = 4  # spread over a matrix: experts, heads and merged projections lie in blocks
LAYER = re.compile(r"(model\.layers\.\d+)\..+")


def measure_distances(table: list[TensorPlan]) -> dict[str, float]:
    """{decoder layer: ||vlm - text|| / ||text||}, in the order of depth.

    Over NUM_STRETCHES stretches of each of the layer's largest matrices; at most MAX_BYTES are read
    in all. Embeddings stay out: they are the tensor most often left frozen, and would look related
    in any case. Infinite where a value is not finite, or where only the text LM's are zero.
    """
    layers = _largest_matrices(table)
    if not layers:
        return {}
    width = max(
        DTYPE_BYTES[plan.vlm.dtype] + DTYPE_BYTES[plan.text.dtype]
        for plans in layers.values()
        for plan in plans
        if plan.text is not None
    )
    length = MAX_BYTES // (len(layers) * NUM_MATRICES * NUM_STRETCHES * width)
    length = max(1, min(length, CHUNK_ELEMENTS))
    with closing(ChunkReader()) as vlm_reader, closing(ChunkReader()) as text_reader:
        return {
            layer: _distance(plans, length, vlm_reader, text_reader)
            for layer, plans in layers.items()
        }


def check_distances(
    distances: dict[str, float], *, force: bool = False, what: str = "vlm's decoder"
) -> list[str]:
    """Raises CheckpointError when the two decoders look unrelated; returns warnings.

    The median decides: a merge of relatives one of whose layers was made anew is still one, and
    worth a warning. With `force` strangers are one too.
    """
    far = {layer: value for layer, value in distances.items() if not value <= MAX_DISTANCE}
    middle = median(distances.values()) if distances else 0.0
    if not far:
        told = (
            f"relative weight distance {middle:.2f} (median over {len(distances)} decoder layers): "
            "far for a fine-tuned decoder, which moves by some per cent. Is this the text LM that "
            "the VLM was built from, and not another stage of it?"
        )
        return [told] if middle > FAR_DISTANCE else []
    told = (
        f"relative weight distance above {MAX_DISTANCE} in {len(far)} of {len(distances)} decoder "
        f"layers ({list_first([f'{layer} {value:.2f}' for layer, value in far.items()])}; median "
        f"{middle:.2f}); relatives are well below 1, strangers at about 1.4. "
    )
    if middle <= MAX_DISTANCE:
        return [told + "Were these layers of the vlm made anew, or is a file damaged?"]
    message = (
        f"the {what} and this text LM are no relatives: {told}Give the text LM that the VLM was "
        "built from, or set force=true"
    )
    if force:
        return [message]
    raise CheckpointError(message)


def _largest_matrices(table: list[TensorPlan]) -> dict[str, list[TensorPlan]]:
    """{layer: its largest merged matrices}, layers by number."""
    layers: dict[str, list[TensorPlan]] = {}
    for plan in table:
        match = LAYER.fullmatch(plan.name)
        if match and plan.tensor_class is TensorClass.MERGED and len(plan.vlm.shape) == 2:
            layers.setdefault(match[1], []).append(plan)
    return {
        layer: sorted(layers[layer], key=lambda plan: (-plan.vlm.num_elements, plan.name))[
            :NUM_MATRICES
        ]
        for layer in sorted(layers, key=lambda layer: int(layer.rsplit(".", 1)[1]))
    }


def _distance(
    plans: list[TensorPlan], length: int, vlm_reader: ChunkReader, text_reader: ChunkReader
) -> float:
    """Relative distance over the stretches of one layer's matrices, taken as one vector."""
    difference = norm = 0.0
    memory = Memory(np.float32), Memory(np.float32)
    for plan in plans:
        assert plan.text is not None, plan.name
        for start, stop in _stretches(plan.vlm.num_elements, length):
            vlm = widen(vlm_reader.read(plan.vlm, start, stop), plan.vlm.dtype, memory[0])
            text = widen(text_reader.read(plan.text, start, stop), plan.text.dtype, memory[1])
            with np.errstate(all="ignore"):  # what is not finite has an infinite distance
                difference += float(np.square(vlm - text, dtype=np.float64).sum())
                norm += float(np.square(text, dtype=np.float64).sum())
    if difference == 0:
        return 0.0
    ratio = (difference / norm) ** 0.5 if norm else float("inf")
    return ratio if ratio == ratio else float("inf")  # NaN is no distance


def _stretches(num_elements: int, length: int) -> Iterator[tuple[int, int]]:
    """Half-open, evenly spread, disjoint; the whole where it is no longer than they are."""
    if num_elements <= NUM_STRETCHES * length:
        length = -(-num_elements // NUM_STRETCHES)
    last = max(0, num_elements - length)
    previous = 0
    for number in range(NUM_STRETCHES):
        start = max(previous, last * number // (NUM_STRETCHES - 1))
        previous = min(num_elements, start + length)
        if start < previous:
            yield start, previous
