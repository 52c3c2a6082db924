"""What the judge is asked, and what its reply says.

The answers go into a template as values: braces, marks and orders in them stay text. The verdict is
read from the judge's own last line alone, so nothing in an answer can stand in its place.
"""

import hashlib
import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import yaml
from jinja2 import StrictUndefined, TemplateError, meta
from jinja2.sandbox import SandboxedEnvironment

from configs.errors import ConfigError
from configs.languages import LANGUAGES
from train.judging.pairs import Pair
from train.judging.pictures import data_uri

DEFAULT = Path(__file__).with_name("prompt.yaml")
KNOWN = {
    *("question", "language", "answer_a", "answer_b"),
    *("reference", "has_picture", "mark"),
}
VERDICT = re.compile(r"[*_`#\s]*VERDICT[*_`]*\s*:[*_`\s]*(A|B|TIE)[*_`\s.]*", re.IGNORECASE)


class Order(StrEnum):
    """Whose answer is shown as A."""

    ab = "ab"
    ba = "ba"


class Verdict(StrEnum):
    """What the judge says, by place."""

    first = "A"
    second = "B"
    tie = "TIE"


@dataclass(frozen=True)
class Prompt:
    """The judge's instructions."""

    path: str
    sha256: str
    system: Any  # a template, or None
    user: Any

    def messages(self, pair: Pair, order: Order) -> list[dict[str, Any]]:
        """Return the messages of one request, as chat completions take them."""
        first, second = pair.answer_a, pair.answer_b
        if order is Order.ba:
            first, second = second, first
        values = {
            "question": pair.question,
            "language": LANGUAGES.get(pair.language, pair.language),
            "answer_a": first,
            "answer_b": second,
            "reference": "" if pair.picture else pair.reference,
            "has_picture": pair.picture is not None,
            "mark": mark_of(pair),
        }
        text = self.user.render(values)
        content: Any = text
        if pair.picture is not None:
            picture = {"type": "image_url", "image_url": {"url": data_uri(pair.picture)}}
            content = [picture, {"type": "text", "text": text}]
        user = {"role": "user", "content": content}
        if self.system is None:
            return [user]
        return [{"role": "system", "content": self.system.render(values)}, user]


def load_prompt(path: str | None) -> Prompt:
    """Read the instructions of a file, or our own.

    Raises:
        ConfigError: it is no YAML of `system` and `user`, or uses what there is not.
    """
    file = DEFAULT if path is None else Path(path)
    try:
        content = file.read_bytes()
        parts = yaml.safe_load(content)
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"prompt_file: {str(file)!r} cannot be read: {error}") from error
    if not isinstance(parts, dict) or not {"user"} <= parts.keys() <= {"system", "user"}:
        raise ConfigError(f"prompt_file: {str(file)!r} is not a mapping of system and user")
    environment = SandboxedEnvironment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
    )
    templates = {}
    for part, text in parts.items():
        try:
            used = meta.find_undeclared_variables(environment.parse(text))
            templates[part] = environment.from_string(text)
        except (TemplateError, TypeError) as error:
            raise ConfigError(f"prompt_file: {part} of {str(file)!r}: {error}") from error
        wrong = sorted(used - KNOWN)
        if wrong:
            raise ConfigError(
                f"prompt_file: {part} uses {', '.join(wrong)}; known are {', '.join(sorted(KNOWN))}"
            )
        lacking = sorted({"answer_a", "answer_b"} - used)
        if part == "user" and lacking:
            raise ConfigError(f"prompt_file: user does not show {', '.join(lacking)}")
    return Prompt(
        path=str(file),
        sha256=hashlib.sha256(content).hexdigest(),
        system=templates.get("system"),
        user=templates["user"],
    )


def mark_of(pair: Pair) -> str:
    """Return letters that no text of the row holds: they tell where an answer begins and ends."""
    texts = (pair.question, pair.reference, pair.answer_a, pair.answer_b)
    mark = ""
    while not mark or any(mark in text for text in texts):
        mark = hashlib.sha256("\0".join((*pair.key, mark, *texts)).encode()).hexdigest()[:12]
    return mark


def parse_verdict(reply: str) -> Verdict | None:
    """Return what the last line of a reply says; None where it is no verdict."""
    lines = [line for line in reply.splitlines() if line.strip("`* \t")]
    found = VERDICT.fullmatch(lines[-1]) if lines else None
    return Verdict(found[1].upper()) if found else None
