"""Finished points: one file each, kept over restarts, and never taken for another candidate's."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from configs.errors import ConfigError
from merge.sweeping.candidates import Candidate
from merge.sweeping.choose import Point, make_point
from train.measuring.results import Results, as_json, flat_metrics
from train.saving.disk import write_text


@dataclass(frozen=True)
class Measured:
    """What was measured of one candidate: means, and every group, measure and language."""

    point: Point
    results: dict[str, Any]
    """As `train.measuring.results.as_json` gives it."""

    def rows(self) -> list[tuple[str, str, str, str, float, int]]:
        """(candidate, group, language, measure, value, rows it is of) of every number."""
        return [
            (self.point.name, group, code, measure, value, result["num_rows"][measure][code])
            for group, result in self.results.items()
            for measure, values in result["by_language"].items()
            for code, value in values.items()
        ]

    def by_language(self, groups: Sequence[str], measure: str) -> dict[str, float]:
        """{language: mean over those of `groups` that have it}."""
        found: dict[str, list[float]] = {}
        for group in groups:
            for code, value in self.results[group]["by_language"].get(measure, {}).items():
                found.setdefault(code, []).append(value)
        return {code: sum(values) / len(values) for code, values in sorted(found.items())}


class PointFiles:
    """The folder of points."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def has(self, candidate: Candidate) -> bool:
        """Whether it is finished."""
        return (self.folder / candidate.file_name).is_file()

    def read(self, candidate: Candidate) -> Measured:
        """What was measured of a finished candidate.

        Raises ConfigError where its name then stood for another recipe.
        """
        path = self.folder / candidate.file_name
        content = json.loads(path.read_text(encoding="utf-8"))
        then, now = content["recipe"], _describe(candidate)
        differing = [key for key in {**then, **now} if then.get(key) != now.get(key)]
        if differing:
            told = "; ".join(f"{key} {then.get(key)}, now {now.get(key)}" for key in differing)
            raise ConfigError(
                f"{candidate.name}: {path} was measured with {told}. Give what is new another name "
                "or another out, or remove that file"
            )
        return Measured(Point(**content["point"]), content["results"])

    def write(self, candidate: Candidate, results: Results, captions: Sequence[str]) -> None:
        """Keep what was measured: on disk, whole, once this returns."""
        means = {name: result.means() for name, result in results.items()}
        content = {
            "recipe": _describe(candidate),
            "point": asdict(make_point(candidate.name, candidate.alpha, means, captions)),
            "results": as_json(results),
            "means": flat_metrics(results),
        }
        text = json.dumps(content, ensure_ascii=False, indent=1)
        self.folder.mkdir(parents=True, exist_ok=True)  # the first process may come later
        write_text(self.folder / candidate.file_name, text)


def _describe(candidate: Candidate) -> dict[str, Any]:
    """The recipe as JSON gives it back."""
    described: dict[str, Any] = json.loads(json.dumps(candidate.recipe.describe()))
    return described
