"""Rendering against transformers' own processor, and the mask against a naive construction."""

import copy
import multiprocessing
import pickle
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_pico import PLENTY, TILE, asked, encode, in_memory, naive_render, picture, row
from PIL import Image
from tokenizers.processors import ByteLevel
from transformers import AddedToken, BertJapaneseTokenizer

from configs.errors import DataError
from data.images import BytesImage
from data.processor import compose_processor, load_processor
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
    messages = [renderer.template.message(turn) for turn in given.turns]
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


# Ties: 3:2 lies between 1:1 and 2:1, 5:2 between 2:1 and 3:1, in areas small and large.
TIES = [(48, 32), (96, 64), (32, 48), (192, 128), (80, 32), (160, 64), (32, 80), (112, 32),
        (224, 64), (64, 224)]  # fmt: skip
EXTREME = [(1, 5000), (5000, 1), (5000, 3), (2, 999), (640, 480), (31, 1)]


@cache
def plain_picture(width: int, height: int) -> BytesImage:
    """A picture of which only the size matters."""
    return in_memory(encode(Image.new("RGB", (width, height))))


@pytest.mark.parametrize("max_patches", range(2, 13))
def test_pictures_of_any_shape_are_written_as_the_processor_writes_them(
    tokenizer: Any, max_patches: int
) -> None:
    sizes = [*SIZES, *TIES, *EXTREME]
    assert len(set(sizes)) >= 30
    processor = compose_processor(
        tokenizer, image_size=TILE, patch_size=4, downsample_factor=2,
        crop_to_patches=True, max_patches=max_patches,
    )  # fmt: skip
    given = asked("q", "a", *(plain_picture(*size) for size in sizes))
    renderer = Renderer(processor)
    sample = renderer.render(given, check=True)
    messages = [renderer.template.message(turn) for turn in given.turns]
    text = processor.apply_chat_template(messages, tokenize=False)
    images = [image.load() for image in given.images]
    expected = processor(text=text, images=images, add_special_tokens=False)
    assert sample.input_ids.tolist() == expected["input_ids"][0]
    assert sum(sample.num_tiles) == len(expected["pixel_values"])
    assert max(sample.num_tiles) == max_patches + 1


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
    given = asked("a", word[cut:])
    with pytest.raises(DataError, match=r"CohereTokenizer\) reads the prompt otherwise once the"):
        with_template(tokenizer, template).render(given, check=True)


def test_a_token_that_swallows_the_space_before_an_answer(tokenizer: Any) -> None:
    """No token straddles the boundary by its offsets; only the prompt's own tokens show it."""
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}<|END_OF_TURN_TOKEN|>{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    renderer = with_template(tokenizer, template)
    renderer.tokenizer.backend_tokenizer.post_processor = ByteLevel(trim_offsets=True)
    given = asked("what?", "the key")
    assert render(renderer, given).supervised.any()
    prompt = renderer.tokenizer.encode(renderer.prompt(given), add_special_tokens=False)
    with pytest.raises(DataError) as caught:
        renderer.render(given, check=True)
    assert (
        "the tokenizer (CohereTokenizer) reads the prompt otherwise once the answer follows: "
        f"token {len(prompt) - 1} is ' ' in the prompt alone and ' the' in the whole; let the"
    ) in str(caught.value)


def test_an_answer_right_behind_a_picture(processor: Any) -> None:
    own = copy.deepcopy(processor)
    own.chat_template = (
        "{% for m in messages %}{% for p in m.content %}{{ p.text or '<image>' }}{% endfor %}"
        "{% if m.role == 'assistant' %}<|END_OF_TURN_TOKEN|>{% endif %}{% endfor %}"
    )
    shown = row(("user", ["q", IMAGE]), ("assistant", ["a key"]), images=[picture(9, 9)])
    sample = Renderer(own).render(shown, check=True)
    learned = own.tokenizer.decode(sample.input_ids[sample.supervised])
    assert learned == "a key<|END_OF_TURN_TOKEN|>"
    own.chat_template = own.chat_template.replace("<|END_OF_TURN_TOKEN|>", "")
    given = row(("user", ["q"]), ("assistant", ["a", IMAGE]), images=[picture(9, 9)])
    assert "does not end an answer with a special token" in refused(Renderer(own), given)


def test_a_template_that_leaves_pictures_out(processor: Any) -> None:
    blind = copy.deepcopy(processor)
    blind.chat_template = (
        "{% for m in messages %}{{ m.role }}:{% for p in m.content %}{{ p.text }}{% endfor %}"
        "<|END_OF_TURN_TOKEN|>{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    message = refused(Renderer(blind), asked("a", "b", picture(9, 9)))
    assert message.startswith("the chat template writes '<image>' 0 times for 1 pictures")


def test_an_answer_may_hold_no_part_of_a_picture(tiling_renderer: Renderer) -> None:
    shown = row(("user", ["q"]), ("assistant", ["See ", IMAGE, "."]), images=[picture(90, 30)])
    for given, part in [(shown, "<|START_OF_IMG|>"), (asked("q", "A TILE_GLOBAL."), "TILE_GLOBAL")]:
        tiling_renderer.render(given)  # without the check it passes
        with pytest.raises(DataError) as caught:
            tiling_renderer.render(given, check=True)
        assert str(caught.value).startswith(f"its answers hold {part!r}, with which pictures are")
        assert "an image token would be supervised; take pictures and tile" in str(caught.value)
    tiling_renderer.render(asked("A TILE?", "A tile.", picture(90, 30)), check=True)


def test_a_sample_of_which_nothing_is_supervised(renderer: Renderer) -> None:
    sample = renderer.render(asked("q", "a"))
    renderer.check_supervised(sample)
    with pytest.raises(DataError, match="no token of it is supervised, so nothing would be learn"):
        renderer.check_supervised(replace(sample, supervised=np.zeros_like(sample.supervised)))


@pytest.mark.parametrize("name", [name for name in ROWS if "TILE" not in name])
def test_the_check_changes_nothing(any_processor: Any, name: str) -> None:
    renderer = Renderer(any_processor)
    checked, plain = renderer.render(ROWS[name], check=True), renderer.render(ROWS[name])
    assert np.array_equal(checked.input_ids, plain.input_ids)
    assert np.array_equal(checked.supervised, plain.supervised)


def test_padding_of_an_earlier_call_stays_out(tokenizer: Any) -> None:
    own = copy.deepcopy(tokenizer)
    renderer = Renderer(own)
    expected, fingerprint = (
        renderer.render(asked("q", "a")).input_ids.tolist(),
        renderer.fingerprint(),
    )
    for _ in range(2):
        own(["one", "one and two"], padding="max_length", max_length=4, truncation=True)
        assert own.backend_tokenizer.truncation is not None
        assert renderer.fingerprint() == fingerprint
        own(["one", "one and two"], padding="max_length", max_length=4, truncation=True)
        assert renderer.render(asked("q", "a")).input_ids.tolist() == expected


def test_half_a_character(renderer: Renderer) -> None:
    assert "hold half a character (a lone surrogate), which no" in refused(
        renderer, asked("q", "a \ud83d b")
    )


# ---------------------------------------------------------------- copies and fingerprints


def test_workers_render_what_their_parent_renders(tiling_renderer: Renderer) -> None:
    given = ROWS["several turns, pictures among words"]
    expected = tiling_renderer.render(given).input_ids.tolist()
    copied = pickle.loads(pickle.dumps(tiling_renderer))
    assert copied.render(given).input_ids.tolist() == expected
    assert copied.fingerprint() == tiling_renderer.fingerprint()
    with multiprocessing.get_context("fork").Pool(1) as pool:
        for ids in pool.map(_Render(tiling_renderer), [given] * 2):
            assert ids == expected


class _Render:
    """A call that travels to a worker."""

    def __init__(self, renderer: Renderer) -> None:
        self.renderer = renderer

    def __call__(self, given: Row) -> list[int]:
        return self.renderer.render(replace(given, images=given.images)).input_ids.tolist()


def test_a_folder_has_one_fingerprint(
    tiling_processor: Any, tokenizer: Any, tmp_path: Path
) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        tiling_processor.save_pretrained(folder)
    one, again, other = (Renderer(load_processor(str(folder))) for folder in (folders[0], *folders))
    assert one.fingerprint() == again.fingerprint() == other.fingerprint()
    again.render(ROWS["one picture"])  # what has been done with it makes no difference
    again.processing_class(text=["a", "b c"], padding=True)
    assert again.fingerprint() == one.fingerprint()
    assert Renderer(tokenizer).fingerprint() != one.fingerprint()


def _template(processor: Any) -> None:
    processor.chat_template += " "


def _token(processor: Any) -> None:
    processor.tokenizer.add_tokens([AddedToken("zebra")])


def _special(processor: Any) -> None:
    processor.tokenizer.add_special_tokens({"pad_token": "<|USER_TOKEN|>"})


def _tiles(processor: Any) -> None:
    processor.image_processor.max_patches = 5


def _tile_size(processor: Any) -> None:
    processor.img_size *= 2


def _image_token(processor: Any) -> None:
    processor.image_token = "<picture>"


@pytest.mark.parametrize("change", [_template, _token, _special, _tiles, _tile_size, _image_token])
def test_what_changes_samples_changes_the_fingerprint(tiling_processor: Any, change: Any) -> None:
    changed = copy.deepcopy(tiling_processor)
    assert Renderer(changed).fingerprint() == Renderer(tiling_processor).fingerprint()
    change(changed)
    assert Renderer(changed).fingerprint() != Renderer(tiling_processor).fingerprint()


def test_a_tokenizer_that_knows_no_places(tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text(
        "\n".join(["[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]", "a"])
    )
    slow = BertJapaneseTokenizer(str(tmp_path / "vocab.txt"), word_tokenizer_type="basic")
    slow.chat_template = "{% for m in messages %}{{ m.content }}[SEP]{% endfor %}"
    slow.eos_token = "[SEP]"
    assert "BertJapaneseTokenizer does not say where in a text its tokens stand; give a" in refused(
        Renderer(slow), asked("a", "a")
    )
    before = Renderer(slow).fingerprint()
    slow.add_tokens(["b"])
    assert Renderer(slow).fingerprint() != before
