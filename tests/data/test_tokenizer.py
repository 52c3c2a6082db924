"""The tokenizer: every language comes back as it went in, and special tokens stay whole."""

import copy
from typing import Any

import pytest
from data_pico import udhr
from jinja2 import TemplateError
from transformers import AutoTokenizer, CohereTokenizer, GPT2Tokenizer

from configs.errors import CheckpointError
from configs.languages import LANGUAGES
from data.number_words import number_words
from data.tokenizer import IMAGE_TOKENS, TURN_TOKENS, prepare_for_images, train_tokenizer


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
    """A Cohere tokenizer with turn tokens, and neither image tokens nor our template."""
    own = CohereTokenizer().train_new_from_iterator(
        ["a few words"], 400, new_special_tokens=TURN_TOKENS, show_progress=False
    )
    own.chat_template = "{{ messages[0].content }}"
    return own


def test_a_text_lms_tokenizer_gains_what_pictures_need() -> None:
    own = text_lm_tokenizer()
    before = own.get_vocab()
    assert prepare_for_images(own) == len(IMAGE_TOKENS)
    assert {token: own.get_vocab()[token] for token in before} == before
    for token in IMAGE_TOKENS:
        assert ids(own, token) == [own.convert_tokens_to_ids(token)]
        assert own.get_vocab()[token] >= len(before)
    assert own.apply_chat_template(CONVERSATION, tokenize=False) == WRITTEN
    assert prepare_for_images(own) == 0


def test_what_a_tokenizer_has_is_not_added_again(tokenizer: Any) -> None:
    own = copy.deepcopy(tokenizer)
    assert prepare_for_images(own) == 0
    assert own.get_vocab() == tokenizer.get_vocab()


def test_a_tokenizer_without_turn_tokens_is_refused() -> None:
    with pytest.raises(CheckpointError, match="so far only Cohere's turn tokens"):
        prepare_for_images(GPT2Tokenizer())
