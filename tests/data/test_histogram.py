"""Histograms: every value is counted once, in bins that fit; bars are as long as they should be."""

import re
import xml.etree.ElementTree as ElementTree
from typing import Any

import numpy as np
import pytest

from data.histogram import (
    BAR_END,
    BAR_START,
    MAX_BINS,
    Histogram,
    make_histogram,
    percentiles,
    svg_bars,
    text_bars,
)

TAIL = np.repeat([3, 5, 40_000], [500, 500, 1])


def whole(*values: int) -> Any:
    return np.array(values, dtype=np.int32)


def counted(histogram: Histogram) -> dict[str, int]:
    return dict(zip(histogram.labels, histogram.counts.tolist(), strict=True))


def naive_counts(values: Any, histogram: Histogram) -> list[int]:
    limits = zip(histogram.lows, histogram.highs, strict=True)
    return [sum(1 for v in values.tolist() if low <= v <= high) for low, high in limits]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (whole(7), {"7": 1}),
        (whole(0, 0, 0), {"0": 3}),
        (whole(12, 12, 14), {"12": 2, "13": 0, "14": 1}),  # a bin for each value
        (np.arange(100), {f"{n}-{n + 9}": 10 for n in range(0, 100, 10)}),
        (np.arange(1000, 1016), {f"{n:,}": 1 for n in range(1000, 1016)}),
        (np.arange(1000, 1017), {**{f"{n:,}-{n + 1:,}": 2 for n in range(1000, 1016, 2)},
                                 "1,016-1,017": 1}),
    ],
)  # fmt: skip
def test_bins_of_one_width(values: Any, expected: dict[str, int]) -> None:
    histogram = make_histogram(values)
    assert counted(histogram) == expected
    assert not histogram.is_log


def test_a_long_tail_gets_bins_that_grow() -> None:
    values = np.repeat([0, 1, 2, 3, 5, 100], [4, 3, 9, 2, 1, 1])
    assert counted(make_histogram(values)) == {
        "0": 4, "1": 3, "2": 9, "3": 2, "4-5": 1, "6-7": 0, "8-11": 0, "12-15": 0, "16-23": 0,
        "24-31": 0, "32-47": 0, "48-63": 0, "64-95": 0, "96-127": 1,
    }  # fmt: skip
    tail = make_histogram(TAIL)
    assert tail.is_log
    assert counted(tail)["2-3"] == 500


@pytest.mark.parametrize("most", [17, 100, 2**31 - 1, 2**40])
@pytest.mark.parametrize("least", [0, 1, 3, 16])
def test_any_range_fits_the_bins(least: int, most: int) -> None:
    values = np.array([least] * 9 + [most], dtype=np.int64)
    for given in (values, np.array([least, most - 1, most], dtype=np.int64)):
        histogram = make_histogram(given)
        assert 1 <= len(histogram.counts) <= MAX_BINS
        assert histogram.counts.sum() == len(given)
        assert histogram.counts.tolist() == naive_counts(given, histogram)
        assert histogram.lows[0] <= least
        assert histogram.highs[-1] >= most
        assert (histogram.lows[1:] == histogram.highs[:-1] + 1).all()


def test_of_drawn_lengths_each_is_counted_once() -> None:
    rng = np.random.default_rng(0)
    for values in (rng.integers(0, 5000, 3000), rng.lognormal(4, 2, 3000).astype(np.int32)):
        histogram = make_histogram(values)
        assert histogram.counts.tolist() == naive_counts(values, histogram)
        assert histogram.counts.sum() == 3000


def test_no_values() -> None:
    histogram = make_histogram(whole())
    assert counted(histogram) == {}
    assert text_bars(histogram, unit="tokens") == "no rows"
    ElementTree.fromstring(svg_bars(histogram, unit="tokens", title="nothing"))
    assert percentiles(whole()) == {}


def test_values_below_zero_are_refused() -> None:
    with pytest.raises(ValueError, match="values start at -2, but a histogram here counts from 0"):
        make_histogram(whole(-2, 5))


def test_percentiles_are_values_that_occur() -> None:
    assert percentiles(whole(7)) == {"p50": 7, "p95": 7, "p99": 7, "max": 7}
    values = np.random.default_rng(0).permutation(np.arange(1, 1001) * 3)
    assert percentiles(values) == {"p50": 1500, "p95": 2850, "p99": 2970, "max": 3000}


def test_text_bars() -> None:
    drawn = text_bars(make_histogram(np.repeat([1, 2, 4], [1, 8, 4000])), unit="tiles", width=4)
    assert drawn.splitlines() == [
        "tiles              rows   share",
        "    1 │▏              1    0.0%",  # one in thousands shows
        "    2 │▏              8    0.2%",
        "    3 │               0    0.0%",
        "    4 │████       4,000   99.8%",
    ]
    half = text_bars(make_histogram(np.repeat([1, 2], [100, 160])), unit="x", width=10)
    assert "▎" in half.splitlines()[1]  # 100/160 of 10 characters: six and two eighths
    assert half.splitlines()[1].count("█") == 6


def test_the_lines_of_a_chart_have_one_width() -> None:
    lines = text_bars(make_histogram(TAIL), unit="tokens").splitlines()
    assert len({len(line) for line in lines}) == 1
    assert len(lines[0]) <= 90


def test_svg_bars() -> None:
    drawn = svg_bars(make_histogram(whole(1, 1, 1, 1, 3)), unit="a<b", title='"x" & <y>')
    root = ElementTree.fromstring(drawn)
    assert root.attrib["aria-label"] == '"x" & <y>'
    bars = [float(item.attrib["width"]) for item in root.iter("rect")]
    assert bars == [BAR_END - BAR_START, 0, (BAR_END - BAR_START) / 4]
    words = [item.text for item in root.iter("text")]
    assert words == ["a<b", "rows", "1", "4", "2", "0", "3", "1"]
    assert not re.search(r"#[0-9a-f]{3}|style=", drawn)  # colours are the page's: light and dark


def test_no_svg_bar_is_longer_than_its_room() -> None:
    root = ElementTree.fromstring(svg_bars(make_histogram(TAIL), unit="tokens", title=""))
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for bar in root.iter("rect"):
        assert float(bar.attrib["x"]) + float(bar.attrib["width"]) < width - 60  # room for counts
        assert float(bar.attrib["y"]) + float(bar.attrib["height"]) < height
