"""Merges a VLM with the text LM its decoder came from: `merge_checkpoints(vlm=, text=, out=, ...)`.

Everything that can be refused is refused before the first byte is written, and everything but the
weight distance before torch is imported.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from configs.errors import ConfigError
from merge.matching.plan import MergePlan, plan_merge
from merge.proof.report import (
    describe_changes,
    describe_inputs,
    describe_method,
    describe_parts,
    describe_tensors,
    find_versions,
    write_card,
    write_report,
)
from merge.writing.staging import copy_companions, copy_index, staged_folder


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
    from merge.recipe.methods import METHODS
    from merge.writing.writer import write_weights

    vlm, text, table = plan.vlm, plan.text, plan.table
    copied, left_out = copy_companions(vlm.folder, staged)
    copy_index(vlm.index, staged)
    num_changed = write_weights(table, vlm, staged, alpha=alpha, progress=progress)
    verified = None
    if verify:
        from merge.proof.verify import verify_merge

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
