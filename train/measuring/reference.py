"""The model that a decoder was, loaded beside the one that is measured."""

from typing import Any

import numpy as np

from configs.errors import CheckpointError
from configs.schema import Attention
from data.processor import load_processor
from train.measuring.evaluation import HeldOut
from train.measuring.original import Reference
from train.model.attention import set_attention
from train.model.load import load_text_lm, load_vlm
from train.model.loss import add_token_losses
from train.ranks import device_of_rank

MOST_NAMED = 3  # tokens


def load_reference(
    path: str, held_out: HeldOut, attention: Attention, *, half: bool = False
) -> Reference:
    """Return a text LM, or the decoder of a vision-language model, whole on this process's device.

    Args:
        path: folder or hub id.
        held_out: rows that it is to read as the measured model does.
        attention: implementation.
        half: whether it computes in half precision.

    Raises:
        CheckpointError: it cannot be loaded, or it writes the held-out text in other tokens.
    """
    processing_class = load_processor(path)
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    check_tokens(path, tokenizer, held_out)
    is_vlm = hasattr(processing_class, "image_processor")
    model: Any = (load_vlm if is_vlm else load_text_lm)(path, dtype="auto")
    add_token_losses(model)
    set_attention(model, attention, half=half)
    return Reference(model.to(device_of_rank()), tokenizer)


def check_tokens(path: str, tokenizer: Any, held_out: HeldOut) -> None:
    """Refuse a model that writes held-out text in other tokens.

    Raises:
        CheckpointError: with the first tokens that differ.
    """
    samples = [s for group in held_out.groups.values() for s in group if not s.row.images]
    ids = np.unique(np.concatenate([np.zeros(0, np.int32), *(s.input_ids for s in samples)]))
    ours = held_out.renderer.tokenizer.convert_ids_to_tokens(ids.tolist())
    known = len(tokenizer)
    theirs = [tokenizer.convert_ids_to_tokens(i) if i < known else None for i in ids.tolist()]
    other = [
        f"{i}: {mine!r} and {its!r}"
        for i, mine, its in zip(ids.tolist(), ours, theirs, strict=True)
        if mine != its
    ]
    if other:
        raise CheckpointError(
            f"evaluation.reference={path!r} has another tokenizer: of {len(ids)} tokens in "
            f"held-out text {len(other)} differ ({', '.join(other[:MOST_NAMED])}); KL is between "
            "models of the same tokens: give the text LM that the decoder was made of"
        )
