"""Charts: marks that stand for one model, labels that fit, axes that end where values can."""

import re

from train.measuring.results import GroupKind, GroupResult, Results
from train.reporting.axes import axis
from train.reporting.content import Charts, DotChart, LineChart, Series
from train.reporting.evaluation_report import dot_charts
from train.reporting.svg import WIDTH, draw


def results(*, with_pictures: bool) -> Results:
    found = {"text": GroupResult(GroupKind.text, {"nll": {"en": 1.0, "fr": 2.0}})}
    if with_pictures:
        found["scenes"] = GroupResult(GroupKind.captions, {"nll": {"en": 1.0, "fr": 2.0}})
    return found


def marks(chart: DotChart) -> dict[str, tuple[str, str]]:
    """The fill and shape of each model, as in the key above the rows."""
    key = re.findall(r'class="dot (d\d)"[^>]* d="([^"]+)"></path>', draw(chart))
    assert len(key) == len(chart.models)
    return dict(zip(chart.models, key, strict=True))


def dots(chart: DotChart) -> set[tuple[str, str, str]]:
    pattern = r'class="dot (d\d)"[^>]* d="([^"]+)"><title>\w+, (\w+):'
    return {(model, fill, shape) for fill, shape, model in re.findall(pattern, draw(chart))}


def test_a_model_has_one_mark_on_the_page_and_no_other_has_it() -> None:
    models = {"text_lm": results(with_pictures=False)}
    models |= {f"m{n}": results(with_pictures=True) for n in range(11)}
    charts = [
        chart
        for prefix in ("retention", "caption")
        for block in dot_charts(models, prefix)
        if isinstance(block, Charts)
        for chart in block.items
        if isinstance(chart, DotChart)
    ]
    assert len(charts) == 3
    first = marks(charts[0])
    assert len(set(first.values())) == len(models) == 12
    for chart in charts:
        assert marks(chart).items() <= first.items()
        assert dots(chart) == {(model, *first[model]) for model in chart.models}


def text_ends(svg: str) -> list[tuple[str, float, float]]:
    """Each label with its left and right end, of letters as narrow as they may well be."""
    found = []
    for x, anchor, text in re.findall(
        r'<text class="[^"]*" x="([\d.]+)" y="[\d.]+"(?: text-anchor="(\w+)")?>([^<]*)', svg
    ):
        width = 6.2 * len(text) + 4 * text.count("%")
        left = float(x) - {"end": width, "middle": width / 2}.get(anchor, 0)
        found.append((text, left, left + width))
    return found


def test_labels_are_inside_the_chart() -> None:
    names = ["evaluation", "forward", "a_name_of_sixteen"]
    lines = [
        Series(n, [(0, -0.0025), (1_000_000, 0.0001 * i)], "flag") for i, n in enumerate(names)
    ]
    ends = text_ends(draw(LineChart("c", "c", "u", lines)))
    assert {"-0.002", "evaluation", "a_name_of_six…", "1M"} <= {text for text, _, _ in ends}
    dotted = DotChart("d", "d", "u", ["m"], [("zh-Hant-TW", [0.1]), ("en", [123_456.0])])
    ends += text_ends(draw(dotted))
    assert [(text, low, high) for text, low, high in ends if low < 0 or high > WIDTH] == []


def test_axes_of_shares_and_scores_end_at_their_highest() -> None:
    assert axis([1.0, 1.0], 0, 1, most=1.0).high == 1.0
    assert axis([0.0, 1.0], 0, 1, most=1.0).low == 0.0
    assert axis([80.0, 100.0], 0, 1, most=100.0).high == 100.0
    assert axis([0.2, 0.4], 0, 1, most=1.0).high < 0.5
    assert axis([0.0, 0.0], 0, 1, most=1.0).high == 1.0
    assert axis([0.5, 1.2], 0, 1, most=1.0).high == 1.2


def test_a_chart_of_shares_has_ticks_in_per_cent() -> None:
    line = Series("all", [(0, 0.0), (10, 1.0)], "main")
    ticks = [text for text, _, _ in text_ends(draw(LineChart("c", "c", "u", [line], "{:.0%}")))]
    assert {"0%", "50%", "100%", "10"} <= set(ticks)
    dotted = DotChart("d", "d", "share of rows", ["m"], [("en", [0.5]), ("fr", [0.0])], "{:.0%}")
    assert "40%" in [text for text, _, _ in text_ends(draw(dotted))]
    full = DotChart("d", "d", "share of rows", ["m"], [("en", [1.0]), ("fr", [0.0])], "{:.0%}",
                    most=1.0)  # fmt: skip
    ends = {text: right for text, _, right in text_ends(draw(full))}
    assert ends["100%"] < WIDTH - 1
