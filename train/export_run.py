"""The work of `python -m train.export_checkpoint`: from a checkpoint of a run to its export.

No process group, no optimizer state, and none of the data: whatever engine wrote the checkpoint,
and on however many ranks, its weights are in one place.
"""

import json
import logging
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import OmegaConf

from configs.errors import CheckpointError, ConfigError
from configs.schema import ExportConfig, ModelKind, TrainConfig
from configs.strict import to_dataclass
from data.processor import load_processor
from train.model.build import build_model
from train.model.load import load_text_lm, load_vlm
from train.model.what_trains import PartRow, set_what_trains
from train.process import set_up_process
from train.saving.card import model_card
from train.saving.checkpoints import (
    BEST,
    checkpoints_in,
    damage_of,
    newest_checkpoint,
    step_of,
)
from train.saving.disk import folder_bytes, format_bytes, free_bytes
from train.saving.export import export_model
from train.saving.measured import results_at
from train.saving.run_folder import RunFolder

log = logging.getLogger(__name__)
ADAPTER = "adapter_model.safetensors"


def export(config: ExportConfig) -> None:
    """Write the Hugging Face folder of one checkpoint of a run."""
    out, folder = Path(config.out), RunFolder(config.run)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"out={config.out!r} exists and is not empty; give a new folder")
    run = read_run_config(folder)
    checkpoint = choose_checkpoint(folder.checkpoints, config.checkpoint)
    set_up_process(config.engine.num_threads, run.seed)
    log.info(
        "%s: step %d of stage %s, %s in files, in %s to %s; %s free there",
        checkpoint, step_of(checkpoint), run.stage.name, format_bytes(folder_bytes(checkpoint)),
        run.model.dtype.value, out, format_bytes(free_bytes(out)),
    )  # fmt: skip
    if config.dry_run:
        log.info("dry_run=true: nothing was loaded and nothing was written")
        return
    processing_class = load_processor(str(checkpoint))
    model, table = load_checkpoint(checkpoint, run, processing_class)
    out.parent.mkdir(parents=True, exist_ok=True)
    export_model(
        model,
        processing_class,
        out,
        dtype=getattr(torch, run.model.dtype.value),
        card=model_card(run, table, results_at(folder, step_of(checkpoint))),
        verify=config.verify,
    )


def read_run_config(folder: RunFolder) -> TrainConfig:
    """Return the config a run was started with.

    Raises:
        ConfigError: the folder holds no run.
    """
    if not folder.config.is_file():
        raise ConfigError(
            f"run={str(folder.path)!r} holds no config.yaml; give the output_dir of a training"
        )
    values = yaml.safe_load(folder.config.read_text(encoding="utf-8"))
    return to_dataclass(OmegaConf.create(values), TrainConfig)


def choose_checkpoint(run_dir: Path, name: str) -> Path:
    """Return a checkpoint by its name, the newest or the best; it is whole.

    Raises:
        CheckpointError: there is none of that name, or it is damaged.
    """
    if name == "newest":
        newest = newest_checkpoint(run_dir)
        if newest is None:
            raise CheckpointError(f"{str(run_dir)!r} holds no checkpoint yet")
        return newest
    if name == "best":
        told = run_dir / BEST
        if not told.is_file():
            raise CheckpointError(
                f"checkpoint=best: {told} is not there; the run measured nothing by "
                "checkpoint.best_metric"
            )
        name = json.loads(told.read_text(encoding="utf-8"))["checkpoint"]
    path = run_dir / name
    if path not in checkpoints_in(run_dir):
        there = ", ".join(path.name for path in checkpoints_in(run_dir)) or "none"
        raise CheckpointError(f"checkpoint={name}: there is no such one in {run_dir}; {there}")
    if (damage := damage_of(path)) is not None:
        raise CheckpointError(f"{path} is damaged: {damage}")
    return path


def load_checkpoint(
    checkpoint: Path, run: TrainConfig, processing_class: Any
) -> tuple[Any, list[PartRow]]:
    """Return the model of a checkpoint on the CPU, and the table of what trained.

    Raises:
        CheckpointError: an adapter whose base no file holds.
    """
    has_adapter = (checkpoint / ADAPTER).is_file()
    if has_adapter:
        _check_base(run)
        model = build_model(run.model, processing_class)
    else:
        load = load_text_lm if run.model.kind is ModelKind.text_lm else load_vlm
        # Weights that trained in float32 are rounded here, once, as at the end of a run.
        model = load(str(checkpoint), dtype=getattr(torch, run.model.dtype.value))
    model, table = set_what_trains(model, run.stage.parts, run.adapter)
    if has_adapter:
        model.load_adapter(str(checkpoint), model.active_adapter, is_trainable=True)
    return model, table


def _check_base(run: TrainConfig) -> None:
    model = run.model
    made_up = [
        name
        for name, is_made_up in (
            ("model.decoder.path", model.decoder.path is None),
            (
                "model.vision_tower.path",
                model.kind is ModelKind.compose and model.vision_tower.path is None,
            ),
        )
        if model.kind is not ModelKind.vlm and is_made_up
    ]
    if made_up:
        raise CheckpointError(
            f"the adapter's base has weights that were drawn at random ({', '.join(made_up)} is "
            "null), which no file holds; let the run end, it exports what it has in memory"
        )
