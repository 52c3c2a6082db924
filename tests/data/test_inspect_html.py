"""The page of `data.inspect`: whole, harmless, and true to what is supervised."""

import base64
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_pico import TILE, asked, encode, in_memory, noise, picture, row
from PIL import Image

from configs.command import load_config
from configs.errors import DataError
from data.histogram import make_histogram
from data.inspect_html import Chart, ShownRow, Table, page, tile_grid, visible, write_whole
from data.inspect_run import choose_rows, inspect, listed, pieces_of_page
from data.inspect_text import stretches
from data.ledger import BadRow
from data.render import Renderer, Sample
from data.rows import IMAGE, Row, question

VOID = {"meta", "img", "rect", "line"}  # of the elements that the page uses
ATTACK = "<script>alert(1)</script><img src=x onerror=alert(2)>&amp;\"'"


@dataclass(eq=False)
class Element:
    """A part of the page, with all words in it."""

    tag: str
    attributes: dict[str, str]
    ancestors: tuple["Element", ...]
    text: str = ""


@dataclass
class Page(HTMLParser):
    """Every element in order; refuses tags that do not match."""

    html: str
    elements: list[Element] = field(default_factory=list)
    open: list[Element] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.feed(self.html)
        self.close()
        assert self.open == [], "an element was not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs}, tuple(self.open))
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in VOID
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element.text += data

    def all(self, tag: str, kind: str = "") -> list[Element]:
        """Return elements of a tag, and of a class."""
        wanted = {kind} if kind else set()
        return [
            element
            for element in self.elements
            if element.tag == tag and wanted <= {*element.attributes.get("class", "").split()}
        ]


def decoded(element: Element) -> Image.Image:
    """The picture of an img element."""
    head, data = element.attributes["src"].split(",")
    assert head == "data:image/jpeg;base64"
    image = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
    image.load()
    return image


def shown(sample: Sample, renderer: Renderer) -> ShownRow:
    return ShownRow(sample, list(stretches(sample, renderer)), renderer.image_processor)


def page_of(*rows: ShownRow, **changes: Any) -> Page:
    """The page of rows, with one table and one chart."""
    given: dict[str, Any] = dict(
        title="t", facts={}, config="seed: 0", mixture="", charts=[], tables=[], rows=rows
    )
    return Page("".join(page(**given | changes)))


def rendered(renderer: Renderer, *rows: Row) -> Page:
    return page_of(*(shown(renderer.render(given), renderer) for given in rows))


# ------------------------------------------------------------------------------ harmless


def test_nothing_of_the_data_is_markup(renderer: Renderer) -> None:
    """Not in turns, ids, sources, languages, reasons, notes, configs."""
    given = Row(f"id{ATTACK}", f"src{ATTACK}", "en", question(f"q{ATTACK}", f"a{ATTACK}"))
    found = page_of(
        shown(renderer.render(given), renderer),
        title=ATTACK,
        facts={ATTACK: ATTACK},
        config=ATTACK,
        mixture=ATTACK,
        charts=[Chart(ATTACK, ATTACK, make_histogram(np.array([1, 2])), ATTACK)],
        tables=[Table(ATTACK, [ATTACK], [[ATTACK]], note=ATTACK)],
    )
    harmless(found)
    assert found.all("img") == []
    for told in (f"q{ATTACK}", f"a{ATTACK}", f"src{ATTACK}/id{ATTACK}"):
        assert any(told in element.text for element in found.all("article"))
    assert found.all("title")[0].text == ATTACK
    assert found.all("dd")[0].text == ATTACK
    assert [cell.text for cell in found.all("td")] == [ATTACK]
    assert found.all("svg")[0].attributes["aria-label"] == f"histogram: {ATTACK}"
    assert [element.text for element in found.all("code")] == [
        "<|END_OF_TURN_TOKEN|>", "<BOS_TOKEN>", "<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>",
        "<|END_OF_TURN_TOKEN|>", "<|START_OF_TURN_TOKEN|>", "<|CHATBOT_TOKEN|>",
        "<|END_OF_TURN_TOKEN|>",
    ]  # fmt: skip


def harmless(found: Page) -> None:
    """Nothing runs and nothing is fetched."""
    assert {element.tag for element in found.elements}.isdisjoint(
        {"script", "link", "iframe", "object", "embed", "base", "form", "a"}
    )
    for element in found.elements:
        assert not [name for name in element.attributes if name.startswith("on")]
        for name in ("src", "href", "srcset", "style"):
            assert element.attributes.get(name, "data:").startswith("data:")
    (style,) = found.all("style")
    assert "url(" not in style.text
    assert "@import" not in style.text
    policy = [e.attributes["content"] for e in found.all("meta") if "http-equiv" in e.attributes]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_control_characters_are_written_out() -> None:
    assert visible("a\tb\nc\x00\x1b[2J\x7f\x9b é א") == "a\tb\nc\\x00\\x1b[2J\\x7f\\x9b é א"


# ---------------------------------------------------------------------------------- true


def test_marked_is_what_is_supervised(renderer: Renderer) -> None:
    given = row(
        ("system", ["Be brief."]),
        ("user", [IMAGE, "What?"]),
        ("assistant", ["A key."]),
        ("user", ["Sure?"]),
        ("assistant", ["Yes.\n\nI am."]),
        images=[picture(20, 20)],
    )
    found = rendered(renderer, given)
    turns = found.all("div", "turn")
    assert [turn.attributes["class"] for turn in turns] == [
        "turn system", "turn user", "turn assistant", "turn user", "turn assistant"
    ]  # fmt: skip
    for turn, marked in zip(turns, ["", "", "A key.", "", "Yes.\n\nI am."], strict=True):
        marks = [mark.text for mark in found.all("mark") if turn in mark.ancestors]
        assert marks == ([f"{marked}<|END_OF_TURN_TOKEN|>"] if marked else [])
    whole = found.all("pre")[-1]
    assert "<|USER_TOKEN|><|START_OF_IMG|>TILE_GLOBAL<|IMG_PATCH|>x16<|END_OF_IMG|>What?" in (
        whole.text
    )
    marks = [mark.text for mark in found.all("mark") if whole in mark.ancestors]
    assert marks == ["A key.<|END_OF_TURN_TOKEN|>", "Yes.\n\nI am.<|END_OF_TURN_TOKEN|>"]


def test_marks_come_from_the_tokens_and_not_from_the_roles(renderer: Renderer) -> None:
    sample = renderer.render(row(("user", ["q"]), ("assistant", ["a"]), ("user", ["r"]),
                                 ("assistant", ["b"])))  # fmt: skip
    last = replace(sample, supervised=np.arange(sample.num_tokens) >= sample.num_tokens - 2)
    found = page_of(shown(last, renderer))
    assert [told.text for told in found.all("p", "bad")] == [
        "What is supervised is marked below, as the model reads it."
    ]
    whole = found.all("pre")[-1]
    marks = [mark for mark in found.all("mark") if "article" in {e.tag for e in mark.ancestors}]
    assert [mark.text for mark in marks] == ["b<|END_OF_TURN_TOKEN|>"]
    assert whole in marks[0].ancestors


def test_words_run_in_their_own_direction(renderer: Renderer) -> None:
    hebrew = Row("1", "s", "he", question("מה זה?", "מפתח."))
    found = rendered(renderer, hebrew)
    turns = found.all("div", "turn")
    words = [e for e in found.all("p") if e.ancestors[-1] in turns and "class" not in e.attributes]
    assert [element.text for element in words] == ["מה זה?", "מפתח.<|END_OF_TURN_TOKEN|>"]
    assert {element.attributes["dir"] for element in words} == {"auto"}
    tokens = found.all("code")  # whole within words that run from right to left
    assert {element.attributes["dir"] for element in tokens} == {"ltr"}
    assert found.all("article")[0].text.startswith("s/1")
    assert [e.attributes["dir"] for e in found.all("h3")] == ["auto"]


# ------------------------------------------------------------------------------ pictures


def test_pictures_are_thumbnails_that_decode(tiling_renderer: Renderer) -> None:
    sizes = [(1000, 500), (200, 800), (30, 20), (384, 384)]
    blue = [in_memory(encode(Image.new("RGB", size, (10, 60, 200)))) for size in sizes]
    found = rendered(tiling_renderer, asked("q", "a", *blue))
    pictures = [decoded(element) for element in found.all("img")]
    assert [image.size for image in pictures] == [(384, 192), (96, 384), (30, 20), (384, 384)]
    for element, image, size in zip(found.all("img"), pictures, sizes, strict=True):
        assert element.attributes["width"] == str(image.width)
        assert element.attributes["alt"] == f"{size[0]} x {size[1]} pixels"
        colour = np.asarray(image).reshape(-1, 3).mean(axis=0)
        assert np.abs(colour - (10, 60, 200)).max() < 3
    assert [told.text for told in found.all("figcaption")] == [
        "1,000 x 500 pixels, 2 x 1 tiles and a thumbnail",
        "200 x 800 pixels, 1 x 4 tiles and a thumbnail",
        "30 x 20 pixels, 3 x 2 tiles and a thumbnail",
        "384 x 384 pixels, 2 x 2 tiles and a thumbnail",
    ]


@pytest.mark.parametrize("grid", [(2, 3), (3, 2), (1, 4), (5, 1), (1, 1)])
def test_the_grid_is_where_the_processor_cuts(
    tiling_renderer: Renderer, grid: tuple[int, int]
) -> None:
    """A picture with one colour a tile, as we say it is cut, gives tiles of one colour each."""
    columns, rows = grid
    colours = np.random.default_rng(0).integers(0, 256, (rows, columns, 3), dtype=np.uint8)
    pixels = colours.repeat(TILE, axis=0).repeat(TILE, axis=1)
    image = Image.fromarray(pixels)
    processor = tiling_renderer.image_processor
    tiles = processor([image], return_tensors="np")["pixel_values"]
    assert tile_grid(processor, image.size, len(tiles)) == grid
    assert {float(np.ptp(channel)) for tile in tiles[: columns * rows] for channel in tile} == {0.0}
    found = rendered(tiling_renderer, asked("q", "a", in_memory(encode(image))))
    lines = [e.attributes for e in found.all("line", "over")]
    assert len(lines) == columns - 1 + rows - 1
    boxes = [e.attributes["viewbox"] for e in found.all("svg")]
    assert boxes == ([f"0 0 {columns} {rows}"] if columns * rows > 1 else [])
    assert [line["x1"] for line in lines[: columns - 1]] == [str(x) for x in range(1, columns)]


def test_no_grid_is_drawn_that_might_be_wrong(tiling_renderer: Renderer) -> None:
    processor = tiling_renderer.image_processor
    assert tile_grid(processor, (96, 64), 7) == (3, 2)
    assert tile_grid(processor, (96, 64), 6) is None
    assert tile_grid(object(), (96, 64), 7) is None
    sample = tiling_renderer.render(asked("q", "a", picture(96, 64)))
    found = page_of(ShownRow(sample, list(stretches(sample, tiling_renderer)), object()))
    assert found.all("svg") == []
    assert found.all("figcaption")[0].text == "96 x 64 pixels, 7 tiles"


def test_a_picture_that_is_broken_behind_its_header_is_told(renderer: Renderer) -> None:
    half = encode(noise(200, 200))[:5000]
    found = rendered(renderer, asked("q", "a", in_memory(half), picture(9, 9)))
    (told,) = found.all("p", "bad")
    assert re.match(r"image 'a.png' cannot be read: ", told.text)
    assert len(found.all("img")) == 1  # the other one


# --------------------------------------------------------------------------------- whole


def test_the_page_holds_rows_of_all_sources_and_all_tables(renderer: Renderer) -> None:
    samples = [
        renderer.render(Row(str(n), name, code, question("q", "a " * n)))
        for name in ("one", "two", "three")
        for n, code in enumerate(("en", "ar", "hi", "en"), 1)
    ]
    bad = [BadRow("one", "<9>", "image 'x' cannot be read")]
    inspected = listed(samples, ["one", "two", "three"], renderer, packs=[range(12)], bad=bad)
    inspected = replace(inspected, mixture="a table\nof text")
    chosen = choose_rows(inspected.lengths, inspected.source_of, 3, seed=0)
    settings = load_config("inspect", ["data.max_tokens=777"])
    found = Page("".join(pieces_of_page(inspected, chosen, settings)))
    harmless(found)
    names = [article.text.split("/")[0] for article in found.all("article")]
    assert names == ["one"] * 3 + ["two"] * 3 + ["three"] * 3
    codes = [told.text[:2] for told in found.all("p", "caption") if "supervised" in told.text]
    assert [set(codes[i : i + 3]) for i in (0, 3, 6)] == [{"en", "ar", "hi"}] * 3
    assert [heading.text for heading in found.all("h2")] == [
        "sources and languages", "lengths", "token budget", "tokens a row by language",
        "reasons for leaving rows out", "rows left out", "rows", "one", "two", "three",
    ]  # fmt: skip
    assert "max_tokens: 777" in found.all("pre")[0].text
    assert found.all("dd")[2].text == "777 tokens, 64 tiles"
    assert found.all("pre")[1].text == "a table\nof text"
    assert [chart.attributes["aria-label"] for chart in found.all("svg")] == [
        "histogram: tokens a row", "histogram: supervised tokens a row", "histogram: tiles a row",
    ]  # fmt: skip
    assert [cell.text for cell in found.all("td")[-2:]] == ["one/<9>", "image 'x' cannot be read"]


def test_both_colour_schemes_set_the_same_colours() -> None:
    (style,) = page_of().all("style")
    light, dark = re.findall(r":root \{(.*?)\}", style.text, re.DOTALL)
    names = [set(re.findall(r"--[\w-]+", scheme)) for scheme in (light, dark)]
    assert names[0] == names[1]
    assert set(re.findall(r"var\((--[\w-]+)\)", style.text)) == names[0]


def test_the_pictures_of_one_row_are_held_at_a_time(renderer: Renderer) -> None:
    drawn: list[int] = []

    def rows() -> Iterator[ShownRow]:
        for number in range(5):
            drawn.append(number)
            yield shown(renderer.render(asked("q", "a", picture(9, 9))), renderer)

    pieces = page(title="", facts={}, config="", mixture="", charts=[], tables=[], rows=rows())
    for piece in pieces:
        if "<article" in piece:
            assert drawn == [0]
            return
    raise AssertionError("no row was shown")


def test_a_page_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.html"
    assert write_whole(path, ["ü", "\udce9"]) == 8
    assert path.read_bytes() == b"\xc3\xbc\\udce9"

    def fails() -> Iterator[str]:
        yield "half"
        raise DataError("a row has changed")

    with pytest.raises(DataError, match="a row has changed"):
        write_whole(path, fails())
    assert path.read_bytes() == b"\xc3\xbc\\udce9"
    assert list(tmp_path.iterdir()) == [path]


def test_the_command_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "deep" / "a.html"
    overrides = ["data.sources.scenes.num_rows=12", "num_rows=4", "data.languages=[en,ar]",
                 "model.decoder.vocab_size=400", f"html={path}"]  # fmt: skip
    inspect(load_config("inspect", overrides))
    out = capsys.readouterr().out
    assert f"wrote {path}: 4 rows, {path.stat().st_size:,} bytes" in out
    found = Page(path.read_text(encoding="utf-8"))
    harmless(found)
    assert len(found.all("article")) == len(found.all("img")) == 4
    assert {decoded(element).size for element in found.all("img")} == {(64, 64)}
    shown_as_text = re.findall(r"^(scenes/\S+) \(", out, re.MULTILINE)  # the same rows, in order
    articles = [e for e in found.all("h3") if "article" in {above.tag for above in e.ancestors}]
    assert [heading.text for heading in articles] == shown_as_text


def test_a_text_lm_has_a_page_too(tokenizer: Any) -> None:
    text = Renderer(tokenizer)
    found = rendered(text, Row("1", "s", "en", question("q", "a")))
    assert [mark.text for mark in found.all("mark")][1:] == ["a<|END_OF_TURN_TOKEN|>"] * 2
