"""What a merge will do, and all that can be refused before a byte is written.

Everything but the weight distance is checked before torch is imported.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.errors import CheckpointError
from merge.matching.relatives import Difference, decoder_config, find_differences
from merge.matching.tensor_table import (
    TensorPlan,
    build_table,
    check_roles,
    num_vocabulary_rows,
    text_only,
)
from merge.matching.tokens import check_tokens, compare_tokens, describe_tokens
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


def plan_merge(vlm: Path, text: Path, *, force: bool = False) -> MergePlan:
    """Reads headers, tokenizers and a few weights, and refuses what cannot be merged.

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
        raise CheckpointError(_explain_differences(differences, vlm_checkpoint.config))
    tokens = compare_tokens(vlm_checkpoint, text_checkpoint)
    if not force:
        check_tokens(tokens)
    table = build_table(vlm_checkpoint, text_checkpoint, tokens=tokens)
    from merge.matching.distance import check_distances, measure_distances  # imports torch

    distances = measure_distances(table)
    warnings = check_distances(distances, force=force)
    for warning in warnings:
        log.warning("%s", warning)
    relatives = {
        "force": force,
        "differences": [str(difference) for difference in differences],
        "weight_distances": distances,
        "warnings": warnings,
        "tokens": describe_tokens(tokens, num_vocabulary_rows(table)),
        "text_tensors_not_merged": text_only(table, text_checkpoint),
        "dropped_text_rows": {
            plan.name: list(plan.dropped_text_rows) for plan in table if plan.dropped_text_rows
        },
    }
    return MergePlan(vlm_checkpoint, text_checkpoint, table, relatives)


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
