"""`dry_run=true`: everything that can be said of a run before it, without reading a weight.

The rows are measured as for training (and found in the cache by it); the model is made on `meta`
from configs alone. Nothing is written. Under torchrun every rank looks at its own device; rank 0
alone logs, as in training (configs/command.py).
"""

import logging
from dataclasses import dataclass
from typing import Any

import torch

from configs.schema import ModelKind, Quantization, TrainConfig
from data.build import TrainingData, build_training_data, describe_samples
from train.engines import check_ranks
from train.measuring.held_out import prepare_held_out
from train.model.attention import check_attention
from train.model.meta_model import empty_model
from train.model.quantize import check_installed
from train.model.what_trains import PartRow, format_table
from train.planning.advice import advise
from train.planning.disks import Place, describe_disks, places
from train.planning.flops import FlopShape, flop_shape, peak_flops
from train.planning.memory import Line, estimate_memory, loading_line
from train.planning.packs_ahead import (
    HeavyPack,
    StepWork,
    describe_lengths,
    heaviest_pack,
    step_work,
)
from train.planning.plan_text import (
    describe_checkpoints,
    describe_flops,
    describe_host,
    describe_learning_rates,
    describe_memory,
    describe_paths,
    describe_steps,
    describe_try,
)
from train.planning.try_pack import Tried, try_heaviest_pack
from train.precision import computes_in_bf16
from train.process import set_up_process
from train.ranks import device_of_rank, is_under_torchrun, num_ranks, rank
from train.saving.run_folder import RunFolder
from train.schedule import planned_steps

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What the log and the advice are made of."""

    config: TrainConfig
    data: TrainingData
    table: list[PartRow]
    num_ranks: int
    num_steps: int
    work: StepWork
    heavy: HeavyPack
    shape: FlopShape
    peak: float | None  # FLOP/s of a device
    memory: list[Line]
    device_bytes: int | None  # of a device
    tried: Tried | None
    places: list[Place]  # outputs first, then caches


def plan_run(config: TrainConfig) -> None:
    """Check everything, log the plan, train and write nothing.

    Raises:
        ConfigError: the run could not start.
        DataError: a source cannot be read.
        CheckpointError: the model's config or processor cannot.
    """
    set_up_process(config.engine.num_threads, config.seed)
    ranks = planned_ranks(config)
    check_attention(config.model.attn_implementation)
    if config.adapter.quantization is Quantization.nf4:
        check_installed()
    folder = RunFolder(config.output_dir)
    if rank() == 0:
        folder.check(config)
    log.info("paths\n%s", describe_paths(config, folder))
    if folder.is_finished():
        log.info("%s is finished; its model is in %s", folder.path, folder.export)
        return
    renderer, data = build_training_data(config.model, config.data, seed=config.seed)
    prepare_held_out(config.data, config.evaluation, renderer)
    model, table = empty_model(config, renderer.processing_class)
    plan = _look_ahead(config, data, model, table, renderer.processing_class, ranks)
    log_data(plan.config, data, plan.num_steps, ranks, plan.work)
    log_model(plan, model)
    for line in advise(plan):
        log.warning("note: %s", line)
    log.info(
        "dry_run=true: nothing was trained, and nothing was written but measured rows, in the cache"
    )


def planned_ranks(config: TrainConfig) -> int:
    """Return the processes to plan for.

    Raises:
        ConfigError: the run could not be made by so many.
    """
    planned = None if is_under_torchrun() else config.engine.plan_ranks
    check_ranks(config, planned)
    return planned or num_ranks()


def _look_ahead(
    config: TrainConfig,
    data: TrainingData,
    model: Any,
    table: list[PartRow],
    processing_class: Any,
    ranks: int,
) -> Plan:
    shape = flop_shape(model, gradient_checkpointing=config.engine.gradient_checkpointing)
    heavy = heaviest_pack(config.data, data, shape, processing_class)
    device = device_of_rank()
    memory = estimate_memory(
        model,
        heavy.shape,
        engine=config.engine.kind.value,
        num_ranks=ranks,
        gradient_checkpointing=config.engine.gradient_checkpointing,
        bf16=computes_in_bf16(config),
        offload=config.engine.activation_offloading,
    )
    memory.append(
        loading_line(
            model,
            engine=config.engine.kind.value,
            is_vlm=config.model.kind is ModelKind.vlm,
            num_ranks=ranks,
            loaded_dtype=getattr(torch, config.model.dtype.value),
        )
    )
    return Plan(
        config=config,
        data=data,
        table=table,
        num_ranks=ranks,
        num_steps=planned_steps(config, data),
        work=step_work(config.data, data, shape, heavy),
        heavy=heavy,
        shape=shape,
        peak=peak_flops(config.engine.peak_tflops, device),
        memory=memory,
        device_bytes=_device_bytes(config, device),
        tried=try_heaviest_pack(config, processing_class, heavy, device, ranks=ranks),
        places=places(config),
    )


def _device_bytes(config: TrainConfig, device: torch.device) -> int | None:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    given = config.engine.device_memory_gib
    return None if given is None else int(given * 2**30)


def log_data(
    config: TrainConfig, data: TrainingData, num_steps: int, ranks: int, work: StepWork | None
) -> None:
    """Log what is trained on and in which portions; a real run logs it too, without `work`."""
    if data.plan is None or data.samples is None:
        log.info("data is streamed: %s", ", ".join(config.data.sources))
    else:
        log.info("data\n%s", describe_samples(data.samples, data.plan.weights, data.ledger))
        if work is not None:
            log.info("a row\n%s", describe_lengths(data.samples.lengths))
    log.info("%s", describe_steps(config, data, num_steps, ranks, work))


def log_model(plan: Plan, model: Any) -> None:
    """Log what trains, how fast at best, and what it takes of a device and of the disk."""
    config = plan.config
    log.info("stage %s: what trains\n%s", config.stage.name, format_table(plan.table))
    log.info("%s", describe_learning_rates(config, plan.table, plan.num_steps))
    log.info("%s", describe_flops(plan.work, plan.num_ranks, plan.peak, plan.num_steps))
    log.info(
        "%s", describe_memory(plan.memory, plan.heavy, config, plan.num_ranks, plan.device_bytes)
    )
    log.info("%s", describe_host(plan.memory, plan.num_ranks))
    if plan.tried is not None:
        log.info("%s", describe_try(plan.tried, plan.memory))
    log.info("%s", describe_checkpoints(config, model, plan.num_steps))
    log.info("%s", describe_disks(plan.places))
