"""The tokenizer: every language comes back as it went in, and special tokens stay whole."""

import copy
from typing import Any

import pytest
from data_pico import udhr
from jinja2 import TemplateError
from pico_families import FAMILIES, WORDS, make_tokenizer
from transformers import AutoTokenizer, CohereTokenizer, GPT2Tokenizer

from configs.errors import CheckpointError
from configs.languages import LANGUAGES
from data.number_words import number_words
from data.tokenizer import (
    CHAT_TEMPLATE,
    IMAGE_TOKENS,
    SAVED_WHOLE,
    TURN_TOKENS,
    _rules,
    ids_added,
    prepare_for_images,
    processor_tokens,
    train_tokenizer,
)


def ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("language", LANGUAGES)
def test_round_trip(tokenizer: Any, language: str) -> None:
    texts = [row["text"] for row in udhr() if row["language"] == language]
    texts += [number_words(number, language) for number in (0, 17, 942, 9999)]
    assert len(texts) > 40
    for text in texts:
        assert tokenizer.decode(ids(tokenizer, text)) == text


@pytest.mark.parametrize("text", [" a", "a ", "\n\n", "a . b , c 's n't", "🐘", "\u200f", "\x00"])
def test_round_trip_of_odd_text(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(ids(tokenizer, text)) == text


@pytest.mark.parametrize("token", TURN_TOKENS + IMAGE_TOKENS)
def test_special_tokens_are_single(tokenizer: Any, token: str) -> None:
    assert ids(tokenizer, token) == [tokenizer.convert_tokens_to_ids(token)]
    assert len(ids(tokenizer, f"a{token}b")) == 3


def test_every_token_the_processor_writes_is_there(processor: Any) -> None:
    names = ["image", "start_of_img", "end_of_img", "img_patch", "img_line_break", "tile"]
    tokens = [getattr(processor, f"{name}_token") for name in [*names, "tile_global"]]
    assert sorted(tokens) == sorted(IMAGE_TOKENS)


def test_the_form_is_coheres(tokenizer: Any) -> None:
    assert isinstance(tokenizer, CohereTokenizer)
    assert tokenizer.eos_token == "<|END_OF_TURN_TOKEN|>"
    assert tokenizer.bos_token == "<BOS_TOKEN>"
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    assert len(tokenizer) <= 2048


def test_few_texts_make_a_smaller_vocabulary_not_an_error() -> None:
    small = train_tokenizer(["abc"], vocab_size=10_000)
    assert len(small) < 400
    assert small.decode(ids(small, "日本")) == "日本"


def test_training_is_reproducible() -> None:
    texts = [row["text"] for row in udhr()[:50]]
    first, second = (train_tokenizer(texts, vocab_size=500) for _ in range(2))
    assert first.get_vocab() == second.get_vocab()


def test_it_is_saved_and_loaded_with_its_template(tokenizer: Any, tmp_path: Any) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = udhr()[3]["text"] + "<|IMG_PATCH|>"
    assert ids(loaded, text) == ids(tokenizer, text)
    assert loaded.chat_template == tokenizer.chat_template


CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
    {
        "role": "assistant",
        "content": [{"type": "text", "text": "A "}, {"type": "text", "text": "key."}],
    },
    {"role": "user", "content": "Sure?"},
]
WRITTEN = (
    "<BOS_TOKEN>"
    "<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>Be brief.<|END_OF_TURN_TOKEN|>"
    "<|START_OF_TURN_TOKEN|><|USER_TOKEN|><image>What?<|END_OF_TURN_TOKEN|>"
    "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>A key.<|END_OF_TURN_TOKEN|>"
    "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>Sure?<|END_OF_TURN_TOKEN|>"
)


def test_the_template_takes_strings_and_lists(tokenizer: Any) -> None:
    assert tokenizer.apply_chat_template(CONVERSATION, tokenize=False) == WRITTEN
    assert tokenizer.apply_chat_template(
        CONVERSATION, tokenize=False, add_generation_prompt=True
    ) == WRITTEN + ("<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>")
    pieces = [
        {"role": "user", "content": [{"type": "text", "text": "Sure?"}]},
        {"role": "user", "content": "Sure?"},
    ]
    first, second = (tokenizer.apply_chat_template([m], tokenize=False) for m in pieces)
    assert first == second


def test_the_template_refuses_an_unknown_role(tokenizer: Any) -> None:
    with pytest.raises(TemplateError, match="unknown role: tool"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


def text_lm_tokenizer() -> Any:
    """A Cohere tokenizer with turn tokens, and neither image tokens nor a template."""
    return CohereTokenizer().train_new_from_iterator(
        ["a few words"], 400, new_special_tokens=TURN_TOKENS, show_progress=False
    )


def test_a_text_lms_tokenizer_gains_what_pictures_need() -> None:
    own = text_lm_tokenizer()
    before = own.get_vocab()
    own = prepare_for_images(own)
    assert ids_added(own) == list(range(len(before), len(before) + len(IMAGE_TOKENS)))
    assert {token: own.get_vocab()[token] for token in before} == before
    for token in processor_tokens(own).values():
        assert ids(own, token) == [own.convert_tokens_to_ids(token)]
        assert own.get_vocab()[token] in ids_added(own)
    assert own.chat_template == CHAT_TEMPLATE.read_text(encoding="utf-8")
    assert own.apply_chat_template(CONVERSATION, tokenize=False) == WRITTEN
    again = prepare_for_images(own)
    assert ids_added(again) == []
    assert again.get_vocab() == own.get_vocab()


def test_what_a_tokenizer_has_is_not_added_again(tokenizer: Any) -> None:
    own = prepare_for_images(copy.deepcopy(tokenizer))
    assert ids_added(own) == []
    assert own.get_vocab() == tokenizer.get_vocab()
    assert set(processor_tokens(own).values()) == set(IMAGE_TOKENS)


def test_a_tokenizer_without_a_template_is_refused_with_a_way_out() -> None:
    with pytest.raises(
        CheckpointError, match=r"has no chat template, .* put a chat_template.jinja"
    ):
        prepare_for_images(GPT2Tokenizer())


@pytest.mark.parametrize("name", FAMILIES)
def test_words_are_read_as_before(name: str) -> None:
    """Also those that hold the name of a tile, which upstream makes a special token."""
    before, own = make_tokenizer(name), prepare_for_images(make_tokenizer(name))
    for text in ("REPTILES and TILES", "TILE_1 TILE_GLOBAL", "an  हाथी\n🐘 <b>", "".join(WORDS)):
        assert ids(own, text) == ids(before, text)
        assert own.decode(ids(own, text)) == before.decode(ids(before, text))
    for text, number in before.get_vocab().items():
        assert own.get_vocab()[text] == number


@pytest.mark.parametrize("name", FAMILIES)
def test_image_tokens_of_every_family_are_single(name: str) -> None:
    own = prepare_for_images(make_tokenizer(name))
    tokens = processor_tokens(own)
    assert tokens["image_token"] == FAMILIES[name].placeholder
    assert (tokens["tile_token"], tokens["tile_global_token"]) == ("<|TILE|>", "<|TILE_GLOBAL|>")
    for token in tokens.values():
        number = own.convert_tokens_to_ids(token)
        assert ids(own, f"ab{token}cd").count(number) == 1
        assert own.decode([number], skip_special_tokens=True) == ""
    assert len(ids_added(own)) == (6 if name == "gemma3_text" else 7)
    assert len(own) == len(make_tokenizer(name)) + len(ids_added(own))
    assert own.pad_token_id is not None


def test_the_special_tokens_of_a_family_stay_special() -> None:
    own = prepare_for_images(make_tokenizer("qwen3"))
    assert "<|im_end|>" in own.all_special_tokens
    assert own.decode(ids(own, "a<|im_end|>"), skip_special_tokens=True) == "a"
    assert (own.eos_token, own.pad_token) == ("<|endoftext|>", "<|endoftext|>")


def test_a_word_of_the_vocabulary_is_no_image_token() -> None:
    """`TILE` may be a plain token of an LM: it is not taken for the one that tiles are told by."""
    own = CohereTokenizer().train_new_from_iterator(
        ["TILE " * 50], 400, new_special_tokens=TURN_TOKENS, show_progress=False
    )
    assert "TILE" in own.get_vocab()
    own = prepare_for_images(own)
    assert processor_tokens(own)["tile_token"] == "<|TILE|>"


def test_a_tokenizer_that_forgets_how_it_reads_is_taken_as_a_plain_one(tmp_path: Any) -> None:
    """LlamaTokenizer (5.23) loses `legacy`, and with it a space before each stretch of text."""
    own, text = make_tokenizer("mistral"), "<s>[INST]a[/INST]b"
    own.save_pretrained(tmp_path / "before")
    assert ids(AutoTokenizer.from_pretrained(tmp_path / "before"), text) != ids(own, text)
    plain = prepare_for_images(make_tokenizer("mistral"))
    plain.save_pretrained(tmp_path / "after")
    assert ids(AutoTokenizer.from_pretrained(tmp_path / "after"), text) == ids(own, text)
    assert plain.special_tokens_map.items() >= own.special_tokens_map.items()
    assert plain.all_special_tokens[-7:] == [
        "<image>",
        "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>",
        "<|TILE|>", "<|TILE_GLOBAL|>",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["cohere2", "gemma3_text", "qwen3", "llama"])
def test_the_classes_that_are_trusted_are_what_they_were(name: str, tmp_path: Any) -> None:
    own = prepare_for_images(make_tokenizer(name))
    assert type(own) in SAVED_WHOLE
    own.save_pretrained(tmp_path)
    assert _rules(AutoTokenizer.from_pretrained(tmp_path)) == _rules(own)
