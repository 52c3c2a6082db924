"""What a sweep measures: each alpha, each schedule, and the text LM to hold them against. No torch.

A candidate is a name and a recipe. Its name is that of its file, row and label everywhere.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from configs.errors import ConfigError
from configs.rules import TEXT_LM
from merge.recipe.recipe import Recipe, make_recipe


@dataclass(frozen=True)
class Candidate:
    """One decoder that might be chosen."""

    name: str
    recipe: Recipe
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
    **method: Any,
) -> list[Candidate]:
    """Every candidate, in the order given: alphas, then schedules.

    Args:
        alphas: one of all tensors each; 0 is among them.
        schedules: {name: (alpha, alpha_overrides)} as `make_recipe` takes them.
        method: what else `make_recipe` takes.

    Raises ConfigError for what cannot be a recipe, naming the schedule.
    """
    found = [Candidate(_show(a), make_recipe(alpha=a, **method), a + 0.0) for a in alphas]
    for name, (alpha, overrides) in schedules.items():
        try:
            recipe = make_recipe(alpha=alpha, alpha_overrides=overrides, **method)
        except ConfigError as error:
            raise ConfigError(f"schedules.{name}: {error}") from error
        found.append(Candidate(name, recipe))
    if not any(map(_is_text_lm, found)):  # a method that trims or drops, at alpha 0
        found.insert(0, Candidate(TEXT_LM, make_recipe(alpha=0)))
    return found


def find_text_lm(candidates: Sequence[Candidate]) -> Candidate:
    """The candidate whose decoder is the text LM's, bytes copied."""
    return next(filter(_is_text_lm, candidates))


def _is_text_lm(candidate: Candidate) -> bool:
    recipe = candidate.recipe
    return (
        recipe.alpha.number == 0
        and recipe.method.copies(replace(recipe.settings, alpha=0.0)) == "text"
    )


def _show(alpha: float) -> str:
    """All digits that tell it from its neighbours: a rounded name would be two candidates'."""
    return str(float(alpha) + 0.0).removesuffix(".0")
