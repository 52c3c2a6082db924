"""Attention for packs, sample by sample, registered with transformers as `sdpa_by_sample`.

A pack's mask is block-diagonal. `sdpa` with a dense mask computes all T x T of it; here each sample
is attended on its own with `is_causal`, which is the same sum (tests/train/test_isolation.py) at
the cost of the blocks alone. Where there is no pack (generation, the vision tower) it is `sdpa`.
"""

from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from configs.errors import ConfigError
from configs.schema import Attention

# Decoders whose only mask, besides the pack's, is causal or a causal sliding window.
SUPPORTED = ("cohere", "cohere2", "gemma3_text", "llama", "mistral", "qwen3")


def attention_by_sample(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *args: Any,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within each sample of a pack.

    Args:
        module: the attention layer.
        query: [1, heads, T, d].
        key: [1, key-value heads, T, d].
        value: [1, key-value heads, T, d].
        attention_mask: None for a pack, see `mask_by_sample`.
        args: as transformers passes them.
        kwargs: with `position_ids` [1, T], which restart at 0 for every sample.

    Returns:
        [1, T, heads, d], and no weights.
    """
    lengths = sample_lengths(kwargs.get("position_ids"), query, key)
    if attention_mask is not None or lengths is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, *args, **kwargs)
    window, scale = kwargs.get("sliding_window"), kwargs.get("scaling")
    dropout = kwargs.get("dropout", 0.0)
    groups = query.shape[1] // key.shape[1]
    parts = [
        functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scale,
            enable_gqa=groups > 1,
        )
        for q, k, v in zip(
            query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True
        )
        for mask in [_window_mask(q.shape[2], window, q.device)]
    ]  # fmt: skip
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


def mask_by_sample(**kwargs: Any) -> torch.Tensor | None:
    """Return no mask for a pack, which `attention_by_sample` needs none for; else that of sdpa."""
    square = kwargs["q_length"] == kwargs["kv_length"]
    # transformers forbids the causal shortcut just where it has found a packed sequence.
    is_pack = not kwargs.get("allow_is_causal_skip", True) and kwargs.get("attention_mask") is None
    if is_pack and square and kwargs.get("batch_size") == 1:
        return None
    return sdpa_mask(**kwargs)


def sample_lengths(
    position_ids: torch.Tensor | None, query: torch.Tensor, key: torch.Tensor
) -> list[int] | None:
    """Return the lengths of the samples in a pack, or None where there is no pack."""
    if position_ids is None or query.shape[0] != 1 or query.shape[2] != key.shape[2]:
        return None
    if position_ids.numel() != query.shape[2]:
        return None
    starts = (position_ids.reshape(-1) == 0).nonzero().reshape(-1).tolist()
    if len(starts) < 2:
        return None
    return [end - start for start, end in zip(starts, [*starts[1:], query.shape[2]], strict=True)]


def check_attention(attention: Attention) -> None:
    """Refuse what cannot be trained with on this machine, before anything is read or made.

    Raises:
        ConfigError: flex_attention without a GPU; torch (2.13) would stop at the first loss.
    """
    if attention is Attention.flex_attention and not torch.cuda.is_available():
        raise ConfigError(
            "model.attn_implementation=flex_attention trains on a GPU alone, and torch sees none "
            "here; use sdpa_by_sample"
        )


def set_attention(model: Any, attention: Attention) -> None:
    """Set the attention of the decoder; a vision tower has no packs and keeps sdpa.

    Raises:
        ConfigError: the decoder's mask is more than causal, so samples cannot be cut out of a pack;
            or it cannot be trained with on this machine.
    """
    check_attention(attention)
    text_config = model.config.get_text_config()
    text_type = text_config.model_type
    if attention is Attention.sdpa_by_sample and text_type not in SUPPORTED:
        raise ConfigError(
            f"model.attn_implementation: {attention.value} is proven for {', '.join(SUPPORTED)}, "
            f"not for {text_type}; use sdpa"
        )
    if getattr(text_config, "use_bidirectional_attention", False):  # an option of Gemma 3
        raise ConfigError(
            "model.attn_implementation: the decoder's config has use_bidirectional_attention, with "
            "which a token sees the answer it is to learn; take a causal text LM"
        )
    composite = model.config.get_text_config() is not model.config
    model.set_attn_implementation(
        {"text_config": attention.value, "vision_config": "sdpa"} if composite else attention.value
    )


def _window_mask(length: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    """Return [length, length] of who sees whom, or None where plain causality says it all."""
    if window is None or length <= window:
        return None
    at = torch.arange(length, device=device)
    distance = at[:, None] - at[None, :]
    return (distance >= 0) & (distance < window)


def register() -> None:
    """Make the name known to transformers."""
    AttentionInterface.register(Attention.sdpa_by_sample.value, attention_by_sample)
    AttentionMaskInterface.register(Attention.sdpa_by_sample.value, mask_by_sample)


register()
