"""Grafts a vision tower on a text LM: an AyaVision model of both, with a fresh projector between.

The modules are taken over as they are. Any causal LM of transformers will do that is a base model
of embeddings and layers with a linear head on it; what AyaVision would compute otherwise than the
LM's own class (capped or scaled logits, a biased head) is refused before anything is made.
"""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import MODEL_MAPPING, AyaVisionConfig, AyaVisionForConditionalGeneration

from configs.errors import CheckpointError
from data.processor import check_grid

log = logging.getLogger(__name__)
# Root mean square of silu(g) * x for independent standard normal g and x: 0.3558 ** 0.5.
SWIGLU_SIZE = 0.596
NUM_MEASURED = 4096  # word embeddings whose size is taken for that of all
# Keys of text configs that change logits in the LM's own class alone -> the value without effect.
# (Cohere's `logit_scale` does so too; our loss applies it, see train/model/loss.py.)
CHANGES_LOGITS = {"final_logit_softcapping": None, "logits_scaling": 1.0, "lm_head_multiplier": 1.0}


def compose(
    text_lm: Any,
    vision_tower: Any,
    tokenizer: Any,
    *,
    downsample_factor: int,
    projector_intermediate_size: int | None = None,
    added_ids: Sequence[int] = (),
    stop_ids: Sequence[int] = (),
) -> AyaVisionForConditionalGeneration:
    """Graft a vision tower and a fresh projector on a text LM.

    Args:
        text_lm: taken over as is; its embeddings grow where the tokenizer has more tokens.
        vision_tower: a SiglipVisionModel, taken over as is.
        tokenizer: with the image tokens.
        downsample_factor: patches a side that become one image token.
        projector_intermediate_size: rows before the SwiGLU.
        added_ids: tokens that the LM was never trained on, though it may have rows for them.
        stop_ids: tokens besides its own that are to end generation.

    Raises:
        CheckpointError: the LM cannot be grafted, or the tower's patch grid cannot be shuffled by
            `downsample_factor`.
    """
    check_graftable(text_lm)
    vision: Any = vision_tower.config
    check_grid(vision.image_size, vision.patch_size, downsample_factor)
    size = embedding_size(text_lm, before=min([len(tokenizer), *added_ids]))
    make_rows(text_lm, len(tokenizer), added_ids)
    config = aya_config(
        text_lm.config,
        vision,
        tokenizer,
        downsample_factor=downsample_factor,
        intermediate_size=projector_intermediate_size,
    )
    with torch.device("meta"):  # an 8B model is not made twice
        model = AyaVisionForConditionalGeneration._from_config(config, dtype=text_lm.dtype)
    model.model.language_model = text_lm.model
    model.model.vision_tower = vision_tower
    model.lm_head = text_lm.lm_head
    projector = model.model.multi_modal_projector.to_empty(device="cpu")
    _init_projector(projector, size)
    model.generation_config = _generation_config(text_lm, tokenizer, stop_ids)
    if config.tie_word_embeddings:
        model.tie_weights()
    return model


def aya_config(
    text_config: Any,
    vision_config: Any,
    tokenizer: Any,
    *,
    downsample_factor: int,
    intermediate_size: int | None = None,
) -> Any:
    """Return the config of the graft; arguments as for `compose`."""
    kind: Any = AyaVisionConfig
    return kind(
        vision_config=vision_config,
        text_config=text_config,
        image_token_index=tokenizer.convert_tokens_to_ids("<|IMG_PATCH|>"),
        downsample_factor=downsample_factor,
        tie_word_embeddings=text_config.tie_word_embeddings,
        # The paper gives 190 M parameters for the 8B projector: 7 x 4,096 rows before the SwiGLU.
        alignment_intermediate_size=intermediate_size or 7 * text_config.hidden_size,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def check_graftable(text_lm: Any) -> None:
    """Refuse a text LM that AyaVision would run otherwise than its own class does.

    Raises:
        CheckpointError: saying in what they differ.
    """
    kind, config = type(text_lm).__name__, text_lm.config
    for key, neutral in CHANGES_LOGITS.items():
        if (value := getattr(config, key, neutral)) not in (neutral, None):
            raise CheckpointError(
                f"a {kind} with {key}={value} cannot be grafted on: AyaVision has no {key}, so its "
                "loss and its samples would not be the text LM's; take a text LM without it"
            )
    base, head = getattr(text_lm, "model", None), getattr(text_lm, "lm_head", None)
    is_plain_base = type(base) is MODEL_MAPPING.get(type(config), None) and hasattr(
        base, "embed_tokens"
    )
    is_plain_head = isinstance(head, nn.Linear) and head.bias is None
    if not is_plain_base or not is_plain_head:
        raise CheckpointError(
            f"a {kind} cannot be grafted on: AyaVision takes a text LM made of a base model called "
            "`model` with `embed_tokens`, and a linear `lm_head` without bias"
        )


@torch.no_grad()
def make_rows(text_lm: Any, num_tokens: int, added_ids: Sequence[int]) -> None:
    """Give each of `num_tokens` tokens its row; rows that were never trained start at the mean.

    Embeddings have often more rows than the tokenizer has tokens: none is cut off, and new tokens
    may fall on rows that hold what they were initialised with. The mean of the trained rows makes a
    new token as likely as an average one (Hewitt 2021, "Initializing new word embeddings").
    """
    old = text_lm.get_input_embeddings().weight.shape[0]
    if num_tokens > old:
        text_lm.resize_token_embeddings(num_tokens, mean_resizing=False)
    new = sorted({*added_ids, *range(old, num_tokens)})
    if not new:
        return
    trained = min(old, *new)
    modules = (text_lm.get_input_embeddings(), text_lm.get_output_embeddings())
    for weight in {id(module.weight): module.weight for module in modules}.values():
        weight[new] = weight[:trained].mean(0, dtype=torch.float32).to(weight.dtype)
    log.info("word embeddings: %d new rows, of %d", len(new), max(old, num_tokens))


@torch.no_grad()
def embedding_size(text_lm: Any, *, before: int) -> float:
    """Return the root mean square of embedded words with ids below `before`, as layers get them.

    Gemma scales its embeddings on the way (by the square root of the width), and image features
    enter behind that.
    """
    embeddings = text_lm.get_input_embeddings()
    rows = min(before, embeddings.weight.shape[0])
    ids = torch.linspace(0, rows - 1, min(rows, NUM_MEASURED)).long()
    return float(embeddings(ids.to(embeddings.weight.device)).float().square().mean().sqrt())


def _init_projector(projector: Any, embedding_size: float) -> None:
    """Start a fresh projector: features enter at size 1 and leave at the size of word embeddings.

    Image tokens much larger than words would drown what the decoder's layers add to them.
    """
    projector.layernorm.reset_parameters()
    for layer, scale in (
        (projector.linear_1, 1.0),
        (projector.linear_2, embedding_size / SWIGLU_SIZE),
    ):
        nn.init.normal_(layer.weight, std=scale * layer.in_features**-0.5)
        nn.init.zeros_(layer.bias)


def _generation_config(text_lm: Any, tokenizer: Any, stop_ids: Sequence[int]) -> Any:
    """Return the text LM's, which also stops where the chat template ends a turn."""
    config = text_lm.generation_config
    own = config.eos_token_id
    own = [] if own is None else [own] if isinstance(own, int) else list(own)
    ends = list(dict.fromkeys([*own, tokenizer.eos_token_id, *stop_ids]))
    ends = [token for token in ends if token is not None]
    config.eos_token_id = ends[0] if len(ends) == 1 else ends
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id
    return config
