"""Random pico models of the real transformers classes, and packs of samples for them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AyaVisionConfig,
    AyaVisionForConditionalGeneration,
    Cohere2Config,
    CohereConfig,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen3Config,
    SiglipVisionConfig,
)

IMAGE_TOKEN = 5
VOCABULARY = 64
TOKENS_A_TILE = 4
IMAGE_SIZE = 16  # 4 x 4 patches of 4 pixels, shuffled 2 x 2
WINDOW = 6  # tokens, smaller than most samples below
IGNORED = -100

TEXT: dict[str, Any] = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=4,  # Cohere2: three sliding ones with positions, one full without
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    initializer_range=0.3,  # attention far from uniform, logits far from equal
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
TEXT_CONFIGS: dict[str, tuple[Any, dict[str, Any]]] = {
    "cohere2": (Cohere2Config, dict(logit_scale=0.25, sliding_window=WINDOW)),
    "cohere": (CohereConfig, dict(logit_scale=0.125)),
    "gemma3_text": (
        Gemma3TextConfig,  # layers: sliding, sliding, full, sliding; norms around both halves
        dict(sliding_window=WINDOW, sliding_window_pattern=3, head_dim=8, query_pre_attn_scalar=8),
    ),
    "llama": (LlamaConfig, {}),
    "mistral": (MistralConfig, dict(sliding_window=WINDOW)),
    "qwen3": (
        Qwen3Config,
        dict(sliding_window=WINDOW, use_sliding_window=True, max_window_layers=2, head_dim=8),
    ),
}


def make_text_lm(kind: str, *, tied: bool = True) -> Any:
    """A text LM in evaluation mode, every weight random."""
    torch.manual_seed(0)
    config_class, changes = TEXT_CONFIGS[kind]
    config = config_class(**TEXT, **changes, tie_word_embeddings=tied)
    return _shake(AutoModelForCausalLM.from_config(config)).eval()


def make_aya(*, tied: bool = True) -> Any:
    """An Aya Vision model in evaluation mode, every weight random."""
    torch.manual_seed(0)
    config_class, changes = TEXT_CONFIGS["cohere2"]
    text = config_class(**TEXT, **changes, tie_word_embeddings=tied)
    vision = SiglipVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=IMAGE_SIZE,
        patch_size=4,
        vision_use_head=False,
    )
    config = AyaVisionConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE_TOKEN,
        alignment_intermediate_size=24,
        tie_word_embeddings=tied,
    )
    return _shake(AyaVisionForConditionalGeneration(config)).eval()


def _shake(model: PreTrainedModel) -> PreTrainedModel:
    """Move norms and biases off 1 and 0, where mistakes would not show."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.2 * torch.randn_like(parameter)
    return model


@dataclass(frozen=True)
class PicoSample:
    """Token ids [T], labels [T] and tiles [N, 3, H, W] of one sample."""

    ids: torch.Tensor
    labels: torch.Tensor
    tiles: torch.Tensor | None = None

    def with_token(self, at: int, token: int) -> "PicoSample":
        """The same sample with another token at one place."""
        ids = self.ids.clone()
        ids[at] = token
        return replace(self, ids=ids)

    def batch(self) -> dict[str, torch.Tensor]:
        """The sample alone, as any user of transformers would give it: no positions."""
        batch = {"input_ids": self.ids[None], "labels": self.labels[None]}
        return batch if self.tiles is None else batch | {"pixel_values": self.tiles}


def make_sample(length: int, *, num_tiles: int = 0, num_supervised: int = 4) -> PicoSample:
    """A sample of `length` random tokens; the last ones are supervised, pictures come second."""
    ids = torch.randint(IMAGE_TOKEN + 1, VOCABULARY, (length,))
    ids[0] = 1
    ids[1 : 1 + num_tiles * TOKENS_A_TILE] = IMAGE_TOKEN
    labels = ids.clone()
    labels[: length - num_supervised] = IGNORED
    size = (num_tiles, 3, IMAGE_SIZE, IMAGE_SIZE)
    return PicoSample(ids, labels, torch.randn(size) if num_tiles else None)


def make_samples(*, pictures: bool) -> list[PicoSample]:
    """Four samples of uneven length around the window, two with pictures where asked."""
    torch.manual_seed(1)
    tiles = (2, 0, 1, 0) if pictures else (0, 0, 0, 0)
    shapes = ((23, 7), (5, 2), (11, 1), (WINDOW, 3))
    return [
        make_sample(length, num_tiles=num_tiles, num_supervised=supervised)
        for (length, supervised), num_tiles in zip(shapes, tiles, strict=True)
    ]


def pack(samples: Sequence[PicoSample]) -> dict[str, torch.Tensor]:
    """The samples as one packed sequence, positions from 0 again at each."""
    batch = {
        "input_ids": torch.cat([sample.ids for sample in samples])[None],
        "labels": torch.cat([sample.labels for sample in samples])[None],
        "position_ids": torch.cat([torch.arange(len(sample.ids)) for sample in samples])[None],
    }
    tiles = [sample.tiles for sample in samples if sample.tiles is not None]
    return batch | ({"pixel_values": torch.cat(tiles)} if tiles else {})


def gradients(model: Any) -> dict[str, torch.Tensor]:
    """{name: gradient} of every parameter that has one; they are cleared."""
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def largest_difference(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    """The largest difference of two sets of gradients, as a share of each tensor's largest value.

    Tensors whose gradient is 0 but for rounding (biases of keys) are held against the others.
    """
    assert one.keys() == two.keys()
    floor = 1e-3 * max(float(value.abs().max()) for value in two.values())
    return max(
        float((one[name] - two[name]).abs().max()) / max(float(two[name].abs().max()), floor)
        for name in one
    )
