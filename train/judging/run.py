"""The work of `python -m train.judge`: read, ask, count, write."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs.schema import JudgeConfig
from train.judging.asking import Request, ask_all
from train.judging.client import JudgeError
from train.judging.pairs import Pairs, read_pairs
from train.judging.prompt import Order, Prompt, load_prompt
from train.judging.report import as_json, as_markdown
from train.judging.score import Outcome, outcomes
from train.judging.verdicts import VerdictFile

log = logging.getLogger(__name__)
FIRST_FAILED = 5  # told


def judge(config: JudgeConfig) -> None:
    """Ask the judge for what is not judged yet; write judge.json and judge.md."""
    prompt = load_prompt(config.prompt_file)
    pairs = read_pairs(config)
    settings = _settings(config, prompt, pairs)
    verdicts = VerdictFile(Path(config.out), settings)
    requests = _requests(pairs, verdicts)
    _tell(config, pairs, requests)
    if config.dry_run:
        return
    with verdicts.start() as file:
        asked = ask_all(config, prompt, requests, file)
    if asked.failed:
        lines = "\n  ".join(asked.failed[:FIRST_FAILED])
        raise JudgeError(
            f"{len(asked.failed)} of {len(requests)} requests were not answered:\n  {lines}\n"
            "  what came is kept; the same command goes on, and writes judge.json when all is there"
        )
    found = outcomes(pairs.rows, verdicts.found | {item.key: item for item in asked.verdicts})
    content = as_json(config, pairs, settings, found, asked.num_requests)
    out = Path(config.out)
    text = json.dumps(content, ensure_ascii=False, indent=1)
    (out / "judge.json").write_text(text + "\n", encoding="utf-8")
    (out / "judge.md").write_text(as_markdown(content), encoding="utf-8")
    _tell_result(content, out)
    _tell_unreadable(config, found, verdicts.path)


def _settings(config: JudgeConfig, prompt: Prompt, pairs: Pairs) -> dict[str, Any]:
    """Return all that a verdict depends on. Waits, retries and intervals may change later."""
    return {
        "a": pairs.a.name,
        "b": pairs.b.name,
        "answers_sha256": pairs.digest(),
        "num_rows": len(pairs.rows),
        "endpoint": config.endpoint,
        "judge_model": config.judge_model,
        "with_pictures": config.with_pictures,
        "prompt_sha256": prompt.sha256,
        "temperature": 0,
        "max_tokens": config.max_tokens,
        "seed": config.seed,
        "request": config.request,
    }


def _requests(pairs: Pairs, verdicts: VerdictFile) -> list[Request]:
    return [
        (pair, order)
        for pair in pairs.rows
        if not pair.is_identical
        for order in Order
        if (*pair.key, order.value) not in verdicts.found
    ]


def _tell(config: JudgeConfig, pairs: Pairs, requests: list[Request]) -> None:
    identical = sum(pair.is_identical for pair in pairs.rows)
    pictures = sum(pair.picture is not None for pair in pairs.rows)
    total = 2 * (len(pairs.rows) - identical)
    log.info(
        "%s against %s: %d rows, %d of them with identical answers, %d with a picture to show",
        pairs.a.name, pairs.b.name, len(pairs.rows), identical, pictures,
    )  # fmt: skip
    log.info(
        "%d requests to %s at %s, %d of them answered before",
        total, config.judge_model, config.endpoint, total - len(requests),
    )  # fmt: skip
    for side, only in ((pairs.a, pairs.only_in_a), (pairs.b, pairs.only_in_b)):
        if only:
            log.warning("%d rows that %s alone has answered are left out, the first: %s",
                        len(only), side.name, only[0][1])  # fmt: skip


def _tell_result(content: dict[str, Any], out: Path) -> None:
    spent, total = content["requests"], content["all"]
    log.info("%d requests sent, %d tokens of prompts and %d of replies in all",
             spent["num_sent"], spent["prompt_tokens"], spent["completion_tokens"])  # fmt: skip
    log.info("%s: %d wins, %d ties, %d losses, %d unreadable; wrote %s",
             content["a"]["name"], total["wins"], total["ties"], total["losses"],
             total["unreadable"], out / "judge.md")  # fmt: skip


def _tell_unreadable(config: JudgeConfig, found: Sequence[Outcome], path: Path) -> None:
    """Warn of replies without a verdict, and say how to ask anew: what is kept is not asked."""
    replies = [item for outcome in found for item in outcome.verdicts]
    unread = [item for item in replies if item.verdict is None]
    if not unread:
        return
    cut = sum(item.finish_reason == "length" for item in unread)
    log.warning(
        "%d of %d replies hold no verdict (%d of them cut off at max_tokens=%d); the %d rows they "
        "are of are in no share. The same command does not ask them again: take the lines with "
        "\"verdict\": null out of %s, or remove it to ask for all, and run it once more; or give a "
        "new out= with a higher max_tokens, another prompt_file or another judge_model",
        len(unread), len(replies), cut, config.max_tokens,
        sum(outcome.points is None for outcome in found), path,
    )  # fmt: skip
