"""What users ask: there in all 23 languages, whole and distinct."""

import unicodedata

import pytest

from configs.languages import LANGUAGES
from data.instructions import DESCRIBE, LIST_SEPARATOR, TRANSLATE, WRITE_NUMBER

ALL = {
    code: [*DESCRIBE[code], WRITE_NUMBER[code], TRANSLATE[code]] for code in LANGUAGES
}  # every wording of a language


@pytest.mark.parametrize("table", [DESCRIBE, WRITE_NUMBER, TRANSLATE, LIST_SEPARATOR])
def test_every_table_has_every_language(table: dict[str, object]) -> None:
    assert list(table) == list(LANGUAGES)


@pytest.mark.parametrize("code", LANGUAGES)
def test_wordings_are_clean(code: str) -> None:
    assert len(DESCRIBE[code]) == 3
    assert len(set(ALL[code])) == 5
    for text in ALL[code]:
        assert text == text.strip() != ""
        assert unicodedata.is_normalized("NFC", text)
        assert "\n" not in text
    assert WRITE_NUMBER[code].count("{number}") == 1
    assert "342" in WRITE_NUMBER[code].format(number=342)
    for text in (*DESCRIBE[code], TRANSLATE[code]):
        assert "{" not in text


def test_no_wording_belongs_to_two_languages() -> None:
    """The wording alone tells the language of the answer."""
    texts = [text for wordings in ALL.values() for text in wordings]
    assert len(set(texts)) == len(texts)


def test_separators_end_the_name_before() -> None:
    assert LIST_SEPARATOR["ja"] == LIST_SEPARATOR["zh"] == "、"
    assert LIST_SEPARATOR["ar"] == LIST_SEPARATOR["fa"] == "، "
    assert LIST_SEPARATOR["de"] == ", "
