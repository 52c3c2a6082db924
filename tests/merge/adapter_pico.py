"""LoRA adapters on pico VLMs, made and saved by PEFT, with weights that are not zero."""

from pathlib import Path
from typing import Any

import torch
from merge_pico import Tensors
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForImageTextToText

DECODER = r".*language_model.*\.(q_proj|v_proj|down_proj)"
PROJECTOR = ["linear_1", "linear_2"]


def load_model(folder: Path, dtype: Any = torch.float32) -> Any:
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype).eval()


def save_adapter(vlm: Path, folder: Path, **changes: Any) -> Path:
    """An adapter on `vlm`, as a training would leave it."""
    settings: dict[str, Any] = dict(r=4, lora_alpha=6, target_modules=DECODER)
    torch.manual_seed(0)
    tuned = get_peft_model(load_model(vlm), LoraConfig(**(settings | changes)))
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_magnitude" in name:
                parameter.mul_(1 + 0.3 * torch.rand_like(parameter))
            elif "lora_" in name:
                parameter.copy_(0.05 * torch.randn_like(parameter))
            elif "modules_to_save" in name:
                parameter.add_(0.05 * torch.randn_like(parameter))
    tuned.save_pretrained(folder)
    return folder


def folded(vlm: Path, adapter: Path) -> Tensors:
    """The tuned model's tensors by name in memory, folded in float32 by PEFT."""
    model = PeftModel.from_pretrained(load_model(vlm), adapter).merge_and_unload()
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def on_disk(name: str) -> str:
    """The name in files of a name in memory (transformers 5, Aya Vision)."""
    if name.startswith("model.language_model."):
        return "language_model.model." + name.removeprefix("model.language_model.")
    return name.removeprefix("model.")
