"""Merges a VLM with the text LM its decoder came from: `merge_checkpoints(vlm=, text=, out=, ...)`.

Everything that can be refused is refused before the first byte is written, and everything but the
weight distance before torch is imported.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.errors import CheckpointError, ConfigError
from merge.checkpoint import Checkpoint, read_checkpoint
from merge.relatives import Difference, find_differences
from merge.report import (
    describe_changes,
    describe_inputs,
    describe_method,
    describe_parts,
    describe_tensors,
    find_versions,
    write_card,
    write_report,
)
from merge.staging import copy_companions, copy_index, staged_folder
from merge.tensor_table import TensorPlan, build_table, check_roles


def merge_checkpoints(
    *,
    vlm: Path,
    text: Path,
    out: Path,
    alpha: float,
    force: bool = False,
    verify: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Writes `text + alpha * (vlm - text)` for the decoder, and the rest of the VLM as it is.

    Args:
        vlm: folder of the vision-language model; gives names, dtypes, files and configs.
        text: folder of the text LM that the VLM's decoder was trained from.
        out: folder to write; must not exist, or be empty. Appears whole or not at all.
        alpha: the VLM's share, in [0, 1]; Aya Vision uses 0.4 (arXiv 2505.08751).
        force: merge although the two look unrelated.
        verify: read the result back and compare it before it appears at `out`.
        progress: called with (bytes done, bytes total) after every chunk.

    Returns:
        The content of `merge_report.json`.

    Raises ConfigError for arguments that cannot be, CheckpointError for checkpoints that cannot.
    """
    started = time.perf_counter()
    vlm, text, out = Path(vlm).resolve(), Path(text).resolve(), Path(out).resolve()
    check_arguments(vlm, text, out, alpha)
    plan = plan_merge(vlm, text, force=force)
    with staged_folder(out, plan.vlm.num_bytes) as staged:
        report = _write(staged, plan, alpha, verify, progress)
        seconds = round(time.perf_counter() - started, 3)
        report |= {"relatives": plan.relatives, "seconds": seconds}
        write_report(staged, report)
        write_card(staged, vlm, text, alpha)
    return report


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
    from merge.distance import check_distances, measure_distances  # imports torch

    distances = measure_distances(table)
    if not force:
        check_distances(distances)
    relatives = {
        "force": force,
        "differences": [str(difference) for difference in differences],
        "weight_distances": distances,
    }
    return MergePlan(vlm_checkpoint, text_checkpoint, table, relatives)


def check_arguments(vlm: Path, text: Path, out: Path, alpha: float) -> None:
    """Raises ConfigError for an alpha outside [0, 1] and for folders that coincide."""
    if not 0 <= alpha <= 1:
        raise ConfigError(f"alpha={alpha} is outside [0, 1]; 0 is the text LM, 1 the VLM")
    if vlm == text:
        raise ConfigError(f"vlm and text are the same folder, {vlm}; give a VLM and its text LM")
    for key, folder in (("vlm", vlm), ("text", text)):
        if out == folder:
            raise ConfigError(f"out and {key} are the same folder, {out}; inputs are never changed")


def _write(
    staged: Path,
    plan: MergePlan,
    alpha: float,
    verify: bool,
    progress: Callable[[int, int], None] | None,
) -> dict[str, Any]:
    """Writes weights and companions into `staged`, proves them, and returns the report so far."""
    from merge.methods import METHODS
    from merge.writer import write_weights

    vlm, text, table = plan.vlm, plan.text, plan.table
    copied, left_out = copy_companions(vlm.folder, staged)
    copy_index(vlm.index, staged)
    num_changed = write_weights(table, vlm, staged, alpha=alpha, progress=progress)
    verified = None
    if verify:
        from merge.verify import verify_merge

        verified = verify_merge(staged, vlm, text, table, alpha)
    return {
        "method": describe_method(METHODS["linear"], alpha),
        "inputs": {"vlm": describe_inputs(vlm), "text": describe_inputs(text)},
        "versions": find_versions(),
        "parts": describe_parts(table),
        "changes": describe_changes(table, num_changed),
        "verified": verified,
        "files_copied": copied,
        "files_left_out": left_out,
        "tensors": describe_tensors(table, num_changed),
    }


def _explain_differences(differences: list[Difference]) -> str:
    """The message for configs that do not belong together."""
    told = "; ".join(str(difference) for difference in differences)
    return (
        f"the vlm's decoder and the text LM are different models ({len(differences)} settings): "
        f"{told}. Give the text LM that the VLM was built from, or set force=true"
    )
