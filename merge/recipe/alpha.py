"""From what a user says of alpha to one alpha for each tensor. No torch.

alpha is a number, or a schedule over depth: numbers spread evenly from the first layer to the last
(`[0.8, 0.2]`), or (depth, alpha) points with depth from 0 to 1 (`[[0, 0.8], [0.5, 0.6], [1, 0]]`),
interpolated in between. The input embedding takes the alpha of depth 0; the last norm and an untied
LM head that of depth 1. Overrides change it for a kind of module or for names that match a regular
expression: kinds first, then expressions in their order, and the last that fits decides.
"""

import itertools
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from configs.errors import ConfigError
from train.model.parts import list_first

Alpha = float | tuple[tuple[float, float], ...]
"""A number, or (depth, alpha) points with rising depth."""

LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
KINDS: Mapping[str, re.Pattern[str]] = {
    "embeddings": re.compile(r"^model\.embed_tokens\."),
    "head": re.compile(r"^lm_head\."),
    "attention": re.compile(r"\.self_attn\.(?!.*norm)"),
    "mlp": re.compile(r"\.mlp\."),
    "norms": re.compile(r"norm[^.]*\.(?:weight|bias)$"),
}


@dataclass(frozen=True)
class AlphaSpec:
    """What was said of alpha, checked."""

    alpha: Alpha
    overrides: Mapping[str, Alpha] = field(default_factory=dict)
    """{kind of module or regular expression on canonical names: alpha}."""

    def __str__(self) -> str:
        told = [f"{key}: {show_alpha(value)}" for key, value in self.overrides.items()]
        return show_alpha(self.alpha) + (f" ({', '.join(told)})" if told else "")

    @property
    def number(self) -> float | None:
        """The one alpha of all tensors, or None where it differs."""
        return self.alpha if isinstance(self.alpha, float) and not self.overrides else None


def parse_alpha(alpha: object, overrides: Mapping[str, object], *, extrapolate: bool) -> AlphaSpec:
    """Checks what a config says of alpha.

    Args:
        alpha: a number, numbers, or [depth, alpha] pairs.
        overrides: the same for kinds of modules (`KINDS`) and regular expressions.
        extrapolate: allow values outside [0, 1].

    Raises ConfigError naming the key and what is wrong with it.
    """
    parsed = {key: _parse(value, f"alpha_overrides.{key}") for key, value in overrides.items()}
    for key in parsed:
        if key not in KINDS:
            try:
                re.compile(key)
            except re.error as error:
                raise ConfigError(
                    f"alpha_overrides: {key!r} is neither one of {', '.join(KINDS)} nor a regular "
                    f"expression ({error})"
                ) from error
    spec = AlphaSpec(_parse(alpha, "alpha"), parsed)
    told = {f"alpha_overrides.{key}": value for key, value in parsed.items()}
    for key, value in {"alpha": spec.alpha, **told}.items():
        numbers = [value] if isinstance(value, float) else [point[1] for point in value]
        outside = [number for number in numbers if not 0 <= number <= 1]
        if outside and not extrapolate:
            raise ConfigError(
                f"{key}={outside[0]:g} is outside [0, 1]; 0 is the text LM, 1 the VLM"
                " (extrapolate=true allows it)"
            )
    return spec


def resolve_alphas(spec: AlphaSpec, names: Iterable[str], num_layers: int) -> dict[str, float]:
    """{canonical name: alpha} for every merged tensor.

    Args:
        spec: what `parse_alpha` returned.
        names: canonical names of the merged tensors; a tied LM head is not one.
        num_layers: decoder layers; layer i stands at depth i / (num_layers - 1).

    Raises ConfigError for overrides that decide about no tensor.
    """
    kinds = [key for key in spec.overrides if key in KINDS]
    keys = [*kinds, *(key for key in spec.overrides if key not in KINDS)]
    used: set[str] = set()
    alphas = {}
    for name in names:
        fits = [key for key in keys if KINDS.get(key, re.compile(key)).search(name)]
        used.update(fits[-1:])
        value = spec.overrides[fits[-1]] if fits else spec.alpha
        alphas[name] = _at_depth(value, depth_of(name, num_layers))
    unused = [key for key in keys if key not in used]
    if unused:
        raise ConfigError(
            f"alpha_overrides: {len(unused)} of {len(keys)} decide about no tensor of the decoder: "
            f"{list_first(unused)}. Names are like {list_first(list(alphas), 2)}; kinds are "
            f"{', '.join(KINDS)}; a later override hides an earlier one, and a tied LM head goes "
            "with the embeddings"
        )
    return alphas


def depth_of(name: str, num_layers: int) -> float:
    """Where a tensor stands, from 0 (embedding, first layer) to 1 (last layer, norm, head)."""
    found = LAYER.search(name)
    if found is None:
        return 0.0 if KINDS["embeddings"].search(name) else 1.0
    return int(found.group(1)) / max(1, num_layers - 1)


def show_alpha(alpha: Alpha) -> str:
    """An alpha as it is told to people: `0.4`, or `0.8 -> 0.2` with depths where they matter."""
    if isinstance(alpha, float):
        return f"{alpha:g}"
    even = all(math.isclose(depth, i / (len(alpha) - 1)) for i, (depth, _) in enumerate(alpha))
    points = [f"{value:g}" if even else f"{value:g} at {depth:g}" for depth, value in alpha]
    return " -> ".join(points)


def _parse(value: object, key: str) -> Alpha:
    if _is_number(value):
        return float(value)  # type: ignore[arg-type]
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) >= 2:
        if all(_is_number(item) for item in value):
            last = len(value) - 1
            return tuple((i / last, float(item)) for i, item in enumerate(value))
        pairs = [item for item in value if isinstance(item, Sequence) and len(item) == 2]
        if len(pairs) == len(value) and all(_is_number(x) for pair in pairs for x in pair):
            points = tuple((float(depth), float(alpha)) for depth, alpha in pairs)
            depths = [depth for depth, _ in points]
            if depths[0] == 0 and depths[-1] == 1 and depths == sorted(set(depths)):
                return points
            raise ConfigError(f"{key}: depths must rise from 0 to 1, they are {depths}")
    raise ConfigError(
        f"{key}={value!r}: give a number (0.4), numbers spread over the depth ([0.8, 0.2]), or "
        "[depth, alpha] points ([[0, 0.8], [0.5, 0.6], [1, 0]])"
    )


def _is_number(value: object) -> bool:
    """Whether it is a finite number; True and False are none."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) <= sys.float_info.max  # false of NaN; whole numbers may be larger than floats


def _at_depth(alpha: Alpha, depth: float) -> float:
    """Linear interpolation between the two points around `depth`."""
    if isinstance(alpha, float):
        return alpha
    for (left, below), (right, above) in itertools.pairwise(alpha):
        if depth <= right:
            share = (depth - left) / (right - left)
            return above if share == 1 else below + share * (above - below)
    return alpha[-1][1]
