"""Offline W&B runs, read back without W&B's server."""

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BLOCK = 32768  # bytes, of a .wandb file


def read_wandb(file: Path) -> list[Any]:
    """The records of an offline run, which is a log of LevelDB's kind.

    After 7 bytes, blocks of pieces: checksum, length, kind (1 whole, 2 first, 3 middle, 4 last).
    """
    from wandb.proto import wandb_internal_pb2

    raw, place, whole, records = file.read_bytes(), 7, b"", []
    while place + 7 <= len(raw):
        if BLOCK - place % BLOCK < 7:  # no room for a head
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", raw[place : place + 7])
        whole += raw[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            records.append(wandb_internal_pb2.Record())
            records[-1].ParseFromString(whole)
            whole = b""
    return records


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
