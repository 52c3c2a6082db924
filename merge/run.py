"""The work of `python -m merge`."""

import logging
from pathlib import Path

from tqdm import tqdm

from configs.schema import MergeConfig
from merge.api import check_arguments, merge_checkpoints
from merge.matching.plan import plan_merge

log = logging.getLogger(__name__)


def merge(config: MergeConfig) -> None:
    """Write the merged checkpoint, showing progress."""
    vlm, text, out = Path(config.vlm), Path(config.text), Path(config.out)
    if config.dry_run:
        check_arguments(vlm.resolve(), text.resolve(), out.resolve(), config.alpha)
        table = plan_merge(vlm, text, force=config.force).table
        for kind in sorted({plan.tensor_class for plan in table}):
            chosen = [plan for plan in table if plan.tensor_class is kind]
            size = sum(plan.vlm.num_bytes for plan in chosen)
            log.info("%-8s %5d tensors %14s bytes", kind, len(chosen), f"{size:,}")
        log.info("dry_run=true: nothing was written")
        return
    bar: tqdm[None] | None = None

    def show(done: int, total: int) -> None:
        nonlocal bar
        if bar is None:  # nothing to show before the inputs are checked
            bar = tqdm(desc="merge", total=total, unit="B", unit_scale=True, unit_divisor=1024)
        bar.update(done - bar.n)
        if done == total:
            bar.close()

    report = merge_checkpoints(
        vlm=vlm,
        text=text,
        out=out,
        alpha=config.alpha,
        force=config.force,
        verify=config.verify,
        progress=show,
    )
    log.info("merged at alpha %g into %s in %.1f s", config.alpha, out, report["seconds"])
