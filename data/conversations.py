"""Chat messages of a raw row to turns, and a place in them for each picture.

Two ways of writing are read: {"role", "content"} of chat templates, where content is text or a
list of pieces, and {"from", "value"} of ShareGPT and LLaVA, whose texts hold "<image>".
"""

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from configs.errors import DataError
from data.rows import IMAGE, Turn

ROLES = {
    "system": "system",
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "model"), "assistant"),
}
TOOL_ROLES = ("tool", "function", "observation", "tool_call", "function_call", "tool_response")
KEYS = (("role", "content"), ("from", "value"))
IMAGE_KINDS = ("image", "image_url")  # of a piece; the second is OpenAI's
# Where a piece may hold its picture. Arrow gives every piece all keys, most of them null.
PICTURE_KEYS = ("image", "url", "path", "image_url", "base64")


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns in order, with IMAGE at each place that the messages name for a picture."""

    turns: tuple[Turn, ...]
    pictures: tuple[Any, ...]  # raw; those that stand in the messages themselves, all or none


def read_messages(messages: Any, placeholder: str) -> Conversation:
    """Return what the messages of a row say.

    Args:
        messages: a list of messages, or one as JSON text.
        placeholder: what stands for a picture in a text; "": nothing does.

    Raises:
        DataError: they are no list of messages, a role or a piece is not understood, or the turns
            do not go system (or none), user, assistant, user, ...
    """
    turns: list[Turn] = []
    pictures: list[Any] = []  # one for each place; None where the picture is not in the messages
    for number, message in enumerate(_listed(messages), start=1):
        role, content = _role_and_content(number, message)
        _check_order(number, role, turns)
        pieces: list[str | None] = []
        for piece in content if isinstance(content, list | tuple) else [content]:
            found, own = _read_piece(number, piece, placeholder, len(pictures))
            pieces += found
            pictures += [own] * found.count(IMAGE)
        turns.append(Turn(role, tuple(pieces)))
    given = tuple(own for own in pictures if own is not None)
    if given and len(given) < len(pictures):
        raise DataError(
            f"its messages hold {len(given)} of the {len(pictures)} pictures they have places for; "
            "give all of them there, or all in a column"
        )
    return Conversation(tuple(turns), given)


def place_pictures(turns: Sequence[Turn], num_pictures: int, placeholder: str) -> tuple[Turn, ...]:
    """Return the turns with as many places as pictures.

    Where they name no place, all pictures go before the first words of the user.

    Raises:
        DataError: another number of places than of pictures, or a place that is not the user's.
    """
    for turn in turns:
        if turn.role != "user" and IMAGE in turn.content:
            raise DataError(
                f"a turn of the {turn.role} has a place for a picture ({placeholder}); pictures "
                "stand in turns of the user (image_placeholder says what is a place)"
            )
    num_places = sum(turn.content.count(IMAGE) for turn in turns)
    asking = [number for number, turn in enumerate(turns) if turn.role == "user"]
    if asking and not num_places:
        first = turns[asking[0]]
        filled = replace(first, content=(IMAGE,) * num_pictures + first.content)
        return (*turns[: asking[0]], filled, *turns[asking[0] + 1 :])
    if num_places != num_pictures:
        raise DataError(
            f"has {_count(num_pictures, 'picture')} and {_count(num_places, 'place')} for "
            f"{'it' if num_pictures == 1 else 'them'} ({placeholder})"
        )
    return tuple(turns)


def split_places(text: str, placeholder: str) -> list[str | None]:
    r"""Return the pieces of a text, with IMAGE for each placeholder.

    The line break between the words and placeholders that open or end a text goes with these:
    LLaVA writes "<image>\nWhat is it?" and "What is it?\n<image>" for the words "What is it?".
    """
    if not placeholder or placeholder not in text:
        return [text]
    mark = re.escape(placeholder)
    for edge in (rf"\A(?:{mark}\n?)+", rf"(?:\n?{mark})+\Z"):
        text = re.sub(edge, lambda found: placeholder * found.group().count(placeholder), text)
    pieces: list[str | None] = []
    for words in text.split(placeholder):
        pieces += [words, IMAGE] if words else [IMAGE]
    return pieces[:-1]  # as many placeholders as there are gaps between words


def _listed(messages: Any) -> list[Any]:
    if isinstance(messages, str):
        with suppress(ValueError):
            messages = json.loads(messages)
    if not isinstance(messages, list | tuple) or not messages:
        raise DataError("its messages are not a list of role and content")
    return list(messages)


def _role_and_content(number: int, message: Any) -> tuple[str, Any]:
    keys = [keys for keys in KEYS if isinstance(message, Mapping) and set(keys) <= set(message)]
    if not keys:
        raise DataError(
            f"message {number} {_short(message)} has neither role and content nor from and value"
        )
    role, content = (message[key] for key in keys[0])
    if role in TOOL_ROLES:
        raise DataError(
            f"message {number} has the role {role!r}: conversations with tools are not trained on"
        )
    if role not in ROLES:
        raise DataError(
            f"message {number} has the role {role!r}, which is not one of {', '.join(ROLES)}"
        )
    return ROLES[role], content


def _check_order(number: int, role: str, before: Sequence[Turn]) -> None:
    due = "assistant" if before and before[-1].role == "user" else "user"
    if role != due and not (role == "system" and not before):
        raise DataError(
            f"message {number} is of the {role} where one of the {due} is due: after at most one "
            "message of the system, user and assistant take turns"
        )


def _read_piece(
    number: int, piece: Any, placeholder: str, num_before: int
) -> tuple[list[str | None], Any]:
    """Return the pieces that a piece of a message is, and the picture that it holds, or None.

    `num_before` is the number of places before it, which an index must agree with: places take
    pictures in order.
    """
    if isinstance(piece, str):
        return split_places(piece, placeholder), None
    kind = piece.get("type") if isinstance(piece, Mapping) else None
    if kind == "text" and isinstance(piece.get("text"), str):
        return split_places(piece["text"], placeholder), None
    if kind not in IMAGE_KINDS:
        raise DataError(
            f"message {number} holds {_short(piece)}, which is neither text nor a picture"
        )
    if piece.get("index") not in (None, num_before):
        raise DataError(
            f"message {number} has a place for picture {piece['index']} where picture {num_before} "
            "is due; list pictures in the order of their places"
        )
    own = next((piece[key] for key in PICTURE_KEYS if piece.get(key) is not None), None)
    return [IMAGE], own["url"] if isinstance(own, Mapping) and "url" in own else own


def _short(value: Any) -> str:
    return repr(str(value)[:80])


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
