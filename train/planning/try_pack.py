"""One forward and backward of the heaviest pack, on random weights: what it really takes.

On a GPU the peak is the allocator's own. On a CPU, where the plan does not try, it is the sum of
the tensors alive (train/planning/live_bytes.py), for tests of the estimate.
"""

import contextlib
import gc
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from configs.schema import EngineKind, TrainConfig
from data.batches import Batch
from data.render import IGNORED
from train.model.meta_model import empty_model
from train.model.offload import offloading
from train.planning.live_bytes import LiveBytes
from train.planning.packs_ahead import HeavyPack, tokens_a_tile
from train.precision import computes_in_bf16

WHOLE = (EngineKind.ddp.value, "single")  # engines under which a device holds the whole model


@dataclass(frozen=True)
class Tried:
    """What a pack took; weights and gradients among it, no optimizer."""

    device: str
    peak_bytes: int | None  # None: it did not fit
    seconds: float  # of the second time


def try_heaviest_pack(
    config: TrainConfig,
    processing_class: Any,
    heavy: HeavyPack,
    device: torch.device,
    *,
    ranks: int,
) -> Tried | None:
    """Return what the pack takes of a GPU, or None where that cannot be tried.

    Nothing is tried without a GPU, and with an engine that shares the model out: one process alone
    would hold all of it.
    """
    if device.type != "cuda" or config.engine.kind.value not in WHOLE:
        return None
    return measure_worst_pack(config, processing_class, heavy, device)


def measure_worst_pack(
    config: TrainConfig, processing_class: Any, heavy: HeavyPack, device: torch.device
) -> Tried:
    """Return what two forwards and backwards of a pack take of `device`; the second has gradients.

    Args:
        config: of the run.
        processing_class: of its model.
        heavy: the pack.
        device: any; the model is made there with random weights.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    try:
        with _peak(device) as peak:
            model, _ = empty_model(config, processing_class, device)
            _checkpointing(config, model)
            batch = synthetic_batch(model, heavy, tokens_a_tile(processing_class), device)
            seconds = [_step(config, model, batch, device) for _ in range(2)]
        return Tried(name, peak[0], seconds[-1])
    except torch.OutOfMemoryError:
        return Tried(name, None, 0.0)
    finally:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def synthetic_batch(model: Any, heavy: HeavyPack, tile_tokens: int, device: torch.device) -> Batch:
    """Return a pack of random tokens and pixels: see `data.batches.make_batch` for shapes."""
    pack, lengths = heavy.shape, heavy.sample_lengths
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.randint(vocabulary, (pack.num_tokens,), device=device)
    image_token = getattr(model.config, "image_token_id", None)
    if image_token is not None:
        ids[ids == image_token] = (image_token + 1) % vocabulary
        ids[1 : 1 + pack.num_tiles * tile_tokens] = image_token
    labels = torch.full_like(ids, IGNORED)
    labels[len(ids) - pack.num_supervised :] = ids[len(ids) - pack.num_supervised :]
    positions = torch.cat([torch.arange(length, device=device) for length in lengths])
    batch: Batch = {
        "input_ids": ids[None],
        "position_ids": positions[None],
        "labels": labels[None],
    }
    if pack.num_tiles:
        vision = model.config.vision_config
        size = (pack.num_tiles, vision.num_channels, vision.image_size, vision.image_size)
        batch["pixel_values"] = torch.rand(size, device=device)
    return batch


def _checkpointing(config: TrainConfig, model: Any) -> None:
    """Do what the trainer does to a model with gradient checkpointing."""
    model.train()
    if config.engine.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        if hasattr(model, "peft_config"):
            model.enable_input_require_grads()


def _step(config: TrainConfig, model: Any, batch: Batch, device: torch.device) -> float:
    """Run forward and backward; return the seconds they took."""
    start = time.perf_counter()
    half = computes_in_bf16(config)
    offload = config.engine.activation_offloading
    with offloading() if offload else contextlib.nullcontext():
        with torch.autocast(device.type, torch.bfloat16, enabled=half, cache_enabled=False):
            loss = model(**batch, token_losses=True).mean()
        loss.backward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


@contextlib.contextmanager
def _peak(device: torch.device) -> Iterator[list[int]]:
    """Give a list that holds the most bytes of tensors on `device` once the block has ended."""
    found: list[int] = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield found
        found.append(torch.cuda.max_memory_allocated(device))
        return
    with LiveBytes() as live:
        yield found
    found.append(live.most)
