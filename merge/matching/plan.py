"""What a merge will do, and all that can be refused before a byte is written.

Everything but the weight distance is checked before torch is imported.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.errors import CheckpointError
from merge.matching.attach import attach_adapter, attach_base
from merge.matching.relatives import Difference, find_differences
from merge.matching.tensor_table import TensorPlan, build_table, check_roles
from merge.reading.adapter import Adapter, read_adapter
from merge.reading.checkpoint import Checkpoint, read_checkpoint


@dataclass(frozen=True)
class MergePlan:
    """What a merge will do; all is checked that can be without writing."""

    vlm: Checkpoint
    text: Checkpoint
    table: list[TensorPlan]
    relatives: dict[str, Any]
    """How the two differ in settings and weights, for the report."""
    base: Checkpoint | None = None
    adapter: Adapter | None = None


def plan_merge(
    vlm: Path,
    text: Path,
    *,
    base: Path | None = None,
    adapter: Path | None = None,
    force: bool = False,
    measure: bool = True,
) -> MergePlan:
    """Reads headers and a few weights, and refuses what cannot be merged.

    Args:
        vlm: folder of the vision-language model.
        text: folder of the text LM.
        base: folder of a third model that both decoders were trained from.
        adapter: folder of a LoRA adapter that was trained on `vlm`.
        force: plan although the two look unrelated.
        measure: compare weights too, which imports torch; else `measure_relatives` does it later.

    Raises CheckpointError for checkpoints that are broken, swapped, or (unless forced) strangers.
    """
    vlm_checkpoint, text_checkpoint = read_checkpoint(vlm, "vlm"), read_checkpoint(text, "text")
    table, differences = _match(vlm_checkpoint, text_checkpoint, force)
    base_checkpoint = adapter_checkpoint = None
    if base is not None:
        base_checkpoint = read_checkpoint(base, "base")
        table = attach_base(table, _match(vlm_checkpoint, base_checkpoint, force)[0])
    if adapter is not None:
        adapter_checkpoint = read_adapter(adapter)
        table = attach_adapter(table, vlm_checkpoint, adapter_checkpoint)
    relatives = {
        "force": force,
        "differences": [str(difference) for difference in differences],
        "weight_distances": {},
    }
    plan = MergePlan(
        vlm_checkpoint, text_checkpoint, table, relatives, base_checkpoint, adapter_checkpoint
    )
    if measure:
        measure_relatives(plan)
    return plan


def measure_relatives(plan: MergePlan) -> None:
    """Adds the weight distances to `plan.relatives`; raises CheckpointError for strangers."""
    from merge.matching.distance import check_distances, measure_distances  # imports torch

    plan.relatives["weight_distances"] = measure_distances(plan.table)
    if not plan.relatives["force"]:
        check_distances(plan.relatives["weight_distances"])


def _match(
    vlm: Checkpoint, text: Checkpoint, force: bool
) -> tuple[list[TensorPlan], list[Difference]]:
    """The table of a VLM and a text LM, and the settings in which they differ."""
    check_roles(vlm, text)
    differences = find_differences(vlm.config, text.config)
    if differences and not force:
        raise CheckpointError(_explain_differences(differences))
    return build_table(vlm, text), differences


def _explain_differences(differences: list[Difference]) -> str:
    """The message for configs that do not belong together."""
    told = "; ".join(str(difference) for difference in differences)
    return (
        f"the vlm's decoder and the text LM are different models ({len(differences)} settings): "
        f"{told}. Give the text LM that the VLM was built from, or set force=true"
    )
