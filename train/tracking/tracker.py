"""Where metrics of a run go: metrics.jsonl always, W&B and TensorBoard beside it."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from configs.schema import TrackerConfig
from train.tracking.metrics_file import MetricsFile

log = logging.getLogger(__name__)


class Sink(Protocol):
    """What shows a run beside its files."""

    shows_pictures: bool

    def log(self, metrics: dict[str, Any], step: int) -> None:
        """Log numbers under their names."""

    def log_table(self, name: str, columns: list[str], rows: list[list[Any]], step: int) -> None:
        """Log a table, whose cells may be PIL pictures."""

    def save_file(self, path: Path) -> None:
        """Keep a small file, as it is at the end."""

    def use_model(self, role: str, path: str) -> None:
        """Tell which model the run reads: a folder, or a name on the hub."""

    def log_model(
        self, path: Path, kind: str, *, label: str, aliases: tuple[str, ...] = ()
    ) -> None:
        """Tell of a folder that the run has written."""

    def finish(self, *, failed: bool = False, preempted: bool = False) -> None:
        """Close it."""


class Tracker:
    """Writes metrics of one run, from the first process. The others hold one that does nothing."""

    def __init__(self, path: Path | None, sinks: Sequence[Sink] = ()) -> None:
        """Append to `path`; None writes nothing there."""
        self.path, self.sinks = path, sinks
        self._file = None if path is None else MetricsFile(path)

    @property
    def shows_pictures(self) -> bool:
        """Whether pictures in tables are of use to anybody."""
        return any(sink.shows_pictures for sink in self.sinks)

    def log(self, metrics: dict[str, Any], step: int) -> None:
        """Log numbers under their names at an optimizer step (or a point of a sweep)."""
        if self._file is not None:
            self._file.log(metrics, step)
        self._tell("log", metrics, step)

    def log_table(self, name: str, columns: list[str], rows: list[list[Any]], step: int) -> None:
        """Log a table; PIL pictures in it are shown. Files of it are the caller's job."""
        self._tell("log_table", name, columns, rows, step)

    def save_file(self, path: Path) -> None:
        """Keep a small file with the run, as it is at the end."""
        self._tell("save_file", path)

    def use_model(self, role: str, path: str | None) -> None:
        """Tell which model the run reads, as a folder or a name on the hub; None: none."""
        if path is not None:
            self._tell("use_model", role, str(path))

    def log_model(self, path: Path, kind: str, *, label: str, aliases: Sequence[str] = ()) -> None:
        """Tell of a folder that the run has written.

        Args:
            path: the folder.
            kind: "model" or "checkpoint".
            label: what it is to the run, such as "export"; the end of the artifact's name.
            aliases: names of this version, such as "best".
        """
        self._tell("log_model", path, kind, label=label, aliases=tuple(aliases))

    def finish(self, *, failed: bool = False, preempted: bool = False) -> None:
        """Close it: finished, failed, or preempted, which is to be gone on with."""
        self._tell("finish", failed=failed, preempted=preempted)

    def _tell(self, what: str, *args: Any, **kwargs: Any) -> None:
        """Call a method of every sink.

        W&B's is a process of its own, which some SLURMs send SIGTERM too: it ends by it, and the
        run has yet to write its checkpoint.
        """
        for sink in tuple(self.sinks):
            try:
                getattr(sink, what)(*args, **kwargs)
            except ConnectionError as error:
                log.warning("going on without %s: %s", type(sink).__name__, error)
                self.sinks = [each for each in self.sinks if each is not sink]


def start_tracker(
    config: TrackerConfig,
    run_dir: Path,
    *,
    job_type: str,
    run_config: dict[str, Any],
    first_process: bool,
    done: int = -1,
) -> Tracker:
    """Open the run's metrics file and what shows it.

    Args:
        config: tracker keys.
        run_dir: the run's folder.
        job_type: such as "sft" or "sweep".
        run_config: the resolved config.
        first_process: the others write nothing.
        done: step that is gone on from; -1: none.
    """
    if not first_process:
        return Tracker(None)
    sinks: list[Sink] = []
    if config.tensorboard:
        from train.tracking.tensorboard import FOLDER, TensorBoard

        sinks.append(TensorBoard(run_dir / FOLDER, done=done))
    if config.wandb:
        from train.tracking.wandb_run import open_wandb

        run = open_wandb(config, run_dir, job_type=job_type, run_config=run_config)
        sinks += [] if run is None else [run]
    return Tracker(run_dir / "metrics.jsonl", sinks)


def check_tracker(config: TrackerConfig) -> None:
    """Refuse what is not installed, before anything is read."""
    if config.tensorboard:
        from train.tracking.tensorboard import check_tensorboard

        check_tensorboard()
