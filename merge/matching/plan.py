"""What a merge will do, and all that can be refused before a byte is written.

Everything but the weight distance is checked before numpy is imported.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from configs.errors import CheckpointError
from merge.matching.attach import attach_adapter, attach_base, check_adapter_base
from merge.matching.relatives import Difference, decoder_config, find_differences
from merge.matching.tensor_table import (
    TensorPlan,
    build_table,
    check_roles,
    num_vocabulary_rows,
    text_only,
)
from merge.matching.tokens import check_tokens, compare_tokens, describe_tokens
from merge.reading.adapter import Adapter, read_adapter
from merge.reading.checkpoint import Checkpoint, read_checkpoint

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MergePlan:
    """What a merge will do; all is checked that can be without writing."""

    vlm: Checkpoint
    text: Checkpoint
    table: list[TensorPlan]
    relatives: dict[str, Any]
    """How the two differ in settings, tokens and weights, for the report."""
    base: Checkpoint | None = None
    lora: Adapter | None = None


def plan_merge(
    vlm: Path,
    text: Path,
    *,
    base: Path | None = None,
    lora: Path | None = None,
    force: bool = False,
    measure: bool = True,
) -> MergePlan:
    """Reads headers, tokenizers and a few weights, and refuses what cannot be merged.

    Args:
        vlm: folder of the vision-language model.
        text: folder of the text LM.
        base: folder of a third model that both decoders were trained from.
        lora: folder of a LoRA adapter that was trained on `vlm`.
        force: plan although the two look unrelated.
        measure: compare weights too; else `measure_relatives` does it later.

    Raises CheckpointError for checkpoints that are broken, swapped, or (unless forced) strangers.
    """
    vlm_checkpoint, text_checkpoint = read_checkpoint(vlm, "vlm"), read_checkpoint(text, "text")
    table, relatives = _match(vlm_checkpoint, text_checkpoint, force)
    base_checkpoint = adapter = None
    if base is not None:
        base_checkpoint = read_checkpoint(base, "base")
        base_table, relatives["base"] = _match(vlm_checkpoint, base_checkpoint, force)
        table = attach_base(table, base_table)
    if lora is not None:
        adapter = read_adapter(lora)
        if not force:
            check_adapter_base(vlm_checkpoint, adapter)
        table = attach_adapter(table, vlm_checkpoint, adapter)
    plan = MergePlan(vlm_checkpoint, text_checkpoint, table, relatives, base_checkpoint, adapter)
    if measure:
        measure_relatives(plan)
    return plan


def measure_relatives(plan: MergePlan) -> None:
    """Adds the weight distances to `plan.relatives`; raises CheckpointError for strangers."""
    from merge.matching.distance import check_distances, measure_distances  # imports numpy

    if plan.base is not None:
        against_base = [
            replace(item, vlm=item.text) for item in plan.table if item.text is not None
        ]
        with_base = [replace(item, text=item.base) for item in against_base]
        check_distances(measure_distances(with_base), force=plan.relatives["force"], what="base")
    distances = measure_distances(plan.table)
    warnings = check_distances(distances, force=plan.relatives["force"])
    for warning in warnings:
        log.warning("%s", warning)
    plan.relatives.update(weight_distances=distances, warnings=warnings)


def _match(
    vlm: Checkpoint, text: Checkpoint, force: bool
) -> tuple[list[TensorPlan], dict[str, Any]]:
    """The table of a VLM and a text LM, and how the two differ in settings and tokens."""
    check_roles(vlm, text)
    differences = find_differences(vlm.config, text.config)
    if differences and not force:
        raise CheckpointError(_explain_differences(differences, vlm.config))
    tokens = compare_tokens(vlm, text)
    if not force:
        check_tokens(tokens)
    table = build_table(vlm, text, tokens=tokens)
    return table, {
        "force": force,
        "differences": [str(difference) for difference in differences],
        "tokens": describe_tokens(tokens, num_vocabulary_rows(table)),
        "text_tensors_not_merged": text_only(table, text),
        "dropped_text_rows": {
            plan.name: list(plan.dropped_text_rows) for plan in table if plan.dropped_text_rows
        },
    }


def _explain_differences(differences: list[Difference], vlm_config: Mapping[str, Any]) -> str:
    """The message for configs that do not belong together."""
    told = "; ".join(str(difference) for difference in differences)
    built_from = decoder_config(vlm_config).get("_name_or_path")
    named = f" (its config.json names {built_from!r})" if built_from else ""
    return (
        f"the vlm's decoder and the text LM are different models ({len(differences)} settings): "
        f"{told}. Give the text LM that the VLM was built from{named}: with the vlm's settings its "
        "weights would mean something else. To merge them all the same, set force=true"
    )
