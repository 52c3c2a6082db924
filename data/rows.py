"""A row: what every source is turned into, before any tokenizer has seen it."""

from dataclasses import dataclass
from typing import Protocol

from PIL import Image

IMAGE = None  # stands for a picture among the pieces of a turn


class ImageRef(Protocol):
    """A picture that is decoded only when it is needed."""

    def size(self) -> tuple[int, int]:
        """Return (width, height) in pixels as `load` will give them, from the header alone."""
        ...

    def load(self) -> Image.Image:
        """Return the picture in RGB."""
        ...


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation."""

    role: str  # "user", "assistant" or "system"
    content: tuple[str | None, ...]  # texts, and IMAGE where a picture stands

    @property
    def text(self) -> str:
        """The words of the turn, without its pictures."""
        return "".join(piece for piece in self.content if piece is not IMAGE)


@dataclass(frozen=True, slots=True)
class Row:
    """One conversation with its pictures, in reading order."""

    id: str  # unique within its source
    source: str  # name of the source in the config
    language: str  # ISO 639-1
    turns: tuple[Turn, ...]
    images: tuple[ImageRef, ...] = ()

    def __str__(self) -> str:
        return f"{self.source}/{self.id}"


def question(text: str, answer: str, *, num_images: int = 0) -> tuple[Turn, Turn]:
    """Return the two turns of a question, with its pictures before it, and its answer."""
    return Turn("user", (IMAGE,) * num_images + (text,)), Turn("assistant", (answer,))


def plain_text(text: str) -> tuple[Turn, ...]:
    """Return the single turn of a text that is trained on from its first word."""
    return (Turn("assistant", (text,)),)
