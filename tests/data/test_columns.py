"""Columns of a raw row made into a Row: every form of picture, every way of asking, bad rows."""

import base64
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from data_pico import encode, noise

from configs.errors import DataError
from configs.languages import LANGUAGES
from configs.schema import SourceConfig, SourceKind
from data.columns import RowContext, make_row
from data.images import BytesImage, FileImage, ImageRules
from data.prompts import draw_prompt
from data.remote import Downloads
from data.render import Renderer
from data.rows import IMAGE, Row, plain_text
from data.sources.records import FilePart

RULES = ImageRules(178_956_970, 67_108_864)
CHAT = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A key."}]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with two pictures below it and one beside it."""
    folder = tmp_path / "root"
    (folder / "deep").mkdir(parents=True)
    for number, path in enumerate(("root/a.png", "root/deep/b.png", "secret.png")):
        (tmp_path / path).write_bytes(encode(noise(20, 10, number)))
    return folder


def row(
    columns: dict[str, Any],
    root: Path = Path("/nowhere"),
    *,
    row_id: str = "7",
    seed: int = 0,
    downloads: Downloads | None = None,
    **settings: Any,
) -> Row:
    config = SourceConfig(**({"kind": SourceKind.files} | settings))
    context = RowContext(RULES, root, seed, downloads)
    return make_row("mine", row_id, columns, config, context)


def refused(columns: dict[str, Any], root: Path = Path("/nowhere"), **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        row(columns, root, **settings)
    return str(caught.value)


def captioned(picture: Any, root: Path = Path("/nowhere"), **settings: Any) -> Row:
    return row({"image": picture, "caption": "A key."}, root, **settings)


# -------------------------------------------------------------------------------- pictures


def test_a_path_starts_from_the_root_or_from_image_root(root: Path) -> None:
    assert captioned("deep/b.png", root).images == (FileImage(root / "deep/b.png", RULES),)
    assert captioned(str(root / "a.png"), root).images == (FileImage(root / "a.png", RULES),)
    below = captioned("b.png", root, image_root=str(root / "deep"))
    assert below.images == (FileImage(root / "deep/b.png", RULES),)
    assert below.images[0].load().tobytes() == noise(20, 10, 1).tobytes()


def test_bytes_of_a_picture() -> None:
    data = encode(noise(20, 10))
    for value, name in [
        (data, "in the row"),
        (bytearray(data), "in the row"),
        ({"bytes": data, "path": None}, "in the row"),
        ({"bytes": data, "path": "x/y.png"}, "x/y.png"),
    ]:
        assert captioned(value).images == (BytesImage(data, name, RULES),)


def test_a_part_of_a_file(tmp_path: Path) -> None:
    data = encode(noise(20, 10))
    (tmp_path / "a.tar").write_bytes(b"before" + data + b"behind")
    part = FilePart(tmp_path / "a.tar", 6, len(data), "a.tar/1.png")
    (image,) = captioned(part).images
    assert image == FileImage(tmp_path / "a.tar", RULES, part)
    assert image.load().tobytes() == noise(20, 10).tobytes()


def test_several_pictures(root: Path) -> None:
    made = captioned(["a.png", {"bytes": None, "path": "deep/b.png"}, b"..."], root)
    assert [type(image) for image in made.images] == [FileImage, FileImage, BytesImage]
    assert made.turns[0].content[:4] == (IMAGE, IMAGE, IMAGE, made.turns[0].text)


@pytest.mark.parametrize("nothing", [None, "", [], [None], {"bytes": None, "path": None}])
def test_no_picture(nothing: Any) -> None:
    asked = row({"image": nothing, "caption": "2", "q": "1 + 1?"}, prompt_field="q")
    assert asked.images == ()
    assert [turn.content for turn in asked.turns] == [("1 + 1?",), ("2",)]
    assert refused({"image": nothing, "caption": "A key."}) == (
        "has no picture to describe; name its question by prompt_field or its conversation by "
        "messages_field, or set image_field=null where all rows are plain text"
    )


def test_paths_found_by_datasets_are_taken_as_they_are(root: Path) -> None:
    """An image folder's; those in the rows of a file are held to the root."""
    found = {"bytes": None, "path": str(root.parent / "secret.png")}
    (image,) = captioned(found, root, kind=SourceKind.dataset).images
    assert image == FileImage(root.parent / "secret.png", RULES)
    for settings in ({}, {"kind": SourceKind.dataset, "image_root": str(root)}):
        assert "leaves image_root" in refused({"image": found, "caption": "A."}, root, **settings)


@pytest.mark.parametrize("escape", ["../secret.png", "deep/../../secret.png", "link.png", "OUT"])
def test_a_path_that_leaves_the_root(root: Path, escape: str) -> None:
    (root / "link.png").symlink_to(root.parent / "secret.png")
    escape = escape.replace("OUT", str(root.parent / "secret.png"))
    assert refused({"image": escape, "caption": "A key."}, root) == (
        f"image {escape!r} leaves image_root {str(root)!r}"
    )


def test_a_file_that_is_missing(root: Path) -> None:
    assert refused({"image": "deep/gone.png", "caption": "A key."}, root) == (
        f"image '{root}/deep/gone.png' does not exist"
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty (0 bytes)"),
        (b"words\n", "cannot identify image file '{path}'"),
    ],
    ids=["nothing", "text"],
)
def test_a_file_that_is_no_picture(root: Path, content: bytes, reason: str) -> None:
    path = root / "bad.png"
    path.write_bytes(content)
    (image,) = captioned("bad.png", root).images
    for use in (image.size, image.load):
        with pytest.raises(DataError) as caught:
            use()
        assert str(caught.value) == (f"image '{path}' cannot be read: {reason.format(path=path)}")


def test_a_jpeg_that_breaks_off_is_found_when_it_is_decoded(root: Path) -> None:
    whole = encode(noise(64, 64), "JPEG")
    (root / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (image,) = captioned("cut.jpg", root).images
    assert image.size() == (64, 64)
    with pytest.raises(DataError, match=r"cut\.jpg' cannot be read: image file is truncated"):
        image.load()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF"])
@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,"])
def test_base64_is_refused(kind: str, prefix: str) -> None:
    text = prefix + base64.b64encode(encode(noise(20, 10), kind)).decode()
    for value in (text, {"bytes": None, "path": text}):
        assert refused({"image": value, "caption": "A."}) == (
            f"image {text[:24] + '...'!r} is base64 text; give the bytes it stands for, or save it "
            "as a file and give its path"
        )


@pytest.mark.parametrize("value", [7, 1.5, {"type": "image"}, {"bytes": [1, 2], "path": None}])
def test_what_is_neither_path_nor_bytes(value: Any) -> None:
    assert refused({"image": value, "caption": "A."}) == (
        f"has {str(value)!r} where a picture is due: a path or its bytes"
    )


def test_a_url_is_refused_unless_allowed() -> None:
    url = "https://me:pw@a.org/b.png?key=1"
    for value in (url, {"bytes": None, "path": url}):
        assert refused({"image": value, "caption": "A."}) == (
            "image 'https://a.org/b.png' is a URL; set data.allow_urls=true to fetch it, or "
            "download it and give its path"
        )


@pytest.fixture
def served(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a server of the folder."""
    monkeypatch.setenv("no_proxy", "*")

    class Quiet(SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(root))

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_url_is_fetched_where_allowed(served: str, root: Path, tmp_path: Path) -> None:
    downloads = Downloads(tmp_path / "pictures", 10_000)
    (image,) = captioned(f"{served}/deep/b.png?size=1", downloads=downloads).images
    assert isinstance(image, FileImage)
    assert image.path.parent == tmp_path / "pictures"
    assert image.load().tobytes() == noise(20, 10, 1).tobytes()
    (root / "bad.png").write_bytes(b"words")
    (image,) = captioned(f"{served}/bad.png?size=1", downloads=downloads).images
    with pytest.raises(
        DataError, match=r"^image 'http://127.0.0.1:[0-9]+/bad\.png' cannot be read"
    ):
        image.size()


# ------------------------------------------------------------------------ words of a caption


def test_a_caption_is_asked_for_by_a_drawn_prompt() -> None:
    for code in LANGUAGES:
        made = row({"image": b"...", "caption": "A key.", "lang": code}, language_field="lang")
        asked = draw_prompt(code, {}, 0, "mine", "7")
        assert made.language == code
        assert [turn.content for turn in made.turns] == [(IMAGE, asked), ("A key.",)]


def test_prompts_differ_from_row_to_row_and_come_from_the_config() -> None:
    prompts = {"en": ["One?", "<image>\nTwo?", "Three?\n<image>"]}
    made = {
        captioned(b"...", row_id=str(number), prompts=prompts).turns[0].content
        for number in range(30)
    }
    assert made == {(IMAGE, "One?"), (IMAGE, "Two?"), ("Three?", IMAGE)}


def test_the_row_asks_for_itself() -> None:
    made = row({"image": b"...", "caption": "A key.", "q": "What?\n<image>"}, prompt_field="q")
    assert [turn.content for turn in made.turns] == [("What?", IMAGE), ("A key.",)]
    told = {"image": [b"..."] * 2, "caption": "A key.", "q": "<image>\nWhat?"}
    assert refused(told, prompt_field="q") == "has 2 pictures and 1 place for them (<image>)"
    told = {"image": b"...", "caption": "<image>", "q": "What?"}
    assert refused(told, prompt_field="q").startswith("a turn of the assistant has a place for a ")


def test_one_of_several_captions_is_drawn() -> None:
    captions = ["One.", "Two.", "Three."]
    columns = {"image": b"...", "caption": captions}
    drawn = [row(columns, row_id=str(number)).turns[1].text for number in range(40)]
    assert set(drawn) == set(captions)
    assert drawn == [row(columns, row_id=str(number)).turns[1].text for number in range(40)]
    assert drawn != [row(columns, row_id=str(n), seed=1).turns[1].text for n in range(40)]


@pytest.mark.parametrize(
    "caption", ["", " \n", None, [], ["One.", ""], ["One.", None], [["x"]], {}]
)
def test_a_caption_that_is_no_text(caption: Any) -> None:
    """`str([...])` would train the model to write Python."""
    bad = caption[-1] if isinstance(caption, list) and caption else caption
    for number in range(4):  # whichever of several is drawn
        assert refused({"image": b"...", "caption": caption}, row_id=str(number)) == (
            "column 'caption' is empty"
            if bad is None or isinstance(bad, str)
            else f"column 'caption' holds {str(bad)!r}, not text"
        )


def test_numbers_are_text() -> None:
    assert captioned(b"...", caption_field="caption").turns[1].text == "A key."
    assert row({"image": b"...", "caption": 0}).turns[1].text == "0"


def test_plain_text_is_read_without_a_question() -> None:
    """`image_field=null` and no question: a corpus, trained on from its first word, as it is."""
    text = "<image>\nOnce upon a time."
    made = row({"text": text}, image_field=None, caption_field="text")
    assert made.turns == plain_text(text)


def test_a_column_that_is_not_in_the_row_is_named() -> None:
    assert (
        refused({"image": b"..."})
        == "has no column 'caption', which caption_field names; it has image"
    )
    many = {f"c{number}": 1 for number in range(11)}
    assert refused(many) == (
        "has no column 'caption', which caption_field names; "
        "it has c0, c1, c2, c3, c4, c5, c6, c7 and 3 more"
    )
    assert (
        refused({"caption": "A."})
        == "has no column 'image', which image_field names; it has caption"
    )
    assert (
        refused({"image": 1}, messages_field="m")
        == "has no column 'm', which messages_field names; it has image"
    )
    told = {"image": b"...", "caption": "A."}
    for key in ("prompt_field", "language_field"):
        assert refused(told, **{key: "x"}) == (
            f"has no column 'x', which {key} names; it has image, caption"
        )


# --------------------------------------------------------------------------- conversations


def test_a_conversation_takes_its_pictures_from_the_column(root: Path) -> None:
    talk = [
        {"from": "human", "value": "<image>\nand\n<image>\nWhich?"},
        {"from": "gpt", "value": "The first."},
    ]
    made = row({"image": ["a.png", "deep/b.png"], "m": talk}, root, messages_field="m")
    assert made.turns[0].content == (IMAGE, "and\n", IMAGE, "\nWhich?")
    assert [image.path for image in made.images] == [root / "a.png", root / "deep/b.png"]
    assert refused({"image": "a.png", "m": talk}, root, messages_field="m") == (
        "has 1 picture and 2 places for it (<image>)"
    )
    talk[0]["value"] = "<image>\nWhat?"
    assert refused({"image": ["a.png", "a.png"], "m": talk}, root, messages_field="m") == (
        "has 2 pictures and 1 place for them (<image>)"
    )


def test_a_conversation_without_the_column_is_text_alone() -> None:
    """As in LLaVA's mix; the captions of other rows must have theirs."""
    assert row({"m": CHAT}, messages_field="m").images == ()
    made = row({"m": CHAT, "image": None}, messages_field="m")
    assert [turn.content for turn in made.turns] == [("What?",), ("A key.",)]


def test_a_conversation_with_pictures_of_its_own(root: Path) -> None:
    content = [{"type": "image", "image": "a.png"}, {"type": "text", "text": "What?"}]
    talk = [{"role": "user", "content": content}, CHAT[1]]
    for settings in ({}, {"image_field": None}):
        made = row({"m": talk, "image": None}, root, messages_field="m", **settings)
        assert made.turns[0].content == (IMAGE, "What?")
        assert made.images == (FileImage(root / "a.png", RULES),)
    assert refused({"m": talk, "image": "deep/b.png"}, root, messages_field="m") == (
        "has pictures in its messages and in column 'image'; set image_field=null to take those "
        "in the messages"
    )


def test_an_empty_answer_is_refused_at_the_latest_when_rendered(renderer: Renderer) -> None:
    made = row({"m": [CHAT[0], {"role": "assistant", "content": ""}]}, messages_field="m")
    with pytest.raises(DataError, match=r"^has an empty answer$"):
        renderer.render(made, max_tokens=100, max_tiles=100)


# -------------------------------------------------------------------------------- language


@pytest.mark.parametrize(
    ("told", "code"),
    [("hi", "hi"), ("EN", "en"), ("en-US", "en"), ("zh_Hans", "zh"), ("pt-BR", "pt"), (None, "ko"),
     ("", "ko")],
)  # fmt: skip
def test_the_column_tells_the_language_and_the_config_where_it_does_not(
    told: str | None, code: str
) -> None:
    columns = {"text": "A.", "lang": told}
    text = {"image_field": None, "caption_field": "text"}
    assert row(columns, language_field="lang", language="ko", **text).language == code
    assert row(columns, language="ko", **text).language == "ko"
    assert row(columns, **text).language == "en"


@pytest.mark.parametrize("told", ["xx", "zho", "english", "-", "7"])
def test_a_language_that_is_not_known(told: str) -> None:
    columns = {"text": "A.", "lang": told}
    message = refused(columns, language_field="lang", image_field=None, caption_field="text")
    assert message == f"language {told!r} is not one of {', '.join(LANGUAGES)}"
