"""What a merge will do, and all that can be refused before a byte is written.

Everything but the weight distance is checked before torch is imported.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.errors import CheckpointError
from merge.matching.relatives import Difference, find_differences
from merge.matching.tensor_table import TensorPlan, build_table, check_roles
from merge.reading.checkpoint import Checkpoint, read_checkpoint


@dataclass(frozen=True)
class MergePlan:
    """What a merge will do; all is checked that can be without writing."""

    vlm: Checkpoint
    text: Checkpoint
    table: list[TensorPlan]
    relatives: dict[str, Any]
    """How the two differ in settings and weights, for the report."""


def plan_merge(vlm: Path, text: Path, *, force: bool = False) -> MergePlan:
    """Reads headers and a few weights, and refuses what cannot be merged.

    Args:
        vlm: folder of the vision-language model.
        text: folder of the text LM.
        force: plan although the two look unrelated.

    Raises CheckpointError for checkpoints that are broken, swapped, or (unless forced) strangers.
    """
    vlm_checkpoint, text_checkpoint = read_checkpoint(vlm, "vlm"), read_checkpoint(text, "text")
    check_roles(vlm_checkpoint, text_checkpoint)
    differences = find_differences(vlm_checkpoint.config, text_checkpoint.config)
    if differences and not force:
        raise CheckpointError(_explain_differences(differences))
    table = build_table(vlm_checkpoint, text_checkpoint)
    from merge.matching.distance import check_distances, measure_distances  # imports torch

    distances = measure_distances(table)
    if not force:
        check_distances(distances)
    relatives = {
        "force": force,
        "differences": [str(difference) for difference in differences],
        "weight_distances": distances,
    }
    return MergePlan(vlm_checkpoint, text_checkpoint, table, relatives)


def _explain_differences(differences: list[Difference]) -> str:
    """The message for configs that do not belong together."""
    told = "; ".join(str(difference) for difference in differences)
    return (
        f"the vlm's decoder and the text LM are different models ({len(differences)} settings): "
        f"{told}. Give the text LM that the VLM was built from, or set force=true"
    )
