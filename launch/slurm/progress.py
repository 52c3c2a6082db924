"""Ends a job that SLURM starts again and again, and that gets no further.

    python -m launch.slurm.progress FILE COMMAND [key=value ...]

Further is a newer checkpoint of train, or one more measured point of a sweep; other commands start
anew each time. FILE, beside the job's log, keeps what there was at the restart before.
"""

import contextlib
import json
import os
import sys
from pathlib import Path

from configs.command import load_config

MAX_FRUITLESS_RESTARTS = 3


def main() -> None:
    """Count this start of a job; end with code 1 where it is one too many."""
    path, command, overrides = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
    most = int(os.environ.get("MAX_FRUITLESS_RESTARTS", MAX_FRUITLESS_RESTARTS))
    fruitless = count(path, mark(command, overrides))
    if fruitless > most:
        sys.stderr.write(
            f"\nerror: SLURM has started this job {fruitless} times since it last got further "
            "(a new checkpoint, a measured point); look for why in its log above, then submit it "
            "again; MAX_FRUITLESS_RESTARTS allows more\n"
        )
        sys.exit(1)


def mark(command: str, overrides: list[str]) -> int:
    """Return how far the command has got before: its newest step, or its number of points."""
    if command == "train":
        folder = Path(load_config("train", overrides).output_dir)
        names = [path.name for path in folder.glob("checkpoints/checkpoint-*")]
        return max((int(name.rpartition("-")[2]) for name in names), default=0)
    if command == "sweep":
        return len(list(Path(load_config("sweep", overrides).out).glob("points/*")))
    return 0


def count(path: Path, now: int) -> int:
    """Return the number of starts since there was less than `now`, and keep it in the file."""
    before = {"mark": 0, "fruitless": 0}
    with contextlib.suppress(FileNotFoundError, ValueError):  # written in part: the disk was full
        before |= json.loads(path.read_text(encoding="utf-8"))
    fruitless: int = before["fruitless"] + 1 if now <= before["mark"] else 0
    staging = path.with_name(f"{path.name}.new")  # a job may be killed at any time
    staging.write_text(json.dumps({"mark": now, "fruitless": fruitless}), encoding="utf-8")
    staging.replace(path)
    return fruitless


if __name__ == "__main__":
    main()
