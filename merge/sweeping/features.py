"""Image features of held-out pictures, worked out at the first candidate and kept for the others.

Tower and projector are the VLM's at every alpha, so the same pixels have the same features. They
are kept by batch, for the last bits of a product may depend on the size of its batch.
"""

import functools
import hashlib
from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

KEPT_BYTES = 2 << 30  # of host memory; batches beyond are worked out each time


def remember_image_features(model: Any, *, kept_bytes: int = KEPT_BYTES) -> None:
    """Let a model look up the features of a batch of pictures that it has seen before.

    For a model whose vision parts do not change from now on, and outside training.

    Args:
        model: a vision-language model; one whose features are more than one tensor stays as it is.
        kept_bytes: of features, at most.
    """
    inner = model.model.get_image_features
    kept: dict[bytes, torch.Tensor] = {}

    @functools.wraps(inner)  # `generate` looks at the names of its arguments
    def get_image_features(pixel_values: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        key = _digest(pixel_values, args, kwargs)
        if key in kept:
            features = kept[key].to(pixel_values.device, copy=True)  # the caller's own
            return BaseModelOutputWithPooling(pooler_output=features)
        found = inner(pixel_values, *args, **kwargs)
        new = found.pooler_output if type(found) is BaseModelOutputWithPooling else None
        free = kept_bytes - sum(item.nbytes for item in kept.values())
        if isinstance(new, torch.Tensor) and new.nbytes <= free:
            kept[key] = new.detach().to("cpu", copy=True)
        return found

    model.model.get_image_features = get_image_features


def _digest(pixels: torch.Tensor, args: Any, kwargs: Any) -> bytes:
    """Of everything that features depend on."""
    told = f"{pixels.dtype} {tuple(pixels.shape)} {args} {sorted(kwargs.items())}"
    raw = pixels.detach().cpu().contiguous().view(torch.uint8).numpy()
    return hashlib.blake2b(told.encode() + b"\0" + raw.tobytes(), digest_size=32).digest()
