"""Checkpoints of a run: whole or not there, and which one a run goes on from."""

import json
from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from data.packs import States

STREAMS = "stream-{rank}.json"  # where the slots of a rank stand, in a checkpoint
STAGING = ".writing"  # a checkpoint that is not whole yet; never resumed from


def write_states(checkpoint: Path, rank: int, states: States) -> None:
    """Write where this rank's streams stand; a planned run needs nothing."""
    if states:
        path = checkpoint / STREAMS.format(rank=rank)
        path.write_text(json.dumps(states), encoding="utf-8")


def read_states(checkpoint: Path) -> States:
    """Return where the streams of all ranks stood."""
    found: States = {}
    for path in sorted(checkpoint.glob(STREAMS.format(rank="*"))):
        found |= json.loads(path.read_text(encoding="utf-8"))
    return found


def newest_checkpoint(run_dir: Path) -> Path | None:
    """Return the whole checkpoint with the highest step, or None."""
    found = [
        path
        for path in run_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if path.name.rsplit("-", 1)[-1].isdigit() and (path / "trainer_state.json").is_file()
    ]
    return max(found, key=step_of, default=None)


def step_of(checkpoint: Path) -> int:
    """Return the optimizer step at which a checkpoint was written."""
    return int(checkpoint.name.rsplit("-", 1)[-1])
