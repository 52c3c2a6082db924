"""What was measured on held-out rows, as a run folder keeps it."""

import json
import logging
import re
from pathlib import Path

from configs.errors import first_line
from train.measuring.results import Results, from_json
from train.saving.run_folder import RunFolder

log = logging.getLogger(__name__)
NAME = re.compile(r"step-(\d+)\.json")


def results_at(folder: RunFolder, step: int) -> Results:
    """Return what was measured at a step; nothing where it was not."""
    path = folder.evaluation / f"step-{step:06d}.json"
    if not path.is_file():
        return {}
    try:
        return from_json(json.loads(path.read_text(encoding="utf-8"))["groups"])
    except (ValueError, KeyError, TypeError) as error:  # cut, or changed by hand
        log.warning("%s cannot be read (%s): nothing is held against it", path, first_line(error))
        return {}


def results_before(folder: RunFolder, step: int) -> Results:
    """Return what was measured at the last step before one; nothing where there is none."""
    steps = [int(found[1]) for path in _files(folder) if (found := NAME.fullmatch(path.name))]
    return results_at(folder, max((s for s in steps if s < step), default=-1))


def _files(folder: RunFolder) -> list[Path]:
    return list(folder.evaluation.iterdir()) if folder.evaluation.is_dir() else []
