"""What was sent of a run, kept beside it, so that it is not looked at again."""

import json
import logging
from pathlib import Path
from typing import Any

from configs.errors import first_line
from launch.syncing.offline_runs import OfflineRun

log = logging.getLogger(__name__)


def state_file(run: OfflineRun) -> Path:
    """Return the file that tells what was sent."""
    return run.folder / f"run-{run.run_id}.sent.json"


def is_sent(run: OfflineRun, url: str) -> bool:
    """Whether all of a run was sent to this server, and nothing was written since."""
    return is_noted(run) and _read(run).get("server") == url


def is_noted(run: OfflineRun) -> bool:
    """Whether all of a run was sent to some server, and nothing was written since."""
    return _read(run).get("bytes") == run.sizes()


def lost_parts(run: OfflineRun) -> list[str]:
    """Return parts that were sent and are not there any more."""
    return sorted(set(_read(run).get("bytes", {})) - {part.parent.name for part in run.parts})


def note_sent(run: OfflineRun, url: str, sizes: dict[str, int], *, is_done: bool) -> None:
    """Note what was sent; `wandb clean` may take a run that has ended well.

    Args:
        run: that was sent.
        url: of the server.
        sizes: of its parts, before they were read.
        is_done: the run ended well.
    """
    try:
        state_file(run).write_text(json.dumps({"server": url, "bytes": sizes}), encoding="utf-8")
        for part in run.parts if is_done else ():
            part.with_suffix(".wandb.synced").touch()
    except OSError as error:  # somebody else's folder
        log.warning("%s: sent, but not noted beside it: %s", run, first_line(error))


def _read(run: OfflineRun) -> dict[str, Any]:
    try:
        found = json.loads(state_file(run).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
