"""Offline W&B runs, read back without W&B's server."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.syncing.log_file import LogReader


def read_wandb(file: Path) -> list[Any]:
    """The records of an offline run."""
    from wandb.proto import wandb_internal_pb2

    return [wandb_internal_pb2.Record.FromString(raw) for raw in LogReader(file).read()]


class Offline:
    """What one run has left in one or several folders: read in order, as a sync does."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = folders
        self.records = [r for f in folders for r in read_wandb(next(f.glob("*.wandb")))]

    def of(self, kind: str) -> list[Any]:
        """The records of a kind."""
        return [getattr(r, kind) for r in self.records if r.WhichOneof("record_type") == kind]

    def history(self) -> dict[int, dict[str, Any]]:
        """{step: {name: value}}."""
        found: dict[int, dict[str, Any]] = {}
        for line in self.of("history"):
            values: dict[str, Any] = {}
            for item in line.item:
                key, value = "/".join(item.nested_key) or item.key, json.loads(item.value_json)
                values[key] = value
                if len(item.nested_key) > 1:  # a table or a picture, in pieces
                    *above, last = item.nested_key
                    values.setdefault("/".join(above), {})[last] = value
            found.setdefault(values["_step"], {}).update(values)
        return found

    def config(self) -> dict[str, Any]:
        """The run's config, with what was added later."""
        found: dict[str, Any] = {}
        for update in [*(run.config for run in self.of("run")), *self.of("config")]:
            for item in update.update:
                found["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
        return found

    def definitions(self) -> dict[str, Any]:
        """{metric or glob: what was defined of it}."""
        return {metric.name or metric.glob_name: metric for metric in self.of("metric")}

    def files(self) -> dict[str, str]:
        """{name: when it is uploaded}, for all that were saved."""
        names = {0: "now", 1: "end", 2: "live"}
        return {f.path: names[f.policy] for record in self.of("files") for f in record.files}

    def read(self, path: str) -> bytes:
        """The newest file of a name."""
        found = [f / "files" / path for f in self.folders if (f / "files" / path).is_file()]
        return found[-1].read_bytes()

    def models(self, *, used: bool) -> dict[str, Any]:
        """{name: artifact} of what the run has read, or written."""
        return {
            a.name: a
            for a in self.of("artifact")
            if a.use_after_commit is used and a.type != "run_table"
        }


def offline_runs(folder: Path) -> Offline:
    """What the run in a folder has left; W&B's own process has to write it first."""
    import wandb

    wandb.teardown()
    return Offline(sorted((folder / "wandb").glob("offline-run-*")))
