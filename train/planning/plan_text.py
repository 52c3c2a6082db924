"""The plan of a run as text, a paragraph a function."""

from pathlib import Path
from typing import Any

from configs.schema import PartMode, TrainConfig
from data.balance import describe_balance, step_balance
from data.build import TrainingData
from train.model.what_trains import PartRow
from train.planning.memory import (
    ERROR,
    Line,
    bytes_of,
    checkpoint_bytes,
    gib,
    total_bytes,
)
from train.planning.packs_ahead import EXACT_EPOCHS, HeavyPack, StepWork, num_epochs
from train.planning.try_pack import Tried
from train.saving.run_folder import RunFolder
from train.schedule import warmup_steps


def describe_paths(config: TrainConfig, folder: RunFolder) -> str:
    """Return each path of the config and whether it is there."""
    state = "is there, the run goes on" if folder.config.is_file() else "will be made"
    lines = [_line("output_dir", str(folder.path.resolve()), state)]
    model = config.model
    for key, path in (
        ("model.path", model.path),
        ("model.decoder.path", model.decoder.path),
        ("model.vision_tower.path", model.vision_tower.path),
    ):
        if path is not None:
            lines.append(_line(key, path, "is there" if Path(path).is_dir() else "from the hub"))
    for group in ("sources", "held_out"):
        for name, source in getattr(config.data, group).items():
            if source.path is not None:
                there = "is there" if Path(source.path).exists() else "a glob, builder or hub id"
                lines.append(_line(f"data.{group}.{name}.path", source.path, there))
    return "\n".join(lines)


def _line(key: str, path: str, state: str) -> str:
    return f"{key:<28}{path}  ({state})"


def describe_steps(
    config: TrainConfig, data: TrainingData, num_steps: int, ranks: int, work: StepWork | None
) -> str:
    """Return steps and epochs, how full packs are, and what a step holds."""
    packs = config.data.packs_per_step
    steps = f"{num_steps:,} steps of {packs} packs"
    shared = f"{ranks} rank(s), {packs // ranks} accumulation steps"
    lines = [f"{steps}; {shared}"]
    if data.plan is not None:
        plan = data.plan
        about = "" if num_steps <= EXACT_EPOCHS * plan.num_steps(1) else "about "
        epochs = f"{num_epochs(plan, num_steps):,.2f} epochs of {plan.num_steps(1):,} steps"
        epochs = f"({about}{epochs})"
        lines = [
            f"{steps} {epochs}; {shared}",
            describe_balance(step_balance(plan, num_ranks=ranks)),
        ]
    if work is not None:
        samples = "" if work.num_samples is None else f"{work.num_samples:,.1f} samples, "
        most = "at most " if work.num_samples is None else ""
        lines.append(
            f"a step holds {most}{samples}{work.num_tokens:,.0f} tokens, "
            f"{work.num_supervised:,.0f} of them supervised, and {work.num_tiles:,.0f} tiles"
        )
    return "\n".join(lines)


def describe_learning_rates(config: TrainConfig, table: list[PartRow], num_steps: int) -> str:
    """Return the schedule of each part that trains."""
    optim = config.optim
    warmup = warmup_steps(optim.warmup_steps, num_steps)
    rates = ", ".join(
        f"{row.part} {row.learning_rate:.1e} to {row.learning_rate * optim.min_lr_ratio:.1e}"
        for row in table
        if row.num_trainable
    )
    return (
        f"learning rates: up over {warmup:,} steps, then down by a cosine\n  {rates}\n"
        f"AdamW: betas {optim.adam_beta1:g} and {optim.adam_beta2:g}, weight decay "
        f"{optim.weight_decay:g}, gradient norm at most {optim.max_grad_norm:g}"
    )


def describe_flops(work: StepWork, ranks: int, peak: float | None, num_steps: int) -> str:
    """Return the FLOPs of a step and, where a device's peak is known, the time it takes at best."""
    again = work.hardware_flops / work.flops - 1 if work.flops else 0.0
    text = f"a step costs {_si(work.flops)}FLOPs, and {again:.0%} more for what is computed again"
    if peak is None:
        return text + "; engine.peak_tflops=... tells the time at best"
    seconds = work.hardware_flops / (peak * ranks)
    return (
        f"{text}: {_seconds(seconds)} at {peak / 1e12:g} TFLOP/s on {ranks} device(s), "
        f"{_seconds(seconds * num_steps)} for the run; "
        f"at 50 % MFU {_seconds(2 * work.flops / (peak * ranks) * num_steps)}"
    )


def describe_memory(
    lines: list[Line], heavy: HeavyPack, config: TrainConfig, ranks: int, device_bytes: int | None
) -> str:
    """Return the estimate of a device's memory, line by line."""
    pack = heavy.shape
    which = "a pack at the budgets" if heavy.is_at_budget else "the heaviest pack of an epoch"
    engine, saved = config.engine, "with" if config.engine.gradient_checkpointing else "without"
    shown = [
        f"memory of a device, estimated: engine={engine.kind.value} on {ranks} rank(s), {saved} "
        f"gradient checkpointing,\n{which}: {pack.num_tokens:,} tokens, {pack.num_tiles} tiles"
    ]
    shown += [
        f"  {line.what:<12}{gib(line.num_bytes):>12}  {line.note}".rstrip()
        for line in lines
        if line.num_bytes and not line.on_host
    ]
    of = "" if device_bytes is None else f"  of {gib(device_bytes)}"
    shown += [
        f"  {'in all':<12}{gib(total_bytes(lines)):>12}{of}",
        f"  measured within {ERROR:.0%} of a process on a CPU, not on GPUs nor with several ranks;"
        "\n  the driver and fragmentation come on top",
    ]
    return "\n".join(shown)


def describe_host(lines: list[Line], ranks: int) -> str:
    """Return what is held in the memory of the machine; not all of it at the same time."""
    where = f", if all {ranks} ranks are on one machine" if ranks > 1 else ""
    shown = [f"memory of the host{where}"]
    shown += [
        f"  {line.what:<12}{gib(line.num_bytes):>12}  {line.note}"
        for line in lines
        if line.num_bytes and line.on_host
    ]
    return "\n".join(shown)


def describe_try(tried: Tried, lines: list[Line]) -> str:
    """Return what the heaviest pack took when one process ran it, beside the estimate."""
    estimate = total_bytes(lines) - bytes_of(lines, "optimizer", "engine")
    if tried.peak_bytes is None:
        return f"the heaviest pack, tried on {tried.device}: out of memory"
    return (
        f"the heaviest pack, tried on {tried.device} with random weights: {gib(tried.peak_bytes)} "
        f"without the optimizer (estimated {gib(estimate)}), {tried.seconds:.2f} s"
    )


def describe_checkpoints(config: TrainConfig, model: Any, num_steps: int) -> str:
    """Return what checkpoints take on the disk."""
    checkpoint = config.checkpoint
    parts = config.stage.parts
    modes = (parts.vision_tower.mode, parts.projector.mode, parts.decoder.mode)
    weights, optimizer = checkpoint_bytes(model, is_adapter=PartMode.lora in modes)
    kept = min(checkpoint.save_total_limit, -(-num_steps // checkpoint.save_steps))
    size = weights + optimizer
    return (
        f"checkpoints: every {checkpoint.save_steps} steps, {gib(size)} each, {kept} kept and one "
        f"being written: {gib((kept + 1) * size)} of disk, then the export"
    )


def _si(number: float) -> str:
    for factor, name in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G")):
        if number >= factor:
            return f"{number / factor:,.1f} {name}"
    return f"{number / 1e6:,.1f} M"


def _seconds(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:,.2f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"
