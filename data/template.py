"""What a chat template writes for a conversation, and where in it the answers stand.

A template that has `{% generation %}` marks says itself where answers are. Else they are found by
rendering the turns before and up to each answer. All places are in characters of a text in which
a picture is still a placeholder; pictures and tokens are the work of `data/render.py`.
"""

import re
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from typing import Any

from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from configs.errors import DataError
from data.rows import IMAGE, Turn, question

Span = tuple[int, int]  # start and end in characters

COMMENT = re.compile(r"\{#.*?#\}", re.DOTALL)
MARK = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
REMEDY = "put {% generation %} and {% endgeneration %} around the answers in the template"
CACHED_PROMPTS = 1024  # captions share few questions; those of longer rows fall out again
ASKED, SAID = "What was asked?", "What was said."  # to see which of them the marks hold
EMPTY = Turn("user", ("",))  # before plain text, for templates whose turns must alternate


class ChatTemplate:
    """The chat template of a tokenizer or processor. Not for several threads at once.

    transformers keeps the marks it meets in the compiled template, which threads would share.
    """

    def __init__(self, processing_class: Any) -> None:
        """Take an `AyaVisionProcessor`, or a tokenizer for a text LM."""
        self.processing_class = processing_class
        self._tokenizer = getattr(processing_class, "tokenizer", processing_class)
        self._takes_pieces = getattr(processing_class, "image_processor", None) is not None
        self._cached_prompt = lru_cache(CACHED_PROMPTS)(self._prompt)

    @cached_property
    def source(self) -> str:
        """The text of the template.

        Raises:
            DataError: there is none.
        """
        found = self.processing_class.chat_template
        if isinstance(found, dict):
            found = found.get("default")
        if not isinstance(found, str):
            raise DataError(
                f"{type(self.processing_class).__name__} has no chat template, so no row can be "
                "written; put a chat_template.jinja into its folder"
            )
        return found

    @cached_property
    def is_marked(self) -> bool:
        """Whether the template marks answers itself."""
        return MARK.search(COMMENT.sub("", self.source)) is not None

    @cached_property
    def picture_ids(self) -> frozenset[int]:
        """The tokens that pictures are written with, tile tags among them; none for a text LM."""
        ids = {
            getattr(self.processing_class, "image_token_id", None),
            *getattr(self.processing_class, "image_token_ids", ()),
        }
        return frozenset(ids - {None})

    @cached_property
    def generation_prompt(self) -> str:
        """What the template writes before an answer that is to come."""
        turns = (Turn("user", ("?",)),)
        return self._prompt(turns)[len(self.text(turns)) :]

    def message(self, turn: Turn) -> dict[str, Any]:
        """Return a turn in the form the template takes: pieces for processors, text for text LMs.

        The templates of text LMs would write a list of pieces as Python does.
        """
        if not self._takes_pieces:
            return {"role": turn.role, "content": turn.text}
        pieces = [
            {"type": "image"} if piece is IMAGE else {"type": "text", "text": piece}
            for piece in turn.content
        ]
        return {"role": turn.role, "content": pieces}

    @cached_property
    def _asks_for_questions(self) -> bool:
        """Whether the template refuses an answer without a question, as strict alternation does."""
        try:
            self._render((Turn("assistant", (SAID,)),))
        except DataError:
            return True
        return False

    def _with_question(self, turns: Sequence[Turn]) -> Sequence[Turn]:
        """Return plain text with an empty question before it, where the template wants one."""
        is_plain_text = len(turns) == 1 and turns[0].role == "assistant"
        return (EMPTY, *turns) if is_plain_text and self._asks_for_questions else turns

    def text(self, turns: Sequence[Turn]) -> str:
        """Return what `apply_chat_template(..., tokenize=False)` gives.

        Raises:
            DataError: the template refuses the conversation.
        """
        return self._render(turns)[0]

    def prompt(self, turns: Sequence[Turn]) -> str:
        """Return the text up to where the last turn, an answer, begins."""
        turns = self._with_question(turns)
        if len(turns) > 1:
            return self._before(tuple(turns[:-1]))
        text, spans = self.text_and_answers(turns)
        return text[: spans[0][0]]

    def text_and_answers(self, turns: Sequence[Turn]) -> tuple[str, list[Span]]:
        """Return the whole text, and for each turn of the assistant where its answer stands.

        By marks a span is what the template marked; without them it reaches from the end of the
        generation prompt to the end of the turn.

        Raises:
            DataError: the template refuses the conversation, or answers cannot be told from
                prompts.
        """
        turns = self._with_question(turns)
        text, spans = self._by_marks(turns) if self.is_marked else self._by_prefixes(turns)
        return text, [(start, self._end(text, start, end)) for start, end in spans]

    # ----------------------------------------------------------------------------- marks

    def _by_marks(self, turns: Sequence[Turn]) -> tuple[str, list[Span]]:
        if self._fault_of_marks:
            raise DataError(self._fault_of_marks)
        text, spans = self._marked(turns)
        answers = sum(turn.role == "assistant" for turn in turns)
        if len(spans) != answers:
            raise DataError(
                f"the chat template has {{% generation %}} marks around {len(spans)} stretches for "
                f"{answers} answers; mark each answer once, and nothing else"
            )
        return text, spans

    def _marked(self, turns: Sequence[Turn]) -> tuple[str, list[Span]]:
        text, spans = self._render(turns, with_marks=True)
        # Some templates (Phi-3) mark what ends the whole text, too: no answer, and behind the last.
        return text, [span for span in spans if self._words(text[slice(*span)])]

    @cached_property
    def _fault_of_marks(self) -> str | None:
        """What is wrong with the marks of any conversation: seen once, on one of two turns.

        Rows cannot show it: as many questions as answers may be marked, and within a macro
        transformers counts from the wrong place.
        """
        try:
            text, spans = self._marked(question(ASKED, SAID))
        except DataError:
            return None  # a template for other conversations than this; the rows will show
        marked = [text[start:end] for start, end in spans]
        wrong = [words for words in marked if SAID not in words or ASKED in words]
        if not wrong:
            return None
        return (
            f"the chat template has {{% generation %}} marks, but to {ASKED!r} and {SAID!r} they "
            f"give {wrong[0]!r}; put them around the answer, outside of macros and set blocks"
        )

    # -------------------------------------------------------------------------- prefixes

    def _by_prefixes(self, turns: Sequence[Turn]) -> tuple[str, list[Span]]:
        full = self.text(turns)
        answers = []
        for index, turn in enumerate(turns):
            if turn.role != "assistant":
                continue
            start = self._start(tuple(turns[:index]), full)
            upto = full if index + 1 == len(turns) else self.text(turns[: index + 1])
            if not full.startswith(upto):
                raise DataError(
                    "the chat template writes an earlier turn differently once a later one "
                    f"follows, so answers cannot be told from prompts; {REMEDY}"
                )
            answers.append((start, len(upto)))
        return full, answers

    def _start(self, before: tuple[Turn, ...], full: str) -> int:
        """Return where in the whole text the answer to the turns before it begins."""
        if not before:
            return self._start_of_plain_text(full)
        prompt = self._before(before)
        if not full.startswith(prompt):
            raise DataError(
                f"the chat template writes before an answer not what it gives a model that is to "
                f"answer (it ends {prompt[-40:]!r}), so answers cannot be told from prompts; "
                f"{REMEDY}"
            )
        return len(prompt)

    def _start_of_plain_text(self, full: str) -> int:
        # It has no turn before it, and templates render no empty conversation.
        if not self.generation_prompt:
            bos = self._tokenizer.bos_token or ""
            return len(bos) if full.startswith(bos) else 0
        at = full.find(self.generation_prompt)
        if at < 0:
            raise DataError(
                f"the chat template does not write its generation prompt "
                f"{self.generation_prompt!r} before a text without a question; {REMEDY}"
            )
        return at + len(self.generation_prompt)

    def _before(self, turns: tuple[Turn, ...]) -> str:
        # A template that asks for the time may write another text tomorrow.
        return self._prompt(turns) if "strftime_now" in self.source else self._cached_prompt(turns)

    def _prompt(self, turns: tuple[Turn, ...]) -> str:
        return self._render(turns, add_generation_prompt=True)[0]

    # --------------------------------------------------------------------- end of answers

    @cached_property
    def _endings(self) -> tuple[str, ...]:
        """The special tokens that may end an answer, longest first.

        The turns of some models end otherwise than texts do (`eos_token`), so it may be any but
        those that stand for something else.
        """
        tokenizer, processor = self._tokenizer, self.processing_class
        others = {tokenizer.bos_token_id, tokenizer.unk_token_id}
        found = {text for number, text in special_tokens(tokenizer).items() if number not in others}
        found -= {getattr(processor, "image_token", "")}
        if tokenizer.eos_token:
            found.add(tokenizer.eos_token)
        return tuple(sorted(found, key=len, reverse=True))

    @cached_property
    def _ending(self) -> re.Pattern[str]:
        return any_of(self._endings)

    def _end(self, text: str, start: int, end: int) -> int:
        """Return where the special token ends that ends the answer in [start, end).

        White space before that token is learned if it lies in the span, and what follows it is not.
        A mark that ends before the token is taken to reach over it.
        """
        words_end = start + len(self._words(text[start:end]))
        if words_end == start:
            raise DataError("the chat template writes none of an answer's words")
        stop = words_end + len(text[words_end:end]) - len(text[words_end:end].lstrip())
        limit = len(text) if self.is_marked else end
        if not (found := self._ending.match(text, stop, limit)):
            raise DataError(self._endless(text, end))
        # Some end the words and then the turn: the end of the turn is the one to learn.
        first = found.end()
        while found:
            if found.group() == self._tokenizer.eos_token:
                return found.end()
            found = self._ending.match(text, found.end(), limit)
        return first

    def _words(self, answer: str) -> str:
        """Return an answer without the white space and special tokens at its end."""
        while True:
            answer = answer.rstrip()
            if not answer.endswith(self._endings):
                return answer
            ending = next(token for token in self._endings if answer.endswith(token))
            answer = answer.removesuffix(ending)

    def _endless(self, text: str, end: int) -> str:
        rest = text[end:]
        space = rest[: len(rest) - len(rest.lstrip())]
        if self.is_marked and self._ending.match(rest, len(space)):
            return (
                f"the chat template has {space!r} between the end of a {{% generation %}} mark and "
                "the special token that ends the answer, so the model would not learn to stop; "
                "put {% endgeneration %} behind that token"
            )
        return (
            "the chat template does not end an answer with a special token right behind its words "
            f"(such as the end-of-sequence token {self._tokenizer.eos_token!r}), so the model "
            "would not learn to stop; add one to the template"
        )

    # ------------------------------------------------------------------------- rendering

    def _render(
        self,
        turns: Sequence[Turn],
        *,
        add_generation_prompt: bool = False,
        with_marks: bool = False,
    ) -> tuple[str, list[Span]]:
        """Return the text and the marked spans of it, by what is behind `apply_chat_template`."""
        messages = [self.message(turn) for turn in turns]
        rendered: Any  # transformers says `str`, and gives texts and spans, of each conversation
        try:
            rendered = render_jinja_template(
                [messages],
                chat_template=self.source,
                return_assistant_tokens_mask=with_marks,
                add_generation_prompt=add_generation_prompt,
                **self._tokenizer.special_tokens_map,
            )
        except (TemplateError, TypeError) as error:  # TypeError: a sum of text and pieces
            raise DataError(f"the chat template refuses the row: {error}") from error
        texts, spans = rendered
        return texts[0], spans[0] if with_marks else []


def special_tokens(tokenizer: Any) -> dict[int, str]:
    """Return {id: text} of the special tokens, but for words that upstream makes so: `TILE`."""
    added = tokenizer.added_tokens_decoder.items()
    special = {number: token.content for number, token in added if token.special}
    return {number: text for number, text in special.items() if not text.replace("_", "").isalnum()}


def any_of(tokens: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern of any of the tokens; of none where there are none."""
    return re.compile("|".join(map(re.escape, tokens)) or "(?!)")
