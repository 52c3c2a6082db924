"""What happens between steps: progress, metrics, and held-out rows that are measured."""

import json
import logging
import math
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm
from transformers import TrainerCallback

from configs.errors import RetentionError
from data.build import TrainingData
from data.render import Sample
from train.measuring.changes import describe_change
from train.measuring.evaluation import HeldOut, first_of_each_language
from train.measuring.results import (
    SCHEMA,
    GroupResult,
    Results,
    as_json,
    flat_metrics,
    stable_metrics,
)
from train.measuring.retention import add_increase
from train.measuring.scores import signatures_of
from train.measuring.shown import save_pictures
from train.ranks import gather_objects
from train.saving.disk import write_text
from train.saving.measured import results_at, results_before
from train.saving.run_folder import RunFolder
from train.tracking.tracker import Tracker
from train.watching.measuring import Measuring
from train.watching.meter import metrics_of

log = logging.getLogger(__name__)
MOST_SHOWN = 3  # rows that are named
MOST_ANSWERS = 8  # of a group and language, in tables and as pictures
PICTURE_SIDE = 256  # pixels
ANSWER_COLUMNS = ["row", "picture", "language", "question", "reference", "answer", "blind answer",
                  "answer before", "change"]  # fmt: skip


class RunCallback(TrainerCallback):
    """Logs under stable names: train/, perf/, data/, eval/."""

    def __init__(
        self,
        tracker: Tracker,
        folder: RunFolder,
        held_out: HeldOut,
        data: TrainingData,
        *,
        name: str,
        measuring: Measuring,
        peak_flops: float | None = None,
    ) -> None:
        """Set `trainer` before training starts: its counts are logged."""
        self.tracker, self.folder, self.held_out, self.data = tracker, folder, held_out, data
        self.measuring = measuring
        self.last_answers: Results | None = None  # of the measurement before
        self.forgotten: str | None = None  # why the run is to stop
        self.name, self.peak_flops = name, peak_flops
        self.baseline: Results | None = None  # of step 0
        self.small: dict[str, Any] | None = None  # pictures that tables show
        self.trainer: Any = None
        self.settled_at = -1  # step up to which bad rows were shared
        self.bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure the model as it is given, then start the clock and the progress bar."""
        if state.global_step == 0:
            self.evaluate(kwargs["model"], step=0)
        if self.trainer.is_deepspeed_enabled:
            self.trainer.watch.listen_to(self.trainer.deepspeed)
        self.trainer.watch.meter.go_on()
        self.bar = tqdm(
            desc=self.name,
            total=state.max_steps,
            initial=state.global_step,
            unit="step",
            disable=self.tracker.path is None,
            mininterval=0.5 if sys.stderr.isatty() else 10,
        )

    def close(self) -> None:
        """Close the progress bar, also after Ctrl-C: it would be drawn again below the message."""
        if self.bar is not None:
            self.bar.close()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Write what all ranks counted since the last time."""
        if not logs or "loss" not in logs:
            return
        watch = self.trainer.watch
        counts = watch.meter.take()
        counts.peak_bytes = watch.peaks.take()
        told = gather_objects(counts)
        metrics = metrics_of(told, peak_flops=self.peak_flops)
        metrics |= {f"train/learning_rate/{k}": v for k, v in watch.learning_rates.items()}
        metrics |= {f"train/grad_norm/{k}": v for k, v in watch.grad_norms().items()}
        if math.isfinite(logs["grad_norm"]):  # else its step was left out
            metrics["train/grad_norm"] = logs["grad_norm"]
        epoch = self.data.epoch_of(state.global_step)
        metrics |= {} if epoch is None else {"data/epoch": epoch}
        if self.data.ledger.skip:
            metrics["data/rows_left_out"] = self.data.ledger.num_bad
        self._tell(metrics, [spike for one in told for spike in one.spikes])
        self.tracker.log(metrics, state.global_step)

    def _tell(self, metrics: dict[str, float], spikes: list[str]) -> None:
        loss = f"loss {metrics['train/loss']:.3f}, " if "train/loss" in metrics else ""
        speed = f"{metrics['perf/tokens_per_second']:,.0f} tokens/s"
        self.bar.set_postfix_str(f"{loss}{speed}", refresh=False)
        for spike in spikes:
            log.warning(spike)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure the held-out rows when it is time; at the last step the run does so itself."""
        self.bar.update()
        self._settle_ledger(args, state)
        control.should_log |= self.trainer.watch.is_due(state.global_step)
        if self.measuring.is_due(state.global_step) and state.global_step < state.max_steps:
            self.evaluate(kwargs["model"], step=state.global_step)
            if self.forgotten:
                control.should_save = control.should_training_stop = True

    def _settle_ledger(self, args: Any, state: Any) -> None:
        """Share the bad rows met since the last time, where metrics are logged, and at the end."""
        step = state.global_step
        if step == state.max_steps:
            self._share_bad_rows(step, is_last=True)
        elif self.data.ledger.skip and step % args.logging_steps == 0:
            self._share_bad_rows(step)

    def before_saving(self) -> None:
        """Write the bad rows that a checkpoint has passed: a resumed run does not meet them."""
        step = self.trainer.state.global_step
        if self.data.ledger.skip and self.settled_at != step:
            self._share_bad_rows(step)

    def _share_bad_rows(self, step: int, *, is_last: bool = False) -> None:
        """Share the bad rows met since the last time, and write them; all ranks do so together."""
        ledger, is_streamed = self.data.ledger, self.data.plan is None
        self.settled_at = step
        packs = self.trainer.packs
        mine = self.trainer.take_bad_rows(), packs.num_used(step), packs.num_read(step)
        told = gather_objects(mine)
        lines = ledger.meet(step, [row for rows, _, _ in told for row in rows])
        if lines:
            shown = "; ".join(f"{line['id']}: {line['reason']}" for line in lines[:MOST_SHOWN])
            log.warning("%d rows proved bad while training and were left out: %s%s", len(lines),
                        shown, " ..." if len(lines) > MOST_SHOWN else "")  # fmt: skip
        used = sum((Counter(used) for _, used, _ in told), Counter())
        if self.tracker.path is not None:  # one rank writes
            ledger.append(self.folder.rows, lines)
            if is_last and used:
                ledger.append(
                    self.folder.rows,
                    [{"step": step, "source": k, "used": n} for k, n in sorted(used.items())],
                )
            if is_streamed:
                ledger.check_stream(sum(read for _, _, read in told))
            else:
                ledger.check_ratio()

    def evaluate(self, model: Any, *, step: int) -> Results:
        """Measure the held-out rows; all ranks do so together, and all get the results."""
        start = time.perf_counter()
        if self.held_out.num_rows:
            log.info("measuring %d held-out rows", self.held_out.num_rows)
        watch = self.trainer.watch
        watch.meter.pause()
        watch.peaks.enter("evaluation")
        with self.trainer.accelerator.autocast():  # also around generation, as in training
            results = self.measuring.measure(self.held_out, model, step)
        watch.peaks.enter(None)
        add_increase(results, self._baseline(results, step))
        for name, result in results.items():
            log.info("step %d, %s: %s", step, name, result.describe())
        self._mind(results, step)
        if self.tracker.path is not None:
            self._keep(results, step)
        metrics = {f"eval/{name}": value for name, value in flat_metrics(results).items()}
        metrics |= stable_metrics(results)
        metrics["perf/evaluation_seconds"] = time.perf_counter() - start
        self.tracker.log(metrics, step)
        self.trainer.measured(metrics, step)
        watch.meter.go_on()
        return results

    def _baseline(self, results: Results, step: int) -> Results:
        """Return what was measured at step 0, as the first rank has kept it, also before a resume.

        Only that rank has the run folder for certain.
        """
        if step == 0:
            self.baseline = results
        if self.baseline is None:
            kept = results_at(self.folder, 0) if self.tracker.path is not None else None
            self.baseline = gather_objects(kept)[0] or {}
        return self.baseline

    def _mind(self, results: Results, step: int) -> None:
        told = self.measuring.alarm.check(results, step)
        if told is None:
            return
        log.warning(told)
        if self.measuring.stops:
            self.forgotten = told

    def end_if_forgotten(self, checkpoint: Path) -> None:
        """End the run where its text has lost more than it may. All ranks call this together.

        Raises:
            RetentionError: with what to do.
        """
        if self.forgotten:
            raise RetentionError(
                f"{self.forgotten}\n  the run has stopped; {checkpoint} is kept. Go on by the same "
                "command with evaluation.on_text_loss_increase=warn or a higher limit, or export "
                f"it: visiongraft export run={self.folder.path} checkpoint={checkpoint.name} "
                "out=DIR"
            )

    def _keep(self, results: Results, step: int) -> None:
        """Write what was measured, pictures to it, and a table of answers."""
        content = {
            "schema": SCHEMA,
            "step": step,
            "signatures": signatures_of(results),
            "groups": as_json(results),
        }
        path = self.folder.evaluation / f"step-{step:06d}.json"
        write_text(path, json.dumps(content, ensure_ascii=False, indent=1))
        if not (self.folder.evaluation / "pictures.json").is_file():
            self._save_pictures()
        if self.last_answers is None:
            self.last_answers = results_before(self.folder, step)
        self._log_answers(results, step)
        self.last_answers = results

    def _save_pictures(self) -> None:
        samples = [s for group in self.held_out.groups.values() for s in _shown(group)]
        digests = self.held_out.digests(samples)
        save_pictures(samples, digests, self.folder.evaluation, side=PICTURE_SIDE)

    def _pictures(self) -> dict[str, Any]:
        """Return small pictures by row id, from the files of the run."""
        if self.small is None:
            names = json.loads((self.folder.evaluation / "pictures.json").read_text("utf-8"))
            self.small = {}
            for row, name in names.items():
                with Image.open(self.folder.evaluation / "pictures" / name) as picture:
                    self.small[row] = picture.convert("RGB")
        return self.small

    def _log_answers(self, results: Results, step: int) -> None:
        for name, result in results.items():
            pictures = self._pictures() if self.tracker.shows_pictures else {}
            before = {
                answer.row_id: answer.answer
                for answer in (self.last_answers or {}).get(name, GroupResult()).answers
            }
            rows = [
                [
                    a.row_id, pictures.get(a.row_id), a.language, a.question, a.reference,
                    a.answer, a.blind_answer, before.get(a.row_id),
                    describe_change(before.get(a.row_id), a.answer, a.reference),
                ]
                for a in first_of_each_language(result.answers, MOST_ANSWERS)
            ]  # fmt: skip
            if rows:
                self.tracker.log_table(f"eval/{name}/answers", ANSWER_COLUMNS, rows, step)


def _shown(samples: Sequence[Sample]) -> list[Sample]:
    """Return the samples whose pictures people are shown."""
    asked = [sample for sample in samples if sample.row.images and len(sample.row.turns) > 1]
    return first_of_each_language(asked, MOST_ANSWERS)
