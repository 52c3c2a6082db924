"""Ask for every verdict that is not there yet, several at once."""

import asyncio
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO

from configs.schema import JudgeConfig
from train.judging.client import ChatClient, JudgeError, NotAnswered
from train.judging.pairs import Pair
from train.judging.prompt import Order, Prompt
from train.judging.verdicts import Judged, judged, write_line

log = logging.getLogger(__name__)
SECONDS_BETWEEN_LINES = 10.0
MOST_FAILED_IN_A_ROW = 10  # then the server is away, and asking the others would take hours
Request = tuple[Pair, Order]


@dataclass
class Asked:
    """What came of it."""

    verdicts: list[Judged] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)  # one line each
    num_requests: int = 0  # sent, retries among them
    in_a_row: int = 0  # failed since the last reply


def ask_all(
    config: JudgeConfig, prompt: Prompt, requests: Sequence[Request], file: IO[str]
) -> Asked:
    """Ask, write each verdict as it comes, and return them with what could not be had.

    Raises:
        JudgeError: the endpoint refuses; what has come until then is in the file.
    """
    return asyncio.run(_ask_all(config, prompt, requests, file))


async def _ask_all(
    config: JudgeConfig, prompt: Prompt, requests: Sequence[Request], file: IO[str]
) -> Asked:
    client, asked, waiting = ChatClient(config), Asked(), iter(requests)
    try:
        async with asyncio.TaskGroup() as workers:
            for _ in range(min(config.num_concurrent, len(requests))):
                workers.create_task(_work(client, prompt, waiting, asked, file))
            workers.create_task(_tell(asked, len(requests)))
    except BaseExceptionGroup as group:  # of workers that ended at once: all for one reason
        raise group.exceptions[0] from None
    finally:
        asked.num_requests = client.num_requests
        await client.close()
    return asked


async def _work(
    client: ChatClient, prompt: Prompt, waiting: Iterator[Request], asked: Asked, file: IO[str]
) -> None:
    for pair, order in waiting:
        try:
            reply = await client.ask(prompt.messages(pair, order))
        except NotAnswered as reason:
            asked.failed.append(f"{pair.group}: {pair.row_id} ({order.value}): {reason}")
            asked.in_a_row += 1
            if asked.in_a_row >= MOST_FAILED_IN_A_ROW:
                raise JudgeError(
                    f"{MOST_FAILED_IN_A_ROW} requests in a row were not answered: {reason}\n"
                    "  what came before is kept; the same command goes on"
                ) from None
            continue
        asked.in_a_row = 0
        asked.verdicts.append(judged(pair, order, reply))
        write_line(file, asked.verdicts[-1])


async def _tell(asked: Asked, num_requests: int) -> None:
    """Log how far it is, until it is all."""
    last = time.monotonic()
    while (done := len(asked.verdicts) + len(asked.failed)) < num_requests:
        await asyncio.sleep(0.05)
        if time.monotonic() - last >= SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            log.info("%d of %d requests, %d failed", done, num_requests, len(asked.failed))
