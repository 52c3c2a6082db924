"""What a colleague would say of a plan: things that run and are probably not what was meant."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from configs.schema import ModelConfig, ModelKind, PartMode, TrainConfig
from train.planning.memory import gib, total_bytes
from train.planning.packs_ahead import num_epochs
from train.schedule import warmup_steps

if TYPE_CHECKING:
    from train.planning.plan import Plan

FULL_RATE = 5e-5  # above it a decoder tuned in full soon forgets; the paper's 1e-4 is under muP
FEW_SAMPLES = 32  # a step; the paper's batch is 128 (arXiv 2505.08751)
MANY_EPOCHS = 10
NEARLY = 0.9  # of a device's memory: the rest goes to what the allocator cannot use
EMPTY, FULL = 0.8, 0.95  # of a budget, on average
PRETRAINED_STAGES = ("align", "sft")


def advise(plan: "Plan") -> Iterator[str]:
    """Yield a line for each thing worth a second look."""
    checks: tuple[Callable[[Plan], Iterator[str]], ...] = (
        _fresh,
        _learning_rate,
        _memory,
        _reference,
        _batch,
        _length,
        _budgets,
        _caches,
    )
    for check in checks:
        yield from check(plan)


def fresh_parts(config: TrainConfig) -> Iterator[str]:
    """Yield a line for each part that starts at random where it was hardly meant to."""
    model, parts = config.model, config.stage.parts
    composed = model.kind is ModelKind.compose
    tower_is_fresh = composed and model.vision_tower.path is None
    if tower_is_fresh and parts.vision_tower.mode is not PartMode.full:
        yield (
            "the vision tower starts at random and does not train: give "
            "model.vision_tower.path=SIGLIP, or stage.parts.vision_tower.mode=full"
        )
    if not _has_learned(model) and config.stage.name in PRETRAINED_STAGES:
        yield (
            f"stage={config.stage.name} is for a model that has learned before, but the decoder "
            "starts at random: give model=vlm model.path=..., or model.decoder.path=..."
        )


def _has_learned(model: ModelConfig) -> bool:
    """Whether the decoder is one that is loaded."""
    return model.kind is ModelKind.vlm or model.decoder.path is not None


def _fresh(plan: "Plan") -> Iterator[str]:
    yield from fresh_parts(plan.config)


def _learning_rate(plan: "Plan") -> Iterator[str]:
    part, model = plan.config.stage.parts.decoder, plan.config.model
    if _has_learned(model) and part.mode is PartMode.full and part.learning_rate > FULL_RATE:
        yield (
            f"stage.parts.decoder.learning_rate={part.learning_rate:g} for a decoder that trains "
            "in full: the paper's 1e-4 holds under muP, which is not used here; about 1e-5 is usual"
        )
    num_steps, wanted = plan.num_steps, plan.config.optim.warmup_steps
    if wanted is not None and warmup_steps(wanted, num_steps) > num_steps / 2:
        yield f"optim.warmup_steps={wanted} is over half of the {num_steps} steps"


def _memory(plan: "Plan") -> Iterator[str]:
    room, needed = plan.device_bytes, total_bytes(plan.memory)
    if room is None or needed < NEARLY * room:
        return
    engine = plan.config.engine
    ways = [] if engine.gradient_checkpointing else ["engine.gradient_checkpointing=true"]
    if plan.num_ranks > 1 and engine.kind.value in ("single", "ddp", "zero2"):
        ways.append("an engine that shares out more (fsdp2, zero3)")
    ways.append("a lower data.max_tokens or data.max_tiles")
    amount = "more than" if needed > room else "nearly all of"
    yield f"{gib(needed)} are {amount} the device's {gib(room)}: {', '.join(ways)}"


def _reference(plan: "Plan") -> Iterator[str]:
    path = plan.config.evaluation.reference
    if path is not None:
        yield (
            f"evaluation.reference={path!r} is held whole on every device beside the model; its "
            "weights are not in the estimate of memory"
        )


def _batch(plan: "Plan") -> Iterator[str]:
    samples, model = plan.work.num_samples, plan.config.model
    if _has_learned(model) and samples is not None and samples < FEW_SAMPLES:
        yield (
            f"a step holds {samples:.0f} samples, the paper's 128: raise data.packs_per_step "
            f"({plan.config.data.packs_per_step}), or lower the learning rates"
        )


def _length(plan: "Plan") -> Iterator[str]:
    if plan.data.plan is None:
        return
    epochs = num_epochs(plan.data.plan, plan.num_steps)
    if epochs > MANY_EPOCHS:
        yield f"{plan.num_steps:,} steps see every row {epochs:,.0f} times"


def _budgets(plan: "Plan") -> Iterator[str]:
    if plan.data.plan is None:
        return
    data = plan.config.data
    tokens, tiles = plan.data.plan.held(0)
    token_fill, tile_fill = tokens.mean() / data.max_tokens, tiles.mean() / data.max_tiles
    if token_fill < EMPTY and tile_fill > FULL:
        yield (
            f"packs are full of tiles ({tile_fill:.0%} of data.max_tiles={data.max_tiles}) while "
            f"{token_fill:.0%} of data.max_tokens is used: raise data.max_tiles"
        )
    if len(tokens) <= data.packs_per_step:
        yield (
            f"an epoch is {len(tokens)} packs, a single step: lower data.packs_per_step or "
            "data.max_tokens, or give more rows"
        )


def _caches(plan: "Plan") -> Iterator[str]:
    shared = [place for place in plan.places[1:] if place.is_shared]
    if shared and plan.config.cache.dir is None:
        kinds = ", ".join(sorted({place.filesystem for place in shared}))
        yield (
            f"{' and '.join(place.what for place in shared)} are read over the network ({kinds}): "
            "cache.dir=... puts caches on a disk of the machine, or on a faster one"
        )
