"""A byte-level BPE tokenizer of Cohere's form, and what a text LM's own needs for pictures."""

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import (
    AutoTokenizer,
    CohereTokenizer,
    GemmaTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
)

from configs.errors import CheckpointError
from data.picture_template import PLACEHOLDER, with_pictures

log = logging.getLogger(__name__)
CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja")
TURN_TOKENS = [
    "<|START_OF_TURN_TOKEN|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|USER_TOKEN|>",
    "<|CHATBOT_TOKEN|>",
    "<|SYSTEM_TOKEN|>",
]
# Names that AyaVisionProcessor looks for. `TILE_1`, `TILE_2` ... are plain text, as upstream.
IMAGE_TOKENS = [
    PLACEHOLDER,
    "<|START_OF_IMG|>",
    "<|END_OF_IMG|>",
    "<|IMG_PATCH|>",
    "<|IMG_LINE_BREAK|>",
    "TILE_GLOBAL",
    "TILE",
]
# What a text LM without the last two is given instead: as special tokens they would be cut out of
# words that it reads today ("REPTILES").
TILE_TOKENS = {"TILE_GLOBAL": "<|TILE_GLOBAL|>", "TILE": "<|TILE|>"}
# Classes that are what they were once they are saved (tests/data/test_picture_template.py). Of any
# other this is tried, which takes 6 seconds for 250,000 tokens.
SAVED_WHOLE = (CohereTokenizer, GemmaTokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer)
ADDED = "ids_added_for_images"  # attribute of a tokenizer; not saved with it


def train_tokenizer(texts: Iterable[str], *, vocab_size: int) -> PreTrainedTokenizerBase:
    """Return a tokenizer of at most `vocab_size` tokens, with Aya's special tokens and template."""
    tokenizer = CohereTokenizer().train_new_from_iterator(
        texts,
        vocab_size,
        new_special_tokens=[*TURN_TOKENS, *IMAGE_TOKENS],
        show_progress=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE.read_text(encoding="utf-8")
    return tokenizer


def prepare_for_images(tokenizer: Any) -> Any:
    """Return a text LM's tokenizer with what it lacks for pictures: tokens, template, padding.

    Its chat template stays, see `data/picture_template.py`; where it has none and Cohere's turn
    tokens, it gets ours. `ids_added` tells which tokens are new. The given one is changed.

    Raises:
        CheckpointError: it has no chat template, or one that pictures cannot be written with.
    """
    known = {token.content for token in tokenizer.added_tokens_decoder.values()}
    if tokenizer.chat_template is None:
        tokenizer.chat_template = _our_template(known)
    tokenizer.chat_template, placeholder = with_pictures(tokenizer)
    missing = [t for t in (placeholder, *_names(known).values()) if t not in known]
    before = len(tokenizer)
    tokenizer.add_special_tokens(
        {"extra_special_tokens": missing}, replace_extra_special_tokens=False
    )
    if tokenizer.pad_token is None:  # AyaVisionProcessor pads even what is alone
        tokenizer.pad_token = tokenizer.eos_token
    _add_nothing_more(tokenizer)
    tokenizer = _as_it_is_saved(tokenizer)
    added = list(range(before, len(tokenizer)))
    setattr(tokenizer, ADDED, added)
    if added:
        log.info("tokenizer: added %s", ", ".join(missing))
    return tokenizer


def ids_added(tokenizer: Any) -> list[int]:
    """Return the ids that `prepare_for_images` has added to this tokenizer."""
    return list(getattr(tokenizer, ADDED, ()))


def processor_tokens(tokenizer: Any) -> dict[str, str]:
    """Return {argument of AyaVisionProcessor: token} of a tokenizer that is made for images."""
    known = {token.content for token in tokenizer.added_tokens_decoder.values()}
    return {"image_token": with_pictures(tokenizer)[1], **_names(known)}


def _names(known: set[str]) -> dict[str, str]:
    """Return {argument of AyaVisionProcessor: token}, without the placeholder."""
    tile, tile_global = (
        name if name in known else TILE_TOKENS[name] for name in ("TILE", "TILE_GLOBAL")
    )
    return {
        "start_of_img_token": "<|START_OF_IMG|>",
        "end_of_img_token": "<|END_OF_IMG|>",
        "img_patch_token": "<|IMG_PATCH|>",
        "img_line_break_token": "<|IMG_LINE_BREAK|>",
        "tile_token": tile,
        "tile_global_token": tile_global,
    }


def _our_template(known: set[str]) -> str:
    lacking = [token for token in TURN_TOKENS if token not in known]
    if lacking:
        raise CheckpointError(
            "the text LM's tokenizer has no chat template, so questions and answers cannot be "
            "written; put a chat_template.jinja into its folder, such as that of the instruct "
            "model of its family"
        )
    return CHAT_TEMPLATE.read_text(encoding="utf-8")


def _add_nothing_more(tokenizer: Any) -> None:
    """See that users of the processor get the tokens that were trained on.

    We tokenize what the chat template writes and nothing more; transformers' processors (5.23) let
    the tokenizer add its tokens where the template itself writes no BOS.
    """
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    starts_itself = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
    if (
        starts_itself
        or tokenizer(text).input_ids == tokenizer(text, add_special_tokens=False).input_ids
    ):
        return
    tokenizer.init_kwargs |= {"add_bos_token": False, "add_eos_token": False}  # as it is saved
    tokenizer.add_bos_token = tokenizer.add_eos_token = False
    log.info("tokenizer: adds no BOS or EOS by itself any more; the chat template writes none")


def _as_it_is_saved(tokenizer: Any) -> Any:
    """Return a tokenizer that reads words the same once it is saved and loaded.

    Classes of transformers (5.23) build themselves anew from what they save, and not all of it is
    saved: of LlamaTokenizer's `legacy`, a space before each stretch of text is lost. The class that
    is none of them takes its file as it is.
    """
    is_fast = getattr(tokenizer, "is_fast", False)  # others are refused with the first row
    if not is_fast or type(tokenizer) in SAVED_WHOLE:
        return tokenizer
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        again: Any = AutoTokenizer.from_pretrained(folder)
    if _rules(again) == _rules(tokenizer):
        return tokenizer
    log.info("tokenizer: a %s is not what it was once it is saved; taken as a plain %s",
             type(tokenizer).__name__, PreTrainedTokenizerFast.__name__)  # fmt: skip
    plain: Any = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        chat_template=tokenizer.chat_template,
        model_max_length=tokenizer.model_max_length,
        padding_side=tokenizer.padding_side,
        clean_up_tokenization_spaces=False,
        extra_special_tokens=list(tokenizer.extra_special_tokens),
        **tokenizer.special_tokens_map,
    )
    return plain


def _rules(tokenizer: Any) -> dict[str, Any]:
    """Return how text is read, but for padding and truncation."""
    told = json.loads(tokenizer.backend_tokenizer.to_str())
    return {key: value for key, value in told.items() if key not in ("padding", "truncation")}
