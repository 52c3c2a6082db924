"""Charts as SVG without scripts: the mean and the worst by name, all others by hovering."""

import math
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup, escape

from train.reporting.axes import Axis, axis, short, spread, thin
from train.reporting.content import Chart, DotChart, LineChart, Series

WIDTH, HEIGHT = 380, 230  # pixels, of which a phone shows nearly all
LEFT, TOP, BOTTOM = 46, 12, 34
BARE = 14  # room on the right without names of lines
LETTER, BOLD = 7.0, 8.0  # pixels of a digit or letter in DejaVu Sans, the widest of the usual ones
BROAD = "%mwMW"  # and, broader still, ideographs
MOST_LETTERS = 14  # of a line's name
LINE, ROW = 13, 17  # pixels of a label, and of a row of a dot chart
SHAPES = (  # circle, square, triangle, diamond, around 0 0
    "M-4 0A4 4 0 1 1 4 0A4 4 0 1 1 -4 0Z",
    "M-3.5 -3.5H3.5V3.5H-3.5Z",
    "M0 -4.6L4.6 3.6H-4.6Z",
    "M0 -5L5 0L0 5L-5 0Z",
)
NUM_FILLS = 3  # has no divisor in common with the number of shapes: all pairs come up
DOTTED = 40  # points of a line up to which each has a dot with its value
STYLE = (Path(__file__).parent / "chart.css").read_text(encoding="utf-8")


def draw(chart: Chart, *, alone: bool = False) -> Markup:
    """Return the chart; `alone` in a file it has its colours with it."""
    inner = _dots(chart) if isinstance(chart, DotChart) else _lines(chart)
    height = _height(chart)
    head = (
        Markup(' xmlns="http://www.w3.org/2000/svg" width="{}" height="{}"').format(WIDTH, height)
        if alone
        else Markup("")
    )
    style = Markup("<style>{}</style>").format(Markup(STYLE)) if alone else Markup("")
    return Markup(
        '<svg{} class="chart {}" viewBox="0 0 {} {}" role="img" aria-label="{}">{}{}</svg>'
    ).format(
        head, chart.tone, WIDTH, height, described(chart), style, inner
    )  # fmt: skip


def described(chart: Chart) -> str:
    """Return in words what the chart shows, for those who do not see it."""
    if isinstance(chart, DotChart):
        return f"{chart.title}, {chart.unit}: {', '.join(chart.models)} by language"
    ends = [
        f"{one.name} {chart.form.format(one.points[0][1])} to "
        f"{chart.form.format(one.points[-1][1])}"
        for one in chart.series
        if one.role != "rest" and one.points
    ]
    limit = [] if chart.limit is None else [f"limit {chart.limit:g}"]
    return f"{chart.title}, {chart.unit}: {'; '.join([*ends, *limit])}"


def _height(chart: Chart) -> int:
    if isinstance(chart, DotChart):
        return TOP + LINE * len(chart.models) + 10 + ROW * len(chart.rows) + BOTTOM
    return HEIGHT


def _lines(chart: LineChart) -> Markup:
    named = [one for one in chart.series if one.role != "rest" and one.points]
    right = BARE if len(named) < 2 else max(_wide(_clipped(one.name), BOLD) for one in named) + 8
    points = [point for one in chart.series for point in one.points]
    limit = [] if chart.limit is None else [chart.limit]
    up = axis([*(y for _, y in points), *limit], HEIGHT - BOTTOM, TOP, most=chart.most)
    left = max([LEFT, *(_wide(short(value, chart.form)) + 8 for value in up.ticks(4))])
    across = axis([x for x, _ in points], left, WIDTH - right, room=0.0)
    order = ("rest", "blind", "flag", "main")  # what matters is drawn last
    drawn = sorted(chart.series, key=lambda one: order.index(one.role))
    parts = [_grid(across, up, chart, HEIGHT - BOTTOM), _mark(chart, across)]
    parts.append(_limit(chart, across, up))
    parts += [_line(one, chart, across, up) for one in drawn if one.points]
    if len(named) > 1:
        parts.append(_names(named, up, WIDTH - right + 6))
    return Markup("").join(parts)


def _grid(across: Axis, up: Axis, chart: LineChart, bottom: float) -> Markup:
    """Return lines and numbers of both axes."""
    parts = [_below(across, chart.x_title, bottom)]
    for value in up.ticks(4):
        y = up.at(value)
        parts.append(
            Markup('<path class="grid" d="M{} {}H{}"/>').format(across.start, y, across.end)
        )
        parts.append(_tick(across.start - 6, y + 4, short(value, chart.form), "end"))
    return Markup("").join(parts)


def _below(across: Axis, title: str, bottom: float, form: str = "") -> Markup:
    """Return the numbers of the x axis and what they are of."""
    parts = []
    for value in across.ticks(4):
        text = short(value, form)
        parts.append(_tick(min(across.at(value), WIDTH - _wide(text) / 2), bottom + 15, text))
    return Markup("").join([*parts, _tick((across.start + across.end) / 2, bottom + 29, title)])


def _wide(text: str, letter: float = LETTER) -> int:
    """Return the pixels that a text takes, or somewhat more."""
    sizes = (2.0 if one > "\u2e80" else 1.6 if one in BROAD else 1.0 for one in text)
    return math.ceil(letter * sum(sizes))


def _clipped(name: str) -> str:
    return name if len(name) <= MOST_LETTERS else name[: MOST_LETTERS - 1] + "…"


def _tick(x: float, y: float, text: str, anchor: str = "middle") -> Markup:
    return Markup('<text class="tick" x="{:g}" y="{:g}" text-anchor="{}">{}</text>').format(
        x, y, anchor, text
    )


def _mark(chart: LineChart, across: Axis) -> Markup:
    if chart.mark is None:
        return Markup("")
    x, label = across.at(chart.mark[0]), chart.mark[1]
    is_right = x > (across.start + across.end) / 2
    line = Markup('<path class="mark" d="M{} {}V{}"/>').format(x, TOP, HEIGHT - BOTTOM)
    return line + _tick(
        x - 4 if is_right else x + 4, TOP + 9, label, "end" if is_right else "start"
    )


def _limit(chart: LineChart, across: Axis, up: Axis) -> Markup:
    if chart.limit is None:
        return Markup("")
    y = up.at(chart.limit)
    line = Markup('<path class="limit" d="M{} {}H{}"/>').format(across.start, y, across.end)
    return line + _tick(across.end - 4, y - 4, f"limit {chart.limit:g}", "end")


def _line(one: Series, chart: LineChart, across: Axis, up: Axis) -> Markup:
    """Return a line, a wider one that is easier to hover, and dots with their values."""
    points = [(across.at(x), up.at(y), x, y) for x, y in thin(one.points)]
    path = "M" + "L".join(f"{px:g} {py:g}" for px, py, _, _ in points)
    first, last = points[0], points[-1]
    told = f"{one.name}: {chart.form.format(first[3])} to {chart.form.format(last[3])}"
    dots = []
    if one.role != "rest" and len(points) <= DOTTED:
        dots = [
            Markup('<circle cx="{}" cy="{}" r="{}"><title>{}, {} {:g}: {}</title></circle>').format(
                px, py, 3 if one.role == "main" else 2.2, one.name, chart.x_title, x,
                chart.form.format(y),
            )
            for px, py, x, y in points
        ]  # fmt: skip
    return Markup(
        '<g class="{}"><title>{}</title><path class="reach" d="{}"/><path d="{}"/>{}</g>'
    ).format(
        one.role, told, path, path, Markup("").join(dots)
    )  # fmt: skip


def _names(named: Sequence[Series], up: Axis, x: float) -> Markup:
    wanted = [up.at(one.points[-1][1]) for one in named]
    places = spread(wanted, gap=LINE, low=TOP + 4, high=HEIGHT - BOTTOM)
    return Markup("").join(
        Markup('<text class="name {}" x="{}" y="{:.1f}">{}</text>').format(
            one.role, x, place + 4, _clipped(one.name)
        )
        for one, place in zip(named, places, strict=True)
    )


def _dots(chart: DotChart) -> Markup:
    """Return a row a language, worst last model first, and a key above."""
    values = [v for _, row in chart.rows for v in row if v is not None]
    left = max([LEFT, *(_wide(language) + 12 for language, _ in chart.rows)])
    across = axis(values, left, WIDTH - BARE, most=chart.most)
    marks = chart.marks or range(len(chart.models))
    top = TOP + LINE * len(chart.models) + 10
    bottom = top + ROW * len(chart.rows)
    parts = []
    for number, model in enumerate(chart.models):
        y = TOP + LINE * number
        parts.append(_dot(marks[number], left + 4, y, ""))
        parts.append(_tick(left + 14, y + 4, model, "start"))
    for value in across.ticks(4):
        x = across.at(value)
        parts.append(Markup('<path class="grid" d="M{} {}V{}"/>').format(x, top, bottom))
    parts.append(_below(across, chart.unit, bottom, chart.form))
    for at, (language, row) in enumerate(chart.rows):
        parts.append(_row(chart, language, row, across, top + ROW * at + ROW / 2, marks))
    return Markup("").join(parts)


def _row(
    chart: DotChart, language: str, row: Sequence[float | None], across: Axis, y: float,
    marks: Sequence[int],
) -> Markup:  # fmt: skip
    there = [(number, value) for number, value in enumerate(row) if value is not None]
    places = [across.at(value) for _, value in there]
    told = ", ".join(f"{chart.models[n]} {chart.form.format(v)}" for n, v in there)
    dots = Markup("").join(
        _dot(marks[n], across.at(v), y, f"{language}, {chart.models[n]}: {chart.form.format(v)}")
        for n, v in there
    )
    bar = (
        Markup('<path class="span" d="M{} {}H{}"/>').format(min(places), y, max(places))
        if places
        else ""
    )
    return Markup(
        '<g><title>{}: {}</title><text class="name" x="{}" y="{}" text-anchor="end">{}</text>{}{}'
        "</g>"
    ).format(
        language, told, across.start - 10, y + 4, language, bar, dots
    )  # fmt: skip


def _dot(number: int, x: float, y: float, title: str) -> Markup:
    """Return a mark: one of four shapes in one of three fills, twelve in all."""
    told = Markup("<title>{}</title>").format(title) if title else Markup("")
    return Markup('<path class="dot d{}" transform="translate({:g} {:g})" d="{}">{}</path>').format(
        number % NUM_FILLS, x, y, SHAPES[number % len(SHAPES)], told
    )


def file_name(chart: Chart) -> str:
    """Return the name of its own file."""
    return f"{escape(chart.name)}.svg".replace("/", "-")
