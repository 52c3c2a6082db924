"""Which models a run has made and used: one that uses a model is sent after the one that made it.

Otherwise W&B would take the model for one that came from nowhere, and keep to that.
"""

from dataclasses import dataclass

from launch.syncing.log_file import LogReader
from launch.syncing.offline_runs import OfflineRun
from launch.syncing.replay import parse


@dataclass(frozen=True)
class Models:
    """Digests of W&B's artifacts."""

    made: frozenset[str]
    used: frozenset[str]


def models_of(run: OfflineRun) -> Models:
    """Read them from a run's files."""
    found: dict[bool, set[str]] = {False: set(), True: set()}
    for part in run.parts:
        for raw in LogReader(part).read():
            record = parse(raw)
            if record.WhichOneof("record_type") == "artifact":
                found[record.artifact.use_after_commit].add(record.artifact.digest)
    return Models(made=frozenset(found[False]), used=frozenset(found[True]))
