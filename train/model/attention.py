"""Attention for packs, sample by sample, registered with transformers as `sdpa_by_sample`.

A pack's mask is block-diagonal. `sdpa` with a dense mask computes all T x T of it; here each sample
is attended on its own with `is_causal`, which is the same sum at the cost of the blocks alone
(tests/train/model/test_isolation.py). Where there is no pack (generation, the vision tower) it is
`sdpa`.
"""

import logging
from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_flash_attention_utils import prepare_fa_kwargs_from_position_ids
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

from configs.errors import ConfigError
from configs.schema import Attention

log = logging.getLogger(__name__)
FLASH = (Attention.flash_attention_2, Attention.flash_attention_3)
FLASH_NAMES = tuple(attention.value for attention in FLASH)  # as configs have them
MOST_HEAD_DIM = 256  # of FlashAttention
HOPPER = (9, 0)
LENGTHS = "_sample_lengths"  # where a tensor of positions keeps what was read of it
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
    parts = [
        _attend(q, k, v, window, dropout_p=dropout, scale=scale)
        for q, k, v in zip(
            query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True
        )
    ]
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None, **options: Any
) -> torch.Tensor:
    """Return [1, heads, T, d] of one sample, causal and within the window."""
    mask, groups = _window_mask(q.shape[2], window, q.device), q.shape[1] // k.shape[1]
    if mask is not None and groups > 1:
        # No fused kernel of a GPU takes a mask and groups: one would hold heads x T x T.
        k, v, groups = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1), 1
    return functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=groups > 1, **options
    )


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
    # The same tensor goes through all layers: a GPU is waited for once, not at each of them.
    lengths: list[int] | None = getattr(position_ids, LENGTHS, None)
    if lengths is None:
        starts = (position_ids.reshape(-1) == 0).nonzero().reshape(-1).tolist()
        ends = [*starts[1:], query.shape[2]]
        lengths = [end - start for start, end in zip(starts, ends, strict=True)]
        setattr(position_ids, LENGTHS, lengths)
    return lengths if len(lengths) > 1 else None


def boundaries(model: Any, position_ids: torch.Tensor | None) -> dict[str, Any]:
    """Return what tells FlashAttention where the samples of a pack begin; nothing for others.

    transformers would work it out at every layer, and a GPU be waited for each time.

    Args:
        model: live.
        position_ids: [1, T], from 0 again at every sample.
    """
    text_config = model.config.get_text_config()
    if position_ids is None or text_config._attn_implementation not in FLASH_NAMES:
        return {}
    (starts, _), (longest, _) = prepare_fa_kwargs_from_position_ids(position_ids)
    longest = int(longest)
    return {
        "cu_seq_lens_q": starts,
        "cu_seq_lens_k": starts,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def check_attention(attention: Attention) -> None:
    """Refuse what cannot be trained with on this machine, before anything is read or made.

    Raises:
        ConfigError: flex_attention without a GPU, for torch (2.13) would stop at the first loss;
            FlashAttention where it is not installed.
    """
    for flash, is_here in (
        (Attention.flash_attention_2, is_flash_attn_2_available),
        (Attention.flash_attention_3, is_flash_attn_3_available),
    ):
        if attention is flash and not is_here():
            raise ConfigError(
                f"model.attn_implementation={flash.value}: there is no GPU, or its package is not "
                "installed; auto takes what there is"
            )
    if attention is Attention.flex_attention and not torch.cuda.is_available():
        raise ConfigError(
            "model.attn_implementation=flex_attention trains on a GPU alone, and torch sees none "
            "here; use sdpa_by_sample"
        )


def choose_attention(decoder: Any, *, half: bool) -> tuple[Attention, str]:
    """Return the fastest attention that keeps the samples of a pack apart here, and why it is so.

    Args:
        decoder: text model without its head, on any device.
        half: whether it computes in half precision.
    """
    text_type = decoder.config.model_type
    missing = _why_no_flash(decoder, half)
    if not missing:
        hopper = torch.cuda.get_device_capability() >= HOPPER
        if hopper and is_flash_attn_3_available():
            return Attention.flash_attention_3, "it is installed"
        if is_flash_attn_2_available():
            return Attention.flash_attention_2, "it is installed"
        missing = "flash-attn is not installed"
    if text_type in SUPPORTED:
        return Attention.sdpa_by_sample, f"no FlashAttention: {missing}"
    return Attention.sdpa, f"no FlashAttention: {missing}; {text_type} is not proven by sample"


def _why_no_flash(decoder: Any, half: bool) -> str:
    if not torch.cuda.is_available():
        return "there is no GPU"
    if not half:
        return "it computes in float32"
    if not decoder._supports_flash_attn:
        return f"transformers has none for {decoder.config.model_type}"
    heads, width = decoder.config.num_attention_heads, decoder.config.hidden_size
    head_dim = getattr(decoder.config, "head_dim", None) or width // heads
    return f"heads of {head_dim} are too wide" if head_dim > MOST_HEAD_DIM else ""


def set_attention(model: Any, attention: Attention, *, half: bool = False) -> None:
    """Set the attention of the decoder; a vision tower has no packs and keeps sdpa.

    Args:
        model: with all its configs.
        attention: which one; `auto` is decided here, and logged.
        half: whether training computes in half precision.

    Raises:
        ConfigError: the decoder's mask is more than causal, so samples cannot be cut out of a pack;
            or it cannot be trained with on this machine.
    """
    text_config = model.config.get_text_config()
    if attention is Attention.auto:
        decoder = getattr(model.base_model, "language_model", model.base_model)
        attention, why = choose_attention(decoder, half=half)
        log.info("attention over packs: %s (%s)", attention.value, why)
    check_attention(attention)
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
    composite = text_config is not model.config
    model.set_attn_implementation(
        {"text_config": attention.value, "vision_config": "sdpa"} if composite else attention.value
    )


def _window_mask(length: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    """Return [length, length] of who sees whom, or None where plain causality says it all."""
    if window is None or length <= window:
        return None
    seen = torch.ones((length, length), dtype=torch.bool, device=device)
    return seen.tril_().triu_(1 - window)


def register() -> None:
    """Make the name known to transformers."""
    AttentionInterface.register(Attention.sdpa_by_sample.value, attention_by_sample)
    AttentionMaskInterface.register(Attention.sdpa_by_sample.value, mask_by_sample)


register()
