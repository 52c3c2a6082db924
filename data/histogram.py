"""How values are spread: counts in bins that fit them, drawn as bars of text or as inline SVG.

Values are whole numbers from 0 on, such as the tokens or tiles of a row.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from itertools import count

import numpy as np
import numpy.typing as npt

Whole = npt.NDArray[np.integer]

MAX_BINS = 16
LONG_TAIL = 8  # largest value over the median, from which on bins double instead of being even
PERCENTILES = (50, 95, 99)
TEXT_WIDTH = 40  # characters of the longest bar
EIGHTHS = " ▏▎▍▌▋▊▉█"
# SVG, in pixels at a phone's width; wider screens show charts side by side at the same size.
SVG_WIDTH, ROW_HEIGHT = 328, 20
BAR_START, BAR_END = 104, 258


@dataclass(frozen=True)
class Histogram:
    """Counts of whole numbers in bins that follow each other without a gap."""

    lows: npt.NDArray[np.int64]  # [bins] smallest value that a bin counts
    highs: npt.NDArray[np.int64]  # [bins] largest value that it counts
    counts: npt.NDArray[np.int64]  # [bins]
    is_log: bool  # bins grow with the values

    @property
    def labels(self) -> list[str]:
        """[bins] what each counts: `7` or `128-191`."""
        pairs = zip(self.lows.tolist(), self.highs.tolist(), strict=True)
        return [f"{low:,}" if low == high else f"{low:,}-{high:,}" for low, high in pairs]


def make_histogram(values: Whole, *, max_bins: int = MAX_BINS) -> Histogram:
    """Count values in at most `max_bins` bins with round limits.

    A bin for each value where they are few; bins of one width where the values lie together; bins
    that grow where a few values are far larger than most.

    Args:
        values: [rows] whole numbers from 0 on; none gives no bins.
        max_bins: at least 2.
    """
    if not len(values):
        none = np.zeros(0, dtype=np.int64)
        return Histogram(none, none, none, is_log=False)
    least, most = int(values.min()), int(values.max())
    if least < 0:
        raise ValueError(f"values start at {least}, but a histogram here counts from 0 on")
    has_tail = most > LONG_TAIL * max(float(np.median(values)), 1.0)
    is_log = has_tail and most - least >= max_bins
    edges = np.array((_log_edges if is_log else _even_edges)(least, most, max_bins), np.int64)
    bins = np.searchsorted(edges, values, side="right") - 1
    counts = np.bincount(bins, minlength=len(edges) - 1).astype(np.int64)
    return Histogram(edges[:-1], edges[1:] - 1, counts, is_log)


def _even_edges(least: int, most: int, max_bins: int) -> list[int]:
    """Return limits of one width (1, 2, 5, 10, 20 ...), the last above `most`."""
    widths = (digit * 10**power for power in count() for digit in (1, 2, 5))
    for width in widths:
        start = least // width * width
        num_bins = (most - start) // width + 1
        if num_bins <= max_bins:
            return [start + width * number for number in range(num_bins + 1)]
    raise AssertionError("some width is wide enough")


def _log_edges(least: int, most: int, max_bins: int) -> list[int]:
    """Return limits that grow: two in each doubling where that is few enough, else fewer."""
    zero = [0] if least == 0 else []  # has no logarithm, and a bin of its own
    for marks in _log_marks(most):
        first = bisect_right(marks, max(least, 1)) - 1
        edges = zero + marks[first : bisect_right(marks, most) + 1]
        if len(edges) - 1 <= max_bins:
            return edges
    raise AssertionError("some factor is large enough")


def _log_marks(most: int) -> Iterator[list[int]]:
    """Yield rising numbers from 1 to above `most`, in ever larger steps."""
    doublings = [2**power for power in range(2 * most.bit_length() + 2)]
    yield sorted({*doublings, *(3 * number for number in doublings)})
    for step in range(1, most.bit_length() + 1):
        yield doublings[::step]


def percentiles(values: Whole) -> dict[str, int]:
    """Return p50, p95, p99 and max, each a value that occurs; nothing where there are no values."""
    if not len(values):
        return {}
    ranked = np.percentile(values, (*PERCENTILES, 100), method="inverted_cdf").tolist()
    names = [*(f"p{percent}" for percent in PERCENTILES), "max"]
    return {name: int(value) for name, value in zip(names, ranked, strict=True)}


def text_bars(histogram: Histogram, *, unit: str, width: int = TEXT_WIDTH) -> str:
    """Return a line for each bin with its limits, its bar and its count.

    Args:
        histogram: what is drawn.
        unit: what the values are: `tokens`.
        width: characters of the longest bar.
    """
    total, most = int(histogram.counts.sum()), max(histogram.counts.tolist(), default=0)
    if not total:
        return "no rows"
    label_width = max(len(unit), *map(len, histogram.labels))
    lines = [f"{unit:>{label_width}}  {'':<{width}}{'rows':>12}{'share':>8}"]
    for label, number in zip(histogram.labels, histogram.counts.tolist(), strict=True):
        bar = _text_bar(number / most, width)
        lines.append(f"{label:>{label_width}} │{bar:<{width}}{number:>12,}{number / total:>8.1%}")
    return "\n".join(lines)


def _text_bar(share: float, width: int) -> str:
    """Return a bar that fills `share` of `width` characters; what is above 0 shows."""
    eighths = max(round(share * width * 8), share > 0)
    return EIGHTHS[-1] * (eighths // 8) + EIGHTHS[eighths % 8].strip()


def svg_bars(histogram: Histogram, *, unit: str, title: str) -> str:
    """Return an SVG element with a bar for each bin; the page's style gives it its colours.

    Args:
        histogram: what is drawn.
        unit: what the values are: `tokens`.
        title: read aloud to who cannot see it.
    """
    height = ROW_HEIGHT * (len(histogram.counts) + 1) + 6
    most = max(histogram.counts.tolist(), default=0)
    parts = [
        f'<svg role="img" aria-label="{escape(title)}" viewBox="0 0 {SVG_WIDTH} {height}">',
        _svg_text(BAR_START - 8, 0, unit, "label"),
        _svg_text(SVG_WIDTH, 0, "rows", "label"),
    ]
    for place, (label, number) in enumerate(
        zip(histogram.labels, histogram.counts.tolist(), strict=True), start=1
    ):
        length = (BAR_END - BAR_START) * number / max(most, 1)
        parts += [
            _svg_text(BAR_START - 8, place, label, "label"),
            f'<rect class="bar" x="{BAR_START}" y="{place * ROW_HEIGHT + 3}" rx="2" '
            f'width="{max(length, 1.5 if number else 0):.1f}" height="{ROW_HEIGHT - 6}"/>',
            _svg_text(SVG_WIDTH, place, f"{number:,}", "count"),
        ]
    axis = f'x1="{BAR_START}" x2="{BAR_START}" y1="{ROW_HEIGHT}" y2="{height - 4}"'
    return "".join([*parts, f'<line class="axis" {axis}/></svg>'])


def _svg_text(right: int, place: int, text: str, kind: str) -> str:
    """Return words that end at `right`, in row `place`."""
    at = f'x="{right}" y="{place * ROW_HEIGHT + 14}" text-anchor="end"'
    return f'<text class="{kind}" {at}>{escape(text)}</text>'
