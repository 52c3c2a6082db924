"""Scores of answers against sacrebleu's command, pycocoevalcap, and sums done by hand."""

import math
import random
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet
import pytest
from pycocoevalcap.cider.cider import Cider
from sacrebleu import corpus_bleu, corpus_chrf

import data
import train.measuring.scores as scores
from configs.errors import ConfigError
from configs.languages import LANGUAGES
from train.measuring.cider import cider_scores
from train.measuring.scores import bleu_of, score_answers, signatures, tokenizer_name

TOKENIZERS = {
    "ja": "ja-mecab", "ko": "ko-mecab", "zh": "zh", "ar": "13a", "hi": "13a", "de": "13a",
}  # fmt: skip
UDHR = Path(data.__file__).parent / "assets/udhr23.parquet"


def paragraphs(code: str) -> list[str]:
    """The paragraphs of the Declaration in a language."""
    rows = pyarrow.parquet.read_table(UDHR, columns=["language", "text"]).to_pylist()
    return [row["text"] for row in rows if row["language"] == code]


def answers(code: str, wanted: list[str]) -> list[str]:
    """Wrong in many ways: words or letters left out, swapped, said again, nothing at all."""
    draw = random.Random(code)
    said = []
    for text in wanted:
        pieces = text.split() if " " in text else list(text)
        kept = [piece for piece in pieces if draw.random() < 0.8]
        at = draw.randrange(len(kept)) if kept else 0
        said.append((" " if " " in text else "").join(kept[at:] + kept[:at] + kept[: at // 2]))
    said[0], said[1], said[2] = "", wanted[1], wanted[2].upper()
    return said


def by_pycocoevalcap(code: str, said: list[str], wanted: list[str]) -> float:
    cut = bleu_of(code).tokenizer
    references = {i: [cut(text.lower())] for i, text in enumerate(wanted)}
    captions = {i: [cut(text.lower())] for i, text in enumerate(said)}
    return float(Cider().compute_score(references, captions)[0])


@pytest.fixture(scope="module")
def rows() -> dict[str, tuple[list[str], list[str]]]:
    return {code: (answers(code, paragraphs(code)), paragraphs(code)) for code in TOKENIZERS}


@pytest.fixture(scope="module")
def found(rows) -> dict[str, dict[str, float]]:
    languages = [code for code, (said, _) in rows.items() for _ in said]
    said = [text for group in rows.values() for text in group[0]]
    wanted = [text for group in rows.values() for text in group[1]]
    return score_answers(languages, said, wanted, captions=True)


@pytest.mark.parametrize("code", TOKENIZERS)
def test_scores_are_those_of_sacrebleu_and_pycocoevalcap(code, rows, found):
    said, wanted = rows[code]
    bleu = corpus_bleu(said, [wanted], tokenize=TOKENIZERS[code]).score
    assert 20 < bleu < 95
    assert found["bleu"][code] == bleu
    assert found["chrf"][code] == corpus_chrf(said, [wanted]).score
    assert found["cider"][code] == pytest.approx(by_pycocoevalcap(code, said, wanted), abs=1e-6)
    assert found["cider"][code] > 1
    right = sum(answer == reference for answer, reference in zip(said, wanted, strict=True))
    assert right and found["exact_match"][code] == pytest.approx(right / len(wanted))
    # The tokenizer is what makes the number.
    if TOKENIZERS[code] != "13a":
        assert abs(corpus_bleu(said, [wanted], tokenize="13a").score - bleu) > 1


@pytest.mark.parametrize("code", ["ja", "ko", "zh", "hi"])
def test_bleu_and_its_signature_are_those_of_sacrebleus_command(code, rows, found, tmp_path):
    for name, lines in zip(("said", "wanted"), rows[code], strict=True):
        text = "".join(f"{line}\n" for line in lines)
        (tmp_path / name).write_text(text, encoding="utf-8")
    told = subprocess.run(
        [sys.executable, "-m", "sacrebleu", tmp_path / "wanted", "-i", tmp_path / "said",
         "-m", "bleu", "chrf", "--tokenize", TOKENIZERS[code], "-f", "text", "-w", "6"],
        check=True, capture_output=True, text=True,
    ).stdout.splitlines()  # fmt: skip
    signature = signatures([code], captions=False)
    for name, title, line in zip(("bleu", "chrf"), ("BLEU", "chrF2"), told, strict=True):
        assert line.strip().startswith(f"{title}|{signature[name][code]} = {found[name][code]:.6f}")


def test_short_captions_by_hand():
    """Two captions: each word of one reference weighs log 2, but for `a`, which both hold."""
    said, wanted = ["a dog", "a cat cat"], ["a dog", "a cat sits"]
    found = score_answers(["en", "en"], said, wanted, captions=True)
    assert found["exact_match"] == {"en": 0.5}
    assert "en" not in found["bleu"]  # no reference has four tokens: BLEU of the right answer is 0
    # "a dog": the unigram `dog` and the bigram `a dog` match in full; there are no longer ones.
    # "a cat cat": `cat` twice, clipped to once: log2^2 / (2 log2 * sqrt2 log2), for `sits` too;
    # bigrams `a cat`, `cat cat` and `a cat`, `cat sits`: 1 / 2.
    by_hand = [10 * (1 + 1) / 4, 10 * (1 / (2 * math.sqrt(2)) + 1 / 2) / 4]
    each = cider_scores([s.split() for s in said], [w.split() for w in wanted])
    assert each == pytest.approx(by_hand)
    assert found["cider"]["en"] == pytest.approx(sum(by_hand) / 2)
    # A caption that is two bigrams too long loses by exp(-2^2 / (2 * 6^2)).
    longer = cider_scores([["a", "dog", "q", "r"], ["a", "cat"]], [w.split() for w in wanted])
    penalty = math.exp(-4 / 72)
    cosines = 1 / math.sqrt(3) + 1 / math.sqrt(3)  # of `dog, q, r` and of `a dog, dog q, q r`
    assert longer is not None and longer[0] == pytest.approx(10 * penalty * cosines / 4)


def test_bleu_by_hand():
    """Five tokens of six, one of them wrong: precisions 4/5, 2/4, 1/3, and 0/2 smoothed to 1/4."""
    said, wanted = ["the cat sat on mat"], ["the cat sat upon the mat"]
    by_hand = 100 * math.exp(1 - 6 / 5) * (4 / 5 * 2 / 4 * 1 / 3 * 1 / 4) ** 0.25
    assert score_answers(["en"], said, wanted, captions=False)["bleu"]["en"] == pytest.approx(
        by_hand
    )


def test_what_cannot_be_scored_is_left_out():
    one = ["ein Hund im Garten steht"]
    found = score_answers(["de"], one, one, captions=True)
    assert found["cider"] == {}  # log 1 = 0: nothing weighs anything
    assert found["bleu"] == {"de": pytest.approx(100)}
    same = score_answers(["de"] * 3, one * 3, one * 3, captions=True)
    assert same["cider"] == {}
    assert by_pycocoevalcap("de", one * 3, one * 3) == 0  # for the right answers
    assert "cider" not in score_answers(["de"], one, one, captions=False)


def test_empty_and_repeated_answers_score_what_they_should():
    wanted = [f"ein Hund sieht {n} Katzen" for n in ("drei", "vier", "fünf", "sechs")]
    empty = score_answers(["de"] * 4, [""] * 4, wanted, captions=True)
    assert {name: values["de"] for name, values in empty.items()} == dict.fromkeys(
        ("exact_match", "chrf", "bleu", "cider"), 0.0
    )
    repeated = [f"{text} " * 8 for text in wanted]
    found = score_answers(["de"] * 4, repeated, wanted, captions=True)
    assert found["cider"]["de"] == pytest.approx(by_pycocoevalcap("de", repeated, wanted))
    assert found["cider"]["de"] < 0.1  # 35 bigrams too long
    right = score_answers(["de"] * 4, [f" {text}\n" for text in wanted], wanted, captions=True)
    assert right["exact_match"] == {"de": 1.0}
    assert right["cider"]["de"] == pytest.approx(10)
    assert right["bleu"]["de"] == pytest.approx(100)


def test_cider_is_blind_to_case_and_bleu_is_not():
    wanted = ["ein Hund sieht drei Katzen", "eine Katze sieht vier Hunde"]
    found = score_answers(["de"] * 2, [text.upper() for text in wanted], wanted, captions=True)
    assert found["cider"]["de"] == pytest.approx(10)
    assert found["bleu"]["de"] == 0


def test_languages_do_not_mix():
    said, wanted = ["ein Hund sieht vier Katzen", "a dog sees four cats"], ["x", "y"]
    both = score_answers(["de", "en"], said, said, captions=True)
    assert both["exact_match"] == {"de": 1.0, "en": 1.0}
    assert both["cider"] == {}  # a row each
    assert score_answers(["de", "en"], said, wanted, captions=False)["exact_match"] == {
        "de": 0.0, "en": 0.0,
    }  # fmt: skip


def test_tokenizers_follow_the_language():
    assert {code: tokenizer_name(code) for code in TOKENIZERS} == TOKENIZERS
    assert tokenizer_name("zh-TW") == "zh" and tokenizer_name("ja_JP") == "ja-mecab"
    assert tokenizer_name("th") == "char"
    thai = "แมวนั่งบนเสื่อ"
    assert score_answers(["th"], [thai], [thai], captions=False)["bleu"]["th"] == pytest.approx(100)
    assert signatures(["th"], captions=True)["cider"]["th"].endswith("|tok:char")


@pytest.mark.parametrize(("code", "module"), [("ja", "ja_mecab"), ("ko", "ko_mecab")])
def test_a_missing_mecab_is_told(code, module, monkeypatch):
    monkeypatch.setattr(f"sacrebleu.tokenizers.tokenizer_{module}.MeCab", None)
    scores._loaded.cache_clear()
    with pytest.raises(ConfigError, match=rf"'{code}'.*'{code}-mecab'.*sacrebleu\[ja,ko\]"):
        signatures(["en", code], captions=False)
    scores._loaded.cache_clear()


@pytest.mark.parametrize("kind", ["words", "letters"])
def test_cider_is_pycocoevalcaps_on_random_tokens(kind):
    draw = random.Random(kind)
    words = list("abcdef") if kind == "letters" else [f"w{n}" for n in range(60)]
    made = [" ".join(draw.choices(words, k=draw.randrange(9))) for _ in range(60)]
    said, wanted = made[:30], made[30:]
    said[:10] = wanted[:10]
    found = cider_scores([text.split() for text in said], [text.split() for text in wanted])
    references = {i: [text] for i, text in enumerate(wanted)}
    theirs = Cider().compute_score(references, {i: [text] for i, text in enumerate(said)})[1]
    assert found == pytest.approx(list(theirs), abs=1e-6)
    assert sum(score > 0.5 for score in found) > 5


def test_all_languages_are_scored_in_seconds():
    languages, said, wanted = [], [], []
    for code in LANGUAGES:
        texts = [f"{a} {b}"[:80] for a in paragraphs(code) for b in paragraphs(code)[:3]][:128]
        languages += [code] * len(texts)
        said += answers(code, texts)
        wanted += texts
    assert len(said) == 128 * 23
    start = time.process_time()
    found = score_answers(languages, said, wanted, captions=True)
    assert time.process_time() - start < 10  # 2.5 s of a core measured
    assert all(set(values) == set(LANGUAGES) for values in found.values())
