"""CIDEr-D of captions that are cut into tokens (Vedantam et al. 2015, arXiv 1411.5726).

One reference a caption, and the scale and the habits of pycocoevalcap, which tests hold it against:
ten times the mean over n-gram orders, and lengths counted in bigrams.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

ORDERS = 4  # n-grams of one to four tokens
SIGMA = 6.0  # of the penalty on a difference in length
SCALE = 10.0

Tokens = Sequence[str]
NGram = tuple[str, ...]


@dataclass(frozen=True)
class _Vector:
    """A caption: weights of its n-grams by order, their norms, its length in bigrams."""

    weights: list[dict[NGram, float]]
    norms: list[float]
    length: int


def cider_scores(said: Sequence[Tokens], wanted: Sequence[Tokens]) -> list[float] | None:
    """Return the CIDEr-D of each caption, 0 to 10; the corpus score is their mean.

    An n-gram weighs log(captions / captions whose reference holds it). One that every reference
    holds weighs nothing. None where no n-gram weighs anything (one caption, or the same reference
    everywhere): every score would be 0, whatever was said.

    Args:
        said: tokens of the generated captions.
        wanted: tokens of the reference of each; their document frequencies are used.
    """
    references = [_ngrams(tokens) for tokens in wanted]
    found_in = Counter(ngram for reference in references for ngram in reference)
    # An n-gram that no reference holds counts as if one did.
    seldom = math.log(max(1, len(references)))
    idf = {ngram: seldom - math.log(count) for ngram, count in found_in.items()}
    if not any(idf.values()):
        return None
    return [
        _similarity(_vector(_ngrams(tokens), idf, seldom), _vector(reference, idf, seldom))
        for tokens, reference in zip(said, references, strict=True)
    ]


def _ngrams(tokens: Tokens) -> Counter[NGram]:
    return Counter(
        tuple(tokens[start : start + order])
        for order in range(1, ORDERS + 1)
        for start in range(len(tokens) - order + 1)
    )


def _vector(counts: Counter[NGram], idf: dict[NGram, float], seldom: float) -> _Vector:
    weights: list[dict[NGram, float]] = [{} for _ in range(ORDERS)]
    for ngram, count in counts.items():
        weights[len(ngram) - 1][ngram] = count * idf.get(ngram, seldom)
    norms = [math.sqrt(sum(value**2 for value in order.values())) for order in weights]
    return _Vector(weights, norms, sum(n for ngram, n in counts.items() if len(ngram) == 2))


def _similarity(said: _Vector, wanted: _Vector) -> float:
    """Return ten times the mean over orders of the clipped cosine, less for another length."""
    penalty = math.exp(-((said.length - wanted.length) ** 2) / (2 * SIGMA**2))
    total = 0.0
    for order in range(ORDERS):
        norm = said.norms[order] * wanted.norms[order]
        if norm:
            there = wanted.weights[order]
            # Clipped: saying an n-gram more often than the reference earns nothing.
            product = sum(
                min(value, there[ngram]) * there[ngram]
                for ngram, value in said.weights[order].items()
                if ngram in there
            )
            total += product / norm
    return SCALE * penalty * total / ORDERS
