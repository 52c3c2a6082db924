"""The trained model as one Hugging Face folder that plain transformers loads."""

import logging
import os
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel

from configs.errors import CheckpointError, DiskError
from data.render import Renderer
from train.saving.disk import flush, flush_folder, told_when_full
from train.saving.verify_export import verify_export

log = logging.getLogger(__name__)
STAGING = ".export-writing"


def export_model(
    model: Any,
    processing_class: Any,
    out: Path,
    *,
    dtype: torch.dtype,
    card: str,
    verify: bool = True,
) -> Path:
    """Write weights, config, processor, tokenizer, chat template and a model card to `out`.

    An adapter is folded into the weights in float32 and kept beside them in `adapter/`. The folder
    is written under another name, loaded and compared with the model, and renamed, so that `out` is
    whole and sound or not there.

    Args:
        model: trained; its weights may be of several dtypes.
        processing_class: tokenizer or processor.
        out: folder to write; one that is there is replaced.
        dtype: of all weights that are written.
        card: text of the README.md.
        verify: load the folder in plain transformers and compare.

    Returns:
        `out`.

    Raises:
        CheckpointError: what was written is not the model; it is kept under another name.
        DiskError: the disk is full; what was there before still is.
    """
    staging = out.with_name(STAGING)
    shutil.rmtree(staging, ignore_errors=True)
    try:
        with told_when_full("the export", out):
            model = _write(model, processing_class, staging, dtype)
            if verify:
                card += _verified(model, processing_class, staging, out)
            (staging / "README.md").write_text(card, encoding="utf-8")
            follow_umask(staging)
            flush_folder(staging)
    except DiskError:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    shutil.rmtree(out, ignore_errors=True)
    staging.rename(out)
    flush(out.parent)
    log.info("exported to %s", out)
    return out


def _write(model: Any, processing_class: Any, staging: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Write all but the card; return the folded model in its dtype."""
    if isinstance(model, PeftModel):
        model.save_pretrained(str(staging / "adapter"))
        (staging / "adapter" / "README.md").unlink(missing_ok=True)  # PEFT's form, not filled in
        model = fold_adapter(model)
    model = model.to(dtype)
    _for_use(model.config, dtype)
    stop_at(model, Renderer(processing_class).stop_token_id)
    model.save_pretrained(staging)
    processing_class.save_pretrained(staging)
    return model


def _verified(model: Any, processing_class: Any, staging: Path, out: Path) -> str:
    """Compare the written folder with the model; return what that has shown, for the card."""
    try:
        found = verify_export(staging, model, processing_class)
    except CheckpointError as error:
        aside = out.with_name(f"{out.name}-failed")
        shutil.rmtree(aside, ignore_errors=True)
        staging.rename(aside)
        raise CheckpointError(
            f"the export is not the trained model: {error}\n  what was written is kept in {aside}, "
            f"and {out} was not touched; checkpoints are as they were"
        ) from error
    log.info("reloaded: %s", found)
    return f"\nReloaded before it was given its name: {found}.\n"


def _for_use(config: Any, dtype: torch.dtype) -> None:
    """Let the config and those inside it name the dtype that is written, not the one once read.

    And keep keys and values while generating, which the Trainer has switched off in the config.
    """
    config.dtype = dtype
    if "use_cache" in {item.name for item in fields(config)}:
        config.use_cache = True
    else:
        vars(config).pop("use_cache", None)
    for name in config.sub_configs:
        if (inner := getattr(config, name, None)) is not None:
            _for_use(inner, dtype)


def stop_at(model: Any, token: int) -> None:
    """Let generation end at the token that ends an answer, besides where it ended before."""
    config = model.generation_config
    before = config.eos_token_id
    ends = before if isinstance(before, list) else [] if before is None else [before]
    if token not in ends:
        config.eos_token_id = [*ends, token]


def fold_adapter(model: PeftModel) -> PreTrainedModel:
    """Return the base model with the adapter folded in, computed in float32.

    A layer at a time, each back in its dtype with one rounding: the model is never held twice.
    """
    for layer in [m for m in model.modules() if isinstance(m, BaseTunerLayer)]:
        dtype: Any = layer.get_base_layer().weight.dtype
        layer.to(torch.float32)
        layer.merge(safe_merge=True)
        layer.get_base_layer().to(dtype)
    return model.unload()


def follow_umask(folder: Path) -> None:
    """Give files the modes the user's umask asks for; safetensors writes 0600."""
    umask = os.umask(0)
    os.umask(umask)
    for path in folder.rglob("*"):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)
