"""Pico checkpoints of the real transformers classes, and helpers to read and edit them."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AyaVisionConfig,
    AyaVisionForConditionalGeneration,
    Cohere2Config,
    Cohere2ForCausalLM,
    SiglipVisionConfig,
)

IMAGE_TOKEN = 5
VOCABULARY = 64
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Pair:
    """A VLM and the text LM that its decoder was trained from."""

    vlm: Path
    text: Path


def text_config(**changes: object) -> Cohere2Config:
    """4 layers: three sliding ones with rope, one full without positions."""
    settings: dict[str, object] = dict(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        logit_scale=0.25,
        sliding_window=8,
        max_position_embeddings=64,
        rope_parameters={"rope_theta": 50000.0, "rope_type": "default"},
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return Cohere2Config(**(settings | changes))


def make_text(**changes: object) -> Cohere2ForCausalLM:
    torch.manual_seed(0)
    return Cohere2ForCausalLM(text_config(**changes)).eval()


def make_vlm(text: Cohere2ForCausalLM, delta: float = 0.3) -> AyaVisionForConditionalGeneration:
    """A VLM whose decoder lies at about `delta` relative distance from the text LM."""
    vision = SiglipVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=8,
        patch_size=2,
    )
    config = AyaVisionConfig(
        vision_config=vision,
        text_config=text.config,
        image_token_index=IMAGE_TOKEN,
        alignment_intermediate_size=16,
    )
    torch.manual_seed(1)
    vlm = AyaVisionForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, weight in vlm.model.language_model.named_parameters():
            start = text.model.get_parameter(name)
            weight.copy_(start + delta * 0.02 * torch.randn_like(start))
    return vlm


def save_pair(folder: Path, dtype: torch.dtype, **save_kwargs: object) -> Pair:
    text = make_text()
    make_vlm(text).to(dtype).save_pretrained(folder / "vlm", **save_kwargs)
    text.to(dtype).save_pretrained(folder / "text")
    return Pair(folder / "vlm", folder / "text")


def save_untied_pair(folder: Path) -> Pair:
    """A float32 pair whose heads are not their embeddings, and not each other's."""
    text = make_text(tie_word_embeddings=False)
    vlm = make_vlm(text)
    vlm.config.tie_word_embeddings = False
    vlm.lm_head.weight = torch.nn.Parameter(text.lm_head.weight + 0.01)
    vlm.save_pretrained(folder / "vlm")
    text.save_pretrained(folder / "text")
    return Pair(folder / "vlm", folder / "text")


def load(folder: Path) -> Tensors:
    """Every tensor of a checkpoint folder, single or sharded."""
    tensors: Tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def edit(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    """Rewrites the one weight file of a folder."""
    tensors = change(load(folder))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def edit_config(folder: Path, **changes: object) -> None:
    """Overwrites keys of config.json; None removes a key."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def text_name(vlm_name: str) -> str | None:
    """The text LM's name of a tensor written by transformers 5; None outside the decoder."""
    prefix = "language_model."
    return vlm_name.removeprefix(prefix) if vlm_name.startswith(prefix) else None


def same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    """torch.equal that tells -0.0 from 0.0 and compares dtypes."""
    return first.dtype == second.dtype and torch.equal(
        first.contiguous().view(torch.uint8), second.contiguous().view(torch.uint8)
    )
