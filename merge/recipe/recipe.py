"""What is asked for: a method and its settings, for each tensor. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from configs.errors import ConfigError
from merge.matching.tensor_table import EMBEDDING, LM_HEAD, TensorClass, TensorPlan
from merge.recipe.alpha import LAYER, AlphaSpec, parse_alpha, resolve_alphas
from merge.recipe.methods import METHODS, MergeMethod, Settings


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
    for key in given:
        if key not in chosen.uses:
            readers = [name for name, item in METHODS.items() if key in item.uses]
            raise ConfigError(
                f"{key}={given[key]}: method={method} does not read it; {', '.join(readers)} do. "
                f"Leave it out, or choose one of them"
            )
    if has_base and not chosen.takes_base:
        readers = [name for name, item in METHODS.items() if item.takes_base]
        raise ConfigError(f"base: method={method} takes no third model; {', '.join(readers)} do")
    if "density" in chosen.uses and not 0 < given.get("density", -1) <= 1:
        told = given.get("density", "not given")
        raise ConfigError(
            f"density is {told}; method={method} needs the share of each task vector to keep, above"
            " 0 and at most 1, such as density=0.5"
        )
    spec = parse_alpha(alpha, alpha_overrides or {}, extrapolate=extrapolate)
    return Recipe(spec, chosen, Settings(**given, has_base=has_base))


def _plain(alpha: object) -> object:
    """An alpha as JSON has it."""
    return [list(point) for point in alpha] if isinstance(alpha, tuple) else alpha
