"""metrics.jsonl: one JSON object a line, and what goes from it where a run goes on."""

import json
from pathlib import Path
from typing import Any

from train.saving.disk import told_when_full


class MetricsFile:
    """The file that is always written; tables and models have files of their own."""

    def __init__(self, path: Path) -> None:
        """Append to `path`."""
        self.path = path

    def log(self, metrics: dict[str, Any], step: int) -> None:
        """Append a line."""
        with (
            told_when_full("metrics", self.path),
            self.path.open("a", encoding="utf-8") as file,
        ):
            file.write(json.dumps({"step": step, **metrics}) + "\n")


def truncate_metrics(path: Path, step: int, *, is_last: bool = False) -> None:
    """Drop lines after `step`: what a killed run logged past the checkpoint it goes on from.

    At the last step the run measures once more, so what it measured there is dropped as well.
    """
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if _step_of(line) <= step]
    if is_last:
        kept = [line for line in kept if _step_of(line) < step or '"train/loss"' in line]
    staging = path.with_suffix(".jsonl.writing")
    staging.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    staging.replace(path)


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except ValueError:  # a line that a kill cut short
        return float("inf")
