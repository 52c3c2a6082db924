"""The answers of two models to the same held-out rows, from what an evaluation has written."""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from configs.errors import ConfigError, DataError
from configs.schema import JudgeConfig
from train.judging.pictures import find_pictures
from train.measuring.results import Answer, Results, from_json

RowKey = tuple[str, str]  # group, id of the row


@dataclass(frozen=True)
class Pair:
    """A row with what both models answered."""

    group: str
    row_id: str
    language: str
    question: str
    reference: str
    answer_a: str
    answer_b: str
    picture: str | None  # file; None: the row has none, or it is not shown

    @property
    def key(self) -> RowKey:
        """What it is known by."""
        return self.group, self.row_id

    @property
    def is_identical(self) -> bool:
        """Whether both answers are one, but for white space at their ends: a tie, not asked."""
        return self.answer_a.strip() == self.answer_b.strip()


@dataclass(frozen=True)
class Side:
    """One of the two models."""

    name: str
    path: str  # folder or file of the evaluation
    answers: dict[RowKey, Answer]


@dataclass(frozen=True)
class Pairs:
    """All that is judged."""

    a: Side
    b: Side
    rows: list[Pair]
    only_in_a: list[RowKey]
    only_in_b: list[RowKey]

    def digest(self) -> str:
        """Return a hash of all that the judge is shown, the pictures' bytes among it."""
        seen = hashlib.sha256()
        for pair in self.rows:
            seen.update(json.dumps(asdict(pair) | {"picture": None}).encode())
            seen.update(Path(pair.picture).read_bytes() if pair.picture else b"")
        return seen.hexdigest()


def read_pairs(config: JudgeConfig) -> Pairs:
    """Return the rows that both models have answered.

    Raises:
        ConfigError: a model is not in its evaluation, or it is not told which.
        DataError: there is no evaluation, or the two are not of the same rows.
    """
    names: Sequence[str | None] = config.models or (None, None)
    side_a, side_b = (
        _read_side(path, name, config.groups)
        for path, name in zip(_paths(config), names, strict=True)
    )
    pictures: dict[str, str] = {}
    if config.with_pictures:
        for side in (side_b, side_a):
            pictures |= find_pictures(Path(side.path))
    both = [key for key in side_a.answers if key in side_b.answers]
    if not both:
        raise DataError(
            f"no row is answered both by {side_a.name} ({side_a.path}) and by {side_b.name} "
            f"({side_b.path}): give two evaluations of the same data.held_out with answers "
            "(evaluation.generate=true)"
        )
    rows = [_pair(key, side_a, side_b, pictures) for key in both]
    return Pairs(
        a=side_a,
        b=side_b,
        rows=_draw(rows, config.num_rows, config.seed),
        only_in_a=[key for key in side_a.answers if key not in side_b.answers],
        only_in_b=[key for key in side_b.answers if key not in side_a.answers],
    )


def _paths(config: JudgeConfig) -> tuple[str, str]:
    if config.evaluation is not None:
        return config.evaluation, config.evaluation
    assert config.a is not None and config.b is not None  # a rule
    return config.a, config.b


def _read_side(path: str, name: str | None, groups: Sequence[str]) -> Side:
    file = Path(path)
    file = file / "evaluation.json" if file.is_dir() else file
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"no {file}: give a folder that `train.evaluate` has written") from error
    except ValueError as error:
        raise DataError(f"{file} is not JSON: {error}") from error
    name, results = _choose(content, name, file)
    for group in groups:
        if group not in results:
            raise ConfigError(f"groups: {group!r} is not in {file}; there are {list(results)}")
    answers: dict[RowKey, Answer] = {}
    for group in groups or results:
        for answer in results[group].answers:
            if answers.setdefault((group, answer.row_id), answer) is not answer:
                raise DataError(f"{file} holds two answers of {name} to row {answer.row_id!r}")
    return Side(name, path, answers)


def _choose(content: Any, name: str | None, file: Path) -> tuple[str, Results]:
    """Return one model of an evaluation.json, or the one of a run's step."""
    if not isinstance(content, dict) or content.get("schema") != 1:
        raise DataError(f"{file} is no evaluation of schema 1; write it anew with `train.evaluate`")
    if "groups" in content:
        return name or f"step {content.get('step')}", from_json(content["groups"])
    models = content["models"]
    if name is None and len(models) == 1:
        name = next(iter(models))
    if name is None or name not in models:
        wanted = "models: does not say which model" if name is None else f"models: no {name!r}"
        raise ConfigError(f"{wanted} in {file}; there are {', '.join(models)}")
    return name, from_json(models[name]["groups"])


def _pair(key: RowKey, a: Side, b: Side, pictures: dict[str, str]) -> Pair:
    one, other = a.answers[key], b.answers[key]
    for field in ("language", "question", "reference"):
        if getattr(one, field) != getattr(other, field):
            raise DataError(
                f"row {key[1]!r} of group {key[0]!r} has another {field} in {a.path} than in "
                f"{b.path}: give two evaluations of the same data.held_out"
            )
    return Pair(
        group=key[0],
        row_id=key[1],
        language=one.language,
        question=one.question,
        reference=one.reference,
        answer_a=one.answer,
        answer_b=other.answer,
        picture=pictures.get(key[1]),
    )


def _draw(rows: list[Pair], num_rows: int | None, seed: int) -> list[Pair]:
    """Keep at most `num_rows` of each language of a group, in their order."""
    if num_rows is None:
        return rows
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    taken: Counter[tuple[str, str]] = Counter()
    kept = []
    for place in order:
        of = rows[place].group, rows[place].language
        taken[of] += 1
        if taken[of] <= num_rows:
            kept.append(place)
    return [rows[place] for place in sorted(kept)]
