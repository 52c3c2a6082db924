"""A row becomes token ids and a mask of which tokens are supervised.

The text is what the processor's own chat template writes. Supervised are the assistant's answers
with their end-of-turn token; prompts, image placeholders and tile tags never are. Lengths come
from image headers: no pixel is decoded here.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import TemplateError

from configs.errors import DataError
from data.rows import IMAGE, ImageRef, Row, Turn

IGNORED = -100  # label of a token that is not supervised (torch's cross entropy)


@dataclass(frozen=True)
class Sample:
    """A row as the model will read it."""

    row: Row
    input_ids: npt.NDArray[np.int32]  # [T]
    supervised: npt.NDArray[np.bool_]  # [T]
    num_tiles: tuple[int, ...]  # of each picture

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

    @cached_property
    def placeholder(self) -> str:
        """What the chat template writes where a picture stands."""
        return str(self.processing_class.image_token)

    @cached_property
    def generation_prompt(self) -> str:
        """What the chat template writes before an answer."""
        turn = [self._message(Turn("user", ("?",)))]
        without = self._apply(turn, add_generation_prompt=False)
        return self._apply(turn, add_generation_prompt=True)[len(without) :]

    @cached_property
    def reserved(self) -> re.Pattern[str]:
        """What no row may say: special tokens, which would be read as turns or as pictures."""
        added = self.tokenizer.added_tokens_decoder.values()
        tokens = [token.content for token in added if token.special]
        # Upstream makes special tokens of words, too: `TILE`.
        tokens = [token for token in tokens if not token.replace("_", "").isalnum()]
        return re.compile("|".join(map(re.escape, tokens)) or "(?!)")

    def render(self, row: Row, *, max_tokens: int, max_tiles: int) -> Sample:
        """Render one row.

        Raises:
            DataError: no answer, wrong number of pictures, special tokens in its words, longer
                than a pack may be, or a chat template whose answers cannot be told from its
                prompts.
        """
        self._check(row)
        num_tiles = tuple(self.count_tiles(image) for image in row.images)
        if sum(num_tiles) > max_tiles:
            raise DataError(
                f"has {sum(num_tiles)} image tiles, more than data.max_tiles={max_tiles}"
            )
        text, answers = self._text_and_answers(row, num_tiles)
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = np.asarray(encoded["input_ids"], dtype=np.int32)
        if len(ids) > max_tokens:
            raise DataError(f"has {len(ids)} tokens, more than data.max_tokens={max_tokens}")
        supervised = self._mask(ids, np.asarray(encoded["offset_mapping"]), answers)
        return Sample(row, ids, supervised, num_tiles)

    def prompt(self, row: Row) -> str:
        """Return the text up to where the last answer begins, for generation."""
        messages = [self._message(turn) for turn in row.turns]
        text = self._apply(messages[:-1], add_generation_prompt=True)
        num_tiles = tuple(self.count_tiles(image) for image in row.images)
        return self._expand(text, list(num_tiles))[0]

    def count_tiles(self, image: ImageRef) -> int:
        """Return into how many tiles the image processor will cut a picture, from its size."""
        if self.image_processor is None:
            raise DataError("has a picture, but a text LM takes text alone")
        width, height = image.size()
        return int(self.image_processor.get_number_of_image_patches(height, width, {}))

    def _check(self, row: Row) -> None:
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

    def _message(self, turn: Turn) -> dict[str, Any]:
        """Return a turn in the form the template takes: pieces for processors, text for text LMs.

        The templates of text LMs would write a list of pieces as Python does.
        """
        if self.image_processor is None:
            return {"role": turn.role, "content": turn.text}
        pieces = [
            {"type": "image"} if piece is IMAGE else {"type": "text", "text": piece}
            for piece in turn.content
        ]
        return {"role": turn.role, "content": pieces}

    def _apply(self, messages: list[dict[str, Any]], *, add_generation_prompt: bool) -> str:
        try:
            return str(
                self.processing_class.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=add_generation_prompt
                )
            )
        except TemplateError as error:
            raise DataError(f"the chat template refuses the row: {error}") from error

    def _text_and_answers(
        self, row: Row, num_tiles: tuple[int, ...]
    ) -> tuple[str, list[tuple[int, int]]]:
        """Return the whole text and the (start, end) of each answer in it, in characters."""
        messages = [self._message(turn) for turn in row.turns]
        full = self._apply(messages, add_generation_prompt=False)
        answers = []
        for index, turn in enumerate(row.turns):
            if turn.role != "assistant":
                continue
            before = self._before_answer(messages, index, full)
            last = index + 1 == len(messages)
            upto = full if last else self._apply(messages[: index + 1], add_generation_prompt=False)
            if not (upto.startswith(before) and full.startswith(upto)):
                raise DataError(
                    "the chat template writes an earlier turn differently once a later one "
                    "follows, so answers cannot be told from prompts; simplify the template"
                )
            answers.append((len(before), len(upto)))
        return self._expand(full, list(num_tiles), answers)

    def _before_answer(self, messages: list[dict[str, Any]], index: int, full: str) -> str:
        if index:
            return self._apply(messages[:index], add_generation_prompt=True)
        # A plain text has no turn before it, and transformers renders no empty conversation.
        at = full.find(self.generation_prompt)
        return full[: max(at, 0) + len(self.generation_prompt)]

    def _expand(
        self, text: str, num_tiles: list[int], spans: list[tuple[int, int]] | None = None
    ) -> tuple[str, list[tuple[int, int]]]:
        """Write each picture's tokens in the place of its placeholder, and move the spans along."""
        spans = spans or []
        if not num_tiles:
            return text, spans
        pieces = text.split(self.placeholder)
        if len(pieces) != len(num_tiles) + 1:
            raise DataError(
                f"the chat template writes {self.placeholder!r} {len(pieces) - 1} times for "
                f"{len(num_tiles)} pictures; it must write it once for each"
            )
        images = [image_text(self.processing_class, tiles) for tiles in num_tiles]
        ends = np.cumsum([len(piece) + len(self.placeholder) for piece in pieces[:-1]])
        gains = np.cumsum([len(image) - len(self.placeholder) for image in images])

        def moved(position: int) -> int:
            passed = int(np.searchsorted(ends, position, side="right"))
            return position + (int(gains[passed - 1]) if passed else 0)

        joined = pieces[0] + "".join(
            image + piece for image, piece in zip(images, pieces[1:], strict=True)
        )
        return joined, [(moved(start), moved(end)) for start, end in spans]

    def _mask(
        self,
        ids: npt.NDArray[np.int32],
        offsets: npt.NDArray[np.int64],
        answers: list[tuple[int, int]],
    ) -> npt.NDArray[np.bool_]:
        """Return [T] true from the first token of each answer to its end-of-turn token."""
        mask = np.zeros(len(ids), dtype=np.bool_)
        for start, end in answers:
            straddles = (offsets[:, 0] < start) & (offsets[:, 1] > start)
            if straddles.any():
                raise DataError("a token lies half in the prompt and half in the answer")
            inside = np.flatnonzero((offsets[:, 0] >= start) & (offsets[:, 1] <= end))
            stops = inside[ids[inside] == self.tokenizer.eos_token_id]
            if not len(stops):
                raise DataError(
                    "the chat template does not end an answer with the end-of-sequence token "
                    f"{self.tokenizer.eos_token!r}, so the model would not learn to stop"
                )
            mask[inside[0] : stops[-1] + 1] = True
        return mask


def image_text(processor: Any, num_tiles: int) -> str:
    """Return what the processor writes for a picture of `num_tiles` tiles."""
    return str(processor.replace_image_token({"num_patches": [num_tiles]}, 0))
