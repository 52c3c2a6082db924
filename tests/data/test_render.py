"""Rendering against transformers' own processor, and the mask against a naive construction."""

import copy
from typing import Any

import numpy as np
import pytest
from data_pico import PLENTY, asked, naive_render, picture, row

from configs.errors import DataError
from data.render import IGNORED, Renderer, Sample
from data.rows import IMAGE, Row, plain_text

ROWS = {
    "one picture": asked("What is this?", "A key.", picture(40, 30)),
    "two pictures in a row": asked("Compare.", "Alike.", picture(100, 30), picture(30, 100, 1)),
    "text alone": asked("Say hello.", "Hello!"),
    "several turns, pictures among words": row(
        ("system", ["Answer briefly."]),
        ("user", ["Here is ", IMAGE, " and here ", IMAGE, "; which is wider?"]),
        ("assistant", ["The first."]),
        ("user", ["And this? ", IMAGE]),
        ("assistant", ["Narrower ", "still."]),
        ("user", ["Thanks"]),
        ("assistant", ["!"]),
        images=[picture(200, 31), picture(33, 90, 1), picture(20, 20, 2)],
    ),
    "spaces and line breaks": asked("  a\n\n b ", "\n  c  \n", picture(64, 64)),
    "letters of many bytes": asked("चित्र में क्या है?", "यह 🐘🇺🇦 है, 大象。", picture(31, 33)),
    "a picture after the words": row(
        ("user", ["Look: ", IMAGE]), ("assistant", ["Yes."]), images=[picture(10, 300)]
    ),
    "the word TILE": asked("Is it a TILE?", "It is TILE_1, a TILE_GLOBAL.", picture(10, 10)),
}


@pytest.fixture(params=["processor", "tiling_processor"])
def any_processor(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def render(renderer: Renderer, given: Row, **budgets: int) -> Sample:
    return renderer.render(given, **(PLENTY | budgets))


@pytest.mark.parametrize("name", ROWS)
def test_ids_are_those_of_the_processor(any_processor: Any, name: str) -> None:
    given = ROWS[name]
    renderer = Renderer(any_processor)
    messages = [renderer._message(turn) for turn in given.turns]
    text = any_processor.apply_chat_template(messages, tokenize=False)
    images = [image.load() for image in given.images] or None
    expected = any_processor(text=text, images=images, add_special_tokens=False)
    sample = render(renderer, given)
    assert sample.input_ids.tolist() == expected["input_ids"][0]
    if images:
        assert sum(sample.num_tiles) == len(expected["pixel_values"])


@pytest.mark.parametrize("name", ROWS)
def test_supervised_are_the_answers_and_their_end_of_turn(any_processor: Any, name: str) -> None:
    sample = render(Renderer(any_processor), ROWS[name])
    ids, mask = naive_render(any_processor, ROWS[name], sample.num_tiles)
    assert sample.input_ids.tolist() == ids
    assert sample.supervised.tolist() == mask
    assert not (sample.input_ids[sample.supervised] == any_processor.image_token_id).any()
    assert np.array_equal(sample.labels == IGNORED, ~sample.supervised)
    assert np.array_equal(sample.labels[sample.supervised], sample.input_ids[sample.supervised])
    answers = [turn for turn in ROWS[name].turns if turn.role == "assistant"]
    eos = any_processor.tokenizer.eos_token_id
    assert (sample.input_ids[sample.supervised] == eos).sum() == len(answers)


def test_a_text_lm_reads_what_a_vision_language_model_reads(tokenizer: Any, renderer: Any) -> None:
    given = ROWS["text alone"]
    ours, theirs = render(Renderer(tokenizer), given), render(renderer, given)
    assert np.array_equal(ours.input_ids, theirs.input_ids)
    assert np.array_equal(ours.supervised, theirs.supervised)


def test_a_text_lms_own_template_gets_words_not_pieces(tokenizer: Any) -> None:
    """Their templates would write a list of pieces as Python does."""
    own = copy.deepcopy(tokenizer)
    own.chat_template = (
        "{% for m in messages %}<|START_OF_TURN_TOKEN|>{{ m['role'] }}:{{ m['content'] }}"
        "<|END_OF_TURN_TOKEN|>{% endfor %}"
        "{% if add_generation_prompt %}<|START_OF_TURN_TOKEN|>assistant:{% endif %}"
    )
    sample = render(Renderer(own), asked("Say hello.", "Hello!"))
    assert own.decode(sample.input_ids) == (
        "<|START_OF_TURN_TOKEN|>user:Say hello.<|END_OF_TURN_TOKEN|>"
        "<|START_OF_TURN_TOKEN|>assistant:Hello!<|END_OF_TURN_TOKEN|>"
    )
    assert own.decode(sample.input_ids[sample.supervised]) == "Hello!<|END_OF_TURN_TOKEN|>"


def test_plain_text_is_supervised_from_its_first_word(renderer: Renderer) -> None:
    sample = render(renderer, Row("1", "tests", "en", plain_text("All human beings")))
    supervised = renderer.tokenizer.decode(sample.input_ids[sample.supervised])
    assert supervised == "All human beings<|END_OF_TURN_TOKEN|>"
    assert sample.supervised.tolist() == [False] * 3 + [True] * (sample.num_tokens - 3)


@pytest.mark.parametrize("name", ["one picture", "several turns, pictures among words"])
def test_the_prompt_ends_where_the_last_answer_begins(tiling_renderer: Any, name: str) -> None:
    sample = render(tiling_renderer, ROWS[name])
    prompt = tiling_renderer.tokenizer.encode(
        tiling_renderer.prompt(ROWS[name]), add_special_tokens=False
    )
    assert sample.input_ids[: len(prompt)].tolist() == prompt
    answer = sample.input_ids[len(prompt) :]
    expected = ROWS[name].turns[-1].text + "<|END_OF_TURN_TOKEN|>"
    assert tiling_renderer.tokenizer.decode(answer) == expected


# Ratios that no grid of tiles fits, some that count otherwise when lying; one pixel on a side.
SIZES = [(1, 1), (27, 33), (33, 27), (27, 93), (93, 27), (32, 32), (33, 31), (64, 31), (64, 64),
         (65, 63), (100, 10), (10, 100), (1, 200), (200, 1), (97, 61), (500, 333), (333, 500),
         (1000, 30)]  # fmt: skip


def test_tiles_counted_from_the_header_are_those_of_the_pixels(any_processor: Any) -> None:
    renderer = Renderer(any_processor)
    counted = []
    for width, height in SIZES:
        image = picture(width, height)
        processed = any_processor.image_processor([image.load()], return_tensors="pt")
        counted.append(renderer.count_tiles(image))
        assert counted[-1] == len(processed["pixel_values"]), (width, height)
    tiles = any_processor.image_processor.max_patches > 1
    assert set(counted) == ({1, 3, 4, 5, 7} if tiles else {1})


def refused(renderer: Renderer, given: Row, **budgets: int) -> str:
    with pytest.raises(DataError) as caught:
        render(renderer, given, **budgets)
    return str(caught.value)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (asked("q", ""), "has an empty answer"),
        (asked("q", " \n\t"), "has an empty answer"),
        (row(("user", ["q"]), ("assistant", ["a"]), ("user", ["r"])),
         "does not end with an answer of the assistant"),
        (row(("user", ["q"])), "does not end with an answer of the assistant"),
        (row(), "does not end with an answer of the assistant"),
        (row(("user", ["q"]), ("assistant", ["a"]), images=[picture(9, 9)]),
         "has 1 pictures for 0 places"),
        (row(("user", [IMAGE, IMAGE]), ("assistant", ["a"]), images=[picture(9, 9)]),
         "has 1 pictures for 2 places"),
        (row(("tool", ["q"]), ("assistant", ["a"])), "refuses the row: unknown role: tool"),
        (asked("the <image> here", "a", picture(9, 9)), "its words hold '<image>'"),
        (asked("a <|IMG_PATCH|>", "a"), "its words hold '<|IMG_PATCH|>', a special token"),
        (asked("q", "a <|IMG_PATCH|>"), "its words hold '<|IMG_PATCH|>', a special token"),
        (asked("q<|END_OF_TURN_TOKEN|>", "a"), "its words hold '<|END_OF_TURN_TOKEN|>'"),
        (asked("q", "<|START_OF_TURN_TOKEN|>"), "its words hold '<|START_OF_TURN_TOKEN|>'"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_rendered(renderer: Renderer, given: Row, expected: str) -> None:
    assert expected in refused(renderer, given)


def test_a_picture_for_a_text_lm(tokenizer: Any) -> None:
    given = asked("q", "a", picture(9, 9))
    assert refused(Renderer(tokenizer), given) == "has a picture, but a text LM takes text alone"


def test_budgets_are_met_to_the_token_and_the_tile(tiling_renderer: Renderer) -> None:
    given = asked("q", "a", picture(100, 30), picture(30, 100))
    sample = render(tiling_renderer, given)
    tokens, tiles = sample.num_tokens, sum(sample.num_tiles)
    assert tiles == 8
    exact = render(tiling_renderer, given, max_tokens=tokens, max_tiles=tiles)
    assert exact.num_tokens == tokens
    assert refused(tiling_renderer, given, max_tokens=tokens - 1) == (
        f"has {tokens} tokens, more than data.max_tokens={tokens - 1}"
    )
    assert refused(tiling_renderer, given, max_tiles=7) == (
        "has 8 image tiles, more than data.max_tiles=7"
    )


def with_template(tokenizer: Any, template: str) -> Renderer:
    own = copy.deepcopy(tokenizer)
    own.chat_template = template
    return Renderer(own)


CONVERSATION = row(
    ("user", ["a"]), ("assistant", ["thought"]), ("user", ["b"]), ("assistant", ["c"])
)


def test_a_template_that_rewrites_earlier_turns(tokenizer: Any) -> None:
    """As templates do that drop earlier reasoning."""
    forgetful = with_template(
        tokenizer,
        "{% for m in messages %}{{ m.role }}:{% if m.role == 'user' or loop.last %}"
        "{{ m.content }}{% endif %}<|END_OF_TURN_TOKEN|>{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}",
    )
    assert "writes an earlier turn differently once a later one follows" in refused(
        forgetful, CONVERSATION
    )
    assert render(forgetful, asked("a", "b")).supervised.any()


def test_a_template_without_end_of_turn(tokenizer: Any) -> None:
    endless = with_template(
        tokenizer,
        "{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}",
    )
    message = refused(endless, asked("a", "b"))
    assert (
        "does not end an answer with the end-of-sequence token '<|END_OF_TURN_TOKEN|>'" in message
    )


def test_a_template_whose_prompt_ends_within_a_token(tokenizer: Any) -> None:
    word = "hello"
    pieces = tokenizer.tokenize(word)
    cut = next(  # a place inside one of its tokens
        at for at in range(1, len(word)) if at not in np.cumsum([len(piece) for piece in pieces])
    )
    template = (
        "{% for m in messages %}" + word[:cut] + "{{ m.content }}<|END_OF_TURN_TOKEN|>{% endfor %}"
        "{% if add_generation_prompt %}" + word[:cut] + "{% endif %}"
    )
    message = refused(with_template(tokenizer, template), asked("a", word[cut:]))
    assert message == "a token lies half in the prompt and half in the answer"


def test_a_template_that_leaves_pictures_out(processor: Any) -> None:
    blind = copy.deepcopy(processor)
    blind.chat_template = (
        "{% for m in messages %}{{ m.role }}:{% for p in m.content %}{{ p.text }}{% endfor %}"
        "<|END_OF_TURN_TOKEN|>{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    message = refused(Renderer(blind), asked("a", "b", picture(9, 9)))
    assert message.startswith("the chat template writes '<image>' 0 times for 1 pictures")
