"""The work of `python -m merge`."""

import logging
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from configs.schema import MergeConfig, MethodConfig, VerifyMergeConfig
from merge.api import (
    Prepared,
    check_folders,
    merge_checkpoints,
    prepare,
    resolve,
    verify_folder,
)
from merge.matching.plan import measure_relatives

log = logging.getLogger(__name__)
EXIT_TERMINATED = 128 + signal.SIGTERM  # what a shell reports of it
TELL_EVERY, TELL_EVERY_IN_LOGS = 0.2, 10.0  # seconds between two looks of the progress bar


def merge(config: MergeConfig) -> None:
    """Write the merged checkpoint, showing progress."""
    if config.dry_run:
        _plan(config)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_TERMINATED))  # which cleans up
    with Bar("merge") as bar:
        report = merge_checkpoints(
            vlm=config.vlm,
            text=config.text,
            out=config.out,
            alpha=config.alpha,
            recipe={"alpha_overrides": config.alpha_overrides, **recipe_arguments(config)},
            base=config.base,
            lora=config.lora,
            dtype=config.dtype.value,
            force=config.force,
            allow_nonfinite=config.allow_nonfinite,
            verify=config.verify,
            verify_logits=config.verify_logits,
            num_threads=config.num_threads,
            progress=bar.show,
            command=typed(sys.argv),
        )
    _tell(report, config.out)
    if config.tracker.wandb:
        from train.tracking.merged import track_merge  # a merge is done before W&B is imported

        track_merge(config, report)


def verify(config: VerifyMergeConfig) -> None:
    """Prove a merged folder again, every element of it."""
    found = verify_folder(
        config.folder,
        logits=config.verify_logits,
        vlm=config.vlm,
        text=config.text,
        base=config.base,
        lora=config.lora,
    )
    for key, value in found.items():
        log.info("%-36s %s", key, f"{value:,}" if type(value) is int else value)
    log.info("%s is what its merge_report.json says", config.folder)


def typed(arguments: Sequence[str]) -> list[str]:
    """The command line as it can be typed again: `python -m` shows the file it has run."""
    program = Path(arguments[0]).name
    start = ["python", "-m", "merge"] if program == "__main__.py" else [program]
    return [*" ".join(start).split(" "), *(item.removeprefix("++") for item in arguments[1:])]


def recipe_arguments(config: MethodConfig) -> dict[str, Any]:
    """What a config says of the method, as `make_recipe` takes it."""
    return {
        "method": config.method.value,
        "extrapolate": config.extrapolate,
        "text_weight": config.text_weight,
        "density": config.density,
        "normalize": config.normalize,
        "drop_seed": config.drop_seed,
    }


class Bar:
    """A progress bar that appears with the first byte, with bytes a second and time to go."""

    def __init__(self, what: str) -> None:
        self._what, self._last = what, 0.0
        self._every = TELL_EVERY if sys.stderr.isatty() else TELL_EVERY_IN_LOGS
        self._bar: tqdm[None] | None = None

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, done: int, total: int) -> None:
        """Draws the bar, not more often than is seen."""
        now = time.monotonic()
        if self._bar is None:  # nothing to show before the inputs are checked
            self._bar = tqdm(desc=self._what, total=total, unit="B", unit_scale=True)
        if done == total or now - self._last >= self._every:
            self._last = now
            self._bar.update(done - self._bar.n)


def _plan(config: MergeConfig) -> None:
    """Tell what would be done."""
    folders = resolve(config.vlm, config.text, config.base, config.lora)
    check_folders(folders, Path(config.out).resolve())
    arguments = {"alpha": config.alpha, "alpha_overrides": config.alpha_overrides}
    ready = prepare(
        folders,
        arguments | recipe_arguments(config),
        dtype=config.dtype.value,
        force=config.force,
    )
    measure_relatives(ready.plan)
    _tell_plan(ready)


def _tell_plan(ready: Prepared) -> None:
    table = ready.plan.table
    for kind in sorted({plan.tensor_class for plan in table}):
        chosen = [plan for plan in table if plan.tensor_class is kind]
        size = sum(plan.vlm.num_bytes for plan in chosen)
        log.info("%-8s %5d tensors %16s bytes", kind, len(chosen), f"{size:,}")
    kept = {plan.name: plan.vlm_rows for plan in table if plan.vlm_rows}
    for name, rows in kept.items():
        told = ", ".join(f"{a}" if b == a + 1 else f"{a}-{b - 1}" for a, b in rows[:8])
        more = f" and {len(rows) - 8} more ranges" if len(rows) > 8 else ""
        log.info("rows of %s that stay the VLM's: %s%s", name, told, more)
    log.info("%s at alpha %s", ready.recipe.method.formula, ready.recipe.alpha)
    distances = list(ready.plan.relatives["weight_distances"].values())
    if distances:
        log.info("relative weight distance by layer: %.3f to %.3f", min(distances), max(distances))
    log.info("%s bytes in %d files", f"{ready.num_bytes:,}", len(ready.files))
    log.info("dry_run=true: nothing was written")


def _tell(report: dict[str, Any], out: str) -> None:
    """What came of it, in a few lines."""
    changes, rounding = report["changes"], report["rounding"].get("all", {})
    log.info(
        "merged by %s at alpha %s into %s in %.1f s; %.1f%% of the decoder is not the text LM's",
        report["method"]["name"], report["alpha"], out, report["seconds"],
        100 * changes["changed_ratio"],
    )  # fmt: skip
    if changes["num_changed_elements"] == 0 and report["alpha"] != "0":
        log.warning("the vlm's decoder is the text LM's: was another vlm, or lora=, meant?")
    kept, unchanged = rounding.get("kept_ratio"), rounding.get("unchanged_ratio")
    if kept is not None and unchanged is not None and unchanged >= 0.001:
        log.info(
            "rounding to the stored dtype kept %.1f%% of the intended change, and left %.1f%% of "
            "the values where they were (dtype=float32 keeps all)", 100 * kept, 100 * unchanged,
        )  # fmt: skip
    found = report["verified"]
    if found:
        log.info(
            "verified: %s tensors, %s values copied and %s computed again (--verify: all of them); "
            "logits once loaded: %s",
            found["num_tensors"], f"{found['num_elements_copied']:,}",
            f"{found['num_elements_recomputed']:,}", found.get("logits_compared", "not compared"),
        )  # fmt: skip
