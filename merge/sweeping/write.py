"""The chosen model, written on request: what `python -m merge` writes of the same recipe."""

import logging

from merge.api import merge_checkpoints
from merge.sweeping.candidates import Candidate

log = logging.getLogger(__name__)


def write_chosen(
    candidate: Candidate,
    *,
    vlm: str,
    text: str,
    base: str | None,
    lora: str | None,
    out: str,
    force: bool,
    num_threads: int | None,
) -> None:
    """Merge, verify, and let the folder appear whole."""
    recipe = dict(candidate.arguments)
    report = merge_checkpoints(
        vlm=vlm,
        text=text,
        out=out,
        alpha=recipe.pop("alpha"),
        recipe=recipe,
        base=base if candidate.recipe.settings.has_base else None,
        lora=lora,
        force=force,
        num_threads=num_threads,
    )
    log.info("wrote %s to %s in %.1f s, verified", candidate, out, report["seconds"])
