"""A text LM's own chat template, made to take pictures.

A template that already writes them is kept as it is. Before any other goes a preamble
(`picture_preamble.jinja`) that turns lists of pieces into the text that the template takes, with a
placeholder where a picture stands; the template itself follows byte for byte, so what it writes for
conversations of text alone is what it wrote before (tests/data/test_picture_template.py).
"""

import re
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from configs.errors import CheckpointError

PLACEHOLDER = "<image>"  # AyaVisionProcessor's
# Ends in one line break, which Jinja takes with the tag before it (`trim_blocks`): what follows
# starts on a line of its own, as it did at the beginning of its file.
PREAMBLE = Path(__file__).with_name("picture_preamble.jinja").read_text(encoding="utf-8")
# Words that a template may move or trim, but must write: no tokens, no markup.
ASKED, ASKED_MORE, SAID = "What is asked", "and what else", "That is said"
TEXT_PIECES = [{"type": "text", "text": ASKED}, {"type": "text", "text": ASKED_MORE}]
IMAGE = {"type": "image"}


def with_pictures(tokenizer: Any) -> tuple[Any, str]:
    """Return the tokenizer's chat template made to write pictures, and what it writes for one.

    That is one of the tokenizer's own tokens where its template has one, else PLACEHOLDER. Several
    templates (`{name: template}`) stay several.

    Raises:
        CheckpointError: it refuses a plain question and answer, or does not write a picture's
            placeholder although it stands in the words.
    """
    templates = tokenizer.chat_template
    if not isinstance(templates, dict):
        return _one_with_pictures(tokenizer, templates)
    if not isinstance(templates.get("default"), str):
        raise CheckpointError(
            f"the text LM has chat templates named {', '.join(templates)}, but no default one"
        )
    default, placeholder = _one_with_pictures(tokenizer, templates["default"])
    # The others (tools, retrieval) want more than a conversation, and cannot be tried here.
    others = templates if default == templates["default"] else _all_with_preamble(templates)
    return others | {"default": default}, placeholder


def _one_with_pictures(tokenizer: Any, template: str) -> tuple[str, str]:
    """Return the template with pictures, and what it writes for one."""
    try:
        plain = _render(tokenizer, template, [ASKED, SAID])
    except (TemplateError, TypeError) as error:
        raise CheckpointError(
            f"the text LM's chat template refuses a question and an answer: {error}"
        ) from error
    found = _own_placeholder(tokenizer, template)
    if found is not None:
        return template, found
    takes_lists = _try(tokenizer, template, [_text(ASKED), _text(SAID)]) == plain
    made = _preamble(takes_lists=takes_lists) + template
    _check(tokenizer, made)
    return made, PLACEHOLDER


def _all_with_preamble(templates: dict[str, str]) -> dict[str, str]:
    return {name: _preamble(takes_lists=True) + template for name, template in templates.items()}


def _preamble(*, takes_lists: bool) -> str:
    return PREAMBLE.replace("TAKES_LISTS", str(takes_lists).lower())


def _own_placeholder(tokenizer: Any, template: str) -> str | None:
    """Return the token that a template writes for each picture, or None where it writes none.

    It must be one token, once for each picture, and the words beside it must all be there.
    """
    texts = [
        _try(tokenizer, template, [[*[IMAGE] * number, *TEXT_PIECES], _text(SAID)])
        for number in range(3)
    ]
    words = (ASKED, ASKED_MORE, SAID)
    if not all(text is not None and all(word in text for word in words) for text in texts):
        return None
    known = {PLACEHOLDER, *(t.content for t in tokenizer.added_tokens_decoder.values())}
    counts = {token: [str(text).count(token) for text in texts] for token in known}
    written = [
        token for token, (none, one, two) in counts.items() if (one - none, two - none) == (1, 2)
    ]
    return written[0] if len(written) == 1 else None


def _check(tokenizer: Any, template: str) -> None:
    """Refuse a template that loses or doubles the placeholder that the preamble gives it."""
    text = _try(tokenizer, template, [[IMAGE, *TEXT_PIECES, IMAGE], _text(SAID)])
    wanted = (PLACEHOLDER, ASKED + ASKED_MORE, PLACEHOLDER, SAID)
    in_order = re.compile(".*".join(map(re.escape, wanted)), re.DOTALL)
    if text is None or text.count(PLACEHOLDER) != 2 or not in_order.search(text):
        raise CheckpointError(
            "the text LM's chat template does not write the words of a question as they are, so "
            "pictures cannot be placed among them; put a chat_template.jinja that writes "
            f"{PLACEHOLDER} for a piece of type image into the text LM's folder"
        )


def _text(words: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": words}]


def _try(tokenizer: Any, template: str, contents: list[Any]) -> str | None:
    try:
        return _render(tokenizer, template, contents)
    except (TemplateError, TypeError):  # TypeError: a sum of text and pieces
        return None


def _render(tokenizer: Any, template: str, contents: list[Any]) -> str:
    """Return what a template writes for a question and an answer."""
    roles = ("user", "assistant")
    messages = [
        {"role": role, "content": content} for role, content in zip(roles, contents, strict=True)
    ]
    rendered: Any = render_jinja_template(
        [messages], chat_template=template, **tokenizer.special_tokens_map
    )
    return str(rendered[0][0])
