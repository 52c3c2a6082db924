"""What is done where a step goes wrong: gradients that are no numbers, losses that jump."""

import math
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.distributed.tensor import DTensor

from data.batches import PackedSample
from train.model.parts import list_first

REMEMBERED = 100  # steps that a loss is held against
ENOUGH = 20  # of them, before anything is said
LEAST_RISE = 0.1  # of the mean: below it a rise is no spike, however even the losses were
NUM_SHOWN = 5


class SpikeWatch:
    """Tells when the loss of a step lies far above those before it."""

    def __init__(self, deviations: float | None) -> None:
        """Take the standard deviations that are too many; None is never."""
        self.deviations = deviations
        self.before: deque[float] = deque(maxlen=REMEMBERED)

    def see(self, loss: float) -> str | None:
        """Return what the loss of a step is against those before it, where it is a spike.

        A spike is not held against later ones.
        """
        if self.deviations is None or not math.isfinite(loss):
            return None
        if len(self.before) >= ENOUGH:
            mean, deviation = float(np.mean(self.before)), float(np.std(self.before))
            rise = loss - mean
            if rise > max(self.deviations * deviation, LEAST_RISE * abs(mean)):
                return (
                    f"{loss:.3f} nats against {mean:.3f} +- {deviation:.3f} in the "
                    f"{len(self.before)} steps before"
                )
        self.before.append(loss)
        return None


def heaviest_rows(samples: Sequence[PackedSample], nats: np.ndarray) -> str:
    """Return the names of the rows with the highest loss a token, and that loss."""
    means = nats / np.maximum(1, [sample.num_supervised for sample in samples])
    order = np.argsort(-means, kind="stable")[:NUM_SHOWN]
    return ", ".join(f"{samples[i]} ({means[i]:.2f})" for i in order.tolist())


def rows_to_blame(samples: Sequence[PackedSample], nats: np.ndarray) -> list[str]:
    """Return the rows whose loss is no number; all of them where every loss is one."""
    wrong = [str(s) for s, value in zip(samples, nats.tolist(), strict=True)
             if not math.isfinite(value)]  # fmt: skip
    return wrong or [str(sample) for sample in samples]


def wrong_gradients(model: Any) -> list[str]:
    """Return the parameters whose gradient, or this rank's part of it, is no number."""
    found = []
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        if isinstance(gradient, DTensor):
            gradient = gradient.to_local()
        if gradient is not None and not bool(torch.isfinite(gradient).all()):
            found.append(name)
    return found


def describe(step: int, rows: Sequence[str], gradients: Sequence[str], *, finite: bool) -> str:
    """Return what is wrong with a step.

    Args:
        step: optimizer step, from 1.
        rows: to be named, of all ranks.
        gradients: parameters with a wrong gradient; none where an engine does not show them.
        finite: whether the loss of every row is a number.
    """
    what = "the gradient" if finite else "the loss"
    whose = "rows of the step" if finite else "rows whose loss is not"
    lines = [f"step {step}: {what} is infinite or not a number",
             f"{whose}: {list_first(list(rows), 4 * NUM_SHOWN)}"]  # fmt: skip
    if gradients:
        lines.append(f"parameters whose gradient is not: {list_first(list(gradients))}")
    return "\n  ".join(lines)


def refusal(told: str, *, can_skip: bool) -> str:
    """Return the message that ends a run, with what can be done.

    Args:
        told: what is wrong.
        can_skip: whether the engine can leave a step out.
    """
    ways = "mend the rows, or lower the learning rate"
    if can_skip:
        ways = "mend the rows, lower the learning rate, or leave such steps out with "
        ways += "optim.on_nonfinite=skip"
    return f"{told}\n  nothing of it was saved, the last checkpoint is as it was: {ways}"
