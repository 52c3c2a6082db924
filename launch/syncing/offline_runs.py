"""The offline W&B runs below a folder, in the order in which they are sent."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PREFIX = "offline-run-"
# W&B flushes the file every 15 s (measured, 0.31), and always has the machine's load to write.
STILL_SECONDS = 300


@dataclass(frozen=True)
class OfflineRun:
    """One run: a file for each time that it was begun or gone on with, in order of time."""

    run_id: str
    parts: tuple[Path, ...]

    @property
    def folder(self) -> Path:
        """The folder `wandb/` it lies in."""
        return self.parts[0].parent.parent

    @property
    def key(self) -> tuple[Path, str]:
        """What tells it from others."""
        return self.folder, self.run_id

    def sizes(self) -> dict[str, int]:
        """Bytes of each part, by the name of its folder."""
        return {part.parent.name: part.stat().st_size for part in self.parts}

    def is_growing(self) -> bool:
        """Whether something was written a short while ago."""
        return time.time() - self.parts[-1].stat().st_mtime < STILL_SECONDS

    def __str__(self) -> str:
        """Name it for people."""
        return f"{self.folder.parent} ({self.run_id})"


def find_runs(folder: Path, on_error: Callable[[OSError], None]) -> list[OfflineRun]:
    """Return all offline runs below a folder, those that were begun first, first.

    An artifact that a run makes must be known before a later run uses it: by then it was made, so
    the order of time is the order of the pipeline.

    Args:
        folder: of a pipeline, of a run, a `wandb/`, or one offline run.
        on_error: told of folders that cannot be read.
    """
    parts: dict[tuple[Path, str], list[Path]] = {}
    for at, folders, files in os.walk(folder, onerror=on_error):
        here = Path(at)
        if here.resolve().name.startswith(PREFIX):
            folders.clear()
            for name in files:
                if name.startswith("run-") and name.endswith(".wandb"):
                    run_id = name.removeprefix("run-").removesuffix(".wandb")
                    parts.setdefault((here.parent, run_id), []).append(here / name)
    # Their folders are named by date and time.
    runs = [
        OfflineRun(run_id, tuple(sorted(paths, key=lambda path: path.parent.name)))
        for (_, run_id), paths in parts.items()
    ]
    return sorted(runs, key=_begun)


def _begun(run: OfflineRun) -> tuple[str, int]:
    """Return the second a run was begun in, and within it when it was last written."""
    stamp = run.parts[0].parent.name.rpartition("-")[0]
    try:
        return stamp, run.parts[-1].stat().st_mtime_ns
    except OSError:  # gone since it was found; told when it is to be sent
        return stamp, 0
