"""Answers found in the templates of many models, and texts held against transformers' own."""

import copy
import re
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import trl
from data_pico import asked, picture, row

from configs.errors import DataError
from data.render import Renderer
from data.rows import IMAGE, Row, plain_text
from data.template import ChatTemplate

HEAD = "{% for m in messages %}"
CHATML_TURN = "<|im_start|>{{ m.role }}\n"
CHATML_TAIL = "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def chatml(answer: str) -> str:
    """A ChatML template that writes the assistant's turns by `answer`."""
    return (
        HEAD + CHATML_TURN + "{% if m.role == 'assistant' %}" + answer + "{% else %}"
        "{{ m.content }}<|im_end|>{% endif %}{{ '\n' }}" + CHATML_TAIL
    )


FORGETFUL = "{{ m.content if loop.last else m.content.split('</think>')[-1] }}<|im_end|>"
TEMPLATES = {
    "chatml": chatml("{{ m.content }}<|im_end|>"),
    "chatml, marked": chatml("{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"),
    "chatml, marks end late": chatml(
        "{%- generation -%}{{ m.content }}<|im_end|>{{ '\n' }}{%- endgeneration -%}"
    ),
    "chatml, marks end early": chatml(
        "{% generation %}{{ m.content }}{% endgeneration %}<|im_end|>"
    ),
    "chatml, a text ends otherwise": chatml("{{ m.content }}<|im_end|>")
    + "{% if not add_generation_prompt %}<|endoftext|>{% endif %}",
    "forgetful, marked": chatml("{% generation %}" + FORGETFUL + "{% endgeneration %}"),
    "llama 3": "{{ bos_token }}" + HEAD + "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
    "gemma": "{{ bos_token }}" + HEAD + "{% if m.role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
    "command r7b": "{{ bos_token }}" + HEAD + "<|START_OF_TURN_TOKEN|>{{ m.role }}:"
    "{% if m.role == 'assistant' %}<|START_RESPONSE|>{{ m.content }}<|END_RESPONSE|>"
    "{% else %}{{ m.content }}{% endif %}<|END_OF_TURN_TOKEN|>{% endfor %}"
    "{% if add_generation_prompt %}<|START_OF_TURN_TOKEN|>assistant:{% endif %}",
}  # fmt: skip
SPECIAL = sorted({
    *re.findall(r"<\|?\w+\|?>", "".join(TEMPLATES.values())),
    *("<|assistant|>", "<|user|>", "<|end|>"),
} - {"<|END_OF_TURN_TOKEN|>"})  # fmt: skip
STOPS = {
    "llama 3": "<|eot_id|>",
    "gemma": "<end_of_turn>",
    "command r7b": "<|END_RESPONSE|><|END_OF_TURN_TOKEN|>",
}
TWO = row(("user", ["one?"]), ("assistant", ["First 🐘."]), ("user", [" b "]), ("assistant", ["c"]))
AWKWARD = {
    "two answers": TWO,
    "an answer of lines": asked("q\n\n", "a\n\n b\n c"),
    "letters of many bytes": asked("चित्र में क्या है?", "यह 🐘🇺🇦 है, 大象。"),
    "template code": asked("{{ 7 * 7 }} {% if %}", "{% generation %} {# no #} \\n"),
    "html and quotes": asked("<b>&amp;</b>'\"", 'it\'s < 3 & "more"'),
}


def with_template(tokenizer: Any, template: str, eos: str | None = None) -> Any:
    """A text LM's tokenizer of another family."""
    own = copy.deepcopy(tokenizer)
    own.add_special_tokens({"extra_special_tokens": SPECIAL})
    if eos is not None:
        own.eos_token = eos
    own.chat_template = template
    return own


def learned(tokenizer: Any, given: Row) -> list[str]:
    """The stretches that are supervised."""
    sample = Renderer(tokenizer).render(given, check=True)
    pairs = zip(sample.input_ids.tolist(), sample.supervised.tolist(), strict=True)
    stretches = [(key, [i for i, _ in group]) for key, group in groupby(pairs, lambda p: p[1])]
    return [tokenizer.decode(ids) for supervised, ids in stretches if supervised]


def refused(tokenizer: Any, given: Row, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        Renderer(tokenizer).render(given, **options)
    return str(caught.value)


# --------------------------------------------------------------------------- the text


@pytest.mark.parametrize("name", TEMPLATES)
def test_texts_are_those_of_the_tokenizer(tokenizer: Any, name: str) -> None:
    own = with_template(tokenizer, TEMPLATES[name])
    template = ChatTemplate(own)
    for given in AWKWARD.values():
        messages = [{"role": turn.role, "content": turn.text} for turn in given.turns]
        assert template.text(given.turns) == own.apply_chat_template(messages, tokenize=False)
        for _ in range(2):  # the second is from the cache
            assert template.prompt(given.turns) == own.apply_chat_template(
                messages[:-1], tokenize=False, add_generation_prompt=True
            )


def test_texts_are_those_of_the_processor(processor: Any) -> None:
    template = ChatTemplate(processor)
    given = row(
        ("system", [""]), ("user", [IMAGE, " {{ a }}\n", IMAGE, "<b>"]), ("assistant", ["b", "c"])
    )
    messages = [
        {"role": "system", "content": [{"type": "text", "text": ""}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " {{ a }}\n"},
                                     {"type": "image"}, {"type": "text", "text": "<b>"}]},
        {"role": "assistant", "content": [{"type": "text", "text": word} for word in "bc"]},
    ]  # fmt: skip
    assert template.text(given.turns) == processor.apply_chat_template(messages, tokenize=False)
    assert template.prompt(given.turns) == processor.apply_chat_template(
        messages[:-1], tokenize=False, add_generation_prompt=True
    )


def test_the_default_of_several_templates_is_taken(tokenizer: Any) -> None:
    own = with_template(tokenizer, {"rag": "no", "default": TEMPLATES["chatml"]})  # type: ignore
    messages = [{"role": turn.role, "content": turn.text} for turn in TWO.turns]
    assert ChatTemplate(own).text(TWO.turns) == own.apply_chat_template(messages, tokenize=False)


@pytest.mark.parametrize("template", [None, {"rag": "no default"}])
def test_without_a_template_nothing_is_rendered(tokenizer: Any, template: Any) -> None:
    own = with_template(tokenizer, template)
    assert "CohereTokenizer has no chat template, so no row can be written; put" in refused(
        own, TWO
    )


def test_a_template_for_texts_refuses_pieces_in_words(processor: Any) -> None:
    own = copy.deepcopy(processor)
    own.chat_template = HEAD + "{{ m.role + m.content }}{% endfor %}"
    assert refused(own, asked("q", "a", picture(9, 9))).startswith(
        "the chat template refuses the row: can only concatenate str"
    )


def test_a_template_that_reads_the_clock_is_asked_each_time(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = ChatTemplate(
        with_template(tokenizer, "{{ strftime_now('%f') }}" + TEMPLATES["chatml"])
    )
    asked_for = {template.prompt(TWO.turns) for _ in range(50)}
    assert len(asked_for) > 1


# ------------------------------------------------------------------------ the answers


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("eos", ["<|END_OF_TURN_TOKEN|>", "<|endoftext|>"])
def test_answers_and_their_ends(tokenizer: Any, name: str, eos: str) -> None:
    """Whatever the tokenizer calls the end of a text, the turn's end is learned; no line after."""
    own = with_template(tokenizer, TEMPLATES[name], eos)
    stop = STOPS.get(name, "<|im_end|>")
    if name == "command r7b" and eos != "<|END_OF_TURN_TOKEN|>":
        stop = "<|END_RESPONSE|>"
    start = "<|START_RESPONSE|>" if name == "command r7b" else ""
    if "a text ends otherwise" in name:  # it cannot be told by prefixes of several turns
        assert learned(own, asked("q", "a b")) == ["a b" + stop]
    else:
        assert learned(own, TWO) == [f"{start}First 🐘.{stop}", f"{start}c{stop}"]
    assert own.decode(Renderer(own).stop_token_id) == re.findall(r"<[^>]+>", stop)[-1]


def test_a_template_that_forgets_is_right_with_marks_alone(tokenizer: Any) -> None:
    given = row(
        ("user", ["a"]), ("assistant", ["<think>x</think>b"]),
        ("user", ["c"]), ("assistant", ["<think>y</think>d"]),
    )  # fmt: skip
    message = refused(with_template(tokenizer, chatml(FORGETFUL)), given)
    assert "writes an earlier turn differently once a later one follows" in message
    assert "put {% generation %} and {% endgeneration %} around the answers" in message
    assert learned(with_template(tokenizer, TEMPLATES["forgetful, marked"]), given) == [
        "b<|im_end|>",
        "<think>y</think>d<|im_end|>",
    ]


def test_a_template_whose_prompt_is_not_what_stands_before_an_answer(tokenizer: Any) -> None:
    """As DeepSeek R1's: it lets the model think, and writes no thoughts."""
    own = with_template(
        tokenizer, TEMPLATES["chatml"].replace("assistant\n{% endif", "assistant\n<think>{% endif")
    )
    message = refused(own, TWO)
    assert "writes before an answer not what it gives a model" in message
    assert "assistant\\n<think>'), so answers cannot be told from prompts; put {% gen" in message


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("{{ m.content }}", "does not end an answer with a special token right behind its words"),
        ("{{ m.content }}<|im_end|>\nover", "does not end an answer with a special token"),
        ("<|im_start|>{{ m.content }}", "(such as the end-of-sequence token '<|END_OF_TURN_"),
        ("{% generation %}{{ m.content }}{% endgeneration %}", "so the model would not learn to"),
        ("{% generation %}{{ m.content }}{% endgeneration %} <|im_end|>",
         "has ' ' between the end of a {% generation %} mark and the special token that ends"),
        ("{% generation %}<|im_end|>{% endgeneration %}{{ m.content }}", "around 0 stretches for"),
        ("<|im_start|>{{ m.content[:0] }} <|im_end|>", "writes none of an answer's words"),
        ("{% generation %}{{ m.content[:0] }}<|im_end|>{% endgeneration %}",
         "marks around 0 stretches for 2 answers"),
        ("{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
         "{% if loop.last %}{% generation %}{{ m.content }}{% endgeneration %}{% endif %}",
         "has {% generation %} marks around 3 stretches for 2 answers; mark each answer once"),
        ("{% if loop.last %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
         "{% else %}{{ m.content }}<|im_end|>{% endif %}", "around 1 stretches for 2 answers"),
    ],
)  # fmt: skip
def test_a_template_that_teaches_no_end_or_no_words(
    tokenizer: Any, answer: str, expected: str
) -> None:
    assert expected in refused(with_template(tokenizer, chatml(answer)), TWO)


def test_marks_around_the_questions(tokenizer: Any) -> None:
    """As many as there are answers, so that only what they hold can tell."""
    template = TEMPLATES["chatml"].replace("{% if m.role == 'assistant' %}", "{% if false %}")
    template = template.replace(
        "{{ m.content }}<|im_end|>{% endif %}",
        "{% if m.role == 'user' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
        "{% else %}{{ m.content }}<|im_end|>{% endif %}{% endif %}",
    )
    message = refused(with_template(tokenizer, template), TWO)
    assert "to 'What was asked?' and 'What was said.' they give 'What was asked?<|im_end|>'" in (
        message
    )


def test_marks_within_a_macro_are_counted_from_the_wrong_place(tokenizer: Any) -> None:
    template = "{% macro say(m) %}" + CHATML_TURN + "{% generation %}{{ m.content }}<|im_end|>"
    template += "{% endgeneration %}{% endmacro %}" + chatml("!").replace(
        CHATML_TURN + "{% if m.role == 'assistant' %}!",
        "{% if m.role == 'assistant' %}{{ say(m) }}",
    ).replace("{% else %}", "{% else %}" + CHATML_TURN)
    assert "put them around the answer, outside of macros" in refused(
        with_template(tokenizer, template), TWO
    )


def test_marks_in_a_comment_are_none(tokenizer: Any) -> None:
    own = with_template(tokenizer, "{# Has no\n {% generation %} #}" + TEMPLATES["chatml"])
    assert not ChatTemplate(own).is_marked
    assert learned(own, TWO) == ["First 🐘.<|im_end|>", "c<|im_end|>"]


def test_the_first_token_of_the_next_turn_is_no_end(tokenizer: Any) -> None:
    """Even where it is the one that ends texts."""
    template = (
        TEMPLATES["chatml"].replace("<|im_start|>", "<|endoftext|>").replace("{{ '\n' }}", "")
    )
    own = with_template(tokenizer, template, "<|endoftext|>")
    assert learned(own, TWO) == ["First 🐘.<|im_end|>", "c<|im_end|>"]


def test_an_unknown_letter_is_no_end(tokenizer: Any) -> None:
    own = with_template(tokenizer, chatml("{{ m.content }}{{ '<UNK>' }}"))
    assert own.unk_token == "<UNK>"
    assert "does not end an answer with a special token" in refused(own, TWO)


@pytest.mark.parametrize("name", ["chatml", "chatml, marked", "llama 3", "gemma"])
def test_plain_text(tokenizer: Any, name: str) -> None:
    own = with_template(tokenizer, TEMPLATES[name])
    given = Row("1", "tests", "en", plain_text("All human beings"))
    assert learned(own, given) == ["All human beings" + STOPS.get(name, "<|im_end|>")]
    assert Renderer(own).prompt(given).endswith(("assistant\n", "<|end_header_id|>\n\n", "model\n"))


def test_plain_text_where_no_prompt_leads_to_an_answer(tokenizer: Any) -> None:
    """As Mistral's `[INST] question [/INST] answer`; and one that writes no speaker at all."""
    mistral = "{{ bos_token }}" + HEAD + (
        "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %}"
        "{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
    )  # fmt: skip
    given = Row("1", "tests", "en", plain_text("All human beings"))
    own = with_template(tokenizer, mistral)
    assert learned(own, given) == ["All human beings<|im_end|>"]
    assert learned(own, TWO) == ["First 🐘.<|im_end|>", "c<|im_end|>"]
    own.chat_template += "{% if add_generation_prompt %}Answer:{% endif %}"
    assert "does not write its generation prompt 'Answer:' before a text" in refused(own, given)


TRAINING = {  # of TRL: marks as they are put in real templates -> what ends an answer
    "llama3": ("", "<|eot_id|>"),
    "qwen3": ("<think>\n\n</think>\n\n", "<|im_end|>"),
    "qwen2_5": ("\n", "<|im_end|>"),  # marks the line break of its prompt, too
    "gemma": ("", "<end_of_turn>"),
    "phi3": ("", "<|end|>"),  # marks the end of the text, too
    "cohere": ("", "<|END_OF_TURN_TOKEN|>"),
}


@pytest.mark.parametrize("name", TRAINING)
def test_the_training_templates_of_trl(tokenizer: Any, name: str) -> None:
    path = Path(trl.__file__).parent / "chat_templates" / f"{name}_training.jinja"
    own = with_template(tokenizer, path.read_text(encoding="utf-8"))
    before, stop = TRAINING[name]
    assert ChatTemplate(own).is_marked
    assert learned(own, TWO) == [f"{before}First 🐘.{stop}", f"{before}c{stop}"]
