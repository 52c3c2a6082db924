"""One run as a folder for `wandb sync`: what its files hold, without the rows the server has.

`wandb sync` (0.31) has a file sent from its first record, and the server's number of rows as the
place to append at: a file that is sent twice doubles its rows, and parts of one run overwrite each
other's system metrics. So the parts are written one behind the other into a file of our own. The
run's folder is only read: nothing in it is changed, and it may be somebody else's.
"""

import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launch.syncing.log_file import LogReader, LogWriter
from launch.syncing.offline_runs import PREFIX, OfflineRun
from launch.syncing.rows import RowsOnce, later_values

MADE_BY_SYNC = {"config.yaml", "wandb-summary.json", "wandb-metadata.json"}
STAGED = "/artifacts/staging/"
AFTER_EXIT = ("final", "footer")
NOT_ENDED = 1  # exit code of a run whose process died, as `wandb sync` has it


class Replay:
    """Writes records of a run as they come."""

    def __init__(self, run: OfflineRun, folder: Path, num_there: int) -> None:
        """Begin a file in `folder`; the first `num_there` rows are the server's already."""
        self.run, self.num_there = run, num_there
        self.rows = RowsOnce(
            later_values(map(_histories, run.parts)) if len(run.parts) > 1 else None
        )
        self.path = folder / f"{PREFIX}{run.run_id}" / f"run-{run.run_id}.wandb"
        self.files = self.path.parent / "files"
        self.files.mkdir(parents=True)
        self.readers: dict[Path, LogReader] = {}
        self.exit: bytes | None = None  # of the part that was read last
        self._has_run = False
        self._writer = LogWriter(self.path)

    def feed(self, run: OfflineRun) -> None:
        """Write what is new in the run's files, and in parts that are new."""
        self.run = run
        self._link_files()  # before the records that name them
        for part in run.parts:
            reader = self.readers.setdefault(part, LogReader(part))
            for record in reader.read():
                self._add(record)
        self._writer.flush()

    def end(self) -> None:
        """Write the end of the run: its own, or that it died."""
        pb = _records()
        died = pb.Record(exit=pb.RunExitRecord(exit_code=NOT_ENDED))
        self._writer.write(self.exit or died.SerializeToString())
        self._writer.close()

    @property
    def has_ended(self) -> bool:
        """Whether the run's last part was closed by its process."""
        return self.exit is not None

    @property
    def is_done(self) -> bool:
        """Whether the run ended well, and is not gone on with."""
        return self.exit is not None and parse(self.exit).exit.exit_code == 0

    @property
    def num_new(self) -> int:
        """Rows that the server did not have."""
        return self.rows.num_rows - self.num_there

    @property
    def num_unread(self) -> int:
        """Bytes at the end of files that are no whole record."""
        return sum(reader.num_unread for reader in self.readers.values())

    def _add(self, raw: bytes) -> None:
        record = parse(raw)
        kind = record.WhichOneof("record_type")
        if kind == "exit":  # written at the end: another part may follow
            self.exit = raw
            return
        if kind in AFTER_EXIT:
            return
        self.exit = None
        if kind == "history":
            if not self.rows.take(record.history) or self.rows.num_rows <= self.num_there:
                return
        elif kind == "run" and self._has_run:
            record = _config_of(record.run)
        elif kind == "artifact":
            self._find_staged(record.artifact)
        self._has_run |= kind == "run"
        self._writer.write(record.SerializeToString())

    def _link_files(self) -> None:
        """Show the newest file of each name, of all parts, without a copy."""
        for part in self.run.parts:
            for at, _, names in os.walk(part.parent / "files"):
                there = self.files / Path(at).relative_to(part.parent / "files")
                there.mkdir(parents=True, exist_ok=True)
                for name in set(names) - MADE_BY_SYNC:
                    source = (Path(at) / name).resolve()
                    if not (there / name).exists() or (there / name).resolve() != source:
                        (there / name).unlink(missing_ok=True)
                        (there / name).symlink_to(source)

    def _find_staged(self, artifact: Any) -> None:
        """Find pictures of tables where the run's folder has another path on this machine."""
        for entry in artifact.manifest.contents:
            if STAGED in entry.local_path and not os.path.exists(entry.local_path):
                name = entry.local_path.rpartition(STAGED)[2]
                entry.local_path = f"{self.run.folder.resolve()}{STAGED}{name}"


def run_record(run: OfflineRun) -> Any | None:
    """Return the record that names the run and its project; None: it is not written yet."""
    for raw in LogReader(run.parts[0]).read():
        record = parse(raw)
        if record.WhichOneof("record_type") == "run":
            return record.run
    return None


def _histories(part: Path) -> Iterator[Any]:
    for raw in LogReader(part).read():
        record = parse(raw)
        if record.WhichOneof("record_type") == "history":
            yield record.history


def _config_of(run: Any) -> Any:
    """Return a later part's config as an update: of a second Run record the sync takes none."""
    items = [item for item in run.config.update if item.key != "_wandb"]
    pb = _records()
    return pb.Record(config=pb.ConfigRecord(update=items))


def parse(raw: bytes) -> Any:
    """Return a record of W&B's."""
    return _records().Record.FromString(raw)


@functools.cache
def _records() -> Any:
    from wandb.proto import wandb_internal_pb2

    return wandb_internal_pb2
