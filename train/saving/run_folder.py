"""The run folder: one run, its resolved config, its environment, and whether it is finished."""

import contextlib
import functools
import json
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from configs.errors import ConfigError, DataError
from configs.schema import TrainConfig
from data.lock import alone
from train.saving.job import job

# Keys that may change between a run and its resumption without changing what is learned.
FREE = (
    "dry_run",
    "output_dir",
    "tracker",
    "checkpoint",
    "export",
    "evaluation",
    "engine.num_threads",
    "engine.gradient_checkpointing",
    "engine.activation_offloading",
    "engine.peak_tflops",
    "engine.plan_ranks",
    "engine.device_memory_gib",
    "engine.timeout_seconds",
    "data.max_bad_ratio",
    "data.num_workers",
    "data.num_index_workers",
    "data.cache_dir",
    "cache",
)
SAME_CHECKPOINTS = {"single", "ddp", "fsdp2"}  # one of these goes on from what another saved
ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "deepspeed", "datasets", "wandb")


class RunFolder:
    """Paths of a run folder, and the checks that keep two runs apart."""

    def __init__(self, path: str | Path) -> None:
        """Name the folder; nothing is written yet."""
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.checkpoints = self.path / "checkpoints"
        self.metrics = self.path / "metrics.jsonl"
        self.environment = self.path / "environment.jsonl"
        self.rows = self.path / "rows.jsonl"
        self.evaluation = self.path / "evaluation"
        self.export = self.path / "export"
        self.finished = self.path / "finished.json"
        self.note = self.path / ".running"  # of the process that writes here

    def check(self, config: TrainConfig) -> None:
        """Refuse a folder that holds another run, or files of something else.

        Raises:
            ConfigError: naming the keys that differ, and what to do.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"output_dir={str(self.path)!r} is a file; give a folder")
        if not self.path.exists() or not any(path != self.note for path in self.path.iterdir()):
            return
        if not self.config.is_file():
            raise ConfigError(
                f"output_dir={str(self.path)!r} holds files, but no run of ours; "
                "give an empty or a new folder"
            )
        before = yaml.safe_load(self.config.read_text(encoding="utf-8"))
        differing = _differing(before, to_plain(config))
        if differing:
            lines = [f"\n  {key}: {old!r} there, {new!r} now" for key, old, new in differing[:8]]
            raise ConfigError(
                f"output_dir={str(self.path)!r} holds another run:{''.join(lines)}\n"
                "  give another output_dir, or the same config to go on with that run; its result "
                "is trained further by model=vlm model.path=.../export"
            )

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Let no other process train here while `with` lasts.

        Raises:
            BusyError: one does.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            with alone(self.note, "trains here"):
                yield
        finally:
            with contextlib.suppress(OSError):  # it holds something
                self.path.rmdir()

    def check_data(self, fingerprint: dict[str, object]) -> None:
        """Refuse to go on with other rows than the run began with, and note these at its start.

        Raises:
            DataError: rows were added, left out or changed since.
        """
        path = self.path / "data.json"
        if path.is_file():
            before = json.loads(path.read_text(encoding="utf-8"))
            if before != fingerprint:
                raise DataError(
                    f"the data has changed since the run in {str(self.path)!r} began: "
                    f"{before.get('samples')} samples then, {fingerprint.get('samples')} now, and "
                    "what they hold; a run goes on with its own rows alone: give another "
                    "output_dir, or the data as it was"
                )
        path.write_text(json.dumps(fingerprint) + "\n", encoding="utf-8")

    def note_data(self, summary: dict[str, object]) -> None:
        """Keep how much there is to train on, by source and language, for the report."""
        path = self.path / "data_summary.json"
        path.write_text(json.dumps(summary) + "\n", encoding="utf-8")

    def is_finished(self) -> bool:
        """Whether the run has reached its last step and was exported."""
        return self.finished.is_file()

    def open(self, config: TrainConfig) -> None:
        """Write the resolved config and the environment, before anything loads."""
        for folder in (self.path, self.checkpoints, self.evaluation):
            folder.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True)
        self.config.write_text(text, encoding="utf-8")
        line = json.dumps(environment())
        with self.environment.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def close(self, **facts: Any) -> None:
        """Mark the run as finished."""
        self.finished.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def environment() -> dict[str, Any]:
    """Return what the run runs on: versions, machine, command, time."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "python": platform.python_version(),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "world_size": int(os.environ.get("WORLD_SIZE", "1")),
        **job(),
        "packages": {name: _version(name) for name in PACKAGES},
        "git_commit": _commit(),
    }


@functools.cache
def _commit() -> str | None:
    """Return the commit of the code, with a mark where it was changed since; None: not known."""
    describe = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=40", "--dirty"]
    if not (ROOT / ".git").exists():  # installed, perhaps inside of a user's own repository
        return os.environ.get("VISIONGRAFT_REVISION")  # of launch/Dockerfile
    try:
        done = subprocess.run(describe, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def to_plain(config: Any) -> Any:
    """Return a config as dicts, lists and text."""

    def plain(value: Any) -> Any:
        if isinstance(value, Enum):
            return value.name
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return value

    return plain(asdict(config))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(node, dict) and node:
        found: dict[str, Any] = {}
        for key, value in node.items():
            found |= _flat(value, f"{prefix}{key}.")
        return found
    return {prefix.rstrip("."): node}


def _differing(before: Any, now: Any) -> list[tuple[str, Any, Any]]:
    old, new = _flat(before), _flat(now)
    keys = [key for key in {**old, **new} if not any(_under(key, free) for free in FREE)]
    differing = [(k, old.get(k), new.get(k)) for k in keys if old.get(k) != new.get(k)]
    return [
        (key, then, today)
        for key, then, today in differing
        if not (key == "engine.kind" and {then, today} <= SAME_CHECKPOINTS)
    ]


def _under(key: str, parent: str) -> bool:
    return key == parent or key.startswith(f"{parent}.")
