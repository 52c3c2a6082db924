"""Numbers in words for the 23 demo languages, and which of them are held out.

The words come from ICU's rule-based number formats (CLDR), read through `unicode-rbnf`.
A few of its outputs are not how the language is written; `number_words` corrects those.
"""

import functools
import unicodedata

import numpy as np
from unicode_rbnf import RbnfEngine

LANGUAGES = (
    "ar", "cs", "de", "el", "en", "es", "fa", "fr", "he", "hi", "id", "it",
    "ja", "ko", "nl", "pl", "pt", "ro", "ru", "tr", "uk", "vi", "zh",
)  # fmt: skip
LARGEST = 9_999

# Every pair was found by reading the output for 0..9999. Applied in this order.
_CORRECTIONS: dict[str, tuple[tuple[str, str], ...]] = {
    # The hundreds are one word and lose the ending of the digit.
    "ar": (
        ("ثلاثة مائة", "ثلاثمائة"),
        ("أربعة مائة", "أربعمائة"),
        ("خمسة مائة", "خمسمائة"),
        ("ستة مائة", "ستمائة"),
        ("سبعة مائة", "سبعمائة"),
        ("ثمانية مائة", "ثمانمائة"),
        ("تسعة مائة", "تسعمائة"),
        # Eleven in the masculine, as all other numbers are; "two" begins without a hamza.
        ("إحدى عشر", "أحد عشر"),
        ("إثن", "اثن"),
        # Two thousand in the nominative, as "two hundred" is.
        ("ألفين", "ألفان"),
    ),
    # "Thousands" with two accents, and "ninety" with a doubled letter.
    "el": (("χίλιάδες", "χιλιάδες"), ("εννενήντα", "ενενήντα")),
    # The sign for an empty place is a letter of its own kind; in words it is this one.
    "ja": (("〇", "零"),),
    "zh": (("〇", "零"),),
    # Cedilla instead of comma below: the letters of Turkish, not of Romanian.
    "ro": (("ş", "ș"), ("ţ", "ț")),
    # The apostrophe that the captions use.
    "uk": (("\u02bc", "\u2019"),),
}


@functools.cache
def _engine(language: str) -> RbnfEngine:
    return RbnfEngine.for_language(language)


def number_words(number: int, language: str) -> str:
    """Return `number` (0..`LARGEST`) in words of `language`, NFC-normalised.

    Raises ValueError for a language or number outside the supported range, and where a digit
    is left in the output, which means that the rule set of the language is missing.
    """
    if language not in LANGUAGES:
        raise ValueError(f"no number words for language {language!r}; known: {LANGUAGES}")
    if not 0 <= number <= LARGEST:
        raise ValueError(f"number {number} is outside 0..{LARGEST}")
    words = _engine(language).format_number(number).text.replace("\u00ad", "")
    for odd, written in _CORRECTIONS.get(language, ()):
        words = words.replace(odd, written)
    if any(letter.isdigit() for letter in words):
        raise ValueError(f"{language} has no words for {number}: got {words!r}")
    return unicodedata.normalize("NFC", words)


def split_numbers(
    largest: int = 999, held_out_share: float = 0.2, seed: int = 0
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Split 0..`largest` into ascending training and held-out numbers.

    Numbers below 100 are always trained: they are the parts that longer ones are made of, and
    in some languages (Hindi) each of them is a word of its own. The split is the same for every
    language and for every `largest`, so a held-out number is held out in all sources.
    """
    if not 0 < largest <= LARGEST:
        raise ValueError(f"largest must be in 1..{LARGEST}, not {largest}")
    if not 0 <= held_out_share < 1:
        raise ValueError(f"held_out_share must be in [0, 1), not {held_out_share}")
    long_numbers = np.arange(100, LARGEST + 1)
    count = round(held_out_share * len(long_numbers))
    shuffled = np.random.Generator(np.random.PCG64(seed)).permutation(long_numbers)
    held_out = {int(number) for number in shuffled[:count]}
    train = tuple(number for number in range(largest + 1) if number not in held_out)
    return train, tuple(sorted(number for number in held_out if number <= largest))
