"""One training run, from its config to its export: the table of contents of `train/`."""

import logging
import time
from pathlib import Path
from typing import Any

import torch

from configs.errors import Preempted
from configs.schema import DEEPSPEED, EngineKind, NonFinite, Quantization, TrainConfig
from data.balance import describe_balance, step_balance
from data.build import TrainingData, build_training_data, describe_samples
from train import fsdp
from train.arguments import (
    build_arguments,
    check_ranks,
    computes_in_bf16,
    device_of_rank,
    num_ranks,
    rank,
)
from train.attention import check_attention
from train.best import Best
from train.build import build_model
from train.callbacks import RunCallback
from train.card import model_card
from train.checkpoints import (
    Keeping,
    check_resume,
    checkpoint_at,
    clear_leftovers,
    newest_checkpoint,
    step_of,
)
from train.disk import told_when_full
from train.evaluation import HeldOut, Results
from train.export import export_model
from train.gather import gather_weights
from train.held_out import prepare_held_out
from train.loss import add_token_losses, check_against_text_class
from train.meter import Meter
from train.preempt import StopOnSignal
from train.process import set_up_process
from train.quantize import quantize, take_trained
from train.run_folder import RunFolder, to_plain
from train.stability import SpikeWatch
from train.step_watch import StepWatch
from train.tracking import Tracker, start_tracker, truncate_metrics
from train.trainer import GraftTrainer
from train.what_trains import PartRow, format_table, hold_in_float32, set_what_trains

log = logging.getLogger(__name__)


def train(config: TrainConfig) -> None:
    """Train the stage that `config` describes, or go on with it, and export the result."""
    set_up_process(config.engine.num_threads, config.seed)
    check_ranks(config)
    check_attention(config.model.attn_implementation)
    folder = RunFolder(config.output_dir)
    if rank() == 0:  # the others would meet the files that it is about to write
        folder.check(config)
    if folder.is_finished():
        log.info("%s is finished; its model is in %s", folder.path, folder.export)
        return
    keeping = what_is_kept(config)
    checkpoint = newest_checkpoint(folder.checkpoints)
    if checkpoint is not None:
        check_resume(checkpoint, keeping)
    renderer, data = build_training_data(config.model, config.data, seed=config.seed)
    held_out = prepare_held_out(config.data, config.evaluation, renderer, seed=config.seed)
    processing_class = renderer.processing_class
    model, table = prepare_model(config, processing_class)
    num_steps = planned_steps(config, data)
    log_plan(config, data, table, num_steps)
    if config.dry_run:
        log.info("dry_run=true: nothing was trained and nothing was written")
        return
    if rank() == 0:
        folder.open(config)
        folder.check_data(data.fingerprint())
        data.ledger.write(folder.rows, held_out.left_out)
    with told_when_full("the run folder", folder.path):
        run_stage(
            config, folder, model, table, processing_class, data, held_out, num_steps,
            checkpoint, keeping,
        )  # fmt: skip


def planned_steps(config: TrainConfig, data: TrainingData) -> int:
    """Return the optimizer steps of the run."""
    if config.optim.max_steps is not None:
        return config.optim.max_steps
    assert data.plan is not None  # streaming requires max_steps
    return data.plan.num_steps(config.optim.num_epochs)


def prepare_model(config: TrainConfig, processing_class: Any) -> tuple[Any, list[PartRow]]:
    """Return the model with our loss, checked, and the table of what trains."""
    # With FSDP2 rank 0 alone reads a VLM and gives the others their parts: not every process of a
    # machine holds all of it at once.
    empty = config.engine.kind is EngineKind.fsdp2 and rank() > 0
    half = computes_in_bf16(config)
    model = build_model(config.model, processing_class, half=half, empty=empty)
    add_token_losses(model)
    if model.device.type != "meta":
        check_against_text_class(model)
    if config.adapter.quantization is Quantization.nf4:
        quantize_decoder(config, model)
    model, table = set_what_trains(model, config.stage.parts, config.adapter)
    if config.engine.kind not in DEEPSPEED:  # it keeps float32 copies of its own
        hold_in_float32(model, config.stage.parts)
    return model, table


def quantize_decoder(config: TrainConfig, model: Any) -> None:
    """Hold the decoder's linear layers in 4 bits, on the device of this process."""
    decoder = getattr(model.model, "language_model", model.model)
    dtype = torch.bfloat16 if computes_in_bf16(config) else torch.float32
    num_layers = quantize(decoder, device=device_of_rank(), compute_dtype=dtype)
    log.info("%d linear layers of the decoder are held in 4 bits (nf4)", num_layers)


def on_original_weights(config: TrainConfig, model: Any, processing_class: Any) -> Any:
    """Return the trained model over a decoder that was not quantized, to be exported.

    The adapter was trained over 4-bit weights, and what was measured is those; over the weights
    they were made of it answers slightly otherwise.
    """
    log.info(
        "adapter.quantization: the export folds the adapter into the weights as they were loaded, "
        "not into their 4-bit copies that it was trained and measured with"
    )
    original = build_model(config.model, processing_class)
    original, _ = set_what_trains(original, config.stage.parts, config.adapter)
    return take_trained(original, model)


def log_plan(config: TrainConfig, data: TrainingData, table: list[PartRow], num_steps: int) -> None:
    """Log what is trained on, what trains, and for how long."""
    steps = f"{num_steps} steps of {config.data.packs_per_step} packs"
    ranks = f"{num_ranks()} rank(s), {config.data.packs_per_step // num_ranks()} accumulation steps"
    if data.plan is None or data.samples is None:
        log.info("data is streamed: %s\n%s; %s", ", ".join(config.data.sources), steps, ranks)
    else:
        plan = data.plan
        log.info("data\n%s", describe_samples(data.samples, plan.weights, data.ledger))
        log.info(
            "%s (%.2f epochs of %d steps); %s\n%s",
            steps,
            plan.epoch_of(num_steps),
            plan.num_steps(1),
            ranks,
            describe_balance(step_balance(plan, num_ranks=num_ranks())),
        )
    log.info("stage %s: what trains\n%s", config.stage.name, format_table(table))


def run_stage(
    config: TrainConfig,
    folder: RunFolder,
    model: Any,
    table: list[PartRow],
    processing_class: Any,
    data: TrainingData,
    held_out: HeldOut,
    num_steps: int,
    checkpoint: Path | None,
    keeping: Keeping,
) -> None:
    """Train from a checkpoint or from the start, measure, export."""
    if checkpoint is not None:
        log.info("going on from %s", checkpoint)
    if rank() == 0:
        clear_leftovers(folder.checkpoints)
        done = step_of(checkpoint) if checkpoint else -1
        truncate_metrics(folder.metrics, done, is_last=done == num_steps)
        data.ledger.resume(folder.rows, done)
    tracker = open_tracker(config, folder)
    callback = RunCallback(
        tracker,
        folder,
        held_out,
        data,
        name=config.stage.name,
        eval_on_start=config.evaluation.eval_on_start,
        eval_steps=config.evaluation.eval_steps,
        generate=config.evaluation.generate,
    )
    stop = StopOnSignal()
    callbacks = [callback, stop]  # measured first, where both are due
    trainer = build_trainer(
        config, model, table, processing_class, data, num_steps, callbacks, keeping
    )
    callback.trainer, trainer.on_saving = trainer, callback.before_saving
    ended: dict[str, bool] = {"failed": True}
    try:
        with stop:
            start = time.perf_counter()
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            seconds = time.perf_counter() - start
            last = checkpoint_at(folder.checkpoints, trainer.state.global_step)
            callback.close()
            stop.end_if_agreed(last)
            results = callback.evaluate(trainer.model, step=num_steps)
            stop.end_if_agreed(last)
            export_run(config, folder, trainer, table, results)
            if rank() == 0:
                folder.close(steps=num_steps, seconds=round(seconds, 1))
        ended = {}
    except Preempted:
        ended = {"preempted": True}
        raise
    finally:
        callback.close()
        tracker.finish(**ended)


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
    if config.engine.kind is EngineKind.fsdp2:
        fsdp.shard(model, arguments.device)
    return GraftTrainer(
        model,
        arguments,
        data,
        processing_class,
        num_steps=num_steps,
        learning_rates={row.part: row.learning_rate for row in table},
        callbacks=callbacks,
        keeping=keeping or what_is_kept(config),
        watch=build_watch(config),
    )


def build_watch(config: TrainConfig) -> StepWatch:
    """Return what watches the steps of this rank."""
    return StepWatch(
        Meter(max_tokens=config.data.max_tokens),
        SpikeWatch(config.optim.spike_deviations),
        skip_nonfinite=config.optim.on_nonfinite is NonFinite.skip,
        logging_steps=config.tracker.logging_steps,
    )


def open_tracker(config: TrainConfig, folder: RunFolder) -> Tracker:
    """Open metrics.jsonl and the W&B run."""
    tracker = start_tracker(
        config.tracker,
        folder.path,
        job_type=config.stage.name,
        run_config=to_plain(config),
        first_process=rank() == 0,
    )
    for path in (folder.config, folder.rows):
        tracker.save_file(path)
    return tracker
