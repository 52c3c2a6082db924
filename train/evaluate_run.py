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

from configs.errors import ConfigError, DataError
from configs.schema import Attention, EvaluateConfig
from data.processor import load, load_processor
from data.render import Renderer, Sample
from train.lost import told_when_lost
from train.measuring.evaluation import HeldOut, first_of_each_language
from train.measuring.held_out import prepare_held_out
from train.measuring.original import AtHand
from train.measuring.plain_held_out import prepare_plain
from train.measuring.plain_vlm import PlainVlm
from train.measuring.reference import Reference, check_tokens, load_reference
from train.measuring.results import SCHEMA, Results, as_json
from train.measuring.scores import signatures_of
from train.measuring.shares import all_ranks
from train.measuring.shown import save_pictures
from train.model.attention import set_attention
from train.model.load import load_text_lm, load_vlm
from train.model.loss import add_token_losses, check_against_text_class
from train.model.parts import list_first
from train.process import set_up_process
from train.ranks import device_of_rank, num_ranks, rank
from train.reporting.any_folder import write_any_report
from train.saving.disk import write_text
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
    kinds = {name: _config_of(path) for name, path in config.models.items()}
    _check_reference(config, kinds)
    if config.dry_run:
        for name, path in config.models.items():
            log.info("%s: %s (%s)", name, path, kinds[name].model_type)
        return
    with _together():
        measured = Measured(config)
        shown: HeldOut | None = None
        for name, path in config.models.items():
            log.info("measuring %s (%s)", name, path)
            started = time.perf_counter()
            measured.results[name], held_out = measured.measure(path, kinds[name])
            measured.seconds[name] = time.perf_counter() - started
            if shown is None or shown.num_groups < held_out.num_groups:
                shown = held_out
            if rank() == 0 and held_out.num_rows:  # kept, whatever becomes of the next one
                measured.write(out)
        assert shown is not None
        if not shown.num_rows:
            raise DataError(
                "nothing was measured: data.held_out has no rows that these models can read; name "
                "a source, such as data=files_held_out data.held_out.files.path=my.jsonl"
            )
        if rank() == 0:
            _report(config, measured.results, shown)


def _check_reference(config: EvaluateConfig, kinds: dict[str, Any]) -> None:
    """Refuse, before anything is measured, a reference that is none, or for models without KL."""
    if config.evaluation.reference is not None:
        load("evaluation.reference", AutoConfig, config.evaluation.reference)
    other = [name for name, kind in kinds.items() if _is_plain(kind)]
    if config.evaluation.reference is not None and other:
        raise ConfigError(
            "evaluation.reference: KL is measured of Aya Vision models and text LMs, but "
            f"{list_first(other)} is a {kinds[other[0]].model_type}: leave it null"
        )


def _is_plain(kind: Any) -> bool:
    """Whether a model is a vision-language model of another family than our renderer knows."""
    return hasattr(kind, "vision_config") and kind.model_type not in PACKED


@contextmanager
def _together() -> Iterator[None]:
    """Let the processes of torchrun find each other."""
    if num_ranks() == 1:
        yield
        return
    with told_when_lost(lambda: "while measuring", lambda: "run the same command again"):
        distributed.init_process_group("gloo")
        try:
            yield
        finally:
            distributed.destroy_process_group()


class Measured:
    """What an evaluation has found so far."""

    def __init__(self, config: EvaluateConfig) -> None:
        """Nothing is measured yet."""
        self.config = config
        self.results: dict[str, Results] = {}
        self.seconds: dict[str, float] = {}
        self._reference: Reference | None = None

    def measure(self, path: str, kind: Any) -> tuple[Results, HeldOut]:
        """Measure one model, in packs where we know how it reads, else by its own processor."""
        evaluation, data = self.config.evaluation, self.config.data
        if _is_plain(kind):
            held_out: HeldOut = prepare_plain(data, evaluation)
            vlm = PlainVlm.from_folder(
                path,
                device=device_of_rank(),
                batch_size=evaluation.batch_size,
                max_new_tokens=evaluation.max_new_tokens,
            )
            return self._measured(held_out, vlm, None), held_out
        is_text_lm = not hasattr(kind, "vision_config")
        renderer = Renderer(load_processor(path))
        held_out = prepare_held_out(data, evaluation, renderer, text_only=is_text_lm)
        model: Any = (load_text_lm if is_text_lm else load_vlm)(path, dtype="auto")
        model.to(device_of_rank())
        add_token_losses(model)
        check_against_text_class(model)
        half = model.dtype != torch.float32
        set_attention(model, Attention.auto, half=half)
        return self._measured(held_out, model, self._original(held_out, half)), held_out

    def _original(self, held_out: HeldOut, half: bool) -> Reference | None:
        path = self.config.evaluation.reference
        if path is None:
            return None
        if self._reference is None:
            self._reference = load_reference(path, held_out, Attention.auto, half=half)
        else:
            check_tokens(path, self._reference.tokenizer, held_out)
        return self._reference

    def _measured(self, held_out: HeldOut, model: Any, original: AtHand | None) -> Results:
        return held_out.measure(
            model,
            generate=self.config.evaluation.generate,
            blind=self.config.evaluation.blind,
            ranks=all_ranks(),
            original=original,
        )

    def write(self, out: Path) -> None:
        """Write evaluation.json, whole or not at all."""
        out.mkdir(parents=True, exist_ok=True)
        content = {
            "schema": SCHEMA,
            "settings": to_plain(self.config),
            "environment": environment(),
            "signatures": signatures_of(max(self.results.values(), key=len)),
            "models": {
                name: {
                    "path": self.config.models[name],
                    "seconds": round(self.seconds[name], 1),
                    "groups": as_json(result),
                }
                for name, result in self.results.items()
            },
        }
        write_text(out / "evaluation.json", json.dumps(content, ensure_ascii=False, indent=1))


def _config_of(path: str) -> Any:
    return load("model", AutoConfig, path)


def _report(config: EvaluateConfig, results: dict[str, Results], shown: HeldOut) -> None:
    """Write pictures and reports of an evaluation, and log it."""
    out = Path(config.out)
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
