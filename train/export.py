"""The trained model as one Hugging Face folder that plain transformers loads."""

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

log = logging.getLogger(__name__)
STAGING = ".export-writing"


def export_model(
    model: Any, processing_class: Any, out: Path, *, dtype: torch.dtype, card: str
) -> Path:
    """Write weights, config, processor, tokenizer, chat template and a model card to `out`.

    An adapter is folded into the weights in float32 and kept beside them in `adapter/`. The folder
    is written under another name and renamed, so that `out` is whole or not there.

    Args:
        model: trained; its weights may be of several dtypes.
        processing_class: tokenizer or processor.
        out: folder to write; one that is there is replaced.
        dtype: of all weights that are written.
        card: text of the README.md.

    Returns:
        `out`.
    """
    staging = out.with_name(STAGING)
    shutil.rmtree(staging, ignore_errors=True)
    if isinstance(model, PeftModel):
        model.save_pretrained(str(staging / "adapter"))
        model = fold_adapter(model)
    model.to(dtype).save_pretrained(staging)
    processing_class.save_pretrained(staging)
    (staging / "README.md").write_text(card, encoding="utf-8")
    follow_umask(staging)
    shutil.rmtree(out, ignore_errors=True)
    staging.rename(out)
    log.info("exported to %s", out)
    return out


def fold_adapter(model: PeftModel) -> PreTrainedModel:
    """Return the base model with the adapter folded in, computed in float32."""
    return model.to(torch.float32).merge_and_unload(safe_merge=True)


def follow_umask(folder: Path) -> None:
    """Give files the modes the user's umask asks for; safetensors writes 0600."""
    umask = os.umask(0)
    os.umask(umask)
    for path in folder.rglob("*"):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)
