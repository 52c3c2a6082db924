"""A row becomes token ids and a mask of which tokens are supervised.

The text is what the processor's own chat template writes (`data/template.py`). Supervised are the
assistant's answers with the special token that ends them; prompts, image placeholders and tile tags
never are. Lengths come from image headers: no pixel is decoded here.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding

from configs.errors import DataError
from data.cache import digest
from data.rows import IMAGE, ImageRef, Row, question
from data.template import ChatTemplate, Span, any_of, special_tokens

IGNORED = -100  # label of a token that is not supervised (torch's cross entropy)
START = itemgetter(0)  # of the (start, end) of a token in its text

COMPARED = 32  # rows with pictures that are tokenized in two ways before one is trusted


@dataclass(frozen=True)
class Sample:
    """A row as the model will read it."""

    row: Row
    input_ids: npt.NDArray[np.int32]  # [T]
    supervised: npt.NDArray[np.bool_]  # [T]
    num_tiles: tuple[int, ...]  # of each picture

    @property
    def language(self) -> str:
        """ISO 639-1, of the row."""
        return self.row.language

    @property
    def num_tokens(self) -> int:
        """T, image tokens included."""
        return len(self.input_ids)

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """[T] token ids where supervised, IGNORED elsewhere; not shifted."""
        return np.where(self.supervised, self.input_ids, IGNORED).astype(np.int64)


class Renderer:
    """Renders rows with one tokenizer or processor of transformers."""

    def __init__(self, processing_class: Any) -> None:
        """Take an `AyaVisionProcessor`, or a tokenizer for a text LM."""
        self.processing_class = processing_class
        self.tokenizer = getattr(processing_class, "tokenizer", processing_class)
        self.image_processor = getattr(processing_class, "image_processor", None)
        self.template = ChatTemplate(processing_class)
        self._image_texts: dict[int, str] = {}
        self._image_tokens: dict[int, npt.NDArray[np.int32]] = {}
        self._seen_tiles: set[int] = set()  # numbers of tiles for which both ways were compared
        self._num_compared = 0  # rows

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what it is made of: what it has worked out is soon worked out again."""
        return type(self), (self.processing_class,)

    @cached_property
    def placeholder(self) -> str:
        """What the chat template writes where a picture stands."""
        return str(self.processing_class.image_token)

    @cached_property
    def reserved(self) -> re.Pattern[str]:
        """What no row may say: special tokens, which would be read as turns or as pictures."""
        return any_of(special_tokens(self.tokenizer).values())

    @cached_property
    def stop_token_id(self) -> int:
        """The token that ends an answer, at which a model that answers is to be stopped."""
        sample = self.render(Row("?", "?", "en", question("?", "!")))
        return int(sample.input_ids[sample.supervised][-1])

    def render(
        self,
        row: Row,
        *,
        max_tokens: int | None = None,
        max_tiles: int | None = None,
        check: bool = False,
    ) -> Sample:
        """Render one row.

        Args:
            row: the conversation.
            max_tokens: most tokens; None: no limit.
            max_tiles: most tiles of all its pictures; None: no limit.
            check: also hold the ids before each answer against those of the prompt alone, and see
                what is supervised. Once a row is enough: it tokenizes each prompt again.

        Raises:
            DataError: no answer, wrong number of pictures, special tokens in its words, longer
                than a pack may be, or a chat template whose answers cannot be told from its
                prompts.
        """
        self._check_row(row)
        num_tiles = tuple(self.count_tiles(image) for image in row.images)
        if max_tiles is not None and sum(num_tiles) > max_tiles:
            raise DataError(over_budget("max_tiles", sum(num_tiles), max_tiles))
        text, answers = self.template.text_and_answers(row.turns)
        if self._may_splice(num_tiles):
            ids, mask = self._spliced(text, answers, num_tiles, check=check)
        else:
            ids, mask = self._whole(text, answers, num_tiles, check=check)
        if max_tokens is not None and len(ids) > max_tokens:
            raise DataError(over_budget("max_tokens", len(ids), max_tokens))
        sample = Sample(row, ids, mask, num_tiles)
        if check:
            self.check_supervised(sample)
        return sample

    def prompt(self, row: Row) -> str:
        """Return the text up to where the last answer begins, for generation."""
        num_tiles = tuple(self.count_tiles(image) for image in row.images)
        return self._expand(self.template.prompt(row.turns), [], num_tiles)[0]

    def count_tiles(self, image: ImageRef) -> int:
        """Return into how many tiles the image processor will cut a picture, from its size."""
        if self.image_processor is None:
            raise DataError("has a picture, but a text LM takes text alone")
        width, height = image.size()
        return int(self.image_processor.get_number_of_image_patches(height, width, {}))

    def check_supervised(self, sample: Sample) -> None:
        """Refuse a sample of which nothing, or a part of a picture, is supervised.

        Raises:
            DataError: saying what.
        """
        learned = set(sample.input_ids[sample.supervised].tolist())
        if not learned:
            raise DataError("no token of it is supervised, so nothing would be learned from it")
        if wrong := sorted(learned & self.template.picture_ids):
            raise DataError(
                f"its answers hold {self.tokenizer.decode(wrong[0])!r}, with which pictures are "
                "written: an image token would be supervised; take pictures and tile tags out of "
                "answers"
            )

    def fingerprint(self) -> str:
        """Return a digest of all that decides what a row becomes: equal for equal folders.

        Worked out once: of a vocabulary of 256,000 it takes most of a second.
        """
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        told: list[object] = [self.template.source, _told_of_tokenizer(self.tokenizer)]
        if self.image_processor is not None:
            plain = {
                name: value
                for name, value in vars(self.processing_class).items()
                if isinstance(value, str | int | float) and name != "chat_template"
            }
            told += [type(self.processing_class).__name__, plain]
            told += [type(self.image_processor).__name__, self.image_processor.to_dict()]
        return digest(told)

    def _check_row(self, row: Row) -> None:
        if not row.turns or row.turns[-1].role != "assistant":
            raise DataError("does not end with an answer of the assistant")
        for turn in row.turns:
            if turn.role == "assistant" and not turn.text.strip():
                raise DataError("has an empty answer")
            if found := self.reserved.search(turn.text):
                raise DataError(
                    f"its words hold {found.group()!r}, a special token of the tokenizer; "
                    "take it out of the row"
                )
        placeholders = sum(turn.content.count(IMAGE) for turn in row.turns)
        if placeholders != len(row.images):
            raise DataError(f"has {len(row.images)} pictures for {placeholders} places")

    def _expand(
        self, text: str, spans: list[Span], num_tiles: Sequence[int]
    ) -> tuple[str, list[Span]]:
        """Write each picture's tokens in the place of its placeholder, and move the spans along."""
        if not num_tiles:
            return text, spans
        pieces = text.split(self.placeholder)
        if len(pieces) != len(num_tiles) + 1:
            raise DataError(
                f"the chat template writes {self.placeholder!r} {len(pieces) - 1} times for "
                f"{len(num_tiles)} pictures; it must write it once for each"
            )
        joined, ends, gains = [pieces[0]], [], [0]  # ends of placeholders, characters gained
        end = 0
        for tiles, before, after in zip(num_tiles, pieces, pieces[1:], strict=False):
            image = self._image_text(tiles)
            joined += [image, after]
            end += len(before) + len(self.placeholder)
            ends.append(end)
            gains.append(gains[-1] + len(image) - len(self.placeholder))

        def moved(position: int) -> int:
            return position + gains[bisect_right(ends, position)]

        return "".join(joined), [(moved(start), moved(end)) for start, end in spans]

    def _image_text(self, num_tiles: int) -> str:
        if num_tiles not in self._image_texts:
            self._image_texts[num_tiles] = image_text(self.processing_class, num_tiles)
        return self._image_texts[num_tiles]

    # ---------------------------------------------------------------------------- tokens

    def _may_splice(self, num_tiles: tuple[int, ...]) -> bool:
        """Whether a text with pictures may be tokenized with its placeholders in it.

        A picture is written with up to thousands of tokens, always the same ones for so many tiles:
        reading them takes ten times as long as all the rest. They stand between special tokens, at
        which a tokenizer cuts the text anyway, so they may be put in afterwards. That is not only
        reasoned: both ways are compared for the first rows, and for each new number of tiles.
        """
        if not num_tiles or not self._cuts_around_pictures:
            return False
        return self._num_compared >= COMPARED and self._seen_tiles.issuperset(num_tiles)

    @cached_property
    def _cuts_around_pictures(self) -> bool:
        """Whether placeholder and ends of a picture are special tokens that keep to themselves."""
        added = self.tokenizer.added_tokens_decoder
        placeholder = self.tokenizer.convert_tokens_to_ids(self.placeholder)
        ids = self._image_ids(1)
        return not self.tokenizer.split_special_tokens and all(
            (token := added.get(int(number))) is not None
            and not (token.lstrip or token.rstrip or token.single_word or token.normalized)
            for number in (placeholder, ids[0], ids[-1])
        )

    def _image_ids(self, num_tiles: int) -> npt.NDArray[np.int32]:
        """Return [tokens] what a picture of so many tiles is written with."""
        if num_tiles not in self._image_tokens:
            ids = self._encode(self._image_text(num_tiles)).ids
            self._image_tokens[num_tiles] = np.array(ids, dtype=np.int32)
        return self._image_tokens[num_tiles]

    def _whole(
        self, text: str, answers: list[Span], num_tiles: tuple[int, ...], *, check: bool
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
        """Return ids [T] and mask [T] of a text, all of it tokenized."""
        full, spans = self._expand(text, answers, num_tiles)
        encoding = self._encode(full)
        if check:
            self._check_prompts(full, encoding.ids, spans)
        ids, mask = np.array(encoding.ids, dtype=np.int32), self._mask(encoding, spans)
        if num_tiles and self._cuts_around_pictures:
            other_ids, other_mask = self._spliced(text, answers, num_tiles, check=False)
            self._num_compared += 1
            self._seen_tiles.update(num_tiles)
            if not (np.array_equal(ids, other_ids) and np.array_equal(mask, other_mask)):
                self._cuts_around_pictures = False  # from now on the long way
        return ids, mask

    def _spliced(
        self, text: str, answers: list[Span], num_tiles: tuple[int, ...], *, check: bool
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
        """Return ids [T] and mask [T] of a text, pictures put in where their placeholders are."""
        encoding = self._encode(text)
        ids, mask = np.array(encoding.ids, dtype=np.int32), self._mask(encoding, answers)
        places = np.flatnonzero(ids == self.tokenizer.convert_tokens_to_ids(self.placeholder))
        if len(places) != len(num_tiles):
            self._expand(text, answers, num_tiles)  # raises with the reason
        if check:
            self._check_prompts(text, encoding.ids, answers)
        ids_of, mask_of, end = [], [], 0
        for place, tiles in zip(places.tolist(), num_tiles, strict=False):
            picture = self._image_ids(tiles)
            ids_of += [ids[end:place], picture]
            mask_of += [mask[end:place], np.repeat(mask[place], len(picture))]
            end = place + 1
        return np.concatenate([*ids_of, ids[end:]]), np.concatenate([*mask_of, mask[end:]])

    def _encode(self, text: str) -> Encoding:
        """Return the tokens of a text and their places in it.

        As the tokenizer's own call does with one text; that takes three times as long.
        """
        tokenizer = self.tokenizer
        backend = _backend(tokenizer)
        if backend is None:
            raise DataError(
                f"{type(tokenizer).__name__} does not say where in a text its tokens stand; "
                "give a tokenizer that has a tokenizer.json"
            )
        if backend.encode_special_tokens != tokenizer.split_special_tokens:
            backend.encode_special_tokens = tokenizer.split_special_tokens
        try:
            return backend.encode(text, add_special_tokens=False)
        except TypeError as error:
            raise DataError(
                "its words hold half a character (a lone surrogate), which no tokenizer reads"
            ) from error

    def _mask(self, encoding: Encoding, answers: list[Span]) -> npt.NDArray[np.bool_]:
        """Return [T] true from the first token of each answer to the special token that ends it."""
        offsets = encoding.offsets
        mask = np.zeros(len(offsets), dtype=np.bool_)
        for start, end in answers:
            first = bisect_left(offsets, start, key=START)
            if first and offsets[first - 1][1] > start:
                raise DataError("a token lies half in the prompt and half in the answer")
            mask[first : bisect_left(offsets, end, key=START)] = True
        return mask

    def _check_prompts(self, text: str, ids: list[int], answers: list[Span]) -> None:
        """Refuse a text whose tokens before an answer are not those of its prompt alone.

        The prompt alone is what the model will read when it is to answer.
        """
        for start, _ in answers:
            alone = self._encode(text[:start]).ids
            if alone == ids[: len(alone)]:
                continue
            pairs = zip(alone, ids, strict=False)
            at = next((i for i, (one, two) in enumerate(pairs) if one != two), len(ids))
            one, two = (repr(self.tokenizer.decode(found[at : at + 1])) for found in (alone, ids))
            raise DataError(
                f"the tokenizer ({type(self.tokenizer).__name__}) reads the prompt otherwise once "
                f"the answer follows: token {at} is {one} in the prompt alone and {two} in the "
                "whole; let the chat template end its generation prompt with a special token or a "
                "line break"
            )


def over_budget(key: str, number: int, budget: int) -> str:
    """Return why a row cannot be packed: it has more of what `data.<key>` limits."""
    what = {"max_tokens": "tokens", "max_tiles": "image tiles"}[key]
    return f"has {number} {what}, more than data.{key}={budget}"


def image_text(processor: Any, num_tiles: int) -> str:
    """Return what the processor writes for a picture of `num_tiles` tiles."""
    return str(processor.replace_image_token({"num_patches": [num_tiles]}, 0))


def _backend(tokenizer: Any) -> Any:
    """Return the tokenizer's part that is written in Rust, or None where it has none.

    Without the padding and truncation that the last call of it has left in it.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and backend.padding is not None:
        backend.no_padding()
    if backend is not None and backend.truncation is not None:
        backend.no_truncation()
    return backend


def _told_of_tokenizer(tokenizer: Any) -> list[object]:
    backend = _backend(tokenizer)
    if backend is None:
        words: object = [tokenizer.get_vocab(), special_tokens(tokenizer)]
    else:
        words = backend.to_str()
    named = tokenizer.special_tokens_map
    return [type(tokenizer).__name__, named, tokenizer.split_special_tokens, words]
