"""Which rows of the vocabulary only the VLM has trained, and whether the two vocabularies are one.

From config.json, the processor's files and tokenizer.json of both folders, all read as JSON; what
is done with the rows is `tensor_table`'s job.
Format of tokenizer.json: https://huggingface.co/docs/tokenizers/api/tokenizer
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configs.errors import CheckpointError
from merge.reading.checkpoint import Checkpoint
from train.model.parts import list_first

TOKENIZER_FILE = "tokenizer.json"
PROCESSOR_FILES = ("processor_config.json", "tokenizer_config.json")
IMAGE_KEYS = ("image_token_index", "image_token_id")  # 4.x, 5.x
# Ids in config.json: image, video, vision start and end, Gemma's begin and end of image.
ID_KEY = re.compile(r"(image|img|video|vision|boi|eoi)(_\w+)?_token_(id|index)")
# Tokens in the processor's files: Aya Vision's `start_of_img_token`, Mistral's `image_end_token`.
TOKEN_KEY = re.compile(r"(\w+_)?(image|img|video|vision|boi|eoi|tile)(_\w+)?_token")
# The rules by which tokens are merged, half of a file and, parsed, most of its memory: not read.
MERGES = re.compile(
    rb'"merges"\s*:\s*\[(?:[^\[\]"]|"(?:[^"\\]|\\.)*+"|\[(?:[^\[\]"]|"(?:[^"\\]|\\.)*+")*+\])*+\]',
    re.DOTALL,
)
# A VLM renames a few reserved tokens of its text LM; another tokenizer differs nearly everywhere.
MAX_DIFFERING_RATIO = 0.01
MAX_REPORTED = 100


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of one tokenizer.json."""

    tokens: Mapping[int, str] = field(repr=False)
    """{id: token}, added tokens included."""
    added: Mapping[str, int] = field(repr=False)
    """{added token: id}: special ones, and what else was put beside the trained vocabulary."""


@dataclass(frozen=True)
class Tokens:
    """What is known of the tokens of a VLM and its text LM. All keys of the dicts are row numbers.

    `num_common` counts the ids that both tokenizers have; None when one folder has no
    tokenizer.json, and nothing was compared. `text_end` is the first id from which on neither the
    text LM's tokenizer nor its config has a token; None without its tokenizer.json.
    """

    stated: Mapping[int, str]
    """Multimodal tokens, by the VLM's config and processor: the key that names them."""
    new: Mapping[int, str]
    """Tokens whose id the text LM's tokenizer does not have."""
    differing: Mapping[int, tuple[str, str]]
    """Ids that both have, for another token: (the VLM's, the text LM's)."""
    num_common: int | None
    text_end: int | None

    @property
    def own(self) -> set[int]:
        """Rows that mean another token in the text LM, or none."""
        return self.new.keys() | self.differing.keys()

    @property
    def of_vlm(self) -> set[int]:
        """Embedding rows that only the VLM has trained."""
        return self.stated.keys() | self.own


def compare_tokens(vlm: Checkpoint, text: Checkpoint) -> Tokens:
    """Reads the tokens of both folders. Raises CheckpointError for files that cannot be read."""
    vlm_words, text_words = read_vocabulary(vlm.folder), read_vocabulary(text.folder)
    stated = _stated_ids(vlm.config)
    if vlm_words is not None:
        stated = _stated_tokens(vlm.folder, vlm_words) | stated
    text_end = None if text_words is None else _end(text_words, text.config)
    if vlm_words is None or text_words is None:
        return Tokens(stated, {}, {}, None, text_end)
    common = vlm_words.tokens.keys() & text_words.tokens.keys()
    differing = {
        row: (vlm_words.tokens[row], text_words.tokens[row])
        for row in sorted(common)
        if vlm_words.tokens[row] != text_words.tokens[row]
    }
    new = {row: token for row, token in vlm_words.tokens.items() if row not in common}
    return Tokens(stated, new, differing, len(common), text_end)


def check_tokens(tokens: Tokens) -> None:
    """Raises CheckpointError when the two tokenizers disagree about more than a few ids."""
    if not tokens.num_common:
        return
    ratio = len(tokens.differing) / tokens.num_common
    if ratio <= MAX_DIFFERING_RATIO:
        return
    told = [
        f"{row} is {ours!r} in the vlm and {theirs!r} in the text LM"
        for row, (ours, theirs) in tokens.differing.items()
    ]
    raise CheckpointError(
        f"the two tokenizers disagree about {len(told)} of {tokens.num_common} token ids "
        f"({ratio:.1%}; up to {MAX_DIFFERING_RATIO:.0%} pass as tokens that the vlm renamed): "
        f"{list_first(told)}. Rows of other tokens would be mixed: give the text LM that the VLM "
        "was built from, with its own tokenizer.json, or set force=true to keep all these rows "
        "from the vlm"
    )


def image_token_id(vlm: Checkpoint) -> int:
    """The id of the image placeholder. Raises CheckpointError when config.json has none."""
    for key in IMAGE_KEYS:
        if isinstance(vlm.config.get(key), int):
            return int(vlm.config[key])
    raise CheckpointError(
        f"vlm={vlm.folder}: config.json has no {IMAGE_KEYS[0]} and no {IMAGE_KEYS[1]}; add the id "
        "of the image placeholder, whose row only the vlm has trained"
    )


def describe_tokens(tokens: Tokens, num_rows: int) -> dict[str, Any]:
    """What the report says: each row that is the VLM's, and why (the first MAX_REPORTED).

    Args:
        tokens: of both sides.
        num_rows: rows of the VLM's embedding; ids beyond have none.
    """
    reasons = {row: f"new token {token!r}" for row, token in tokens.new.items()}
    reasons |= {row: f"{a!r}, {b!r} in the text LM" for row, (a, b) in tokens.differing.items()}
    reasons |= dict(tokens.stated)
    kept = [row for row in sorted(reasons) if 0 <= row < num_rows]
    return {
        "num_vlm_rows": len(kept),
        "vlm_rows": {str(row): reasons[row] for row in kept[:MAX_REPORTED]},
        "ids_without_row": [row for row in sorted(tokens.stated) if not 0 <= row < num_rows],
        "num_common_ids": tokens.num_common,
        "num_differing_ids": None if tokens.num_common is None else len(tokens.differing),
    }


def read_vocabulary(folder: Path) -> Vocabulary | None:
    """The tokens of a folder's tokenizer.json; None where there is none."""
    path = folder / TOKENIZER_FILE
    if not path.is_file():
        return None
    try:
        content = _read_object(path, MERGES.sub(b'"merges":[]', path.read_bytes(), count=1))
        added = {str(entry["content"]): int(entry["id"]) for entry in content["added_tokens"] or ()}
        words = (content["model"] or {}).get("vocab", {})
        # Unigram models list [token, score] pairs, whose places are the ids.
        pairs = enumerate(pair[0] for pair in words) if isinstance(words, list) else None
        tokens = dict(pairs) if pairs is not None else {row: token for token, row in words.items()}
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise CheckpointError(f"{path} is not a tokenizer.json: {error!r}") from error
    return Vocabulary(tokens | {row: token for token, row in added.items()}, added)


def _stated_ids(config: Mapping[str, Any]) -> dict[int, str]:
    """{id: key} of the multimodal tokens in config.json."""
    return {
        value: key
        for key, value in config.items()
        if ID_KEY.fullmatch(key) and isinstance(value, int) and not isinstance(value, bool)
    }


def _stated_tokens(folder: Path, words: Vocabulary) -> dict[int, str]:
    """{id: key} of the multimodal tokens in the processor's files.

    Added ones only: a word such as Aya Vision's `TILE` may be a plain token of the vocabulary too.
    """
    found = {}
    for name in PROCESSOR_FILES:
        content = _read_object(folder / name) if (folder / name).is_file() else {}
        for key, value in content.items():
            token = value.get("content") if isinstance(value, dict) else value
            if TOKEN_KEY.fullmatch(key) and isinstance(token, str) and token in words.added:
                found[words.added[token]] = key
    return found


def _end(words: Vocabulary, config: Mapping[str, Any]) -> int:
    """One more than the highest id that the tokenizer or the config of the text LM has."""
    ids = set(words.tokens)
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = config.get(key)
        ids |= set(value if isinstance(value, list) else [value]) - {None}
    return 1 + max(ids, default=-1)


def _read_object(path: Path, data: bytes | None = None) -> dict[str, Any]:
    """A JSON object from disk, or from what was read of it."""
    try:
        content = json.loads(path.read_bytes() if data is None else data)
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not an object")
    return content
