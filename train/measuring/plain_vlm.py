"""Any vision-language model of transformers, measured by its own processor, template and forward.

Aya Vision models and text LMs are measured in packs, by train/measuring/evaluation.py. Here nothing
is known of the family: a row goes through `apply_chat_template`, one at a time where losses are
wanted, and its answer is what the chat template adds to the prompt.
"""

import inspect
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jinja2 import TemplateError
from PIL import Image
from torch.nn import functional
from transformers import AutoProcessor

from configs.errors import CheckpointError, DataError, first_line
from data.processor import load
from data.rows import IMAGE, Row, Turn
from train.measuring.logit_factor import logit_factor
from train.model.load import load_vlm

log = logging.getLogger(__name__)
Pictures = Sequence[Image.Image]  # shown with one row, in its order
NO_QUESTION = Turn("user", ("",))  # before plain text: templates want turns to alternate
REFUSALS = (ValueError, TypeError, RuntimeError, IndexError, TemplateError)  # of a processor
PROBE = (Turn("user", ("a",)), Turn("assistant", ("a",)))  # a letter: it joins a space before it


@dataclass(frozen=True)
class _Encoded:
    """What a row is to the model: its inputs, each [1, ...], and where its answer stands."""

    inputs: dict[str, torch.Tensor]
    start: int  # first token of the answer
    end: int  # behind its last one


def own_pictures(row: Row) -> list[Image.Image]:
    """Return the pictures of a row, decoded."""
    return [image.load() for image in row.images]


def blank_pictures(pictures: Pictures) -> list[Image.Image]:
    """Return grey pictures of the same sizes, for the blind control."""
    return [Image.new("RGB", picture.size, (128, 128, 128)) for picture in pictures]


class PlainVlm:
    """A model and its processor. `pictures` of all methods holds those to show with each row."""

    def __init__(
        self, model: Any, processor: Any, *, batch_size: int = 8, max_new_tokens: int = 64
    ) -> None:
        """Take a model and its processor, and see whether its chat template can be measured.

        Raises:
            CheckpointError: no chat template, one that cannot tell an answer from its prompt, or
                logits that differ from the text class's by more than a known factor.
        """
        self.model, self.processor = model.eval(), processor
        self.tokenizer = processor.tokenizer
        self.batch_size, self.max_new_tokens = batch_size, max_new_tokens
        if not getattr(processor, "chat_template", None):
            raise CheckpointError(
                f"the {type(processor).__name__} of this {model.config.model_type} has no chat "
                "template, so it is not known how it is asked; put chat_template.jinja into its "
                "folder (families without one, as paligemma, are not measured)"
            )
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.factor = logit_factor(model)
        self.stop_token_id = self._find_stop_token()
        if self.stop_token_id is None:
            log.warning("the chat template of this %s ends answers with no special token; they go "
                        "on to the model's own end of text", model.config.model_type)  # fmt: skip
        takes = inspect.signature(model.forward).parameters
        self._takes_logits_to_keep = "logits_to_keep" in takes
        self._can_batch = True

    @classmethod
    def from_folder(
        cls,
        path: str,
        *,
        dtype: torch.dtype | str = "auto",
        device: torch.device | str = "cpu",
        **kwargs: Any,
    ) -> "PlainVlm":
        """Return the model of a folder or a hub id with its processor.

        Raises:
            CheckpointError: it holds no such thing, or its processor needs what is not installed.
        """
        try:
            processor = load("processor", AutoProcessor, path)
        except ImportError as error:  # the video half of many processors needs torchvision
            raise CheckpointError(
                f"the processor in {path!r} cannot be loaded here: {first_line(error)}\n"
                "  install what it names (torchvision, num2words, ...)"
            ) from error
        model: Any = load_vlm(path, dtype=dtype)
        model.to(device)
        return cls(model, processor, **kwargs)

    @torch.no_grad()
    def token_losses(
        self,
        rows: Sequence[Row],
        pictures: Sequence[Pictures],
        answers: Sequence[str] | None = None,
    ) -> list[torch.Tensor]:
        """Return for each row [S] float32 on the CPU: nats of the tokens of its last answer.

        With the token that ends it, where the template writes one. Plain text stands behind an
        empty question and is supervised whole.

        Args:
            rows: conversations that end with an answer.
            pictures: shown with each row in the place of its own.
            answers: texts in the place of each row's own answer, for the choice among captions.

        Raises:
            DataError: a row that the processor does not take, or whose prompt is no beginning of
                the whole.
        """
        texts = answers or [row.turns[-1].text for row in rows]
        found = []
        for row, shown, text in zip(rows, pictures, texts, strict=True):
            encoded = self._encode(row, (*_question(row), Turn("assistant", (text,))), shown)
            found.append(self._losses(encoded))
        return found

    @torch.no_grad()
    def answers(self, rows: Sequence[Row], pictures: Sequence[Pictures]) -> list[str]:
        """Return greedy answers to the last question of each row, in the rows' order.

        In batches, padded on the left. A processor that takes no batch is asked row by row, which
        is said in the log once.
        """
        found = [""] * len(rows)
        for chunk in self._chunks(rows, pictures):
            texts = self._generate([rows[i] for i in chunk], [pictures[i] for i in chunk])
            for i, text in zip(chunk, texts, strict=True):
                found[i] = text
        return found

    def _chunks(self, rows: Sequence[Row], pictures: Sequence[Pictures]) -> Iterator[list[int]]:
        """Yield numbers of rows with as many pictures; alike lengths together: less padding."""
        order = sorted(
            range(len(rows)),
            key=lambda i: (len(pictures[i]), sum(len(turn.text) for turn in _question(rows[i]))),
        )
        chunk: list[int] = []
        for i in order:
            if chunk and (
                len(chunk) == self.batch_size or len(pictures[i]) != len(pictures[chunk[0]])
            ):
                yield chunk
                chunk = []
            chunk.append(i)
        if chunk:
            yield chunk

    def _generate(self, rows: list[Row], pictures: list[Pictures]) -> list[str]:
        if len(rows) > 1 and not self._can_batch:
            pairs = zip(rows, pictures, strict=True)
            return [text for row, shown in pairs for text in self._generate([row], [shown])]
        try:
            pairs = zip(rows, pictures, strict=True)
            asked = [_messages(_question(row), shown) for row, shown in pairs]
            inputs = self._process(asked, prompt=True)
        except REFUSALS as error:
            if len(rows) == 1:
                raise DataError(f"{rows[0]}: cannot be asked: {first_line(error)}") from error
            log.info("%s takes no batch (%s): answers are generated one at a time",
                     type(self.processor).__name__, first_line(error))  # fmt: skip
            self._can_batch = False
            return self._generate(rows, pictures)
        out = self.model.generate(
            **inputs,
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            use_cache=True,
            pad_token_id=self.tokenizer.pad_token_id,
            eos_token_id=self._stop_token_ids(),
        )
        new = out[:, inputs["input_ids"].shape[1] :]
        return list(self.tokenizer.batch_decode(new, skip_special_tokens=True))

    def _stop_token_ids(self) -> list[int] | None:
        """Return what ends an answer: the model's own tokens, and the template's."""
        own = self.model.generation_config.eos_token_id
        own = self.tokenizer.eos_token_id if own is None else own
        ids = {own} if isinstance(own, int) else set(own or ())
        ids |= set() if self.stop_token_id is None else {self.stop_token_id}
        return sorted(ids) or None

    def _losses(self, encoded: _Encoded) -> torch.Tensor:
        """Return [S] float32: nats of tokens start to end, each predicted by the one before it."""
        ids = encoded.inputs["input_ids"][0]
        num_last = len(ids) - encoded.start + 1  # from the last token of the prompt on
        keep = {"logits_to_keep": num_last} if self._takes_logits_to_keep else {}
        logits = self.model(**encoded.inputs, **keep).logits[0, -num_last:]
        targets = ids[encoded.start : encoded.end]
        chosen = logits[: len(targets)].float() * self.factor
        return functional.cross_entropy(chosen, targets, reduction="none").cpu()

    def _find_stop_token(self) -> int | None:
        """Return the special token that the chat template writes behind an answer, if any."""
        try:
            probe = self._split(PROBE, [])
        except REFUSALS as error:
            raise CheckpointError(
                f"the chat template of this {self.model.config.model_type} cannot be used to "
                f"measure it: {first_line(error)}"
            ) from error
        last = int(probe.inputs["input_ids"][0, probe.end - 1])
        return last if self._is_special(last) else None

    def _encode(self, row: Row, turns: Sequence[Turn], shown: Pictures) -> _Encoded:
        try:
            return self._split(turns, shown)
        except REFUSALS as error:
            raise DataError(f"{row}: cannot be measured: {first_line(error)}") from error

    def _split(self, turns: Sequence[Turn], shown: Pictures) -> _Encoded:
        """Return the inputs of a conversation, and where its last answer starts and ends in them.

        The prompt alone is what the model reads when it answers, so it must be the beginning.
        """
        inputs = self._process([_messages(turns, shown)], prompt=False)
        prompt = self._process([_messages(turns[:-1], shown)], prompt=True)["input_ids"][0].tolist()
        ids = inputs["input_ids"][0].tolist()
        if ids[: len(prompt)] != prompt:
            pairs = enumerate(zip(prompt, ids, strict=False))
            at = next((i for i, (a, b) in pairs if a != b), len(ids))
            one, two = (self.tokenizer.decode(found[at : at + 3]) for found in (prompt, ids))
            raise ValueError(
                f"its prompt is no beginning of prompt and answer: at token {at} it reads {one!r} "
                f"alone and {two!r} with the answer"
            )
        return _Encoded(inputs, len(prompt), self._end(ids, len(prompt)))

    def _end(self, ids: list[int], start: int) -> int:
        """Return where an answer ends: behind its first special token, else before white space."""
        for at in range(start, len(ids)):
            if self._is_special(ids[at]):
                return at + 1
        end = len(ids)
        while end > start and not self.tokenizer.decode(ids[end - 1 : end]).strip():
            end -= 1
        if end == start:
            raise ValueError("the chat template writes nothing for the answer")
        return end

    def _is_special(self, token: int) -> bool:
        added = self.tokenizer.added_tokens_decoder.get(token)
        return token in self.tokenizer.all_special_ids or (added is not None and added.special)

    def _process(self, conversations: list[Any], *, prompt: bool) -> dict[str, torch.Tensor]:
        """Return the model's inputs [B, ...], padded on the left, on its device, in its dtype."""
        self.tokenizer.padding_side = "left"
        encoded = self.processor.apply_chat_template(
            conversations,
            add_generation_prompt=prompt,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": len(conversations) > 1},
        )
        return dict(encoded.to(self.model.device, self.model.dtype))


def _question(row: Row) -> tuple[Turn, ...]:
    return row.turns[:-1] or (NO_QUESTION,)


def _messages(turns: Sequence[Turn], shown: Pictures) -> list[dict[str, Any]]:
    """Return a conversation as chat templates of VLMs take it, pictures in their places."""
    places = sum(turn.content.count(IMAGE) for turn in turns)
    if places != len(shown):
        raise DataError(f"{len(shown)} pictures are shown for {places} places in the conversation")
    pictures = iter(shown)

    def piece(content: str | None) -> dict[str, Any]:
        if content is IMAGE:
            return {"type": "image", "image": next(pictures)}
        return {"type": "text", "text": content}

    return [{"role": turn.role, "content": [piece(c) for c in turn.content]} for turn in turns]
