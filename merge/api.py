"""Merges a VLM with the text LM its decoder came from: `merge_checkpoints(vlm=, text=, out=, ...)`.

Everything that can be refused is refused before the first byte is written, and before numpy is
imported; the weights are compared while the first bytes are written.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.errors import CheckpointError, ConfigError
from configs.signals import held_back
from merge.matching.plan import MergePlan, measure_relatives, plan_merge
from merge.proof.card import write_card
from merge.proof.report import (
    FORMAT,
    check_companions,
    check_inputs,
    describe_changes,
    describe_inputs,
    describe_parts,
    describe_tensors,
    digest,
    find_versions,
    layer_names,
    read_report,
    write_report,
)
from merge.recipe.interface import Settings
from merge.recipe.recipe import Recipe, make_recipe
from merge.writing.output import DTYPE_NAMES, OutputFile, plan_output
from merge.writing.staging import (
    check_out,
    copy_companions,
    set_config_dtype,
    staged_folder,
    write_index,
)
from merge.writing.writer import FilesWriter, Progress, plan_work

if TYPE_CHECKING:
    from merge.writing.compute import Computed

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Folders:
    """Where everything is; absolute."""

    vlm: Path
    text: Path
    base: Path | None = None
    lora: Path | None = None


@dataclass(frozen=True)
class Prepared:
    """A merge of which all is checked that can be without torch."""

    plan: MergePlan
    recipe: Recipe
    settings: Mapping[str, Settings]
    files: Sequence[OutputFile]
    dtype: str

    @property
    def num_bytes(self) -> int:
        """Size of the weight files to come."""
        return sum(file.num_bytes for file in self.files)


def merge_checkpoints(
    *,
    vlm: Path | str,
    text: Path | str,
    out: Path | str,
    alpha: object = 0.4,
    recipe: Mapping[str, Any] | None = None,
    base: Path | str | None = None,
    lora: Path | str | None = None,
    dtype: str = "same",
    force: bool = False,
    allow_nonfinite: bool = False,
    verify: bool = True,
    verify_logits: bool = True,
    num_threads: int | None = None,
    progress: Progress | None = None,
    command: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Writes `text + alpha * (vlm - text)` for the decoder, and the rest of the VLM as it is.

    Args:
        vlm: folder of the vision-language model; gives names, files and configs.
        text: folder of the text LM that the VLM's decoder was trained from.
        out: folder to write; must not exist, or be empty. Appears whole or not at all.
        alpha: the VLM's share, in [0, 1], or a schedule over depth (`merge.recipe.alpha`); Aya
            Vision uses 0.4 (arXiv 2505.08751).
        recipe: further arguments of `merge.recipe.recipe.make_recipe`: another method, overrides.
        base: folder of a third model that both decoders were trained from; some methods take it.
        lora: folder of a LoRA adapter trained on `vlm`, folded in on the way.
        dtype: of all weights that are written: "same" as the VLM's, bfloat16, float16, float32.
        force: merge although the two look unrelated.
        allow_nonfinite: merge although an input holds NaN or Inf.
        verify: read the result back and compare it before it appears at `out`.
        verify_logits: then also load it in transformers and compare logits, where memory allows.
        num_threads: that read, compute and write; None: one a core, as memory allows.
        progress: called with (bytes done, bytes total), from any thread, one call at a time.
        command: what was typed, for the model card.

    Returns:
        The content of `merge_report.json`.

    Raises ConfigError for arguments that cannot be, CheckpointError for checkpoints that cannot.
    """
    started = time.perf_counter()
    arguments = {"alpha": alpha, **(recipe or {})}
    folders = resolve(vlm, text, base, lora)
    target = Path(out).resolve()
    check_folders(folders, target)
    ready = prepare(folders, arguments, dtype=dtype, force=force)
    with staged_folder(target, ready.num_bytes) as staged:
        counted = _write(staged, ready, allow_nonfinite, num_threads, progress)
        companions = _write_companions(staged, ready)
        report = _report(folders, ready, arguments, counted) | companions
        report["command"] = list(command or _command(folders, target, arguments, dtype))
        if verify:
            log.info("verifying what was written")
            report["verified"] = verify_written(staged, ready, logits=verify_logits)
        report["seconds"] = round(time.perf_counter() - started, 3)
        write_report(staged, report)
        write_card(staged, report)
    return report


def verify_folder(
    folder: Path | str, *, logits: bool = True, **moved: Path | str | None
) -> dict[str, Any]:
    """Proves a merged folder again, every element of it, from its inputs and its report.

    Args:
        folder: that a merge has written.
        logits: also load it in transformers and compare logits.
        moved: vlm, text, base or lora, where they are no longer where the report says.

    Returns:
        What was compared.

    Raises CheckpointError where anything differs, or an input is not the one that was merged;
    ConfigError for an input that was not merged at all.
    """
    folder = Path(folder).resolve()
    report = read_report(folder)
    at = {role: item["folder"] for role, item in report["inputs"].items()}
    unknown = [role for role, path in moved.items() if path is not None and role not in at]
    if unknown:
        raise ConfigError(
            f"{', '.join(unknown)}: {folder} was merged without; it was made of {', '.join(at)}"
        )
    at |= {role: path for role, path in moved.items() if path is not None}
    for role, path in at.items():
        if not Path(path).exists():
            raise CheckpointError(
                f"{role}={path} is not there any more; say where it is now: --verify DIR {role}=..."
            )
    folders = resolve(at["vlm"], at["text"], at.get("base"), at.get("lora"))
    # Whether they are relatives was decided when they were merged.
    ready = prepare(folders, report["recipe"], dtype=report["dtype"], force=True)
    check_inputs(ready.plan, report)
    check_companions(folder, report)
    return verify_written(folder, ready, logits=logits, whole=True)


def prepare(folders: Folders, arguments: Mapping[str, Any], *, dtype: str, force: bool) -> Prepared:
    """Checks everything that can be without torch: recipe, headers, settings, overrides."""
    if dtype != "same" and dtype not in DTYPE_NAMES:
        raise ConfigError(f"dtype={dtype!r}: give one of same, {', '.join(DTYPE_NAMES)}")
    recipe = make_recipe(**arguments, has_base=folders.base is not None)
    plan = plan_merge(
        folders.vlm,
        folders.text,
        base=folders.base,
        lora=folders.lora,
        force=force,
        measure=False,
    )
    settings = recipe.for_tensors(plan.table)
    return Prepared(plan, recipe, settings, plan_output(plan.vlm, plan.table, dtype), dtype)


def check_folders(folders: Folders, out: Path) -> None:
    """Raises ConfigError for folders that coincide, and for an `out` that is taken."""
    if folders.vlm == folders.text:
        raise ConfigError(
            f"vlm and text are the same folder, {folders.vlm}; give a VLM and its text LM"
        )
    for key, folder in vars(folders).items():
        if out == folder:
            raise ConfigError(f"out and {key} are the same folder, {out}; inputs are never changed")
        if folder is not None and out.is_relative_to(folder):
            raise ConfigError(f"out={out} lies inside {key}={folder}; inputs are never changed")
    check_out(out)


def verify_written(
    folder: Path, ready: Prepared, *, logits: bool, whole: bool = False
) -> dict[str, Any]:
    """Compares what was written with what was asked for: tensors, then the loaded model."""
    from merge.proof.logits import check_loads, compare_logits
    from merge.proof.verify import verify_tensors

    found = verify_tensors(folder, ready.plan, ready.files, ready.recipe, whole=whole)
    if logits:
        found |= compare_logits(
            folder, ready.plan.vlm.folder, ready.files, ready.recipe.method, ready.settings
        )
    else:
        check_loads(folder, ready.plan.vlm.folder)
    return {**found, "loads_in_transformers": True}


def _write(
    staged: Path,
    ready: Prepared,
    allow_nonfinite: bool,
    num_threads: int | None,
    progress: Progress | None,
) -> "Computed":
    """Writes the weights; strangers are found out while the first bytes are written."""
    method = ready.recipe.method
    work = plan_work(ready.files, method, ready.settings)
    with (
        held_back() as has_come,
        FilesWriter(
            work, staged, method, num_threads=num_threads, progress=progress, stop_when=has_come
        ) as writer,
    ):
        writer.start_copies()
        counted = writer.compute(
            ready.settings,
            allow_nonfinite=allow_nonfinite,
            beside=lambda: measure_relatives(ready.plan),
        )
    if counted.nonfinite:
        log.warning("NaN or Inf in %s", ", ".join(sorted(counted.nonfinite)))
    return counted


def _write_companions(staged: Path, ready: Prepared) -> dict[str, Any]:
    """Writes all that is not weights."""
    vlm = ready.plan.vlm
    copied, left_out = copy_companions(vlm.folder, staged)
    write_index(vlm, ready.files, staged)
    if ready.dtype != "same":
        set_config_dtype(staged, ready.dtype)
    return {
        "files_copied": {name: digest(staged / name) for name in copied},
        "files_left_out": left_out,
    }


def _report(
    folders: Folders, ready: Prepared, arguments: Mapping[str, Any], counted: "Computed"
) -> dict[str, Any]:
    """The report but for what comes after the weights."""
    from merge.writing.rounding import by_layer

    table = ready.plan.table
    return {
        "format": FORMAT,
        "alpha": str(ready.recipe.alpha),
        "method": ready.recipe.describe(),
        "recipe": {"method": "linear", **arguments},
        "dtype": ready.dtype,
        "inputs": describe_inputs(ready.plan),
        "versions": find_versions(),
        "relatives": ready.plan.relatives,
        "parts": describe_parts(table),
        "changes": describe_changes(table, counted.num_changed),
        "rounding": by_layer(counted.rounding, layer_names(table)),
        "nonfinite": sorted(counted.nonfinite),
        "verified": None,
        "tensors": describe_tensors(ready.files, ready.settings, counted.num_changed),
    }


def resolve(
    vlm: Path | str, text: Path | str, base: Path | str | None, lora: Path | str | None
) -> Folders:
    """The same folders, absolute."""

    def absolute(path: Path | str | None) -> Path | None:
        return None if path is None else Path(path).resolve()

    return Folders(Path(vlm).resolve(), Path(text).resolve(), absolute(base), absolute(lora))


def _command(folders: Folders, out: Path, arguments: Mapping[str, Any], dtype: str) -> list[str]:
    """The command that does the same, for calls from Python."""
    given = {key: path.name for key, path in vars(folders).items() if path is not None}
    options = {key: value for key, value in arguments.items() if value not in (None, {})}
    items = {**given, "out": out.name, **options, **({} if dtype == "same" else {"dtype": dtype})}
    return ["visiongraft", "merge", *(f"{key}={value}" for key, value in items.items())]
