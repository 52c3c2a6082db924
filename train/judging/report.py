"""judge.json, in a stable schema, and judge.md for people.

judge.json (described by judge.schema.json beside this file):
    schema      version, raised where a name goes or changes its meaning
    a, b        {name, path} of the two models; wins are a's
    rule        how two verdicts become a win, a tie or a loss
    settings    all that the verdicts depend on, with the prompt's and the answers' sha256
    all         counts over rows, shares, intervals; mean: of the shares over languages;
    by_language, by_group   the same by language, and by group of held-out rows
    position    verdicts by place and by order, bias and agreement
    requests    how many verdicts there are, requests sent by the last command, tokens in all
    unreadable  [{group, row_id, order, reply}]; rows that only one model has answered
"""

import functools
from collections.abc import Sequence
from typing import Any

from configs.schema import JudgeConfig
from train.judging.pairs import Pairs
from train.judging.score import RULE, Outcome, position, rates

SCHEMA = 1
ABSENT = "–"
MOST_LISTED = 20


def as_json(
    config: JudgeConfig,
    pairs: Pairs,
    settings: dict[str, Any],
    found: Sequence[Outcome],
    num_sent: int,
) -> dict[str, Any]:
    """Return what judge.json holds."""
    told = functools.partial(
        rates,
        num_resamples=config.num_resamples,
        confidence=config.confidence,
        seed=config.seed,
    )
    groups = list(dict.fromkeys(outcome.pair.group for outcome in found))
    by_group = {name: told([o for o in found if o.pair.group == name]) for name in groups}
    verdicts = [item for outcome in found for item in outcome.verdicts]
    return {
        "schema": SCHEMA,
        "a": {"name": pairs.a.name, "path": pairs.a.path},
        "b": {"name": pairs.b.name, "path": pairs.b.path},
        "rule": RULE,
        "settings": settings,
        "confidence": config.confidence,
        **told(found),
        "by_group": by_group,
        "position": position(found),
        "requests": {
            "num_verdicts": len(verdicts),
            "num_sent": num_sent,
            "prompt_tokens": sum(item.prompt_tokens for item in verdicts),
            "completion_tokens": sum(item.completion_tokens for item in verdicts),
        },
        "num_pictures": sum(pair.picture is not None for pair in pairs.rows),
        "unreadable": [
            {key: getattr(item, key) for key in ("group", "row_id", "order", "reply")}
            for item in verdicts
            if item.verdict is None
        ],
        "only_in_a": [list(key) for key in pairs.only_in_a],
        "only_in_b": [list(key) for key in pairs.only_in_b],
    }


def as_markdown(content: dict[str, Any]) -> str:
    """Return the same for people."""
    name_a, name_b = content["a"]["name"], content["b"]["name"]
    settings, spent = content["settings"], content["requests"]
    lines = [
        f"# {name_a} against {name_b}",
        "",
        f"Judged by `{settings['judge_model']}` at {settings['endpoint']}, prompt "
        f"`{settings['prompt_sha256'][:12]}`; {content['num_pictures']} of "
        f"{content['all']['num_rows']} rows with their picture, the others with the reference. "
        f"Wins are {name_a}'s.",
        "",
        "| | rows | wins | ties | losses | unreadable | win rate | "
        f"{content['confidence']:.0%} interval | wins and half of ties | interval |",
        "|---|---:|---:|---:|---:|---:|---:|---|---:|---|",
        _row("**all rows**", content["all"]),
        _row("**mean over languages**", content["mean"]),
        *(_row(code, values) for code, values in content["by_language"].items()),
    ]
    if len(content["by_group"]) > 1:
        lines += [
            _row(f"{group}: {label}", values[key])
            for group, values in content["by_group"].items()
            for key, label in (("all", "all rows"), ("mean", "mean over languages"))
        ]
    lines += ["", *_position(content["position"], name_a), "", content["rule"], ""]
    lines.append(
        "Intervals are of a bootstrap over rows within each language; that rows of several "
        "languages may show one picture is left out of it."
    )
    lines += ["", f"{spent['num_verdicts']} verdicts, {spent['prompt_tokens']:,} tokens asked, "
              f"{spent['completion_tokens']:,} replied. {content['all']['identical']} rows with "
              "identical answers."]  # fmt: skip
    return "\n".join([*lines, *_left_out(content)]) + "\n"


def _row(label: str, values: dict[str, Any]) -> str:
    keys = ("num_rows", "wins", "ties", "losses", "unreadable")
    counts = [str(values.get(key, "")) for key in keys]
    cells = []
    for name in ("win_rate", "win_and_half_ties_rate"):
        between = values[f"{name}_interval"]
        cells.append(_share(values[name]))
        cells.append(" to ".join(_share(end) for end in between) if between else ABSENT)
    return "| " + " | ".join([label, *counts, *cells]) + " |"


def _share(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.1%}"


def _position(said: dict[str, Any], name_a: str) -> list[str]:
    if said["bias"] is None:
        return ["No verdict was asked for or could be read."]
    first, second = (said["by_order"][order]["a_rate"] for order in ("ab", "ba"))
    return [
        f"By place: the first answer is preferred in {_share(said['first_rate'])} of verdicts, the "
        f"second in {_share(said['second_rate'])} (bias {said['bias']:+.3f}). {name_a} is "
        f"preferred in {_share(first)} where it stands first, in {_share(second)} where second. "
        f"Both orders agree on {_share(said['agreement'])} of rows."
    ]


def _left_out(content: dict[str, Any]) -> list[str]:
    lines = []
    if unreadable := content["unreadable"]:
        lines += ["", f"{len(unreadable)} replies without a verdict, whose rows are in no share:"]
        lines += [f"- {item['group']}: {item['row_id']} ({item['order']})"
                  for item in unreadable[:MOST_LISTED]]  # fmt: skip
        if len(unreadable) > MOST_LISTED:
            lines.append(f"- and {len(unreadable) - MOST_LISTED} more, in judge.json")
    for side in ("a", "b"):
        if only := content[f"only_in_{side}"]:
            lines += [
                "",
                f"{len(only)} rows that {content[side]['name']} alone has answered: left out.",
            ]
    return lines
