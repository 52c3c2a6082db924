"""Scores of generated answers by language: exact match, chrF and BLEU (sacrebleu), CIDEr-D.

What each means and where it misleads is told in docs/EVALUATION.md.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import cache

import numpy as np
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from configs.errors import ConfigError, first_line
from train.measuring.cider import ORDERS, SIGMA, cider_scores
from train.measuring.results import Results

DEFAULT_TOKENIZER = "13a"
# sacrebleu's own choice where it has one. It advises `flores200` for the others that put no spaces
# between words; that downloads a model when it is first used, so they are cut into characters.
TOKENIZERS = {"zh": "zh", "ja": "ja-mecab", "ko": "ko-mecab"} | dict.fromkeys(
    ("th", "lo", "km", "my", "bo", "dz"), "char"
)

ByMeasure = dict[str, dict[str, float]]  # measure -> language -> value
Score = Callable[[str, list[str], list[str]], float | None]  # of language, answers, references


def score_answers(
    languages: Sequence[str], said: Sequence[str], wanted: Sequence[str], *, captions: bool
) -> ByMeasure:
    """Return measure -> language -> value.

    `exact_match` is a share, `chrf` and `bleu` go from 0 to 100, `cider` from 0 to 10. A language
    is absent from `bleu` where no reference has four tokens, and from `cider` where nothing tells
    its references apart (one row, say): both would be 0 for the right answers too.

    Args:
        languages: ISO 639-1 code of each answer.
        said: the generated answers.
        wanted: the reference of each.
        captions: whether the answers are captions, for which there is `cider`.

    Raises:
        ConfigError: a language needs a tokenizer that is not installed.
    """
    groups: dict[str, tuple[list[str], list[str]]] = {}
    for code, answer, reference in zip(languages, said, wanted, strict=True):
        group = groups.setdefault(code, ([], []))
        group[0].append(answer)
        group[1].append(reference)
    scores: dict[str, Score] = {"exact_match": _exact_match, "chrf": _chrf, "bleu": _bleu}
    if captions:
        scores["cider"] = _cider
    return {
        name: {
            code: value
            for code in sorted(groups)
            if (value := score(code, *groups[code])) is not None
        }
        for name, score in scores.items()
    }


def signatures(languages: Iterable[str], *, captions: bool) -> dict[str, dict[str, str]]:
    """Return measure -> language -> how it was computed, as sacrebleu writes it.

    Loads every tokenizer that scoring will need, so it also tells early that one is missing.

    Raises:
        ConfigError: a language needs a tokenizer that is not installed.
    """
    codes = sorted(set(languages))
    bleu = {code: _signature(bleu_of(code)) for code in codes}
    found = {"chrf": dict.fromkeys(codes, _signature(CHRF())), "bleu": bleu}
    if captions:
        tokenizers = {code: bleu_of(code).tokenizer_signature for code in codes}
        found["cider"] = {
            code: f"nrefs:1|case:lc|n:{ORDERS}|sigma:{SIGMA:g}|df:references|tok:{tokenizer}"
            for code, tokenizer in tokenizers.items()
        }
    return found


def signatures_of(results: Results) -> dict[str, dict[str, str]]:
    """Return measure -> language -> how the scores of some results were computed."""
    codes = {a.language for result in results.values() for a in result.answers}
    captions = any("cider" in result.by_language for result in results.values())
    return signatures(sorted(codes), captions=captions)


def tokenizer_name(language: str) -> str:
    """Return the name of sacrebleu's tokenizer for a language; regions (`zh-TW`) do not matter."""
    code = language.lower().replace("_", "-").split("-")[0]
    return TOKENIZERS.get(code, DEFAULT_TOKENIZER)


def bleu_of(language: str) -> BLEU:
    """Return the BLEU of a language, with its tokenizer loaded once.

    Raises:
        ConfigError: the tokenizer is not installed.
    """
    name = tokenizer_name(language)
    try:
        return _loaded(name)
    except (ImportError, RuntimeError, AssertionError) as error:
        # An assertion: mecab has another dictionary than the one scores are comparable with.
        raise ConfigError(
            f"answers in {language!r} are scored with sacrebleu's tokenizer {name!r}, which cannot "
            f"be loaded ({first_line(error)}); pip install 'sacrebleu[ja,ko]', or leave the "
            f"language out of the held-out rows, or set evaluation.generate=false"
        ) from error


@cache
def _loaded(name: str) -> BLEU:
    return BLEU(tokenize=name, force=True)  # force: no warning of answers that look tokenized


def _signature(metric: BLEU | CHRF) -> str:
    metric.num_refs = 1  # what sacrebleu sets when it has seen references
    return str(metric.get_signature())


def _exact_match(_: str, said: list[str], wanted: list[str]) -> float:
    pairs = zip(said, wanted, strict=True)
    return float(np.mean([answer.strip() == reference.strip() for answer, reference in pairs]))


def _chrf(_: str, said: list[str], wanted: list[str]) -> float:
    return float(CHRF().corpus_score(said, [wanted]).score)


def _bleu(language: str, said: list[str], wanted: list[str]) -> float | None:
    bleu = bleu_of(language)
    if max(len(bleu.tokenizer(text.rstrip()).split()) for text in wanted) < bleu.max_ngram_order:
        return None
    return float(bleu.corpus_score(said, [wanted]).score)


def _cider(language: str, said: list[str], wanted: list[str]) -> float | None:
    scores = cider_scores(_tokens(language, said), _tokens(language, wanted))
    return None if scores is None else float(np.mean(scores))


def _tokens(language: str, texts: list[str]) -> list[list[str]]:
    """Return the tokens of BLEU, in lower case."""
    tokenizer = bleu_of(language).tokenizer
    return [tokenizer(text.lower().rstrip()).split() for text in texts]
