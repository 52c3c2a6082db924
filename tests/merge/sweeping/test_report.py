"""Tables and picture, from points made by hand."""

import csv
import json
import math
from dataclasses import replace
from typing import Any

import matplotlib
import pytest
from PIL import Image

from merge.sweeping import plot
from merge.sweeping.candidates import list_candidates
from merge.sweeping.choose import Point, choose_candidate
from merge.sweeping.plot import write_plot
from merge.sweeping.points import Measured
from merge.sweeping.report import Outcome, format_languages, format_table, write_tables

matplotlib.use("Agg")
ALPHAS = [0, 0.25, 0.5, 0.75, 1]


def result(nll: dict[str, float], chrf: dict[str, float], generated: bool) -> dict[str, Any]:
    counts = {"nll": dict.fromkeys(nll, 8), "chrf": dict.fromkeys(chrf, 7)}
    return {
        "by_language": {"nll": nll} | ({"chrf": chrf} if generated else {}),
        "num_rows": counts,
    }  # fmt: skip


def outcome(*, generated: bool = True, limit: float = 0.03, schedules: bool = True) -> Outcome:
    """Text gets worse with alpha, captions better; two schedules in between."""
    named = {"falling": ([0.8, 0.2], {}), "no_embeddings": (0.4, {"embeddings": 0})}
    candidates = list_candidates(alphas=ALPHAS, schedules=named if schedules else {})
    measured = []
    for candidate, x in zip(candidates, [*ALPHAS, 0.3, 0.35], strict=False):
        en, hi = 2 + 0.1 * x**2, 1 + 0.5 * x**2
        results = {
            "scenes": result(
                {"en": 2 - x, "ja": 3 - x}, {"en": 50 + 40 * x, "ja": 60.0}, generated
            ),
            "numbers": result({"en": en, "hi": hi}, {"en": 10.0, "hi": 10.0}, generated),
            "udhr": result({"hi": hi + 2}, {}, generated),
        }
        score = (50 + 40 * x + 60) / 2 if generated else None
        point = Point(
            candidate.name, candidate.alpha, ((en + hi) / 2 + hi + 2) / 2,
            0.9 if generated else None,
            2.5 - x, x / 2, x if generated else None, score,
        )  # fmt: skip
        measured.append(Measured(point, results))
    points = [each.point for each in measured]
    choice = choose_candidate(points, text_lm="0", max_text_loss_increase=limit)
    return Outcome(candidates, measured, ["scenes"], "0", choice)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_of_means_has_the_choice_in_bold():
    lines = [cells(line) for line in format_table(outcome()).splitlines()]
    assert [line[0] for line in lines[2:]] == [
        "0", "**0.25**", "0.5", "0.75", "1", "falling", "no_embeddings",
    ]  # fmt: skip
    assert lines[2] == ["0", "2.250", "+0.000", "90%", "2.500", "0.000", "0%", "55.0"]
    assert lines[3] == [
        f"**{cell}**"
        for cell in ("0.25", "2.275", "+0.025", "90%", "2.250", "0.125", "25%", "60.0")
    ]


def test_what_was_not_measured_is_absent():
    lines = format_table(outcome(generated=False)).splitlines()
    assert cells(lines[2]) == ["0", "2.250", "+0.000", "–", "2.500", "0.000", "–", "–"]


def test_by_language_at_the_text_lm_the_choice_and_the_vlm():
    """Text by the mean over numbers and udhr, captions by scenes; a language may lack one."""
    lines = [cells(line) for line in format_languages(outcome()).splitlines()]
    assert lines[0] == [
        "language", "text loss, text LM", "increase, chosen (0.25)", "increase, VLM (1)",
        "caption chrF, text LM", "caption chrF, chosen (0.25)", "caption chrF, VLM (1)",
    ]  # fmt: skip
    assert lines[2:] == [
        ["en", "2.000", "+0.006", "+0.100", "50.0", "60.0", "90.0"],
        ["hi", "2.000", "+0.031", "+0.500", "–", "–", "–"],
        ["ja", "–", "–", "–", "60.0", "60.0", "60.0"],
    ]


def test_without_answers_captions_are_told_by_their_loss():
    lines = [cells(line) for line in format_languages(outcome(generated=False)).splitlines()]
    assert lines[0][4:] == [
        "caption loss, text LM", "caption loss, chosen (0.25)", "caption loss, VLM (1)",
    ]  # fmt: skip
    assert lines[2][4:] == ["2.000", "1.750", "1.000"]


@pytest.mark.parametrize(
    ("limit", "called"), [(0.0, ["text LM (chosen)", "VLM (1)"]), (9.0, ["text LM", "chosen (1)"])]
)
def test_one_candidate_may_be_two_of_the_three(limit, called):
    heading = cells(format_languages(outcome(limit=limit)).splitlines()[0])
    assert [cell for cell in heading if cell.startswith("caption")] == [
        f"caption chrF, {name}" for name in called
    ]


def test_files(tmp_path):
    found = outcome()
    write_tables(tmp_path, found)
    with (tmp_path / "sweep_languages.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 7 * (2 + 2 + 2 + 2 + 1)
    assert {"candidate": "falling", "group": "udhr", "language": "hi", "measure": "nll",
            "value": str(1 + 0.5 * 0.3**2 + 2), "count": "8"} in rows  # fmt: skip
    assert {row["count"] for row in rows if row["measure"] == "chrf"} == {"7"}
    plain = json.loads((tmp_path / "sweep.json").read_text())
    assert plain["chosen"]["name"] == "0.25" and plain["text_lm"] == "0"
    told = (tmp_path / "sweep.md").read_text()
    assert told.startswith("# Sweep over alpha\n\n| alpha |")
    assert (
        "- `no_embeddings`: alpha 0.4 (embeddings: 0)\n\nChosen: **alpha 0.25**, the larg" in told
    )


# ------------------------------------------------------------------------------ the picture


@pytest.fixture
def figures(monkeypatch) -> list[Any]:
    """Figures that were drawn, still open."""
    from matplotlib import pyplot as plt

    drawn: list[Any] = []
    monkeypatch.setattr(plt, "close", drawn.append)
    return drawn


def drawn_by(axes: Any) -> dict[str, Any]:
    return {line.get_label(): line for line in axes.lines}


@pytest.mark.parametrize("generated", [True, False])
@pytest.mark.parametrize("limit", [0.0, 0.02, 9.0])
def test_the_picture_shows_every_candidate(generated, limit, tmp_path, figures):
    found = outcome(generated=generated, limit=limit)
    write_plot(tmp_path / "sweep.png", found, max_text_loss_increase=limit)
    with Image.open(tmp_path / "sweep.png") as picture:
        assert picture.size == (1300, 728)
    pareto = drawn_by(figures[0].axes[0])
    assert len(pareto["one alpha"].get_xdata()) == 5 and len(pareto["schedule"].get_xdata()) == 2
    chosen = next(p for p in found.points if p.name == found.choice.name)
    score = chosen.caption_chrf if generated else chosen.caption_nll
    ring = pareto[f"chosen: {chosen.name}"]
    assert (ring.get_xdata()[0], ring.get_ydata()[0]) == (chosen.text_nll - 2.25, score)
    assert set(pareto[f"max_text_loss_increase {limit:g}"].get_xdata()) == {limit}
    assert figures[0].axes[0].yaxis_inverted() == (not generated)  # better is higher
    curves = drawn_by(figures[0].axes[2])
    assert list(curves["text"].get_xdata()) == ALPHAS  # numbers alone


@pytest.mark.parametrize("limit", [0.0, 0.02, 9.0])
def test_labels_lie_on_nothing(limit, tmp_path, figures):
    """Not on each other, not on a point, and inside the axes."""
    write_plot(tmp_path / "sweep.png", outcome(limit=limit), max_text_loss_increase=limit)
    axes, renderer = figures[0].axes[0], figures[0].canvas.get_renderer()
    # `axes.texts` holds the labels alone; their arrows are not part of where their words stand.
    boxes = {
        label.get_text(): super(type(label), label).get_window_extent(renderer).extents
        for label in axes.texts
    }
    assert boxes.keys() == {*map(str, ALPHAS), "falling", "no_embeddings"}
    inside = axes.get_window_extent(renderer).extents
    marks = [
        axes.transData.transform(place)
        for name in ("one alpha", "schedule")
        for place in zip(*drawn_by(axes)[name].get_data(), strict=True)
    ]
    for name, box in boxes.items():
        assert plot._outside(box, inside) == 0, name
        assert not any(plot._overlap(box, other) for n, other in boxes.items() if n != name), name
        assert not any(box[0] <= x <= box[2] and box[1] <= y <= box[3] for x, y in marks), name


def test_the_front_is_drawn(tmp_path, figures):
    write_plot(tmp_path / "sweep.png", outcome(), max_text_loss_increase=0.05)
    front = drawn_by(figures[0].axes[0])["Pareto front"]
    scores = list(front.get_ydata())
    assert scores == sorted(scores) and len(scores) == 7


def test_a_choice_that_is_a_schedule_has_no_alpha_to_mark(tmp_path, figures):
    found = outcome()
    choice = type(found.choice)("falling", None, "a rule")
    write_plot(
        tmp_path / "sweep.png",
        Outcome(found.candidates, found.measured, found.captions, "0", choice),
        max_text_loss_increase=0.05,
    )
    assert "chosen: falling" in drawn_by(figures[0].axes[0])
    assert len(figures[0].axes[2].lines) == 2


def test_alphas_without_schedules(tmp_path, figures):
    write_plot(tmp_path / "sweep.png", outcome(schedules=False), max_text_loss_increase=0.05)
    assert "schedule" not in drawn_by(figures[0].axes[0])


def test_a_point_without_numbers_has_no_place(tmp_path, figures):
    found = outcome()
    points = [replace(p, text_nll=math.nan) if p.name == "1" else p for p in found.points]
    measured = [
        Measured(point, each.results) for point, each in zip(points, found.measured, strict=True)
    ]
    write_plot(tmp_path / "p.png", replace(found, measured=measured), max_text_loss_increase=0.05)
    axes = figures[0].axes[0]
    assert list(drawn_by(axes)["one alpha"].get_xdata())[-1] == pytest.approx(0.225)
    assert "1" not in {label.get_text() for label in axes.texts}
