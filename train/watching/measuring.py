"""When a run measures its held-out rows, how much of them, and with whom."""

import logging
import math
from dataclasses import dataclass
from typing import Any

from peft import PeftModel

from configs.schema import Alarm, EngineKind, EvaluationConfig, PartMode, TrainConfig
from train.measuring.evaluation import HeldOut
from train.measuring.original import AdaptersOff, AtHand
from train.measuring.reference import load_reference
from train.measuring.results import Results
from train.measuring.retention import TextAlarm
from train.measuring.shares import Ranks, all_ranks
from train.precision import computes_in_bf16
from train.ranks import num_ranks

log = logging.getLogger(__name__)
LEAST_INTERVAL = 100  # steps, where the interval is ours to choose
MEASUREMENTS = 10  # in a run, likewise
IN_STEP = (EngineKind.zero3, EngineKind.fsdp2)  # engines with which all ranks go forward together


@dataclass(frozen=True)
class Measuring:
    """What is measured at which step."""

    evaluation: EvaluationConfig
    num_steps: int
    ranks: Ranks
    original: AtHand | None  # of the decoder

    @property
    def interval(self) -> int:
        """Steps between measurements; 0: none between start and end."""
        given = self.evaluation.eval_steps
        if given is not None:
            return given
        return max(LEAST_INTERVAL, math.ceil(self.num_steps / MEASUREMENTS))

    @property
    def alarm(self) -> TextAlarm:
        """What rings when text is forgotten."""
        return TextAlarm(self.evaluation.max_text_loss_increase)

    @property
    def stops(self) -> bool:
        """Whether the alarm stops the run."""
        return self.evaluation.on_text_loss_increase is Alarm.stop

    def is_due(self, step: int) -> bool:
        """Whether a step between start and end is one to measure after."""
        return bool(self.interval) and step % self.interval == 0

    def measure(self, held_out: HeldOut, model: Any, step: int) -> Results:
        """Measure; of step 0 the text losses at least, which later ones are held against."""
        is_end = step in (0, self.num_steps)
        return held_out.measure(
            model,
            generate=self.evaluation.generate,
            choose=is_end,
            blind=self.evaluation.blind and is_end,
            text_losses_alone=step == 0 and not self.evaluation.eval_on_start,
            ranks=self.ranks,
            original=self.original,
        )


def build_measuring(
    config: TrainConfig, model: Any, num_steps: int, held_out: HeldOut
) -> Measuring:
    """Return what a run measures; loads the reference where the config names one."""
    in_step = config.engine.kind in IN_STEP and num_ranks() > 1
    has_text = any(not s.row.images for group in held_out.groups.values() for s in group[:1])
    if config.evaluation.on_text_loss_increase is Alarm.stop and not has_text:
        log.warning("evaluation.on_text_loss_increase=stop: data.held_out has no text, so nothing "
                    "tells what is forgotten and nothing stops this run")  # fmt: skip
    return Measuring(
        config.evaluation,
        num_steps,
        all_ranks(in_step=in_step),
        _original(config, model, held_out),
    )


def _original(config: TrainConfig, model: Any, held_out: HeldOut) -> AtHand | None:
    mode = config.stage.parts.decoder.mode
    if mode is PartMode.lora and isinstance(model, PeftModel):
        return AdaptersOff(model)
    if mode is not PartMode.full or config.evaluation.reference is None:
        return None
    return load_reference(
        config.evaluation.reference,
        held_out,
        config.model.attn_implementation,
        half=computes_in_bf16(config),
    )
