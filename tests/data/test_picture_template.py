"""Any text LM's template with pictures: text is written as before, pictures where they stand."""

import copy
import re
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trl
from data_pico import TILE, asked, picture, row
from jinja2 import TemplateError
from pico_families import FAMILIES, GEMMA_TEXT, QWEN_MARKED, make_tokenizer
from transformers import AutoProcessor

import data.render
from configs.errors import CheckpointError, DataError
from data.picture_template import PLACEHOLDER, PREAMBLE, with_pictures
from data.processor import compose_processor
from data.render import Renderer, image_text
from data.rows import IMAGE, Row, plain_text
from data.tokenizer import CHAT_TEMPLATE, prepare_for_images

OURS = {name: family.template for name, family in FAMILIES.items()} | {
    "qwen3, marked": QWEN_MARKED,
    "gemma of text": GEMMA_TEXT,
    "with a margin": "   \n\n  {% for m in messages %}{{ m.role }}:{{ m.content }}</s>\n"
    "{% endfor %} ",
    "after a line": "\n{#- a comment -#}\n {{ messages | map(attribute='content') | join('|') }}"
    "</s>\n\n",
}  # fmt: skip
THEIRS = {
    path.stem: path.read_text(encoding="utf-8")
    for path in sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))
    if not path.stem.startswith("llava_next")  # takes no text alone
}
TOOL_CALL = {"type": "function", "function": {"name": "look", "arguments": {"at": "a key"}}}
TALKS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": " What?\n"}],
    [{"role": "user", "content": "q"}, {"role": "assistant", "content": " a <think>x</think>b\n"}],
    [
        {"role": "system", "content": "Be brief. "},
        {"role": "user", "content": "{{ 7 * 7 }}"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "'q' & \"<b>\" हाथी"},
        {"role": "assistant", "content": "<think>y</think>c"},
    ],
    [{"role": "assistant", "content": "all of a text"}],
    [{"role": "user", "content": "q"}, {"role": "user", "content": "against the rules"}],
    [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "", "tool_calls": [TOOL_CALL]},
        {"role": "tool", "content": "found"},
        {"role": "assistant", "content": "a"},
    ],
    [
        {"role": "user", "content": "q"},
        {"role": "assistant", "tool_calls": [TOOL_CALL]},
        {"role": "tool", "content": [{"type": "text", "text": "found"}]},
        {"role": "assistant", "content": None, "reasoning_content": "well", "tool_calls": []},
    ],
]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"add_generation_prompt": True},
    {"add_generation_prompt": True, "enable_thinking": False, "tools": [TOOL_CALL]},
]


def written(tokenizer: Any, template: str, talk: Any, **options: Any) -> str:
    """The text, or the words with which the template refuses the conversation."""
    try:
        return str(
            tokenizer.apply_chat_template(talk, chat_template=template, tokenize=False, **options)
        )
    except (TemplateError, TypeError) as error:
        return f"refused: {error}"


def prepared(name: str) -> Any:
    return prepare_for_images(make_tokenizer(name))


def processor_of(tokenizer: Any, *, crop_to_patches: bool = False) -> Any:
    return compose_processor(
        tokenizer, image_size=TILE, patch_size=4, downsample_factor=2,
        crop_to_patches=crop_to_patches, max_patches=6,
    )  # fmt: skip


# ----------------------------------------------------------------------------- text alone


@pytest.mark.parametrize("template", [*OURS.values(), *THEIRS.values()], ids=[*OURS, *THEIRS])
def test_text_alone_is_written_as_before(template: str) -> None:
    """Byte for byte, with all options, and what was refused is refused in the same words."""
    tokenizer = make_tokenizer("llama")
    tokenizer.chat_template = template
    made, placeholder = with_pictures(tokenizer)
    assert placeholder == PLACEHOLDER
    for talk in TALKS:
        for options in OPTIONS:
            wanted = written(tokenizer, template, talk, **options)
            assert written(tokenizer, made, talk, **options) == wanted


@pytest.mark.parametrize("template", [*OURS.values(), *THEIRS.values()], ids=[*OURS, *THEIRS])
def test_a_picture_is_its_placeholder_in_the_words(template: str) -> None:
    tokenizer = make_tokenizer("llama")
    tokenizer.chat_template = template
    made, _ = with_pictures(tokenizer)
    if made == template:
        pytest.skip("writes pictures itself")
    assert made.endswith(template)
    pieces = [IMG, {"type": "text", "text": "What "}, IMG, {"type": "text", "text": "is it?"}]
    answer = {"role": "assistant", "content": [{"type": "text", "text": "A key."}]}
    found = written(tokenizer, made, [{"role": "user", "content": pieces}, answer])
    words = [
        {"role": "user", "content": "<image>What <image>is it?"},
        {"role": "assistant", "content": "A key."},
    ]
    assert found == written(tokenizer, template, words)
    assert "refused" not in found


IMG = {"type": "image"}


def test_lists_of_text_are_text_where_the_template_takes_none() -> None:
    """Qwen's writes nothing for a list, and would have trained on that."""
    own = prepared("qwen3")
    listed = [{"role": "user", "content": [{"type": "text", "text": "a"}, "b"]}]
    plain = [{"role": "user", "content": "ab"}]
    assert written(own, own.chat_template, listed) == written(
        own, FAMILIES["qwen3"].template, plain
    )
    assert "ab" not in written(own, FAMILIES["qwen3"].template, listed)


def test_what_a_tool_says_and_pieces_of_another_kind_are_left_alone() -> None:
    own = prepared("llama")
    for content in ([{"type": "text", "text": "x"}], [{"type": "document", "document": {"a": 1}}]):
        talk = [{"role": "user", "content": "q"}, {"role": "tool", "content": content}]
        before, after = (
            written(own, template, talk)
            for template in (FAMILIES["llama"].template, own.chat_template)
        )
        assert after == before
        assert '"type"' in before
    shown = [{"role": "user", "content": "q"}, {"role": "tool", "content": [IMG]}]
    assert written(own, own.chat_template, shown).count("<image>") == 1


def test_a_template_that_writes_pictures_is_kept() -> None:
    own = prepared("gemma3_text")
    assert own.chat_template == FAMILIES["gemma3_text"].template
    assert "<image>" not in own.get_vocab()
    ours = make_tokenizer("cohere2")
    ours.chat_template = CHAT_TEMPLATE.read_text(encoding="utf-8")
    assert with_pictures(ours) == (ours.chat_template, "<image>")


def test_it_is_done_once() -> None:
    own = prepared("mistral")
    assert own.chat_template.startswith(PREAMBLE[:40])
    assert with_pictures(own) == (own.chat_template, "<image>")


def test_of_several_templates_each_is_made() -> None:
    own, template = make_tokenizer("cohere2"), FAMILIES["cohere2"].template
    own.chat_template = {"default": template, "rag": "{{ documents }}" + template}
    made, _ = with_pictures(own)
    assert list(made) == ["default", "rag"]
    talk = [{"role": "user", "content": [IMG, {"type": "text", "text": "q"}]}]
    for name, text in made.items():
        found = written(own, text, talk, documents=[{"title": "t", "text": "x"}])
        assert "<|USER_TOKEN|><image>q" in found
        assert ("'t'" in found) is (name == "rag")
    own.chat_template = {"rag": template}
    with pytest.raises(CheckpointError, match="chat templates named rag, but no default one"):
        with_pictures(own)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('never') }}", "refuses a question and an answer: never"),
        ("{{ messages[0].content | upper }}", "does not write the words of a question as they are"),
        ("{{ messages[-1].content }}", "so pictures cannot be placed among them; put a chat_templ"),
    ],
)
def test_a_template_that_no_picture_can_be_put_in(template: str, message: str) -> None:
    own = make_tokenizer("llama")
    own.chat_template = template
    with pytest.raises(CheckpointError, match=message):
        with_pictures(own)


# ----------------------------------------------------------------------------- rows


def learned(renderer: Renderer, given: Any) -> list[str]:
    """The stretches of a row that are supervised."""
    sample = renderer.render(given, check=True)
    pairs = zip(sample.input_ids.tolist(), sample.supervised.tolist(), strict=True)
    stretches = [(key, [i for i, _ in group]) for key, group in groupby(pairs, lambda p: p[1])]
    return [renderer.tokenizer.decode(ids) for supervised, ids in stretches if supervised]


@pytest.mark.parametrize("name", FAMILIES)
def test_answers_to_pictures_are_supervised_exactly(name: str) -> None:
    family, own = FAMILIES[name], prepared(name)
    renderer = Renderer(processor_of(own))
    one = asked(" What is it?", "A key, हाथी!", picture(20, 20))
    assert learned(renderer, one) == [f"{family.before}A key, हाथी!{family.stop}"]
    text = renderer.tokenizer.decode(renderer.render(one).input_ids)
    picture_text = image_text(renderer.processing_class, 1)
    assert text.count(picture_text) == text.count("<|IMG_PATCH|>") / 16 == 1
    assert re.search(re.escape(picture_text) + r"\s*What is it\?", text)
    assert family.placeholder not in text
    assert renderer.placeholder == family.placeholder
    assert own.decode(renderer.stop_token_id) == family.stop


@pytest.mark.parametrize("name", FAMILIES)
def test_every_turn_with_pictures_is_supervised(name: str) -> None:
    own = prepared(name)
    if name == "qwen3":
        own.chat_template = with_pictures(with_template(own, QWEN_MARKED))[0]
    given = row(
        ("user", [IMAGE, "one?"]), ("assistant", ["First."]),
        ("user", ["and ", IMAGE, IMAGE, " here?"]), ("assistant", ["Second."]),
        images=[picture(20, 20), picture(30, 20), picture(20, 30)],
    )  # fmt: skip
    stop, before = FAMILIES[name].stop, FAMILIES[name].before
    assert learned(Renderer(processor_of(own)), given) == [
        f"First.{stop}",
        f"{before}Second.{stop}",
    ]


@pytest.mark.parametrize("name", FAMILIES)
def test_plain_text_is_an_answer_also_where_turns_must_alternate(name: str) -> None:
    """Cohere's, Gemma's and Mistral's refuse an answer without a question: theirs is empty."""
    renderer, family = Renderer(processor_of(prepared(name))), FAMILIES[name]
    given = Row("1", "tests", "en", plain_text("All human beings"))
    assert learned(renderer, given) == [f"All human beings{family.stop}"]
    prompt = renderer.prompt(given)
    sample = renderer.render(given)
    whole = renderer.tokenizer.decode(sample.input_ids)
    assert whole.startswith(prompt)
    strict = name in ("cohere", "gemma3_text", "mistral")
    empty = [{"role": "user", "content": ""}]
    own = make_tokenizer(name)
    asked_nothing = own.apply_chat_template(empty, tokenize=False, add_generation_prompt=True)
    assert (prompt == asked_nothing) is strict


def with_template(tokenizer: Any, template: str) -> Any:
    own = copy.deepcopy(tokenizer)
    own.chat_template = template
    return own


def test_thoughts_that_are_forgotten_are_refused_without_marks() -> None:
    given = row(
        ("user", [IMAGE, "one?"]), ("assistant", ["a"]), ("user", ["two?"]), ("assistant", ["b"]),
        images=[picture(20, 20)],
    )  # fmt: skip
    with pytest.raises(DataError, match="writes an earlier turn differently once a later one"):
        Renderer(processor_of(prepared("qwen3"))).render(given)


@pytest.mark.parametrize("name", FAMILIES)
def test_pictures_put_in_afterwards_are_those_tokenized(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For tokenizers of all kinds: `data/render.py` may splice pictures into ids."""
    processor = processor_of(prepared(name), crop_to_patches=True)
    rows = [
        asked(words, "An answer.", picture(*size))
        for words in (" What? ", "क्या?", "REPTILES TILE_1", "\n\nx", "")
        for size in ((20, 20), (100, 30))
    ]
    monkeypatch.setattr(data.render, "COMPARED", 10**9)
    whole = Renderer(processor)
    wanted = [whole.render(given, check=True) for given in rows]
    assert whole._cuts_around_pictures  # both ways were compared, and agreed
    monkeypatch.setattr(data.render, "COMPARED", 0)
    spliced = Renderer(processor)
    spliced._seen_tiles.update(range(20))
    monkeypatch.setattr(spliced, "_whole", None)  # calling it would fail
    for given, sample in zip(rows, wanted, strict=True):
        found = spliced.render(given, check=True)
        assert np.array_equal(found.input_ids, sample.input_ids)
        assert np.array_equal(found.supervised, sample.supervised)


def check_users_tokens(processor: Any, folder: Path, num_bos: int) -> None:
    """Hold what plain transformers gives a model to answer against what ours was trained on."""
    processor.save_pretrained(folder)
    image, renderer = picture(20, 20), Renderer(processor)
    pieces = [{"type": "image", "image": image.load()}, {"type": "text", "text": "What is it?"}]
    trained_on = renderer.render(asked("What is it?", "!", image), check=True).input_ids.tolist()
    for users in (processor, AutoProcessor.from_pretrained(folder)):
        ids = users.apply_chat_template(
            [{"role": "user", "content": pieces}],
            tokenize=True, return_dict=True, add_generation_prompt=True,
        )["input_ids"][0]  # fmt: skip
        assert ids == trained_on[: len(ids)]
        assert len(ids) > 20
        assert ids.count(users.tokenizer.bos_token_id) == num_bos


@pytest.mark.parametrize("name", FAMILIES)
def test_users_of_the_processor_get_the_tokens_that_were_trained_on(
    name: str, tmp_path: Path
) -> None:
    check_users_tokens(processor_of(prepared(name)), tmp_path, 0 if name == "qwen3" else 1)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3_text", "cohere"])
def test_a_tokenizer_that_adds_a_bos_of_its_own_behind_the_templates_back(
    name: str, tmp_path: Path
) -> None:
    own = make_tokenizer(name)
    own.chat_template = own.chat_template.replace("{{- bos_token }}", "").replace(
        "{{ bos_token }}", ""
    )
    assert own("x").input_ids[0] == own.bos_token_id
    check_users_tokens(processor_of(prepare_for_images(own)), tmp_path, 0)
