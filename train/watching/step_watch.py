"""Watches the steps of a rank: what is counted of each, gradients by part, and what goes wrong.

The trainer tells it of each event. It changes nothing of what is learned, but for steps that are
left out with `optim.on_nonfinite=skip`.
"""

import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from configs.errors import TrainingError
from data.batches import PackedSample
from train.model.what_trains import trainable_by_part
from train.ranks import gather_objects, rank
from train.watching.memory_peaks import MemoryPeaks
from train.watching.meter import Meter
from train.watching.stability import (
    SpikeWatch,
    describe,
    heaviest_rows,
    refusal,
    rows_to_blame,
    wrong_gradients,
)

log = logging.getLogger(__name__)


class StepWatch:
    """Sees each step of this rank."""

    def __init__(
        self,
        meter: Meter,
        spikes: SpikeWatch,
        *,
        skip_nonfinite: bool,
        logging_steps: int,
        num_steps: int,
        can_skip: bool = True,
    ) -> None:
        """Take what counts, and what is done, and can be, about gradients that are no numbers."""
        self.meter, self.spikes, self.peaks = meter, spikes, MemoryPeaks()
        self.skip_nonfinite, self.logging_steps = skip_nonfinite, logging_steps
        self.num_steps, self.can_skip = num_steps, can_skip
        self.learning_rates: dict[str, float] = {}  # by part, that the last step was made with
        self._grad_norms: dict[str, float] = {}  # by part, of the last step that is logged
        self._heard: list[tuple[str, Any]] = []  # part and norm of DeepSpeed's groups, last step

    def begin(
        self, packs: Sequence[Sequence[PackedSample]], num_items: Any, wait_seconds: float
    ) -> None:
        """Take the samples of a step."""
        self.meter.begin_step(packs, max(1.0, float(num_items)), wait_seconds)

    def is_due(self, step: int) -> bool:
        """Whether metrics are logged after a step: the last one too."""
        return step % self.logging_steps == 0 or step == self.num_steps

    def measure_parts(self, model: Any, step: int) -> None:
        """Take the norm of each part's gradient, before it is clipped. All ranks call this."""
        if not self.is_due(step):
            return
        self._grad_norms = {}
        for part, named in trainable_by_part(model).items():
            gradients = [p.grad for _, p in named if p.grad is not None]
            if gradients:  # DeepSpeed holds them elsewhere
                self._grad_norms[part] = as_number(get_total_norm(gradients))

    def listen_to(self, engine: Any) -> None:
        """Take the norms of parts from DeepSpeed, which steps before anyone else sees a gradient.

        Its optimizer works out the norm of one group after another; ours are of one part each.
        """
        optimizer = engine.optimizer
        inner, parts = optimizer.get_grad_norm_direct, parts_of_groups(optimizer)

        def heard(*args: Any, **kwargs: Any) -> Any:
            norm = inner(*args, **kwargs)
            if len(self._heard) == len(parts):  # those of the step before
                self._heard.clear()
            self._heard.append((parts[len(self._heard)], norm))
            return norm

        optimizer.get_grad_norm_direct = heard

    def grad_norms(self) -> dict[str, float]:
        """Return the norm of each part's gradient at the last step, before clipping."""
        if not self._heard:
            return self._grad_norms
        squares: dict[str, float] = {}
        for part, norm in self._heard:
            squares[part] = squares.get(part, 0.0) + float(norm) ** 2
        return {part: square**0.5 for part, square in squares.items()}

    def check(self, model: Any, grad_norm: Any, step: int) -> bool:
        """Return whether the step may be made: its gradient is a number, on all ranks alike.

        Args:
            model: live, with its gradients.
            grad_norm: over all parts and ranks, before clipping.
            step: that is about to be made, from 1.

        Raises:
            TrainingError: it is not, and may not be left out; the rows are named.
        """
        nats = self.meter.sample_nats()
        if grad_norm is None or self._is_number(grad_norm):
            if not np.isfinite(nats).all():  # of this rank alone; the others are ended by torchrun
                rows = rows_to_blame(self.meter.samples, nats)
                told = describe(step, rows, [], finite=False)
                raise TrainingError(refusal(told, can_skip=self.can_skip))
            self._count(nats, step)
            return True
        finite = bool(np.isfinite(nats).all())
        all_told = gather_objects((finite, rows_to_blame(self.meter.samples, nats)))
        finite = all(one for one, _ in all_told)
        rows = [name for one, names in all_told if one == finite for name in names]
        message = describe(step, rows, wrong_gradients(model), finite=finite)
        if not self.skip_nonfinite:
            raise TrainingError(refusal(message, can_skip=self.can_skip))
        if rank() == 0:  # the rows of all ranks are in it
            log.warning("%s\n  the step is left out", message)
        self._grad_norms = {}  # they are no numbers
        self.meter.counts.num_skipped += 1
        return False

    def _is_number(self, grad_norm: Any) -> bool:
        """Whether a norm is a number; for one that is not DeepSpeed says -1, group by group."""
        norms = [as_number(grad_norm), *(float(norm) for _, norm in self._heard)]
        return all(0 <= norm < math.inf for norm in norms)

    def _count(self, nats: np.ndarray, step: int) -> None:
        loss = self.meter.end_step(nats)
        told = self.spikes.see(loss)
        if told is not None:
            where = f" on rank {rank()}" if torch.distributed.is_initialized() else ""
            rows = heaviest_rows(self.meter.samples, nats)
            self.meter.counts.spikes.append(f"loss spike at step {step}{where}: {told}; {rows}")

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold to log later what an unbroken run would."""
        return {"counts": self.meter.state(), "losses": list(self.spikes.before)}

    def load_states(self, states: Sequence[dict[str, Any]]) -> None:
        """Take up the states of the ranks that this one stands for."""
        self.meter.load_states([state["counts"] for state in states])
        for state in states[:1]:
            self.spikes.before.extend(state["losses"])


def as_number(norm: Any) -> float:
    """Return a norm, also of gradients that are shared out over ranks; all of them call this."""
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def parts_of_groups(optimizer: Any) -> list[str]:
    """Return the part of each group whose norm DeepSpeed's optimizer works out, in its order."""
    parts = [str(group["part"]) for group in optimizer.optimizer.param_groups]
    of_sub_groups = getattr(optimizer, "sub_group_to_group_id", None)  # ZeRO-3 cuts groups up
    if of_sub_groups is None:
        return parts
    return [parts[of_sub_groups[i]] for i in range(len(optimizer.fp16_groups))]
