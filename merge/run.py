"""The work of `python -m merge`."""

import logging
from pathlib import Path

from tqdm import tqdm

from configs.schema import MergeConfig
from merge.api import merge_checkpoints, plan_merge

log = logging.getLogger(__name__)


def merge(config: MergeConfig) -> None:
    """Write the merged checkpoint, showing progress."""
    vlm, text, out = Path(config.vlm), Path(config.text), Path(config.out)
    if config.dry_run:
        table = plan_merge(vlm, text, force=config.force).table
        for kind in sorted({plan.tensor_class for plan in table}):
            chosen = [plan for plan in table if plan.tensor_class is kind]
            size = sum(plan.vlm.num_bytes for plan in chosen)
            log.info("%-8s %5d tensors %14s bytes", kind, len(chosen), f"{size:,}")
        log.info("dry_run=true: nothing was written")
        return
    with tqdm(desc="merge", unit="B", unit_scale=True, unit_divisor=1024) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

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
