"""The files of a run folder, as far as they can be read; what cannot is told and not raised."""

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from train.measuring.results import BLIND, MEASURES, SCHEMA, Results, from_json, stable_metrics

T = TypeVar("T")
MOST_PROBLEMS = 12  # that are told of one folder


@dataclass
class Reader:
    """Reads files of one folder and keeps what is wrong with them."""

    folder: Path
    problems: list[str] = field(default_factory=list)

    def json(self, name: str, *, needed: bool = True) -> dict[str, Any]:
        """Return the object in a JSON file; nothing where there is none."""
        return self._read(name, json.loads, needed=needed)

    def yaml(self, name: str) -> dict[str, Any]:
        """Return the mapping in a YAML file; nothing where there is none."""
        return self._read(name, yaml.safe_load, needed=True)

    def lines(self, name: str, *, needed: bool = True) -> list[dict[str, Any]]:
        """Return the objects of a file that holds one a line; broken lines are counted."""
        text = self._text(name, needed=needed)
        found, broken = [], []
        for number, line in enumerate((text or "").splitlines(), start=1):
            if line.strip():
                value = _object(line)
                if value is None:
                    broken.append(number)
                else:
                    found.append(value)
        if broken:
            self.tell(f"{name}: {len(broken)} broken lines left out, the first is {broken[0]}")
        return found

    def tell(self, problem: str) -> None:
        """Keep what is wrong, once, as long as there are not too many."""
        if len(self.problems) < MOST_PROBLEMS and problem not in self.problems:
            self.problems.append(problem)

    def _read(self, name: str, parse: Callable[[str], Any], *, needed: bool) -> dict[str, Any]:
        text = self._text(name, needed=needed)
        if text is None:
            return {}
        try:
            value = parse(text)
        except (ValueError, yaml.YAMLError, RecursionError) as error:
            self.tell(f"{name} cannot be read: {str(error).splitlines()[0]}")
            return {}
        if not isinstance(value, dict):
            self.tell(f"{name} holds a {type(value).__name__}, not an object")
            return {}
        return value

    def _text(self, name: str, *, needed: bool) -> str | None:
        path = self.folder / name
        try:
            return path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            if needed:
                self.tell(f"{name} is not there")
        except OSError as error:
            self.tell(f"{name} cannot be read: {error.strerror}")
        return None


@dataclass(frozen=True)
class Measurement:
    """The held-out rows as they were measured after a step."""

    step: int
    results: Results


Curves = dict[str, dict[int, float]]  # name of a metric -> step -> value


@dataclass
class RunFiles:
    """What a run folder says."""

    folder: Path
    problems: list[str]
    config: dict[str, Any]
    starts: list[dict[str, Any]]  # environment.jsonl
    data: dict[str, Any]  # data.json, and data_summary.json where it is
    rows: list[dict[str, Any]]  # the ledger
    finished: dict[str, Any]
    curves: Curves
    measurements: list[Measurement]
    pictures: dict[str, Path]  # row id -> picture

    def value(self, *keys: str) -> Any:
        """Return what the config holds under keys, or None."""
        node: Any = self.config
        for key in keys:
            node = node.get(key) if isinstance(node, dict) else None
        return node

    @property
    def stage(self) -> str:
        """Name of the stage."""
        return str(self.value("stage", "name") or "run")

    @property
    def last_step(self) -> int:
        """The last step that anything is known of."""
        steps = [step for values in self.curves.values() for step in values]
        return max([*steps, 0])

    def loss(self, *, last: bool) -> float | None:
        """Return the first or the last training loss that was logged."""
        values = self.curves.get("train/loss", {})
        return values[(max if last else min)(values)] if values else None


def read_run(folder: Path) -> RunFiles:
    """Read a run folder; whatever is missing or broken is in `problems`."""
    reader = Reader(folder)
    config = reader.yaml("config.yaml")
    starts = reader.lines("environment.jsonl")
    data = {
        **reader.json("data.json", needed=False),
        **reader.json("data_summary.json", needed=False),
    }
    rows = reader.lines("rows.jsonl")
    lines = reader.lines("metrics.jsonl")
    measurements = list(_measurements(reader))
    return RunFiles(
        folder, reader.problems, config, starts, data, rows,
        reader.json("finished.json", needed=False), _curves(lines, measurements), measurements,
        read_pictures(reader, folder / "evaluation"),
    )  # fmt: skip


def _measurements(reader: Reader) -> Iterable[Measurement]:
    paths = sorted((reader.folder / "evaluation").glob("step-*.json"))
    for path in paths:
        content = reader.json(f"evaluation/{path.name}")
        step, groups = content.get("step"), content.get("groups")
        if isinstance(step, int) and isinstance(groups, dict):
            results = read_results(reader, f"evaluation/{path.name}", content)
            yield Measurement(step, results)
        elif content:
            reader.tell(f"evaluation/{path.name} holds no step and groups")


def read_results(reader: Reader, name: str, content: dict[str, Any]) -> Results:
    """Return the results in a file or a part of one: groups that are whole, measures we know."""
    if content.get("schema", SCHEMA) != SCHEMA:
        reader.tell(f"{name} has schema {content['schema']}; this version knows {SCHEMA}")
    found: Results = {}
    groups = content.get("groups")
    for group, told in (groups if isinstance(groups, dict) else {}).items():
        try:
            (result,) = from_json({group: told}).values()
            for measure in list(result.by_language):
                if measure.removeprefix(BLIND) not in MEASURES:
                    reader.tell(f"{name}: a measure {measure!r} is unknown here and left out")
                    del result.by_language[measure]
                    continue
                values = result.by_language[measure]
                numbers = {code: float(value) for code, value in values.items()}
                result.by_language[measure] = numbers
                if not numbers:
                    del result.by_language[measure]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            reader.tell(f"{name}: group {group!r} cannot be read: {type(error).__name__} {error}")
            continue
        found[group] = result
    return found


def _curves(lines: Iterable[dict[str, Any]], measurements: Iterable[Measurement]) -> Curves:
    """Return every metric over steps; what was measured counts also where its line is lost."""
    curves: Curves = {}
    for line in lines:
        step = line.get("step")
        if isinstance(step, int | float) and math.isfinite(step):
            for name, value in line.items():
                if name != "step" and _is_number(value):
                    curves.setdefault(name, {})[int(step)] = float(value)
    for measured in measurements:
        for name, value in stable_metrics(measured.results).items():
            if math.isfinite(value):
                curves.setdefault(name, {}).setdefault(measured.step, value)
    return {name: dict(sorted(values.items())) for name, values in curves.items()}


def read_pictures(reader: Reader, folder: Path) -> dict[str, Path]:
    """Return {row id: picture} of a folder that holds pictures.json and pictures/."""
    name = str((folder / "pictures.json").relative_to(reader.folder))
    found = {}
    for row_id, file in reader.json(name, needed=False).items():
        path = folder / "pictures" / Path(str(file)).name  # nothing from elsewhere
        if path.is_file():
            found[row_id] = path
        else:
            reader.tell(f"{name}: the picture of {row_id}, {file}, is not there")
    return found


def as_dict(value: Any) -> dict[str, Any]:
    """Return what should be an object, or an empty one."""
    return value if isinstance(value, dict) else {}


def _object(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
