"""Numbers in words: spelt as the language is written, one spelling a number, one split for all."""

import unicodedata

import pytest

from configs.languages import LANGUAGES as KNOWN
from data.number_words import LANGUAGES, LARGEST, number_words, split_numbers

SURE_OF = {
    "ar": {300: "ثلاثمائة", 800: "ثمانمائة"},
    "cs": {4: "čtyři"},
    "de": {21: "einundzwanzig", 1000: "eintausend"},
    "el": {90: "ενενήντα"},
    "en": {0: "zero", 342: "three hundred forty-two"},
    "es": {16: "dieciséis", 500: "quinientos"},
    "fa": {20: "بیست"},
    "fr": {80: "quatre-vingts", 81: "quatre-vingt-un"},
    "he": {1: "אחת"},
    "hi": {10: "दस"},
    "id": {11: "sebelas", 100: "seratus"},
    "it": {23: "ventitré"},
    "ja": {1000: "千", 42: "四十二"},
    "ko": {11: "십일"},
    "nl": {22: "tweeëntwintig"},
    "pl": {12: "dwanaście"},
    "pt": {100: "cem", 101: "cento e um"},
    "ro": {8: "opt"},
    "ru": {40: "сорок"},
    "tr": {11: "on bir"},
    "uk": {40: "сорок", 9: "дев\u2019ять"},
    "vi": {15: "mười lăm"},
    "zh": {105: "一百零五", 42: "四十二"},
}
CASES = [(code, number) for code, known in SURE_OF.items() for number in known]


def test_every_language_is_there() -> None:
    assert list(LANGUAGES) == list(KNOWN) == list(SURE_OF)


@pytest.mark.parametrize(("language", "number"), CASES)
def test_known_words(language: str, number: int) -> None:
    assert number_words(number, language) == SURE_OF[language][number]


@pytest.mark.parametrize("language", LANGUAGES)
def test_words_hold_no_digit_are_normal_and_differ(language: str) -> None:
    numbers = [*range(0, 1000, 3), *range(1000, LARGEST + 1, 37), LARGEST]
    words = [number_words(number, language) for number in numbers]
    assert len(set(words)) == len(numbers)
    for text in words:
        assert text == text.strip() != ""
        assert unicodedata.is_normalized("NFC", text)
        # Letters and the marks that belong to them, hyphens, apostrophes, spaces between words.
        kinds = {
            unicodedata.category(letter)[0] for letter in text if letter not in " -\u2019\u200c"
        }
        assert kinds <= {"L", "M"}, text


@pytest.mark.parametrize("number", [-1, LARGEST + 1])
def test_a_number_out_of_range(number: int) -> None:
    with pytest.raises(ValueError, match=rf"number {number} is outside 0\.\.9999"):
        number_words(number, "en")


def test_a_language_without_words() -> None:
    with pytest.raises(ValueError, match="no number words for language 'xx'"):
        number_words(1, "xx")


@pytest.mark.parametrize("largest", [10, 99, 100, 999, LARGEST])
def test_the_split_is_whole_and_disjoint(largest: int) -> None:
    train, held_out = split_numbers(largest)
    assert sorted([*train, *held_out]) == list(range(largest + 1))
    assert not set(train) & set(held_out)
    assert set(range(min(100, largest + 1))) <= set(train)
    if largest >= 999:
        assert 0.17 < len(held_out) / (largest - 99) < 0.23


def test_what_is_held_out_is_held_out_for_every_largest() -> None:
    """A source of larger numbers would else train what another source keeps."""
    all_train, all_held_out = map(set, split_numbers(LARGEST))
    for largest in (150, 999, 5000):
        train, held_out = map(set, split_numbers(largest))
        assert train <= all_train
        assert held_out <= all_held_out


def test_the_split_is_always_the_same() -> None:
    assert split_numbers(999) == split_numbers(999)
    assert split_numbers(999)[1] != split_numbers(999, seed=1)[1]
    assert split_numbers(999, held_out_share=0)[1] == ()


@pytest.mark.parametrize("largest", [0, LARGEST + 1])
def test_a_split_of_what_has_no_words(largest: int) -> None:
    with pytest.raises(ValueError, match=rf"largest must be in 1\.\.9999, not {largest}"):
        split_numbers(largest)


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_split_that_leaves_nothing(share: float) -> None:
    with pytest.raises(ValueError, match="held_out_share must be in"):
        split_numbers(999, held_out_share=share)
