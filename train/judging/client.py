"""Chat completions of an OpenAI-compatible endpoint: one request, until it is answered or is not.

What may pass (a full or failing server, a lost connection, no answer in time) is asked again.
What will not (no key, no such model, a body that is refused) ends everything at once.
"""

import asyncio
import logging
import os
import random
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from configs.errors import VisiongraftError
from configs.schema import JudgeConfig

log = logging.getLogger(__name__)
MAY_PASS = (408, 409, 425, 429, *range(500, 600))
MOST_SHOWN = 300  # characters of what a server says
WHAT_TO_DO = {
    400: "it refuses the request itself; with_pictures=false if the model takes no pictures, "
    "request={{max_tokens: null, ...}} if it knows other fields",
    401: "it wants another key: set the environment variable {key} (api_key_env)",
    403: "the key in {key} (api_key_env) may not use this model",
    404: "there is no such model or no such path: endpoint ends before /chat/completions, usually "
    "with /v1; the server lists its models under /models",
    413: "the request is too large for it; with_pictures=false sends no pictures",
}


class JudgeError(VisiongraftError, RuntimeError):
    """The endpoint cannot be used as it was asked to be."""


class NotAnswered(Exception):
    """One request failed on every try, in ways that may pass; its text is the last reason."""


class _Again(Exception):
    """One try failed in a way that may pass."""

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


@dataclass(frozen=True)
class Reply:
    """What the endpoint answered."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    num_tries: int


class ChatClient:
    """Asks one model of one endpoint. The key is read here, sent as a header, and kept nowhere."""

    def __init__(self, config: JudgeConfig) -> None:
        self.config = config
        self.num_requests = 0  # sent, retries among them
        self._key = os.environ.get(config.api_key_env, "").strip()
        self._not_before = 0.0  # when the server has asked us to come back
        self._http = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=None,  # below, for a whole try: httpx's would start anew at every byte
            limits=httpx.Limits(max_connections=config.num_concurrent),
        )

    async def close(self) -> None:
        """End all connections."""
        await self._http.aclose()

    async def ask(self, messages: list[dict[str, Any]]) -> Reply:
        """Return the reply to a conversation.

        Raises:
            NotAnswered: it failed `num_retries` times more after the first.
            JudgeError: it would fail each time.
        """
        body = self._body(messages)
        for tried in range(1, self.config.num_retries + 2):
            await asyncio.sleep(max(0.0, self._not_before - time.monotonic()))
            try:
                return await self._try(body, tried)
            except _Again as reason:
                if tried > self.config.num_retries:
                    raise NotAnswered(f"{reason} ({tried} tries)") from None
                await self._wait(tried, reason.retry_after)
        raise AssertionError("unreachable")

    def _body(self, messages: list[dict[str, Any]]) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "model": self.config.judge_model,
            "messages": messages,
            "temperature": 0,
            "seed": self.config.seed,
            "max_tokens": self.config.max_tokens,
        }
        fields |= self.config.request
        return {name: value for name, value in fields.items() if value is not None}

    async def _try(self, body: dict[str, Any], tried: int) -> Reply:
        url = f"{self.config.endpoint.rstrip('/')}/chat/completions"
        self.num_requests += 1
        try:
            async with asyncio.timeout(self.config.timeout_seconds):
                answer = await self._http.post(url, json=body)
        except TimeoutError:
            raise _Again(f"no answer within {self.config.timeout_seconds:g} s") from None
        except httpx.TransportError as error:
            raise _Again(f"{type(error).__name__}: {self._shown(str(error))}") from None
        if answer.status_code in MAY_PASS:
            raise _Again(
                f"status {answer.status_code}: {self._shown(answer.text)}", _retry_after(answer)
            )
        if answer.status_code != httpx.codes.OK:
            todo = WHAT_TO_DO.get(answer.status_code, "").format(key=f"${self.config.api_key_env}")
            raise JudgeError(
                f"{url} answers {answer.status_code} {answer.reason_phrase} for model "
                f"{self.config.judge_model!r}: {self._shown(answer.text)}"
                + (f"\n  {todo}" if todo else "")
            )
        return self._read(answer, tried)

    def _read(self, answer: httpx.Response, tried: int) -> Reply:
        """Take the reply out of a body; one that is no chat completion may be a proxy's page."""
        try:
            content = answer.json()
            choice = content["choices"][0]
            message = choice["message"]
            text = message.get("content") or message.get("refusal") or ""
            usage = content.get("usage") or {}
            return Reply(
                text=self._without_key(text),
                finish_reason=str(choice.get("finish_reason")),
                prompt_tokens=int(usage.get("prompt_tokens") or 0),
                completion_tokens=int(usage.get("completion_tokens") or 0),
                num_tries=tried,
            )
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            raise _Again(f"no chat completion, but: {self._shown(answer.text)}") from None

    async def _wait(self, tried: int, retry_after: float | None) -> None:
        most = self.config.max_backoff_seconds
        if retry_after is not None:  # said to one, meant for all
            until = time.monotonic() + min(retry_after, most)
            self._not_before = max(self._not_before, until)
            return
        doubled = self.config.backoff_seconds * 2 ** (tried - 1)
        await asyncio.sleep(min(doubled, most) * random.uniform(0.5, 1.0))

    def _shown(self, text: str) -> str:
        """Return what a server says in a line, without the key, which some repeat."""
        return self._without_key(" ".join(text.split()))[:MOST_SHOWN] or "(nothing)"

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def _retry_after(answer: httpx.Response) -> float | None:
    """Return the seconds that a header asks for, as a number or a date."""
    said = answer.headers.get("Retry-After", "").strip()
    try:
        return max(0.0, float(said))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(said).timestamp() - time.time())
    except (ValueError, TypeError):
        return None
