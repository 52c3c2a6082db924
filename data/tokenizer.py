"""A byte-level BPE tokenizer of Cohere's form, and the special tokens pictures need."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import CohereTokenizer, PreTrainedTokenizerBase

from configs.errors import CheckpointError

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
    "<image>",
    "<|START_OF_IMG|>",
    "<|END_OF_IMG|>",
    "<|IMG_PATCH|>",
    "<|IMG_LINE_BREAK|>",
    "TILE_GLOBAL",
    "TILE",
]


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


def prepare_for_images(tokenizer: Any) -> int:
    """Add the image tokens a text LM's tokenizer lacks, and a template that places pictures.

    Returns:
        the number of tokens added.

    Raises:
        CheckpointError: the tokenizer has no Cohere turn tokens to build the template on.
    """
    vocabulary = tokenizer.get_vocab()
    lacking = [token for token in TURN_TOKENS if token not in vocabulary]
    if lacking:
        raise CheckpointError(
            f"the text LM's tokenizer has no {', '.join(lacking)}; so far only Cohere's turn "
            "tokens are supported: give a Command R / Aya text LM as model.decoder.path"
        )
    missing = [token for token in IMAGE_TOKENS if token not in vocabulary]
    added = tokenizer.add_special_tokens({"extra_special_tokens": missing}) if missing else 0
    tokenizer.chat_template = CHAT_TEMPLATE.read_text(encoding="utf-8")
    return int(added)
