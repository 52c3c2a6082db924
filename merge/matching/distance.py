"""How far two checkpoints' weights are apart: relatives or strangers.

Looks at a few matrices only; settings are compared in `relatives`.
"""

from configs.errors import CheckpointError
from merge.matching.tensor_table import EMBEDDING, TensorClass, TensorPlan
from merge.reading.checkpoint import CHUNK_ELEMENTS, StoredTensor
from merge.reading.chunks import ChunkReader, one_thread

NUM_MATRICES = 6
# Independent weights of equal norm lie at sqrt(2); a fine-tuned decoder well below 1 of its start.
MAX_DISTANCE = 1.0


def measure_distances(table: list[TensorPlan]) -> dict[str, float]:
    """{canonical name: ||vlm - text|| / ||text||} of a few decoder matrices spread over the depth.

    Each from at most CHUNK_ELEMENTS elements at the middle of the matrix. Embeddings stay
    out: they are the tensor most often left frozen, and would look related in any case.
    """
    matrices = [
        plan
        for plan in table
        if plan.tensor_class is TensorClass.MERGED
        and len(plan.vlm.shape) == 2
        and not plan.vlm_rows
        and plan.name != EMBEDDING
    ]
    step = max(1, len(matrices) // NUM_MATRICES)
    with one_thread(), ChunkReader() as vlm_reader, ChunkReader() as text_reader:
        return {
            plan.name: _distance(plan.vlm, plan.text, vlm_reader, text_reader)
            for plan in matrices[::step][:NUM_MATRICES]
            if plan.text is not None
        }


def check_distances(distances: dict[str, float]) -> None:
    """Raises CheckpointError when the two decoders look unrelated."""
    far = {name: value for name, value in distances.items() if not value <= MAX_DISTANCE}
    if far:
        told = ", ".join(f"{name} {value:.2f}" for name, value in far.items())
        raise CheckpointError(
            f"the vlm's decoder was not trained from this text LM: relative weight distance above "
            f"{MAX_DISTANCE} in {len(far)} of {len(distances)} matrices ({told}); relatives are "
            "well below 1, strangers at about 1.4. Give the text LM that the VLM was built from, "
            "or set force=true"
        )


def _distance(
    vlm: StoredTensor, text: StoredTensor, vlm_reader: ChunkReader, text_reader: ChunkReader
) -> float:
    """Relative distance over one chunk at the middle of the matrix."""
    start = max(0, (vlm.num_elements - CHUNK_ELEMENTS) // 2)
    stop = min(vlm.num_elements, start + CHUNK_ELEMENTS)
    vlm_values = vlm_reader.read(vlm, start, stop).float()
    text_values = text_reader.read(text, start, stop).float()
    difference, norm = float((vlm_values - text_values).norm()), float(text_values.norm())
    if norm == 0:
        return 0.0 if difference == 0 else float("inf")
    return difference / norm
