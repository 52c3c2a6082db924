"""One HTML file that shows what would be trained on: tables, charts, rows with their pictures.

It stands alone: no script, nothing fetched, pictures inside. Whatever comes from data is escaped.
"""

import base64
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from configs.errors import ConfigError, DataError
from data.histogram import Histogram, svg_bars
from data.render import Sample
from data.rows import IMAGE, ImageRef, Turn

THUMBNAIL = 384  # pixels of the longer side at most
JPEG_QUALITY = 85
SPECIAL = re.compile(r"&lt;(\|\w+\||[A-Z_]+)&gt;(x\d+)?")  # <|END_OF_TURN_TOKEN|>, escaped
LONG = 24  # characters of a cell, from which on it may break
# Nothing may run or be fetched, should an escape ever be forgotten.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --ink: #1b1f24; --soft: #57606a;
  --line: #d8dee4; --user: #e8f0fe; --assistant: #f0f2f4; --system: #fdf3d8; --bar: #3f7fd0;
  --mark: #c5efcf; --mark-ink: #0b3d1a; --bad: #a40e26; }
@media (prefers-color-scheme: dark) { :root { --page: #0e1116; --card: #171b21; --ink: #e4e8ed;
  --soft: #9aa4af; --line: #30363d; --user: #1b2d4a; --assistant: #22272e; --system: #3a3115;
  --bar: #5b9bf0; --mark: #14532d; --mark-ink: #d8fbe2; --bad: #ff8e8e; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 16px; max-width: 1120px; background: var(--page);
  color: var(--ink); font: 15px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 24px; margin: 8px 0; } h2 { font-size: 19px; margin: 32px 0 8px; }
h3 { font-size: 15px; margin: 0 0 6px; } p { margin: 4px 0; }
.soft, .caption { color: var(--soft); } .caption { font-size: 13px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 12px 14px; min-width: 0; }
.grid { display: grid; gap: 14px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr)); }
.rows { grid-template-columns: repeat(auto-fill, minmax(min(100%, 460px), 1fr));
  align-items: start; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; width: 100%; overflow-wrap: normal; }
th, td { padding: 4px 10px 4px 0; text-align: right; vertical-align: top; white-space: nowrap;
  border-bottom: 1px solid var(--line); font-variant-numeric: tabular-nums; }
th { color: var(--soft); font-weight: 600; } tr:last-child td { border-bottom: 0; }
th.words, td.words { text-align: start; } td.long { white-space: normal; min-width: 150px;
  overflow-wrap: anywhere; }
th:last-child, td:last-child { padding-right: 0; }
svg { display: block; } .chart svg { width: 100%; max-width: 420px; height: auto; }
svg text { font: 12px system-ui, sans-serif; fill: var(--ink); } svg .label { fill: var(--soft); }
.bar { fill: var(--bar); } .axis { stroke: var(--line); }
.turn { border-radius: 10px; padding: 7px 11px; margin: 8px 0 0; max-width: 92%;
  width: fit-content; }
.turn p { white-space: pre-wrap; } .role { font-size: 12px; color: var(--soft); margin: 0; }
.user { background: var(--user); margin-inline-start: auto; }
.assistant { background: var(--assistant); } .system { background: var(--system); max-width: 100%; }
mark { background: var(--mark); color: var(--mark-ink); border-radius: 3px; padding: 1px 2px;
  box-decoration-break: clone; -webkit-box-decoration-break: clone; }
code { font: 11px ui-monospace, monospace; opacity: .7; unicode-bidi: isolate; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 14px; margin: 0; }
dt { color: var(--soft); } dd { margin: 0; }
figure { margin: 6px 0; } .picture { position: relative; display: inline-block; max-width: 100%; }
.picture img { display: block; max-width: 100%; height: auto; border-radius: 4px; }
.picture svg { position: absolute; inset: 0; width: 100%; height: 100%; }
.picture line { vector-effect: non-scaling-stroke; }
.picture .under { stroke: #000; stroke-width: 3; opacity: .55; }
.picture .over { stroke: #fff; stroke-width: 1; }
.bad { color: var(--bad); } summary { cursor: pointer; color: var(--soft); font-size: 13px; }
@media (max-width: 480px) { body { padding: 8px; } .card { padding: 10px; }
  table { font-size: 12px; } th, td { padding-right: 7px; } .turn { max-width: 100%; } }
details { margin-top: 8px; } pre { white-space: pre-wrap; margin: 6px 0 0;
  font: 12px/1.5 ui-monospace, monospace; } pre.table { white-space: pre; overflow-x: auto; }
"""


@dataclass(frozen=True)
class Table:
    """Cells as they are shown; numbers stand right, words left."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: frozenset[int] = frozenset({0})  # columns of words
    note: str = ""  # a line below it


@dataclass(frozen=True)
class Chart:
    """A histogram with what is said of it."""

    title: str
    unit: str  # of its values: "tokens"
    histogram: Histogram
    note: str = ""


@dataclass(frozen=True)
class ShownRow:
    """A row as it is shown: the sample, and the stretches of text that its tokens are."""

    sample: Sample
    stretches: Sequence[tuple[str, bool]]  # text, whether it is supervised
    image_processor: Any = None  # draws the tiles of pictures; None: a text LM's


def check_target(html: str) -> Path:
    """Return the file that is to be written, its folder made: told before the work, not after.

    Raises:
        ConfigError: it cannot be a file.
    """
    path = Path(html)
    if not html.strip() or path.is_dir():
        raise ConfigError(f"html: is {html!r}, but it is a file to write: html=inspect.html")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def write_whole(path: Path, pieces: Iterable[str]) -> int:
    """Write a file that appears whole or not at all; return its size in bytes."""
    staging = path.with_name(f".{path.name}")
    try:
        # Half a character (a lone surrogate, as in the names of some files) has no encoding.
        with staging.open("w", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(pieces)
        staging.replace(path)
    finally:
        staging.unlink(missing_ok=True)
    return path.stat().st_size


def page(
    *,
    title: str,
    facts: Mapping[str, str],
    config: str,
    mixture: str,
    charts: Iterable[Chart],
    tables: Iterable[Table],
    rows: Iterable[ShownRow],
) -> Iterator[str]:
    """Yield the pieces of the page, so that no more than one row's pictures are held.

    Args:
        title: heading of the page.
        facts: what matters most of the config.
        config: what was inspected, as YAML.
        mixture: a table of text on how sources and languages mix; empty: none.
        charts: shown side by side where there is room.
        tables: in order.
        rows: to show; those of one source follow each other.
    """
    yield (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>\n"
        f'<h1>{escape(title)}</h1>\n<div class="card"><dl>'
        + "".join(f"<dt>{_words(key)}</dt><dd>{_words(told)}</dd>" for key, told in facts.items())
        + f"</dl><details><summary>whole config</summary><pre>{_words(config)}</pre></details>"
        "</div>\n"
    )
    if mixture:
        yield f'<h2>sources and languages</h2><pre class="card table">{_words(mixture)}</pre>\n'
    yield f'<h2>lengths</h2><div class="grid">{"".join(map(_chart, charts))}</div>\n'
    yield from (_table(table) for table in tables)
    yield (
        '<h2>rows</h2><p class="soft">The loss falls on <mark>marked words</mark> '
        "and nothing else.</p>\n"
    )
    yield from _sources(rows)
    yield "</body></html>\n"


def _words(text: str) -> str:
    return escape(visible(text))


def visible(text: str) -> str:
    """Return text with control characters written out, as no terminal or browser acts on them."""
    return "".join(
        f"\\x{ord(letter):02x}" if _is_control(ord(letter)) else letter for letter in text
    )


def _is_control(code: int) -> bool:
    return (code < 32 and code not in (9, 10)) or 127 <= code < 160


def _table(table: Table) -> str:
    def cell(tag: str, column: int, text: str) -> str:
        kind = "words" if column in table.words else ""
        kind += " long" if len(text) > LONG else ""
        return f'<{tag} class="{kind}" dir="auto">{_words(text)}</{tag}>'

    def line(tag: str, cells: Sequence[str]) -> str:
        return f"<tr>{''.join(cell(tag, at, text) for at, text in enumerate(cells))}</tr>"

    body = "".join(line("td", cells) for cells in table.rows)
    note = f'<p class="caption">{_words(table.note)}</p>' if table.note else ""
    return (
        f'<h2>{_words(table.title)}</h2><div class="card"><div class="wide">'
        f"<table><thead>{line('th', table.header)}</thead><tbody>{body}</tbody></table></div>"
        f"{note}</div>\n"
    )


def _chart(chart: Chart) -> str:
    drawn = svg_bars(chart.histogram, unit=chart.unit, title=f"histogram: {chart.title}")
    return (
        f'<div class="card chart"><h3>{_words(chart.title)}</h3>{drawn}'
        f'<p class="caption">{_words(chart.note)}</p></div>'
    )


def _sources(rows: Iterable[ShownRow]) -> Iterator[str]:
    """Yield the rows, with a heading where the source changes."""
    source = None
    for shown in rows:
        row = shown.sample.row
        if row.source != source:
            yield f"{'' if source is None else '</div>'}<h2>{_words(row.source)}</h2>\n"
            yield '<div class="grid rows">\n'
            source = row.source
        yield _row(shown)
    if source is not None:
        yield "</div>\n"


def _row(shown: ShownRow) -> str:
    sample = shown.sample
    told = f"{sample.row.language} · {sample.num_tokens:,} tokens, "
    told += f"{int(sample.supervised.sum()):,} supervised"
    parts = [
        f'<article class="card"><h3 dir="auto">{_words(str(sample.row))}</h3>',
        f'<p class="caption">{_words(told)}</p>',
        *_turns(shown),
        f"<details><summary>as the model reads it</summary><pre>{_tokens(shown)}</pre></details>",
        "</article>\n",
    ]
    return "".join(parts)


def _turns(shown: ShownRow) -> Iterator[str]:
    """Yield a bubble a turn; answers are told by the tokens, not by the row."""
    answers = [text for text, supervised in shown.stretches if supervised]
    turns = shown.sample.row.turns
    # One stretch for each answer is how rows are rendered; where that is not so, the tokens tell.
    is_matched = len(answers) == sum(turn.role == "assistant" for turn in turns)
    if not is_matched:
        yield '<p class="bad">What is supervised is marked below, as the model reads it.</p>'
    pictures = iter(zip(shown.sample.row.images, shown.sample.num_tiles, strict=True))
    left = iter(answers)
    for turn in turns:
        pieces = [
            _picture(*next(pictures), shown) if piece is IMAGE else _said(piece)
            for piece in turn.content
        ]
        if is_matched and turn.role == "assistant":
            pieces = [f'<p dir="auto"><mark>{_read(next(left))}</mark></p>']
        yield _bubble(turn, pieces)


def _bubble(turn: Turn, pieces: Sequence[str]) -> str:
    role = escape(turn.role)
    return f'<div class="turn {role}"><p class="role">{role}</p>{"".join(pieces)}</div>'


def _said(text: str) -> str:
    return f'<p dir="auto">{_words(text)}</p>' if text.strip() else ""


def _tokens(shown: ShownRow) -> str:
    return "".join(
        f'<mark dir="auto">{_read(text)}</mark>' if supervised else f"<bdi>{_read(text)}</bdi>"
        for text, supervised in shown.stretches
    )


def _read(text: str) -> str:
    """Return words with special tokens set apart, whole also where words run from right to left."""
    return SPECIAL.sub(lambda found: f'<code dir="ltr">{found.group()}</code>', _words(text))


def _picture(image: ImageRef, num_tiles: int, shown: ShownRow) -> str:
    try:
        width, height = image.size()
        thumbnail = image.load()
    except DataError as error:  # the header was read before, the pixels were not
        return f'<p class="bad">{_words(str(error))}</p>'
    thumbnail.thumbnail((THUMBNAIL, THUMBNAIL))
    grid = tile_grid(shown.image_processor, (width, height), num_tiles)
    tiles = f"{num_tiles} tile{'s' if num_tiles > 1 else ''}"
    if grid is not None and num_tiles > 1:
        tiles = f"{grid[0]} x {grid[1]} tiles and a thumbnail"
    shape = f'width="{thumbnail.width}" height="{thumbnail.height}"'
    return (
        f'<figure><div class="picture"><img {shape} alt="{width} x {height} pixels" '
        f'src="{_data_uri(thumbnail)}">{_lines(grid)}</div>'
        f'<figcaption class="caption">{width:,} x {height:,} pixels, {tiles}</figcaption></figure>'
    )


def _data_uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def tile_grid(
    image_processor: Any, size: tuple[int, int], num_tiles: int
) -> tuple[int, int] | None:
    """Return (columns, rows) of the tiles a picture is cut into; None where we cannot tell.

    Args:
        image_processor: of the model.
        size: (width, height) of the picture in pixels.
        num_tiles: as the model gets them, with the thumbnail.
    """
    if num_tiles == 1:
        return 1, 1
    if not hasattr(image_processor, "max_patches"):
        return None
    from transformers.models.got_ocr2 import image_processing_pil_got_ocr2 as got_ocr2

    tile = image_processor.size
    columns, rows = got_ocr2.get_optimal_tiled_canvas(
        (size[1], size[0]),
        (tile["height"], tile["width"]),
        image_processor.min_patches,
        image_processor.max_patches,
    )
    # Another way of cutting gives another number: draw no lines that might be wrong.
    return (columns, rows) if columns * rows + 1 == num_tiles else None


def _lines(grid: tuple[int, int] | None) -> str:
    """Return the cuts between tiles. The picture is stretched to whole tiles, so all are alike."""
    columns, rows = grid or (1, 1)
    if columns * rows == 1:
        return ""
    ends = [f'x1="{x}" x2="{x}" y1="0" y2="{rows}"' for x in range(1, columns)]
    ends += [f'x1="0" x2="{columns}" y1="{y}" y2="{y}"' for y in range(1, rows)]
    drawn = "".join(f'<line class="under" {at}/><line class="over" {at}/>' for at in ends)
    return (
        f'<svg aria-hidden="true" viewBox="0 0 {columns} {rows}" '
        f'preserveAspectRatio="none">{drawn}</svg>'
    )
