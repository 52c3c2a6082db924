"""Processors of many families in small, by their real classes, and pico VLMs that fit them.

Tokenizers are a few hundred tokens of byte-level BPE, chat templates ours, in each family's style.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from pico_vlms import FAMILIES, _shake, make_text, vlm_config
from transformers import (
    AutoModelForImageTextToText,
    CLIPImageProcessorPil,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    GotOcr2ImageProcessorPil,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    InternVLProcessor,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaOnevisionImageProcessorPil,
    LlavaOnevisionProcessor,
    LlavaProcessor,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
    Qwen3VLProcessor,
)

WORDS = [
    "What do you see in the picture? The quick brown fox jumps over the lazy dog.",
    "a dog and a key and a fox",
    "A key, 3 apples & an elephant. Zwei Schlüssel. Vois-tu la clé? यह हाथी है।",
]
_PIECES = """{%- for piece in message.content %}{%- if piece.type == 'image' %}{{ 'IMAGE' }}\
{%- else %}{{ piece.text }}{%- endif %}{%- endfor %}"""
CHATML = (
    """{%- for message in messages %}{{ '<|im_start|>' + message.role + '\\n' }}"""
    + _PIECES
    + """{{ '<|im_end|>\\n' }}{%- endfor %}\
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}"""
)
VICUNA = (
    """{{ bos_token }}{%- for message in messages %}{{ message.role.upper() + ':' }}\
{%- if message.role == 'assistant' %}{{ ' ' }}{%- endif %}"""
    + _PIECES
    + """{%- if message.role == 'user' %}{{ ' ' }}{%- else %}{{ 'STOP' }}{%- endif %}{%- endfor %}\
{%- if add_generation_prompt %}{{ 'ASSISTANT:' }}{%- endif %}"""
)
GEMMA = (
    """{{ bos_token }}{%- for message in messages %}{{ '<start_of_turn>' + \
('model' if message.role == 'assistant' else 'user') + '\\n' }}"""
    + _PIECES
    + """{{ '<end_of_turn>\\n' }}{%- endfor %}\
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{%- endif %}"""
)
IDEFICS = (
    """{{ bos_token }}{%- for message in messages %}{{ message.role.capitalize() + ':' }}\
{%- if message.role == 'assistant' %}{{ ' ' }}{%- endif %}"""
    + _PIECES
    + """{{ '<end_of_utterance>\\n' }}{%- endfor %}\
{%- if add_generation_prompt %}{{ 'Assistant:' }}{%- endif %}"""
)


@dataclass(frozen=True)
class Chat:
    """How a family is asked: its processor, template and tokens, and the config's names of them."""

    make: Callable[[Any], Any]  # tokenizer -> processor
    template: str
    stop: str | None  # what ends an answer
    tokens: dict[str, str] = field(default_factory=lambda: {"image_token_index": "<image>"})
    named: dict[str, str] = field(default_factory=lambda: {"image_token": "<image>"})  # tokenizer's
    special: tuple[str, ...] = ()
    loads: bool = True  # its processor from a folder: the others need torchvision


def _llava(tokenizer: Any) -> Any:
    size = {"height": 8, "width": 8}
    pixels = CLIPImageProcessorPil(size=size, crop_size=size)
    return LlavaProcessor(
        pixels, tokenizer, patch_size=2, vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )  # fmt: skip


def _llava_next(tokenizer: Any) -> Any:
    pixels = LlavaNextImageProcessorPil(
        size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8},
        image_grid_pinpoints=[[8, 16], [16, 8], [16, 16]],
    )  # fmt: skip
    return LlavaNextProcessor(
        pixels, tokenizer, patch_size=2, vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )  # fmt: skip


def _gemma3(tokenizer: Any) -> Any:
    pixels = Gemma3ImageProcessorPil(size={"height": 8, "width": 8})
    return Gemma3Processor(pixels, tokenizer, image_seq_length=4)


def _idefics3(tokenizer: Any) -> Any:
    pixels = Idefics3ImageProcessorPil(
        size={"longest_edge": 16}, max_image_size={"longest_edge": 8}
    )
    return Idefics3Processor(pixels, tokenizer, image_seq_len=4)


def _qwen(tokenizer: Any) -> Any:
    pixels = Qwen2VLImageProcessorPil(
        patch_size=2, size={"shortest_edge": 64, "longest_edge": 256}, temporal_patch_size=2
    )
    return QwenPictures(pixels, tokenizer)


def _onevision(tokenizer: Any) -> Any:
    pixels = LlavaOnevisionImageProcessorPil(
        size={"height": 8, "width": 8}, image_grid_pinpoints=[[8, 16], [16, 8], [16, 16]]
    )
    return OnevisionPictures(
        pixels, tokenizer, num_image_tokens=16, vision_feature_select_strategy="full"
    )


def _qwen2(tokenizer: Any) -> Any:
    return Qwen2Pictures(_qwen(tokenizer).image_processor, tokenizer)


def _qwen3(tokenizer: Any) -> Any:
    return Qwen3Pictures(_qwen(tokenizer).image_processor, tokenizer)


def _internvl(tokenizer: Any) -> Any:
    pixels = GotOcr2ImageProcessorPil(
        size={"height": 8, "width": 8}, crop_to_patches=True, max_patches=3
    )
    return InternVLPictures(pixels, tokenizer, image_seq_length=4)


class _NoVideos:
    """A processor without its half for videos, which needs torchvision even to be checked."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        if argument is None:
            return None
        return super().check_argument_for_proper_class(argument_name, argument)  # type: ignore[misc]


class QwenPictures(_NoVideos, Qwen2_5_VLProcessor):
    pass


class Qwen2Pictures(_NoVideos, Qwen2VLProcessor):
    pass


class Qwen3Pictures(_NoVideos, Qwen3VLProcessor):
    pass


class OnevisionPictures(_NoVideos, LlavaOnevisionProcessor):
    pass


class InternVLPictures(_NoVideos, InternVLProcessor):
    pass


IM = ("<|im_start|>", "<|im_end|>")
CHATS = {
    "llava": Chat(_llava, VICUNA, "</s>"),
    "llava without stop": Chat(_llava, VICUNA, None),
    "llava_next": Chat(_llava_next, CHATML, "<|im_end|>", special=IM),
    "gemma3": Chat(
        _gemma3, GEMMA, "<end_of_turn>",
        {"image_token_index": "<image_soft_token>", "boi_token_index": "<start_of_image>",
         "eoi_token_index": "<end_of_image>"},
        {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>",
         "eoi_token": "<end_of_image>"},
        ("<start_of_turn>", "<end_of_turn>"),
    ),
    "idefics3": Chat(
        _idefics3, IDEFICS, "<end_of_utterance>", {"image_token_id": "<image>"}, {},
        ("<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>",
         *(f"<row_{i}_col_{j}>" for i in (1, 2) for j in (1, 2))),
    ),
    "llava_onevision": Chat(
        _onevision, CHATML, "<|im_end|>",
        {"image_token_index": "<image>", "video_token_index": "<video>"},
        {"image_token": "<image>", "video_token": "<video>"}, IM, loads=False,
    ),
    **{name: Chat(
        make, CHATML.replace("'IMAGE'", "'<|vision_start|>IMAGE<|vision_end|>'"), "<|im_end|>",
        {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>",
         "vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"},
        {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"},
        (*IM, "<|vision_start|>", "<|vision_end|>"), loads=False,
    ) for name, make in (("qwen2_vl", _qwen2), ("qwen2_5_vl", _qwen), ("qwen3_vl", _qwen3))},
    "internvl": Chat(
        _internvl, CHATML, "<|im_end|>", {"image_token_id": "<IMG_CONTEXT>"},
        {"context_image_token": "<IMG_CONTEXT>", "start_image_token": "<img>",
         "end_image_token": "</img>", "video_token": "<video>"}, IM, loads=False,
    ),
}  # fmt: skip


def make_processor(name: str) -> Any:
    """The processor of a family, with its chat template."""
    chat = CHATS[name]
    special = [*dict.fromkeys([*chat.named.values(), *chat.special])]
    tokenizer = Qwen2Tokenizer().train_new_from_iterator(
        WORDS, 420, new_special_tokens=["<pad>", "<s>", "</s>", *special], show_progress=False
    )
    named = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    for key, token in named.items():
        setattr(tokenizer, key, token)
    tokenizer.add_special_tokens({"extra_special_tokens": special})
    for key, token in chat.named.items():
        tokenizer.SPECIAL_TOKENS_ATTRIBUTES = [*tokenizer.SPECIAL_TOKENS_ATTRIBUTES, key]
        setattr(tokenizer, key, token)
    processor = chat.make(tokenizer)
    image = chat.named.get("boi_token", chat.named.get("context_image_token"))
    image = image or chat.named.get("image_token", "<image>")
    stop = chat.stop or ""
    processor.chat_template = chat.template.replace("IMAGE", image).replace("STOP", stop)
    return processor


def make_asked_vlm(name: str, processor: Any) -> Any:
    """A pico VLM of the family whose tokens are the processor's, every weight random."""
    model_type, tokenizer = name.split()[0], processor.tokenizer
    family = FAMILIES[model_type]
    ids = {
        f"{key}_token_id": getattr(tokenizer, f"{key}_token_id") for key in ("pad", "bos", "eos")
    }
    text = make_text(
        family.text, tied=family.tied, vocab_size=len(tokenizer), max_position_embeddings=512, **ids
    )
    config = vlm_config(model_type, text)
    for key, token in CHATS[name].tokens.items():
        setattr(config, key, tokenizer.convert_tokens_to_ids(token))
    if hasattr(config, "image_grid_pinpoints"):
        config.image_grid_pinpoints = processor.image_processor.image_grid_pinpoints
    torch.manual_seed(1)
    return _shake(AutoModelForImageTextToText.from_config(config)).eval()
