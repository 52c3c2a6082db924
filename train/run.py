"""One training run, from its config to its export: the table of contents of `train/`."""

import contextlib
import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from configs.errors import Preempted
from configs.schema import DEEPSPEED, EngineKind, NonFinite, Quantization, TrainConfig
from data.build import TrainingData, build_training_data
from train.arguments import build_arguments
from train.engines import check_ranks
from train.leave import leave_together
from train.lost import ended_when_lost, told_when_lost, what_to_do
from train.measuring.evaluation import HeldOut
from train.measuring.held_out import prepare_held_out
from train.measuring.results import Results
from train.model import fsdp, zero3
from train.model.attention import check_attention
from train.model.prepare import on_original_weights, prepare_model
from train.model.quantize import check_installed
from train.model.what_trains import PartRow, format_table
from train.planning.advice import fresh_parts
from train.planning.flops import flop_shape, peak_flops
from train.planning.plan import log_data
from train.precision import compute_dtype
from train.process import cores_of_all, set_up_process
from train.ranks import device_of_rank, num_ranks, rank
from train.reporting.run_report import write_run_report
from train.roll_call import roll_call
from train.saving.best import Best
from train.saving.card import model_card
from train.saving.checkpoints import (
    Keeping,
    best_of,
    check_resume,
    checkpoint_at,
    checkpoints_in,
    clear_leftovers,
    damage_of,
    newest_checkpoint,
    step_of,
)
from train.saving.disk import told_when_full
from train.saving.export import export_model
from train.saving.gather import gather_weights
from train.saving.preempt import StopOnSignal
from train.saving.run_folder import RunFolder, to_plain
from train.schedule import planned_steps
from train.tracking.metrics_file import truncate_metrics
from train.tracking.tracker import Tracker, check_tracker, start_tracker
from train.trainer import GraftTrainer
from train.watching.callbacks import RunCallback
from train.watching.measuring import Measuring, build_measuring
from train.watching.meter import Meter, flops_of
from train.watching.stability import SpikeWatch
from train.watching.step_watch import StepWatch

log = logging.getLogger(__name__)


def train(config: TrainConfig) -> None:
    """Train the stage that `config` describes, or go on with it, and export the result."""
    set_up_process(config.engine.num_threads, config.seed)
    check_ranks(config)
    check_attention(config.model.attn_implementation)
    check_tracker(config.tracker)
    if config.adapter.quantization is not Quantization.none:
        check_installed()
    folder = RunFolder(config.output_dir)
    if rank() == 0:  # the others would meet the files that it is about to write
        folder.check(config)
    if folder.is_finished():
        log.info("%s is finished; its model is in %s", folder.path, folder.export)
        return
    if config.engine.kind in DEEPSPEED and not torch.cuda.is_available():
        log.info("DeepSpeed compiles what CPUs tell each other by, once: some minutes, with g++")
    keeping = what_is_kept(config)
    claim = folder.claimed() if rank() == 0 else contextlib.nullcontext()
    with ended_when_lost(), told_when_full("the run folder", folder.path), claim:
        checkpoint = newest_checkpoint(folder.checkpoints)
        if checkpoint is not None:
            check_resume(checkpoint, keeping)
        run = prepare(config, folder, checkpoint, keeping)
        with run.told_when_lost(lambda: "before the first step"):
            train_and_export(run)


@dataclass(frozen=True)
class Run:
    """What a run is made of, once all of it is read and checked."""

    config: TrainConfig
    folder: RunFolder
    model: Any
    table: list[PartRow]
    processing_class: Any
    data: TrainingData
    held_out: HeldOut
    measuring: Measuring
    num_steps: int
    checkpoint: Path | None  # to go on from
    keeping: Keeping

    def told_when_lost(self, when: Callable[[], str]) -> AbstractContextManager[None]:
        """Tell of a lost process, and how far this one came."""
        remedy = partial(what_to_do, self.folder.checkpoints)
        return told_when_lost(when, remedy, timeout_seconds=self.config.engine.timeout_seconds)


def prepare(
    config: TrainConfig, folder: RunFolder, checkpoint: Path | None, keeping: Keeping
) -> Run:
    """Read the data and load the model, and wait for the other processes, which do so too."""
    with roll_call(config.engine.timeout_seconds) as tell_others:
        tell_others("reading data")
        renderer, data = build_training_data(config.model, config.data, seed=config.seed)
        held_out = prepare_held_out(config.data, config.evaluation, renderer)
        tell_others("loading the model")
        model, table = prepare_model(config, renderer.processing_class)
        num_steps = planned_steps(config, data)
        measuring = build_measuring(config, model, num_steps, held_out)
        run = Run(
            config, folder, model, table, renderer.processing_class, data, held_out, measuring,
            num_steps, checkpoint, keeping,
        )  # fmt: skip
        log_data(config, data, run.num_steps, num_ranks(), None)
        log.info("stage %s: what trains\n%s", config.stage.name, format_table(table))
        for line in fresh_parts(config):
            log.warning("note: %s", line)
        if rank() == 0:
            open_folder(run)
    return run


def open_folder(run: Run) -> None:
    """Write what the run is and what it reads; take back what was logged behind the checkpoint."""
    folder, ledger = run.folder, run.data.ledger
    folder.open(run.config)
    folder.check_data(run.data.fingerprint())
    folder.note_data(run.data.summary())
    ledger.write(folder.rows, run.held_out.left_out)
    clear_leftovers(folder.checkpoints)
    done = step_of(run.checkpoint) if run.checkpoint else -1
    truncate_metrics(folder.metrics, done, is_last=done == run.num_steps)
    ledger.resume(folder.rows, done)


def train_and_export(run: Run) -> None:
    """Train from a checkpoint or from the start, measure, export."""
    config, folder, checkpoint = run.config, run.folder, run.checkpoint
    if checkpoint is not None:
        log.info("going on from %s", checkpoint)
    tracker = open_tracker(run)
    callback, stop = build_callback(run, tracker), StopOnSignal()
    callbacks = [callback, stop]  # measured first, where both are due
    trainer = build_trainer(
        config, run.model, run.table, run.processing_class, run.data, run.num_steps, callbacks,
        run.keeping,
    )  # fmt: skip
    callback.trainer, trainer.on_saving = trainer, callback.before_saving
    ended: dict[str, bool] = {"failed": True}
    try:
        with run.told_when_lost(lambda: f"after step {trainer.state.global_step}"), stop:
            start = time.perf_counter()
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            seconds = time.perf_counter() - start
            last = checkpoint_at(folder.checkpoints, trainer.state.global_step)
            callback.close()
            stop.end_if_agreed(last)
            callback.end_if_forgotten(last)
            results = callback.evaluate(trainer.model, step=run.num_steps)
            stop.end_if_agreed(last)
            export_run(config, folder, trainer, run.table, results)
            tracker.log_model(folder.export, "model", label="export")
            if rank() == 0:
                folder.close(steps=run.num_steps, seconds=round(seconds, 1))
            leave_together(config.engine.timeout_seconds)
        ended = {}
    except Preempted:
        ended = {"preempted": True}
        raise
    finally:
        callback.close()
        tell_checkpoints(tracker, folder)
        tracker.finish(**ended)
        if rank() == 0:
            with contextlib.suppress(OSError):  # a full disk, which hides no other error
                write_run_report(folder.path)


def export_run(
    config: TrainConfig,
    folder: RunFolder,
    trainer: GraftTrainer,
    table: list[PartRow],
    results: Results,
) -> None:
    """Write the trained model; it is not trained or measured after that. All ranks call this."""
    gather_weights(trainer.model)
    if not trainer.is_world_process_zero():
        return
    trained, processing_class = trainer.model, trainer.processing_class
    if config.adapter.quantization is not Quantization.none:
        trained = on_original_weights(config, trained, processing_class)
    with cores_of_all(config.engine.num_threads):
        export_model(
            trained,
            processing_class,
            folder.export,
            dtype=getattr(torch, config.model.dtype.value),
            card=model_card(config, table, results),
            verify=config.export.verify,
        )


def what_is_kept(config: TrainConfig) -> Keeping:
    """Return which checkpoints of a run are kept, and what they tell of it."""
    options = config.checkpoint
    best = None
    if options.best_metric is not None:
        best = Best(options.best_metric, options.best_is_highest)
    return Keeping(config.engine.kind.value, num_ranks(), options.save_total_limit, best)


def build_trainer(
    config: TrainConfig,
    model: Any,
    table: list[PartRow],
    processing_class: Any,
    data: TrainingData,
    num_steps: int,
    callbacks: list[Any],
    keeping: Keeping | None = None,
) -> GraftTrainer:
    """Return the trainer of a run; several processes find each other here."""
    arguments = build_arguments(config, RunFolder(config.output_dir).checkpoints, num_steps)
    watch = build_watch(config, model, num_steps)  # reads shapes
    if config.engine.kind is EngineKind.fsdp2:
        fsdp.shard(model, arguments.device)
    elif config.engine.kind is EngineKind.zero3:
        zero3.share_out(model, arguments.device, compute_dtype(config))
    return GraftTrainer(
        model,
        arguments,
        data,
        processing_class,
        num_steps=num_steps,
        learning_rates={row.part: row.learning_rate for row in table},
        callbacks=callbacks,
        keeping=keeping or what_is_kept(config),
        watch=watch,
    )


def build_callback(run: Run, tracker: Tracker) -> RunCallback:
    """Return what logs, measures and shows progress between steps."""
    return RunCallback(
        tracker,
        run.folder,
        run.held_out,
        run.data,
        name=run.config.stage.name,
        measuring=run.measuring,
        peak_flops=peak_flops(run.config.engine.peak_tflops, device_of_rank()),
    )


def build_watch(config: TrainConfig, model: Any, num_steps: int) -> StepWatch:
    """Return what watches the steps of this rank."""
    return StepWatch(
        Meter(max_tokens=config.data.max_tokens, flops_of=partial(flops_of, flop_shape(model))),
        SpikeWatch(config.optim.spike_deviations),
        skip_nonfinite=config.optim.on_nonfinite is NonFinite.skip,
        logging_steps=config.tracker.logging_steps,
        num_steps=num_steps,
        can_skip=config.engine.kind not in DEEPSPEED,
    )


def open_tracker(run: Run) -> Tracker:
    """Open metrics.jsonl and what shows the run; tell what it reads."""
    config, folder, model = run.config, run.folder, run.config.model
    tracker = start_tracker(
        config.tracker,
        folder.path,
        job_type=config.stage.name,
        run_config=to_plain(config),
        first_process=rank() == 0,
        done=step_of(run.checkpoint) if run.checkpoint else -1,
    )
    for path in (folder.config, folder.rows, folder.environment):
        tracker.save_file(path)
    tracker.use_model("model", model.path)
    tracker.use_model("decoder", model.decoder.path)
    tracker.use_model("vision_tower", model.vision_tower.path)
    return tracker


def tell_checkpoints(tracker: Tracker, folder: RunFolder) -> None:
    """Tell of the checkpoints that are kept, once, at the end: older ones have gone by then."""
    if not tracker.sinks:
        return
    best = best_of(folder.checkpoints)
    for path in checkpoints_in(folder.checkpoints):
        if damage_of(path) is None:
            aliases = [f"step-{step_of(path)}", *(["best"] if path.name == best else [])]
            tracker.log_model(path, "checkpoint", label="checkpoint", aliases=aliases)
