"""What is asked for: a method and its settings, for each tensor. No torch."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from configs.errors import ConfigError
from merge.matching.tensor_table import EMBEDDING, LM_HEAD, TensorClass, TensorPlan
from merge.recipe.alpha import LAYER, AlphaSpec, parse_alpha, resolve_alphas
from merge.recipe.interface import MergeMethod, Settings
from merge.recipe.methods import METHODS

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """A method, its alphas, and its further settings."""

    alpha: AlphaSpec
    method: MergeMethod = METHODS["linear"]
    settings: Settings = field(default_factory=Settings)
    """Of all tensors; `alpha` in it is not read."""

    def for_tensors(self, table: Sequence[TensorPlan]) -> dict[str, Settings]:
        """{canonical name: settings} of every decoder tensor; a tied head goes with the embedding.

        Raises ConfigError for overrides of alpha that decide about no tensor.
        """
        decoder = [plan for plan in table if plan.text is not None]
        merged = [plan.name for plan in decoder if plan.tensor_class is not TensorClass.TIED]
        layers = [int(found.group(1)) for found in map(LAYER.search, merged) if found]
        alphas = resolve_alphas(self.alpha, merged, max(layers, default=0) + 1)
        if any(plan.tensor_class is TensorClass.TIED for plan in decoder):
            alphas[LM_HEAD] = alphas[EMBEDDING]
        known = {item.name: getattr(self.settings, item.name) for item in fields(Settings)}
        return {name: Settings(**{**known, "alpha": alpha}) for name, alpha in alphas.items()}

    def describe(self) -> dict[str, Any]:
        """Name, formula, source, and every setting that the method reads, for the report."""
        read = {name: getattr(self.settings, name) for name in sorted(self.method.uses - {"alpha"})}
        return {
            "name": self.method.name,
            "formula": self.method.formula,
            "url": self.method.url,
            "alpha": _plain(self.alpha.alpha),
            "alpha_overrides": {key: _plain(item) for key, item in self.alpha.overrides.items()},
            **read,
        }


def make_recipe(
    *,
    alpha: object = 0.4,
    alpha_overrides: Mapping[str, object] | None = None,
    method: str = "linear",
    extrapolate: bool = False,
    has_base: bool = False,
    **settings: Any,
) -> Recipe:
    """Checks and puts together what a merge is asked for.

    Args:
        alpha: a number, a schedule over depth; see `merge.recipe.alpha`.
        alpha_overrides: the same by kind of module or regular expression.
        method: a name in METHODS.
        extrapolate: allow alphas outside [0, 1].
        has_base: whether a third model is given, that the other two were trained from.
        settings: further fields of Settings; None stands for "not given".

    Raises ConfigError for settings that the method does not read, lacks, or cannot take.
    """
    chosen = METHODS.get(method)
    if chosen is None:
        raise ConfigError(f"method={method}: there is no such one; {', '.join(METHODS)}")
    given = {key: value for key, value in settings.items() if value is not None}
    _check_read(chosen, given)
    _check_base(chosen, given, has_base)
    _check_numbers(chosen, given)
    spec = parse_alpha(alpha, alpha_overrides or {}, extrapolate=extrapolate)
    if not has_base and given.get("density", 1) < 1:
        log.warning(
            "method=%s without base thins out the VLM's only task vector, which a 2026 study found "
            "among the most damaging settings; give base=FOLDER, or take method=linear",
            method,
        )
    return Recipe(spec, chosen, Settings(**given, has_base=has_base))


def _check_read(method: MergeMethod, given: Mapping[str, Any]) -> None:
    """Raises ConfigError for a setting that the method does not read."""
    for key, value in given.items():
        if key not in method.uses:
            readers = [name for name, item in METHODS.items() if key in item.uses]
            told = f"{', '.join(readers)} do" if readers else "none does"
            raise ConfigError(
                f"{key}={value}: method={method.name} does not read it; {told}. Leave it out, or "
                "choose one that does"
            )


def _check_base(method: MergeMethod, given: Mapping[str, Any], has_base: bool) -> None:
    """Raises ConfigError where a third model is wanted and not given, or given and not wanted."""
    if has_base and not method.takes_base:
        readers = [name for name, item in METHODS.items() if item.takes_base]
        raise ConfigError(
            f"base: method={method.name} takes no third model; {', '.join(readers)} do"
        )
    if has_base:
        return
    wanted = "give base=FOLDER, a model that both were trained from"
    if method.needs_base is not None:
        raise ConfigError(f"method={method.name} needs a base: {method.needs_base}; {wanted}")
    if given.get("normalize"):
        raise ConfigError(
            "normalize=true without base: alpha would be divided by itself, as the VLM's is the "
            f"only task vector; {wanted}"
        )
    if "text_weight" in given:
        raise ConfigError(
            f"text_weight={given['text_weight']} without base: the text LM is the base, and its "
            f"own task vector zero; {wanted}"
        )


def _check_numbers(method: MergeMethod, given: Mapping[str, Any]) -> None:
    """Raises ConfigError for a number that is out of range."""
    if "density" in method.uses and not 0 < given.get("density", -1) <= 1:
        told = given.get("density", "not given")
        raise ConfigError(
            f"density is {told}; method={method.name} needs the share of each task vector to keep, "
            "above 0 and at most 1, such as density=0.5"
        )
    if not math.isfinite(given.get("text_weight", 0)):
        raise ConfigError(f"text_weight={given['text_weight']}: give a number, such as 1")


def _plain(alpha: object) -> object:
    """An alpha as JSON has it."""
    return [list(point) for point in alpha] if isinstance(alpha, tuple) else alpha
