"""What asks for captions: there in all languages, and drawn by the row alone."""

import subprocess
import sys
import unicodedata
from collections import Counter
from pathlib import Path

import pytest

from configs.languages import LANGUAGES
from data.instructions import DESCRIBE, TRANSLATE
from data.prompts import MORE_DESCRIBE, draw, draw_prompt

ROOT = Path(__file__).resolve().parents[2]
ALL = {code: [*DESCRIBE[code], *MORE_DESCRIBE[code]] for code in LANGUAGES}


def test_every_language_has_five_clean_wordings() -> None:
    assert list(MORE_DESCRIBE) == list(LANGUAGES)
    for wordings in ALL.values():
        assert len(set(wordings)) == 5
        for text in wordings:
            assert text == text.strip() != ""
            assert unicodedata.is_normalized("NFC", text)
            assert "\n" not in text and "<" not in text and "{" not in text


def test_no_wording_belongs_to_two_languages() -> None:
    texts = [text for wordings in ALL.values() for text in wordings] + [*TRANSLATE.values()]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("code", LANGUAGES)
def test_a_wording_is_of_its_language(code: str) -> None:
    """The letters of a language's other wordings: a line in the wrong place has others."""
    scripts = [
        {unicodedata.name(letter).split()[0] for letter in text if letter.isalpha()}
        for text in ALL[code]
    ]
    japanese = {"HIRAGANA", "KATAKANA", "CJK"}
    for found in scripts[3:]:
        assert found <= (japanese if code == "ja" else scripts[0])


@pytest.mark.parametrize("code", LANGUAGES)
def test_all_wordings_are_drawn_about_as_often(code: str) -> None:
    drawn = Counter(draw_prompt(code, {}, 0, "mine", str(number)) for number in range(1000))
    assert set(drawn) == set(ALL[code])
    assert min(drawn.values()) > 170  # of 200; measured: 188 or more in all languages


def test_a_draw_depends_on_seed_source_and_row_and_on_nothing_else() -> None:
    def draws(seed: int, source: str, rows: range = range(100)) -> list[str]:
        return [draw_prompt("en", {}, seed, source, str(row)) for row in rows]

    assert draws(0, "mine") == draws(0, "mine")
    assert draws(0, "mine") == draws(0, "mine", range(99, -1, -1))[::-1]
    for others in (draws(1, "mine"), draws(0, "other"), draws(0, "mine", range(100, 200))):
        same = sum(a == b for a, b in zip(draws(0, "mine"), others, strict=True))
        assert same < 40  # by chance: a fifth


def test_another_process_draws_the_same() -> None:
    """`hash` of a text differs from process to process; a draw must not."""
    code = (
        "from data.prompts import draw_prompt\n"
        "print(''.join(draw_prompt('en', {'en': list('abcdefgh')}, 3, 'mine', str(row)) "
        "for row in range(20)), end='')"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, text=True, cwd=ROOT
    )
    letters = {"en": list("abcdefgh")}
    assert told.stdout == "".join(draw_prompt("en", letters, 3, "mine", str(r)) for r in range(20))


def test_draws_that_stay_from_version_to_version() -> None:
    """Whoever changes them changes every run that is resumed."""
    letters = {"en": list("abcdefgh")}
    drawn = "".join(draw_prompt("en", letters, 0, "mine", str(row)) for row in range(16))
    assert drawn == "eagddhhecdeedbaa"


def test_the_configs_prompts_take_the_place_of_ours() -> None:
    prompts = {"de": ["Was ist das?"]}
    assert draw_prompt("de", prompts, 0, "mine", "1") == "Was ist das?"
    assert draw_prompt("en", prompts, 0, "mine", "1") in ALL["en"]


def test_draws_for_two_things_are_independent() -> None:
    pairs = Counter(
        (draw("ab", "prompt", 0, "mine", str(row)), draw("ab", "caption", 0, "mine", str(row)))
        for row in range(400)
    )
    assert len(pairs) == 4 and min(pairs.values()) > 70
