"""Chat messages as data sets write them: which turns they are, and where their pictures stand."""

import json
from typing import Any

import pytest

from configs.errors import DataError
from data.conversations import place_pictures, read_messages, split_places
from data.rows import IMAGE, Turn

PLACE = "<image>"


def llava(*values: str) -> list[dict[str, str]]:
    """Messages as in LLaVA's and ShareGPT's files."""
    return [
        {"from": ("human", "gpt")[number % 2], "value": value}
        for number, value in enumerate(values)
    ]


def chat(*contents: Any) -> list[dict[str, Any]]:
    """Messages as chat templates take them."""
    return [
        {"role": ("user", "assistant")[number % 2], "content": content}
        for number, content in enumerate(contents)
    ]


def read(messages: Any, num_pictures: int = 0, placeholder: str = PLACE) -> list[tuple[Any, ...]]:
    """(role, piece, piece, ...) of each turn."""
    turns = read_messages(messages, placeholder).turns
    return [(turn.role, *turn.content) for turn in place_pictures(turns, num_pictures, placeholder)]


def refused(messages: Any, num_pictures: int = 0) -> str:
    with pytest.raises(DataError) as caught:
        read(messages, num_pictures)
    return str(caught.value)


def test_llava_puts_the_placeholder_before_or_behind_the_words() -> None:
    """Both ways are in LLaVA-Instruct-150K."""
    for asked in ("<image>\nWhat is it?", "What is it?\n<image>", "<image>What is it?"):
        turns = read(llava(asked, "A key.", "Sure?", "Yes."), num_pictures=1)
        pieces = (IMAGE, "What is it?") if asked[0] == "<" else ("What is it?", IMAGE)
        assert turns == [
            ("user", *pieces), ("assistant", "A key."), ("user", "Sure?"), ("assistant", "Yes."),
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("words", ["words"]),
        ("", [""]),
        ("\nwords\n", ["\nwords\n"]),
        ("<image>", [IMAGE]),
        ("<image>\n", [IMAGE]),
        ("\n<image>", [IMAGE]),
        ("<image>\n<image>\nCompare.", [IMAGE, IMAGE, "Compare."]),
        ("<image><image>\nCompare.", [IMAGE, IMAGE, "Compare."]),
        ("Compare.\n<image>\n<image>", ["Compare.", IMAGE, IMAGE]),
        ("<image>\nand\n<image>", [IMAGE, "and", IMAGE]),
        ("From\n<image>\nto\n<image>\nhow?", ["From\n", IMAGE, "\nto\n", IMAGE, "\nhow?"]),
        ("<image>\n\nTwo.", [IMAGE, "\nTwo."]),
        ("<image> One.", [IMAGE, " One."]),
    ],
)
def test_line_breaks_beside_placeholders(text: str, pieces: list[str | None]) -> None:
    assert split_places(text, PLACE) == pieces


def test_another_placeholder_is_taken_as_it_is_written() -> None:
    assert split_places("[*]\nWhat? <image>", "[*]") == [IMAGE, "What? <image>"]
    assert split_places("<image>\nWhat?", "") == ["<image>\nWhat?"]


@pytest.mark.parametrize(
    ("written", "role"),
    [("human", "user"), ("user", "user"), ("gpt", "assistant"), ("assistant", "assistant"),
     ("bing", "assistant"), ("chatgpt", "assistant"), ("model", "assistant"),
     ("system", "system")],
)  # fmt: skip
def test_names_of_roles(written: str, role: str) -> None:
    before = [Turn("user", ("?",))] if role == "assistant" else []
    for keys in (("role", "content"), ("from", "value")):
        messages = [*chat("?")[: len(before)], dict(zip(keys, (written, "words"), strict=True))]
        assert read_messages(messages, PLACE).turns == (*before, Turn(role, ("words",)))


def test_pieces_of_a_chat_template() -> None:
    """Arrow gives every piece all keys; what a piece has not is null."""
    asked = [
        {"type": "text", "text": "Here: ", "index": None, "image": None},
        {"type": "image", "text": None, "index": 0, "image": None},
        {"type": "text", "text": "?", "index": None, "image": None},
    ]
    answered = [{"type": "text", "text": "A key.", "index": None, "image": None}]
    assert read(chat(asked, answered), num_pictures=1) == [
        ("user", "Here: ", IMAGE, "?"),
        ("assistant", "A key."),
    ]
    mixed = [{"type": "image"}, {"type": "text", "text": "and\n<image>"}]
    assert read(chat(mixed, "Yes."), num_pictures=2)[0] == ("user", IMAGE, "and", IMAGE)


def test_pictures_that_stand_in_the_messages() -> None:
    pair = {"bytes": b"...", "path": None}
    for piece, picture in [
        ({"type": "image", "image": "a.png"}, "a.png"),
        ({"type": "image", "path": "a.png", "url": None}, "a.png"),
        ({"type": "image", "url": "https://a/b.png"}, "https://a/b.png"),
        ({"type": "image_url", "image_url": {"url": "https://a/b.png"}}, "https://a/b.png"),
        ({"type": "image", "image": pair}, pair),
    ]:
        talk = read_messages(chat([piece, {"type": "text", "text": "What?"}], "A key."), PLACE)
        assert talk.pictures == (picture,)
        assert talk.turns[0].content == (IMAGE, "What?")
    assert read_messages(chat([{"type": "image"}, "What?"], "A key."), PLACE).pictures == ()


def test_pictures_keep_their_order_over_turns() -> None:
    def image(path: str) -> dict[str, str]:
        return {"type": "image", "path": path}

    messages = chat([image("a"), "or", image("b")], "a.", [image("c"), "?"], "No.")
    assert read_messages(messages, PLACE).pictures == ("a", "b", "c")


def test_pictures_in_part_of_the_places() -> None:
    asked = [{"type": "image", "path": "a.png"}, {"type": "image"}, "Which?"]
    assert refused(chat(asked, "a.")) == (
        "its messages hold 1 of the 2 pictures they have places for; give all of them there, or "
        "all in a column"
    )


def test_places_that_name_pictures_out_of_order() -> None:
    asked = [{"type": "image", "index": 1}, {"type": "image", "index": 0}, "Which?"]
    assert refused(chat(asked, "a."), 2) == (
        "message 1 has a place for picture 1 where picture 0 is due; list pictures in the order "
        "of their places"
    )


def test_without_places_pictures_go_before_the_first_question() -> None:
    messages = [{"role": "system", "content": "Be brief."}, *chat("What?", "A key.", "So?", "Yes.")]
    assert read(messages, num_pictures=2) == [
        ("system", "Be brief."), ("user", IMAGE, IMAGE, "What?"), ("assistant", "A key."),
        ("user", "So?"), ("assistant", "Yes."),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "num_pictures", "told"),
    [
        ("<image>\nWhat?", 2, "has 2 pictures and 1 place for them (<image>)"),
        ("<image>\nWhat?", 0, "has 0 pictures and 1 place for them (<image>)"),
        ("<image>\n<image>\nWhat?", 1, "has 1 picture and 2 places for it (<image>)"),
    ],
)
def test_another_number_of_places(asked: str, num_pictures: int, told: str) -> None:
    assert refused(llava(asked, "A key."), num_pictures) == told


def test_pictures_and_no_user() -> None:
    system = [{"role": "system", "content": "Be brief."}]
    assert refused(system, 1) == "has 1 picture and 0 places for it (<image>)"


def test_places_that_are_not_the_users() -> None:
    system = [{"role": "system", "content": "<image>\nThis is you."}, *chat("Who?", "Me.")]
    for role, messages in (("assistant", llava("Draw!", "Here:\n<image>")), ("system", system)):
        assert refused(messages, 1) == (
            f"a turn of the {role} has a place for a picture (<image>); pictures stand in turns "
            "of the user (image_placeholder says what is a place)"
        )


def test_messages_as_json_text() -> None:
    messages = llava("<image>\nWhat?", "A key.")
    assert read(json.dumps(messages), 1) == read(messages, 1)


@pytest.mark.parametrize("messages", [[], None, "hello", "{}", "[", 7, {"role": "user"}])
def test_what_is_no_list_of_messages(messages: Any) -> None:
    assert refused(messages) == "its messages are not a list of role and content"


@pytest.mark.parametrize("message", ["hello", {"role": "user"}, {"from": "human", "content": "x"}])
def test_what_is_no_message(message: Any) -> None:
    assert refused([message]) == (
        f"message 1 {str(message)!r} has neither role and content nor from and value"
    )


@pytest.mark.parametrize("role", ["tool", "function", "observation", "function_call"])
def test_tools_are_refused_by_name(role: str) -> None:
    messages = [*chat("Weather?"), {"from": role, "value": "{}"}]
    assert refused(messages) == (
        f"message 2 has the role {role!r}: conversations with tools are not trained on"
    )


@pytest.mark.parametrize("role", ["narrator", None, "Human"])
def test_a_role_that_is_not_known(role: Any) -> None:
    assert refused([{"role": role, "content": "x"}]) == (
        f"message 1 has the role {role!r}, which is not one of system, user, human, assistant, "
        "gpt, chatgpt, bing, model"
    )


def roles(*names: str) -> list[dict[str, str]]:
    return [{"role": name, "content": "words"} for name in names]


@pytest.mark.parametrize(
    ("names", "number", "met", "due"),
    [
        (["assistant"], 1, "assistant", "user"),
        (["system", "assistant"], 2, "assistant", "user"),
        (["user", "user"], 2, "user", "assistant"),
        (["user", "assistant", "assistant"], 3, "assistant", "user"),
        (["user", "system"], 2, "system", "assistant"),
        (["system", "system"], 2, "system", "user"),
    ],
)
def test_turns_out_of_turn(names: list[str], number: int, met: str, due: str) -> None:
    assert refused(roles(*names)) == (
        f"message {number} is of the {met} where one of the {due} is due: after at most one "
        "message of the system, user and assistant take turns"
    )


def test_a_question_at_the_end_is_left_to_the_renderer() -> None:
    assert [role for role, _ in read(roles("user", "assistant", "user"))][-1] == "user"


@pytest.mark.parametrize(
    "piece",
    [None, 7, {"type": "audio", "text": "x"}, {"type": "text", "text": None}, {"text": "x"}],
)
def test_a_piece_that_is_not_understood(piece: Any) -> None:
    for content in (piece, [piece]):
        assert refused(chat(content)) == (
            f"message 1 holds {str(piece)!r}, which is neither text nor a picture"
        )
