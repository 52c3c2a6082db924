"""Text LMs fresh or loaded, vision-language models loaded.

Every weight of a model is in its file, and every weight in the file is the model's. Grafting the
one on the other is `train/model/compose.py`.
"""

import contextlib
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Cohere2Config,
    Cohere2ForCausalLM,
    GenerationConfig,
    PreTrainedModel,
)

from configs.errors import CheckpointError
from configs.schema import DecoderConfig
from data.fetch import local_folder
from data.processor import load
from train.model.fsdp import copy_into
from train.model.parts import find_part, list_first

# What a file may hold that its model has no place for; anything else left over is an error.
MAY_BE_LEFT_OVER: dict[str, re.Pattern[str]] = {
    # Of a whole SigLIP: its text half, the two numbers of its loss, and heads of either class.
    "vision tower": re.compile(
        r"(text_model\..+|logit_scale|logit_bias|(vision_model\.)?head\..+|classifier\..+)"
    ),
    # Tables of old files, which each model works out anew.
    "text LM": re.compile(r".*\.(rotary_emb\.inv_freq|masked_bias|attn\.bias)"),
    "vision-language model": re.compile(
        r".*\.(rotary_emb\.inv_freq|embeddings\.position_ids)"
        r"|(model\.)?vision_tower\.(vision_model\.)?head\..+"  # where vision_use_head is false
    ),
}


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


def load_text_lm(path: str, *, dtype: torch.dtype | str) -> PreTrainedModel:
    """Return a text LM from a folder or the hub, every weight of it from the file.

    Raises:
        CheckpointError: it is none, or a weight is missing, left over, or untied.
    """
    config = load("text LM", AutoConfig, path)
    if hasattr(config, "vision_config"):
        raise CheckpointError(
            f"{path!r} is a vision-language model ({config.model_type}), but a text LM was asked "
            "for; a vision-language model is trained on with model=vlm model.path=..."
        )
    return load_checked("text LM", AutoModelForCausalLM, path, dtype)


def load_vlm(path: str, *, dtype: torch.dtype | str) -> PreTrainedModel:
    """Return a vision-language model from a folder or the hub, every weight from the file.

    Raises:
        CheckpointError: it is none, or a weight is missing, left over, or untied.
    """
    config = load("vision-language model", AutoConfig, path)
    if not hasattr(config, "vision_config"):
        raise CheckpointError(
            f"{path!r} is a {config.model_type} without vision, but a vision-language model was "
            "asked for; a text LM is grafted with model=compose model.decoder.path=..."
        )
    return load_checked("vision-language model", AutoModelForImageTextToText, path, dtype)


def empty_vlm(path: str, *, dtype: torch.dtype | str) -> PreTrainedModel:
    """Return what `load_vlm` does without its weights, on `meta`: nothing is read or held."""
    config = load("vision-language model", AutoConfig, path)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    with contextlib.suppress(OSError):  # a folder without generation_config.json
        model.generation_config = GenerationConfig.from_pretrained(
            local_folder(path, weights=False)
        )
    return model.eval()


def load_checked(
    what: str, auto_class: Any, path: str, dtype: torch.dtype | str, **changes: Any
) -> Any:
    """Load, and refuse what transformers only reports: weights made up, left over, or untied."""
    model, info = load(
        what,
        auto_class,
        path,
        weights=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are told below
        dtype=dtype,
        **changes,
    )
    resized = [
        f"{name} (there {list(there)}, wanted {list(wanted)})"
        for name, there, wanted in info["mismatched_keys"]
    ]
    made_up = sorted([*info["missing_keys"], *resized])
    if made_up:
        raise CheckpointError(
            f"{path!r} lacks {len(made_up)} weights of a {type(model).__name__}, which would be "
            f"random: {list_first(made_up)}\n  is it really a {what}?"
        )
    allowed = MAY_BE_LEFT_OVER[what]
    left_over = sorted(name for name in info["unexpected_keys"] if not allowed.fullmatch(name))
    if left_over:
        raise CheckpointError(
            f"{path!r} holds {len(left_over)} weights that a {type(model).__name__} has no place "
            f"for, which would be dropped: {list_first(left_over)}\n"
            "  is its config.json the one of these weights?"
        )
    _check_tied(model, path)
    return model


def _check_tied(model: Any, path: str) -> None:
    """Refuse a head beside embeddings that it should be one with.

    transformers (5.23) keeps the two apart with a warning; a merge and an export would tie them
    again, and what the head had learned would be gone.
    """
    head = model.get_output_embeddings()
    if head is None or not model.config.tie_word_embeddings:
        return
    if head.weight is not model.get_input_embeddings().weight:
        raise CheckpointError(
            f"{path!r} holds an lm_head that differs from the word embeddings, but its config "
            "says that they are one (tie_word_embeddings); set that to false in its config.json, "
            "or take lm_head.weight out of the file"
        )


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
                tensor = live.get(find_part(kind, name))
                if tensor is None:
                    raise CheckpointError(f"{str(path)!r} holds {name}, which the model has not")
                copy_into(tensor, file.get_slice(name))
                loaded.add(id(tensor))  # tied weights are one
    missing = [name for name, tensor in state.items() if id(tensor) not in loaded]
    if missing:
        raise CheckpointError(
            f"{str(folder)!r} lacks {len(missing)} weights: {list_first(missing)}"
        )
