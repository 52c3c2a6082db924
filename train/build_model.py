"""A text LM, a vision-language model, or one composed of the two: weights and their checks."""

import contextlib
import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AyaVisionConfig,
    AyaVisionForConditionalGeneration,
    Cohere2Config,
    Cohere2ForCausalLM,
    GenerationConfig,
    PreTrainedModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from configs.errors import CheckpointError
from configs.schema import DecoderConfig, VisionTowerConfig
from data.processor import load
from train.fsdp import copy_into
from train.parts import find_part, list_first

log = logging.getLogger(__name__)
# Root mean square of silu(g) * x for independent standard normal g and x: 0.3558 ** 0.5.
SWIGLU_SIZE = 0.596
POSITIONS = "embeddings.position_embedding.weight"


def build_decoder(config: DecoderConfig, tokenizer: Any, *, dtype: torch.dtype) -> PreTrainedModel:
    """Return the text LM of `config.path`, or a fresh Cohere2 of the configured shape."""
    if config.path is not None:
        return load_text_lm(config.path, dtype=dtype)
    shape = Cohere2Config(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        sliding_window=config.sliding_window,
        max_position_embeddings=config.max_position_embeddings,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        logit_scale=config.logit_scale,
        initializer_range=config.initializer_range,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return Cohere2ForCausalLM._from_config(shape, dtype=dtype)


def build_vision_tower(config: VisionTowerConfig, *, dtype: torch.dtype) -> SiglipVisionModel:
    """Return the SigLIP tower of `config.path` at `config.image_size`, or a fresh one."""
    if config.path is not None:
        tower = _load_checked("vision tower", SiglipVisionModel, config.path, dtype)
        return resample_positions(tower, config.image_size)
    shape = SiglipVisionConfig(
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        image_size=config.image_size,
        patch_size=config.patch_size,
        vision_use_head=False,
    )
    return SiglipVisionModel._from_config(shape, dtype=dtype)


def resample_positions(tower: Any, image_size: int) -> Any:
    """Return the tower for pictures of `image_size` pixels a side.

    Its [P, V] position embeddings are a square grid; they are resampled to the new grid by
    bicubic interpolation, as SigLIP2 at 384 pixels (27 x 27) is used at 364 (26 x 26) in Aya
    Vision (arXiv 2505.08751).
    """
    config = tower.config
    if image_size == config.image_size:
        return tower
    state: dict[str, torch.Tensor] = tower.state_dict()
    key = next(name for name in state if name.endswith(POSITIONS))
    old, new = config.image_size // config.patch_size, image_size // config.patch_size
    grid = state[key].float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = nn.functional.interpolate(grid, size=(new, new), mode="bicubic", antialias=True)
    state[key] = grid.permute(0, 2, 3, 1).reshape(new * new, -1).to(state[key].dtype)
    config.image_size = image_size
    resampled = SiglipVisionModel._from_config(config, dtype=tower.dtype)
    resampled.load_state_dict(state, strict=True)
    log.info("vision tower: position embeddings resampled from %d x %d to %d x %d",
             old, old, new, new)  # fmt: skip
    return resampled


def compose(
    text_lm: Any,
    vision_tower: Any,
    tokenizer: Any,
    *,
    downsample_factor: int,
    projector_intermediate_size: int | None = None,
) -> AyaVisionForConditionalGeneration:
    """Graft a vision tower and a fresh projector on a text LM. The modules are taken over as is.

    Raises:
        CheckpointError: the tower's patch grid cannot be shuffled by `downsample_factor`.
    """
    vision: Any = vision_tower.config
    side = vision.image_size // vision.patch_size
    if side % downsample_factor:
        raise CheckpointError(
            f"the vision tower has {side} x {side} patches, which model.downsample_factor="
            f"{downsample_factor} does not divide; set model.vision_tower.image_size, "
            f"for example {(side // downsample_factor) * downsample_factor * vision.patch_size}"
        )
    if len(tokenizer) > text_lm.get_input_embeddings().weight.shape[0]:
        text_lm.resize_token_embeddings(len(tokenizer), mean_resizing=True)
    kind: Any = AyaVisionConfig
    config = kind(
        vision_config=vision,
        text_config=text_lm.config,
        image_token_index=tokenizer.convert_tokens_to_ids("<|IMG_PATCH|>"),
        downsample_factor=downsample_factor,
        tie_word_embeddings=text_lm.config.tie_word_embeddings,
        # The paper gives 190 M parameters for the 8B projector: 7 x 4,096 rows before the SwiGLU.
        alignment_intermediate_size=projector_intermediate_size or 7 * text_lm.config.hidden_size,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.device("meta"):  # an 8B model is not made twice
        model = AyaVisionForConditionalGeneration._from_config(config, dtype=text_lm.dtype)
    model.model.language_model = text_lm.model
    model.model.vision_tower = vision_tower
    model.lm_head = text_lm.lm_head
    projector = model.model.multi_modal_projector.to_empty(device="cpu")
    _init_projector(projector, text_lm)
    model.generation_config = text_lm.generation_config
    if config.tie_word_embeddings:
        model.tie_weights()
    return model


def _init_projector(projector: Any, text_lm: Any) -> None:
    """Start a fresh projector: features enter at size 1 and leave at the size of word embeddings.

    Image tokens much larger than words would drown what the decoder's layers add to them.
    """
    projector.layernorm.reset_parameters()
    embedding_size = text_lm.get_input_embeddings().weight.detach().float().square().mean().sqrt()
    for layer, scale in (
        (projector.linear_1, 1.0),
        (projector.linear_2, float(embedding_size) / SWIGLU_SIZE),
    ):
        nn.init.normal_(layer.weight, std=scale * layer.in_features**-0.5)
        nn.init.zeros_(layer.bias)


def load_text_lm(path: str, *, dtype: torch.dtype | str) -> PreTrainedModel:
    """Return a text LM from a folder or the hub, every weight of it from the file."""
    return _load_checked("text LM", AutoModelForCausalLM, path, dtype)


def load_vlm(path: str, *, dtype: torch.dtype | str) -> PreTrainedModel:
    """Return a vision-language model from a folder or the hub, every weight from the file."""
    return _load_checked("vision-language model", AutoModelForImageTextToText, path, dtype)


def empty_vlm(path: str, *, dtype: torch.dtype | str) -> PreTrainedModel:
    """Return what `load_vlm` does without its weights, on `meta`: nothing is read or held."""
    config = load("vision-language model", AutoConfig, path)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    with contextlib.suppress(OSError):  # a folder without generation_config.json
        model.generation_config = GenerationConfig.from_pretrained(path)
    return model.eval()


def _load_checked(what: str, auto_class: Any, path: str, dtype: torch.dtype | str) -> Any:
    """Load, and refuse what transformers only reports: weights that were made up."""
    model, info = load(
        what,
        auto_class,
        path,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are told below
        dtype=dtype,
    )
    resized = [
        f"{name} (there {list(there)}, wanted {list(wanted)})"
        for name, there, wanted in info["mismatched_keys"]
    ]
    made_up = sorted([*info["missing_keys"], *resized])
    if made_up:
        raise CheckpointError(
            f"{path!r} lacks {len(made_up)} weights of a {type(model).__name__}, which would be "
            f"random: {', '.join(made_up[:5])}{' ...' if len(made_up) > 5 else ''}\n"
            f"  is it really a {what}?"
        )
    return model


@torch.no_grad()
def load_weights(model: PreTrainedModel, folder: Path) -> None:
    """Copy the weights in `folder` into a model of the same shape; each of its own is there.

    Files have other names than modules. transformers' Trainer (5.23) does not translate them when
    it resumes: of a vision-language model it finds nothing, and goes on without a word.

    Raises:
        CheckpointError: the folder lacks a weight of the model.
    """
    kind = model.config.model_type
    state = model.state_dict(keep_vars=True)
    live = {find_part(kind, name): tensor for name, tensor in state.items()}
    loaded = set()
    for path in sorted(folder.glob("model*.safetensors")):
        with safe_open(str(path), framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                tensor = live[find_part(kind, name)]
                copy_into(tensor, file.get_slice(name))
                loaded.add(id(tensor))  # tied weights are one
    missing = [name for name, tensor in state.items() if id(tensor) not in loaded]
    if missing:
        raise CheckpointError(
            f"{str(folder)!r} lacks {len(missing)} weights: {list_first(missing)}"
        )
