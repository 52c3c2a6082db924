"""Checkpoints of every family, in every layout that transformers has written or held in memory.

A layout is proven to be one by loading it: transformers 5.23 turns each into the names of memory.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from merge_pico import Pair, edit
from pico_vlms import FAMILIES, make_text, make_vlm

Rename = Callable[[str], str]
AS_SAVED = "5.x on disk"
HAD_VISION_MODEL = ("clip_vision_model", "siglip_vision_model")  # inside the tower, before 5
ONE_LAYOUT = ("qwen3_vl", "idefics3", "smolvlm")


def save_family(model_type: str, folder: Path, *, text: str = "", tied: bool | None = None) -> Pair:
    """A text LM (the family's own by default) and a VLM on it, as transformers 5 writes them."""
    family, dtype = FAMILIES[model_type], torch.bfloat16
    text = make_text(text or family.text, tied=family.tied if tied is None else tied)
    make_vlm(model_type, text).to(dtype).save_pretrained(folder / "vlm")
    text.to(dtype).save_pretrained(folder / "text")
    return Pair(folder / "vlm", folder / "text")


def layouts(model_type: str) -> dict[str, Rename]:
    """{layout: name on disk by transformers 5 -> name in that layout}."""
    if model_type in ONE_LAYOUT:
        found = {AS_SAVED: _same, "base class": lambda name: name.removeprefix("model.")}
    elif model_type == "cohere2_vision":  # of 4.55, with the names of memory from the start
        found = {
            AS_SAVED: _same,
            "before 5": lambda name: _with_vision_model(model_type, name),
            "base class": lambda name: name.removeprefix("model."),
        }
    elif model_type in ("qwen2_vl", "qwen2_5_vl"):
        found = {
            AS_SAVED: _same,
            "in memory": _qwen_in_memory,
            "base class": lambda name: _qwen_in_memory(name).removeprefix("model."),
        }
    else:
        found = {
            AS_SAVED: _same,
            "before 4.52": lambda name: _with_vision_model(model_type, name),
            "in memory": _llava_in_memory,
            "4.52 to 5.0 in memory": lambda name: _llava_in_memory(
                _with_vision_model(model_type, name)
            ),
            "base class": lambda name: _llava_in_memory(name).removeprefix("model."),
        }
    if not FAMILIES[model_type].tied:
        found.pop("base class")  # it has no head
    if FAMILIES[model_type].vision not in HAD_VISION_MODEL:
        found.pop("before 4.52", None)
        found.pop("4.52 to 5.0 in memory", None)
    return found


def head_name(rename: Rename) -> str:
    """The name of a stored `lm_head` in a layout of a family that ties."""
    return rename("language_model.lm_head.weight")


def rewrite(folder: Path, rename: Rename) -> None:
    """Gives every tensor of the one weight file its name in another layout."""
    edit(folder, lambda tensors: {rename(name): value for name, value in tensors.items()})


def _same(name: str) -> str:
    return name


def _llava_in_memory(name: str) -> str:
    if name.startswith("language_model.lm_head."):
        return name.removeprefix("language_model.")
    return "model." + name.replace("language_model.model.", "language_model.")


def _with_vision_model(model_type: str, name: str) -> str:
    if FAMILIES[model_type].vision not in HAD_VISION_MODEL:
        return name
    return name.replace("vision_tower.", "vision_tower.vision_model.")


def _qwen_in_memory(name: str) -> str:
    if name.startswith("visual."):
        return "model." + name
    return name.replace("model.", "model.language_model.")
