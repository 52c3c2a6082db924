"""How often each sample is seen an epoch, by source and by language, and the table that says so."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from configs.errors import DataError

Numbers = npt.NDArray[np.integer[Any]]
Floats = npt.NDArray[np.float64]
NAME_WIDTH = 22  # characters; longer names are cut


def sample_weights(
    source_of: Numbers,
    language_of: Numbers,
    source_weights: Sequence[float],
    temperature: float,
) -> Floats:
    """Return how many times each sample is seen an epoch: [samples] float64.

    A sample starts with the weight of its source. Languages are then drawn in proportion to
    n^(1/T), n being the sum of a language's weights: T = 1 leaves all as it is, a large T gives
    every language the same. The sum of all weights stays what it was, so an epoch stays as long.
    mT5 samples languages like this (arXiv 2010.11934 section 3.2, whose alpha is 1/T; the T is of
    arXiv 1907.05019); it draws documents without end where we repeat and leave out rows.

    Args:
        source_of: [samples] number of the source in `source_weights`.
        language_of: [samples] number of the language.
        source_weights: of each source, times its rows are seen an epoch.
        temperature: T, above 0; infinity is allowed.

    Raises:
        DataError: the temperature or a weight is out of range.
    """
    if not temperature > 0:
        raise DataError(
            f"data.language_temperature={temperature:g} is not above 0; give 1 to take languages "
            "as they come, more to even them out"
        )
    by_source = np.asarray(source_weights, dtype=np.float64)
    if not (np.isfinite(by_source) & (by_source >= 0)).all():
        raise DataError(
            f"weights of sources are {by_source.tolist()}; data.sources.<name>.weight is a number "
            "of times, 0 or more"
        )
    weights: Floats = by_source[source_of]
    if temperature == 1 or not weights.any():
        return weights
    sizes = np.bincount(language_of, weights=weights).astype(np.float64)
    sizes = sizes / sizes.sum()
    wanted = np.where(sizes > 0, sizes ** (1 / temperature), 0.0)
    wanted /= wanted.sum()
    factors = np.divide(wanted, sizes, out=np.zeros_like(sizes), where=sizes > 0)
    scaled: Floats = weights * factors[language_of]
    return scaled


# ------------------------------------------------------------------------------ the table


@dataclass(frozen=True)
class _Mixture:
    """Samples and what is counted of them; [samples] each."""

    weights: Floats
    num_tokens: Numbers
    num_tiles: Numbers
    num_supervised: Numbers

    def line(self, name: str, num_bad: int | None, chosen: npt.NDArray[np.bool_]) -> str:
        """Return a line of the table: counts are of an epoch, but for rows and rows left out."""
        weights, rows = self.weights[chosen], int(chosen.sum())
        samples = float(weights.sum())
        tokens = float(weights @ self.num_tokens[chosen])
        supervised = float(weights @ self.num_supervised[chosen])
        cells = (
            name if len(name) <= NAME_WIDTH else f"{name[: NAME_WIDTH - 1]}…",
            f"{rows:,}",
            "" if num_bad is None else f"{num_bad:,}",
            f"x{_two_digits(samples / rows)}" if rows else "-",
            _count(samples),
            _count(tokens),
            _share(tokens, float(self.weights @ self.num_tokens)),
            _share(supervised, tokens),
            _count(float(weights @ self.num_tiles[chosen])),
        )
        return _align(cells)


def describe_mixture(
    source_names: Sequence[str],
    language_names: Sequence[str],
    source_of: Numbers,
    language_of: Numbers,
    weights: Floats,
    num_tokens: Numbers,
    num_tiles: Numbers,
    num_supervised: Numbers,
    num_bad: Mapping[str, int],
) -> str:
    """Return the table logged before a run: what an epoch holds of each source and language.

    Sources come in their order, then the languages that have rows, most tokens first.

    Args:
        source_names: by number; all are told, also those without a usable row.
        language_names: by number.
        source_of: [samples] number of the source, as the next five of the usable rows alone.
        language_of: [samples] number of the language.
        weights: [samples] times each is seen an epoch.
        num_tokens: [samples].
        num_tiles: [samples].
        num_supervised: [samples] tokens that are trained on.
        num_bad: source name -> rows left out; a source without any may be missing.
    """
    mixture = _Mixture(weights, num_tokens, num_tiles, num_supervised)
    header = ("", "rows", "left out", "seen", "samples", "tokens", "share", "superv.", "tiles")
    lines = [_align(("source", *header[1:]))]
    for number, name in enumerate(source_names):
        lines.append(mixture.line(name, num_bad.get(name, 0), source_of == number))
    lines.append(_align(("language", *[""] * (len(header) - 1))))
    tokens = np.bincount(language_of, weights=weights * num_tokens, minlength=1)
    for number in np.argsort(-tokens, kind="stable").tolist():
        chosen = language_of == number
        if chosen.any():
            lines.append(mixture.line(language_names[number], None, chosen))
    everything = np.ones(len(weights), dtype=np.bool_)
    lines.append(mixture.line("total", sum(num_bad.values()), everything))
    return "\n".join(lines)


def _align(cells: Sequence[str]) -> str:
    """Return a line of at most 100 characters."""
    widths = (11, 10, 8, 11, 11, 8, 8, 11)
    rest = "".join(f"{cell:>{width}}" for cell, width in zip(cells[1:], widths, strict=True))
    return f"{cells[0]:<{NAME_WIDTH}}{rest}".rstrip()


def _count(number: float) -> str:
    """Return a count in at most nine characters: 1,234,567 or 1,234.5 M."""
    for unit, size in (("", 1.0), (" M", 1e6), (" B", 1e9)):
        if number < 1e4 * size or (not unit and number < 1e7):
            break
    return f"{number / size:,.{1 if unit else 0}f}{unit}"


def _two_digits(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.2g}"


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else "-"
