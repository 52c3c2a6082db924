"""The chosen model, written on request: what `python -m merge` writes of the same recipe."""

import logging
from pathlib import Path

from configs.errors import ConfigError
from merge.api import merge_checkpoints
from merge.sweeping.candidates import Candidate

log = logging.getLogger(__name__)


def write_chosen(candidate: Candidate, *, vlm: str, text: str, out: str, force: bool) -> None:
    """Merge, verify, and let the folder appear whole."""
    alpha = candidate.recipe.alpha.number
    if alpha is None or candidate.recipe.method.name != "linear":  # until the API takes a recipe
        raise ConfigError(f"write_to: {candidate} is measured, but cannot be written yet")
    merge_checkpoints(vlm=Path(vlm), text=Path(text), out=Path(out), alpha=alpha, force=force)
    log.info("wrote %s to %s", candidate, out)
