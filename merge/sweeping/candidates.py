"""What a sweep measures: each alpha, each schedule, and the text LM to hold them against. No torch.

A candidate is a name and a recipe. Its name is that of its file, row and label everywhere.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from configs.errors import ConfigError
from configs.rules import TEXT_LM
from merge.matching.tensor_table import TensorPlan
from merge.recipe.alpha import parse_alpha
from merge.recipe.recipe import Recipe, make_recipe


@dataclass(frozen=True)
class Candidate:
    """One decoder that might be chosen."""

    name: str
    recipe: Recipe
    arguments: Mapping[str, Any]
    """Of `make_recipe`, but for `has_base`."""
    alpha: float | None = None
    """The number it is called by; None for a schedule."""

    @property
    def file_name(self) -> str:
        """Of its point; no schedule can have that of a number."""
        return f"{self.name if self.alpha is None else f'alpha-{self.name}'}.json"

    def __str__(self) -> str:
        return self.name if self.alpha is not None else f"{self.name} ({self.recipe.alpha})"


def list_candidates(
    *,
    alphas: Sequence[float],
    schedules: Mapping[str, tuple[object, Mapping[str, object]]],
    has_base: bool = False,
    extrapolate: bool = False,
    **method: Any,
) -> list[Candidate]:
    """Every candidate, in the order given: alphas, then schedules.

    Args:
        alphas: one of all tensors each; 0 is among them.
        schedules: {name: (alpha, alpha_overrides)} as `make_recipe` takes them.
        has_base: whether there is a third model.
        extrapolate: allow alphas outside [0, 1].
        method: what else `make_recipe` takes.

    Raises ConfigError for what cannot be a recipe, naming the schedule.
    """
    common = make_recipe(has_base=has_base, extrapolate=extrapolate, **method)
    said: list[tuple[str, object, Mapping[str, object], float | None]] = [
        *((_show(alpha), alpha, {}, alpha + 0.0) for alpha in alphas),
        *((name, alpha, overrides, None) for name, (alpha, overrides) in schedules.items()),
    ]
    found = []
    for name, alpha, overrides, number in said:
        with _told_of(name, number):
            spec = parse_alpha(alpha, overrides, extrapolate=extrapolate)
        told = {"alpha": alpha, "alpha_overrides": dict(overrides), "extrapolate": extrapolate}
        found.append(Candidate(name, replace(common, alpha=spec), told | method, number))
    if not any(map(_is_text_lm, found)):  # a method that trims or drops, at alpha 0
        found.insert(0, Candidate(TEXT_LM, make_recipe(alpha=0), {"alpha": 0.0}))
    return found


def check_against(candidates: Iterable[Candidate], table: Sequence[TensorPlan]) -> None:
    """Raises ConfigError for overrides that decide about no tensor, naming the schedule."""
    for candidate in candidates:
        with _told_of(candidate.name, candidate.alpha):
            candidate.recipe.for_tensors(table)


def find_text_lm(candidates: Sequence[Candidate]) -> Candidate:
    """The candidate whose decoder is the text LM's, bytes copied."""
    return next(filter(_is_text_lm, candidates))


@contextmanager
def _told_of(name: str, alpha: float | None) -> Iterator[None]:
    """Says of which schedule an error tells."""
    try:
        yield
    except ConfigError as error:
        if alpha is not None:
            raise
        raise ConfigError(f"schedules.{name}: {error}") from error


def _is_text_lm(candidate: Candidate) -> bool:
    recipe = candidate.recipe
    return (
        recipe.alpha.number == 0
        and recipe.method.copies(replace(recipe.settings, alpha=0.0)) == "text"
    )


def _show(alpha: float) -> str:
    """All digits that tell it from its neighbours: a rounded name would be two candidates'."""
    return str(float(alpha) + 0.0).removesuffix(".0")
