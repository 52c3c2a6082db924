"""verdicts.jsonl: what the judge has said, a line a request, written as soon as it is known."""

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from configs.errors import ConfigError, DataError
from train.judging.client import Reply
from train.judging.pairs import Pair
from train.judging.prompt import Order, Verdict, parse_verdict

log = logging.getLogger(__name__)
RequestKey = tuple[str, str, str]  # group, id of the row, order


@dataclass(frozen=True)
class Judged:
    """One reply of the judge."""

    group: str
    row_id: str
    language: str
    order: str  # ab: a's answer was shown first
    verdict: str | None  # A, B (first, second) or TIE; None: the reply says none
    reply: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    num_tries: int

    @property
    def key(self) -> RequestKey:
        """What it answers."""
        return self.group, self.row_id, self.order

    @property
    def points(self) -> int | None:
        """1 where a is better, -1 where b is, 0 for a tie; None where nothing can be read."""
        if self.verdict is None:
            return None
        place = {Verdict.first: 1, Verdict.second: -1, Verdict.tie: 0}[Verdict(self.verdict)]
        return place if self.order == Order.ab else -place


def judged(pair: Pair, order: Order, reply: Reply) -> Judged:
    """Read a reply. One that was cut off has no verdict: its last line is not its end."""
    verdict = None if reply.finish_reason == "length" else parse_verdict(reply.text)
    return Judged(
        group=pair.group,
        row_id=pair.row_id,
        language=pair.language,
        order=order.value,
        verdict=None if verdict is None else verdict.value,
        reply=reply.text,
        finish_reason=reply.finish_reason,
        prompt_tokens=reply.prompt_tokens,
        completion_tokens=reply.completion_tokens,
        num_tries=reply.num_tries,
    )


class VerdictFile:
    """The folder's verdicts, and the settings they were asked for with."""

    def __init__(self, out: Path, settings: dict[str, Any]) -> None:
        self.path = out / "verdicts.jsonl"
        self._settings_path = out / "settings.json"
        self._settings = settings
        self._check_settings(out)
        self.found = self._read()

    def start(self) -> IO[str]:
        """Write the settings, take off a line that was cut, and open the file to go on."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self._settings, ensure_ascii=False, indent=1)
        self._settings_path.write_text(text + "\n", encoding="utf-8")
        whole = self._whole_lines()
        if self.path.exists() and len(whole) < self.path.stat().st_size:
            log.info("%s: its last line was cut off, and is asked for again", self.path)
            self.path.write_bytes(whole)
        return self.path.open("a", encoding="utf-8")

    def _check_settings(self, out: Path) -> None:
        if not self._settings_path.exists():
            if out.exists() and any(out.iterdir()):
                raise ConfigError(
                    f"out={str(out)!r} is not empty and holds no verdicts; give a new one"
                )
            return
        kept = json.loads(self._settings_path.read_text(encoding="utf-8"))
        names = kept.keys() | self._settings.keys()
        other = sorted(n for n in names if kept.get(n) != self._settings.get(n))
        if other:
            told = ", ".join(f"{n} ({kept.get(n)!r} there)" for n in other)
            raise ConfigError(
                f"out={str(out)!r} holds verdicts of other settings: {told}; "
                "give a new folder, or the settings of that one"
            )

    def _whole_lines(self) -> bytes:
        content = self.path.read_bytes() if self.path.exists() else b""
        return content[: content.rfind(b"\n") + 1]

    def _read(self) -> dict[RequestKey, Judged]:
        found = {}
        for number, line in enumerate(self._whole_lines().splitlines(), 1):
            try:
                item = Judged(**json.loads(line))
            except (ValueError, TypeError) as error:
                raise DataError(
                    f"line {number} of {self.path} is no verdict: {error}; take it out, and it is "
                    "asked for again"
                ) from error
            found[item.key] = item
        return found


def write_line(file: IO[str], item: Judged) -> None:
    """Append a verdict; a process that ends now leaves it there."""
    file.write(json.dumps(asdict(item), ensure_ascii=False) + "\n")
    file.flush()
