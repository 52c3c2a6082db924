"""Which checkpoint is the best so far, by one of the measures that are logged."""

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.errors import ConfigError
from train.model.parts import list_first

log = logging.getLogger(__name__)


@dataclass
class Best:
    """The best value of a measure, and the step it was measured at."""

    metric: str  # such as eval/scenes/nll
    is_highest: bool
    step: int | None = None
    value: float | None = None

    def measure(self, metrics: dict[str, float], step: int) -> bool:
        """Take what was measured at a step; return whether it is the best so far.

        The model as it was given, at step 0, is no checkpoint.

        Raises:
            ConfigError: the measure is not among them.
        """
        if step == 0 and not any(name.startswith(self._group()) for name in metrics):
            return False  # text alone was measured
        if self.metric not in metrics:
            names = [name for name in metrics if name.startswith("eval/")]
            raise ConfigError(
                f"checkpoint.best_metric={self.metric!r} is not measured; measured are "
                f"{list_first(sorted(names, key=len), 12)}"
            )
        value = metrics[self.metric]
        if step == 0 or not math.isfinite(value):
            return False
        if self.value is not None and not self._beats(value, self.value):
            return False
        self.step, self.value = step, value
        return True

    def _group(self) -> str:
        """Return what the names of all measures of its rows begin with."""
        parts = self.metric.split("/")
        return "/".join(parts[: 2 if parts[0] == "eval" else 1]) + "/"

    def record(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            "metric": self.metric,
            "is_highest": self.is_highest,
            "step": self.step,
            "value": self.value,
        }

    def take(self, record: dict[str, Any], run_dir: Path) -> None:
        """Go on from what was the best when a checkpoint was written."""
        if record["step"] is None:
            return
        if (record["metric"], record["is_highest"]) != (self.metric, self.is_highest):
            log.info("the best checkpoint by %s is no longer kept apart", record["metric"])
        elif not (run_dir / f"checkpoint-{record['step']}").is_dir():
            log.warning("checkpoint-%s, the best so far, is not there", record["step"])
        else:
            self.step, self.value = record["step"], record["value"]

    def _beats(self, one: float, other: float) -> bool:
        return one > other if self.is_highest else one < other
