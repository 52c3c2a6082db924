"""The work of `visiongraft evaluate`: one table, and pictures with every model's answer."""

import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from transformers import AutoConfig

from configs.errors import ConfigError
from configs.schema import Attention, EvaluateConfig
from data.processor import load, load_processor
from data.render import Renderer, Sample
from train.measuring.evaluation import HeldOut, first_of_each_language
from train.measuring.held_out import prepare_held_out
from train.measuring.original import AtHand
from train.measuring.plain_held_out import prepare_plain
from train.measuring.plain_vlm import PlainVlm
from train.measuring.reference import load_reference
from train.measuring.results import SCHEMA, Results, as_json
from train.measuring.scores import signatures_of
from train.measuring.shares import all_ranks
from train.measuring.shown import save_pictures
from train.model.attention import set_attention
from train.model.load import load_text_lm, load_vlm
from train.model.loss import add_token_losses, check_against_text_class
from train.process import set_up_process
from train.ranks import device_of_rank, num_ranks, rank
from train.reporting.any_folder import write_any_report
from train.saving.run_folder import environment, to_plain
from train.tracking.evaluated import track_evaluation

log = logging.getLogger(__name__)
PACKED = ("aya_vision",)  # model types that our own renderer and packed forward know
PICTURE_SIDE = 448  # pixels: what a judge is shown too


def evaluate(config: EvaluateConfig) -> None:
    """Measure each model on `data.held_out`; write evaluation.json, reports and pictures."""
    set_up_process(config.engine.num_threads, config.seed)
    out = Path(config.out)
    if rank() == 0 and out.exists() and any(out.iterdir()):
        raise ConfigError(f"out={config.out!r} is not empty; give a new folder")
    if config.dry_run:
        for name, path in config.models.items():
            log.info("%s: %s (%s)", name, path, _config_of(path).model_type)
        return
    with _together():
        results: dict[str, Results] = {}
        seconds: dict[str, float] = {}
        shown: HeldOut | None = None
        for name, path in config.models.items():
            log.info("measuring %s (%s)", name, path)
            started = time.perf_counter()
            results[name], held_out = _measure(path, config)
            seconds[name] = time.perf_counter() - started
            if shown is None or shown.num_groups < held_out.num_groups:
                shown = held_out
        assert shown is not None
        if rank() == 0:
            out.mkdir(parents=True, exist_ok=True)
            _write(config, results, seconds, shown)


@contextmanager
def _together() -> Iterator[None]:
    """Let the processes of torchrun find each other."""
    if num_ranks() == 1:
        yield
        return
    distributed.init_process_group("gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


def _measure(path: str, config: EvaluateConfig) -> tuple[Results, HeldOut]:
    """Measure one model, in packs where we know how it reads, else by its own processor."""
    evaluation = config.evaluation
    model_config = _config_of(path)
    is_text_lm = not hasattr(model_config, "vision_config")
    if not is_text_lm and model_config.model_type not in PACKED:
        return _measure_plain(path, config)
    held_out = prepare_held_out(
        config.data,
        evaluation,
        Renderer(load_processor(path)),
        seed=config.seed,
        text_only=is_text_lm,
    )
    model: Any = (load_text_lm if is_text_lm else load_vlm)(path, dtype="auto")
    model.to(device_of_rank())
    add_token_losses(model)
    check_against_text_class(model)
    half = model.dtype != torch.float32
    set_attention(model, Attention.auto, half=half)
    original = None
    if evaluation.reference is not None:
        original = load_reference(evaluation.reference, held_out, Attention.auto, half=half)
    return _measured(held_out, model, config, original), held_out


def _measure_plain(path: str, config: EvaluateConfig) -> tuple[Results, HeldOut]:
    evaluation = config.evaluation
    if evaluation.reference is not None:
        raise ConfigError(
            f"evaluation.reference: KL is measured of Aya Vision models and text LMs; {path!r} is "
            f"a {_config_of(path).model_type}: leave it null"
        )
    held_out = prepare_plain(config.data, evaluation)
    model = PlainVlm.from_folder(
        path,
        device=device_of_rank(),
        batch_size=evaluation.batch_size,
        max_new_tokens=evaluation.max_new_tokens,
    )
    return _measured(held_out, model, config, None), held_out


def _measured(
    held_out: HeldOut, model: Any, config: EvaluateConfig, original: AtHand | None
) -> Results:
    return held_out.measure(
        model,
        generate=config.evaluation.generate,
        blind=config.evaluation.blind,
        ranks=all_ranks(),
        original=original,
    )


def _config_of(path: str) -> Any:
    return load("model", AutoConfig, path)


def _write(
    config: EvaluateConfig, results: dict[str, Results], seconds: dict[str, float], shown: HeldOut
) -> None:
    """Write all files of an evaluation, and log it."""
    out = Path(config.out)
    content = {
        "schema": SCHEMA,
        "settings": to_plain(config),
        "environment": environment(),
        "signatures": signatures_of(max(results.values(), key=len)),
        "models": {
            name: {
                "path": config.models[name],
                "seconds": round(seconds[name], 1),
                "groups": as_json(result),
            }
            for name, result in results.items()
        },
    }
    text = json.dumps(content, ensure_ascii=False, indent=1)
    (out / "evaluation.json").write_text(text, encoding="utf-8")
    answered = [
        sample
        for group in shown.groups.values()
        for sample in first_of_each_language(_asked(group), config.evaluation.max_answers)
    ]
    pictured = [sample for sample in answered if sample.row.images]
    save_pictures(pictured, shown.digests(pictured), out, side=PICTURE_SIDE)
    write_any_report(out)
    log.info("wrote %s and report.md", out / "report.html")
    if config.tracker.wandb:
        track_evaluation(config, results)


def _asked(samples: Sequence[Sample]) -> list[Sample]:
    return [sample for sample in samples if len(sample.row.turns) > 1]
