"""The picture of a sweep: what text costs and captions gain, and the measures against alpha."""

import math
from collections.abc import Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import Any

from merge.sweeping.choose import Point, pareto_front, point_of
from merge.sweeping.report import Outcome

TEXT_COLOUR, CAPTION_COLOUR, CHOICE_COLOUR = "#b4512d", "#1f6f8b", "#c9a227"
QUIET = "0.3"
SIZE, DPI = (10.0, 5.6), 130  # inches: shown at 900 pixels in a README, letters stay legible
MARKER_PIXELS, RING_PIXELS = 5.5, 15.5  # half of what is drawn of a point, and of the choice
LABEL_PIXELS = (3, 12, 24, 38, 54)  # how far a label may stand from it
LEADER_PIXELS = 12  # from there on a line shows whose label it is
DIRECTIONS = ((0, 1), (1, 0.6), (1, -0.6), (0, -1), (-1, 0.6), (-1, -0.6), (1, 0), (-1, 0))
CROWDED = 4.0  # times the limit: an axis that long leaves no room for what is within the limit


def write_plot(path: Path, outcome: Outcome, *, max_text_loss_increase: float) -> None:
    """Draw the Pareto front, and beside it the measures against alpha."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplot_mosaic(
        [["pareto", "skills"], ["pareto", "losses"]],
        figsize=SIZE,
        dpi=DPI,
        width_ratios=[1.35, 1],
        layout="constrained",
    )
    _draw_pareto(axes["pareto"], outcome, max_text_loss_increase)
    numbers = [p for p in outcome.points if p.alpha is not None]
    numbers.sort(key=lambda point: point.alpha or 0.0)
    _draw_skills(axes["skills"], numbers)
    _draw_losses(axes["losses"], numbers)
    for name in ("skills", "losses"):
        _finish_curves(axes[name], outcome)
    axes["losses"].set_xlabel("alpha (0: text LM, 1: VLM)")
    axes["skills"].sharex(axes["losses"])
    axes["skills"].tick_params(labelbottom=False)
    for each in axes.values():
        each.grid(alpha=0.25)
        each.spines[["top", "right"]].set_visible(False)
    _label_points(figure, axes["pareto"], outcome)
    figure.savefig(path)
    plt.close(figure)


def _draw_pareto(axes: Any, outcome: Outcome, limit: float) -> None:
    points = _finite(outcome)
    rise = {point.name: outcome.increase(point) for point in points}
    front = pareto_front(points)
    axes.plot(
        [rise[p.name] for p in front], [_score(p) for p in front], drawstyle="steps-post",
        color=CAPTION_COLOUR, alpha=0.5, linewidth=1.5, label="Pareto front", zorder=1,
    )  # fmt: skip
    for marker, chosen, label in (
        ("o", [p for p in points if p.alpha is not None], "one alpha"),
        ("D", [p for p in points if p.alpha is None], "schedule"),
    ):
        if chosen:
            axes.plot(
                [rise[p.name] for p in chosen], [_score(p) for p in chosen], marker,
                color=CAPTION_COLOUR, markersize=6, label=label, zorder=3,
            )  # fmt: skip
    best = point_of(points, outcome.choice.name)
    axes.plot(
        [rise[best.name]], [_score(best)], "o", markersize=15, markerfacecolor="none",
        markeredgecolor=CHOICE_COLOUR, markeredgewidth=2.5, label=f"chosen: {best.name}", zorder=2,
    )  # fmt: skip
    axes.axvline(
        limit, color=TEXT_COLOUR, linestyle="--", linewidth=1.2,
        label=f"max_text_loss_increase {limit:g}", zorder=1,
    )  # fmt: skip
    told = _scale(axes, list(rise.values()), limit)
    axes.set_xlabel(f"text loss over the text LM, nats a token{told}")
    generated = best.caption_chrf is not None
    axes.set(
        ylabel="caption chrF" if generated else "caption loss, nats a token",
        title="Captions against text",
    )
    if not generated:
        axes.invert_yaxis()
    axes.margins(x=0.08, y=0.12)
    axes.legend(frameon=False, loc="best", fontsize=9)


def _scale(axes: Any, rises: Sequence[float], limit: float) -> str:
    """Give room to what is within the limit; returns what to say of it on the axis."""
    largest = max(rises)
    if not 0 < limit < largest / CROWDED:
        return ""
    axes.set_xscale("symlog", linthresh=limit, linscale=1.2)
    ticks = [-limit, -limit / 2, 0.0, limit / 2, limit]
    tick = limit
    while tick < largest:
        tick *= 2
        ticks.append(tick)
    ticks = [tick for tick in ticks if min(rises) - limit / 2 <= tick <= largest * 1.2]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    return " (log scale past the limit)"


def _draw_skills(axes: Any, points: Sequence[Point]) -> None:
    alphas = [point.alpha for point in points]
    if all(p.text_exact_match is not None and p.caption_exact_match is not None for p in points):
        text = [100 * (p.text_exact_match or 0) for p in points]
        caption = [100 * (p.caption_exact_match or 0) for p in points]
        axes.plot(alphas, text, "o-", color=TEXT_COLOUR, label="text questions")
        axes.plot(alphas, caption, "s-", color=CAPTION_COLOUR, label="captions")
        axes.set(ylabel="answered exactly, %", ylim=(-4, 104), title="Skills")
    else:
        gaps = [point.picture_gap for point in points]
        axes.plot(alphas, gaps, "s-", color=CAPTION_COLOUR, label="gap")
        axes.set(ylabel="picture gap, nats a token", title="Use of the picture")


def _draw_losses(axes: Any, points: Sequence[Point]) -> None:
    alphas = [point.alpha for point in points]
    text, caption = [p.text_nll for p in points], [p.caption_nll for p in points]
    axes.plot(alphas, text, "o-", color=TEXT_COLOUR, label="text")
    axes.plot(alphas, caption, "s-", color=CAPTION_COLOUR, label="captions")
    axes.set(ylabel="loss, nats a token", title="Held-out loss")


def _finish_curves(axes: Any, outcome: Outcome) -> None:
    axes.legend(frameon=False, fontsize=9)
    if outcome.choice.alpha is not None:
        axes.axvline(
            outcome.choice.alpha, color=CHOICE_COLOUR, linestyle="-", linewidth=2, zorder=0
        )


def _label_points(figure: Any, axes: Any, outcome: Outcome) -> None:
    """Write each name where it hides no point, no line's label and no other name."""
    figure.draw_without_rendering()  # places of points are known after the layout alone
    renderer = figure.canvas.get_renderer()
    places = {
        point.name: axes.transData.transform((outcome.increase(point), _score(point)))
        for point in _finite(outcome)
    }
    half = dict.fromkeys(places, MARKER_PIXELS) | {outcome.choice.name: RING_PIXELS}
    taken = [(x - half[n], y - half[n], x + half[n], y + half[n]) for n, (x, y) in places.items()]
    taken.append(axes.get_legend().get_window_extent(renderer).extents)
    for line in axes.lines:
        taken += _steps(line)
    inside = axes.get_window_extent(renderer).extents
    for name, (x, y) in places.items():
        bold = name == outcome.choice.name
        label = axes.annotate(
            name, (x, y), xycoords="figure pixels", fontsize=9, color="black" if bold else QUIET,
            ha="center", va="center", weight="bold" if bold else "normal", zorder=4,
            arrowprops={"arrowstyle": "-", "color": "0.6", "linewidth": 0.8, "shrinkB": 5},
        )  # fmt: skip
        far = _place(label, (x, y), half[name], taken, inside, renderer)
        label.arrow_patch.set_visible(far >= LEADER_PIXELS)


def _steps(line: Any) -> list[Any]:
    """Thin boxes around the upright and level pieces of a line; none where it has no line."""
    if line.get_linestyle() == "None":
        return []
    path = line.get_path()  # steps are drawn from it, as the limit is
    corners = line.get_transform().transform(path.vertices)
    return [
        (min(x, u) - 1, min(y, v) - 1, max(x, u) + 1, max(y, v) + 1)
        for (x, y), (u, v) in pairwise(corners)
    ]


def _place(
    label: Any,
    point: tuple[float, float],
    half: float,
    taken: list[Any],
    inside: Any,
    renderer: Any,
) -> float:
    """Move a label to the nearest free place around its point; add it to what is taken.

    Returns how far it stands from the point's marker, in pixels.
    """
    extent = label.get_window_extent(renderer)
    width, height = extent.width / 2 + 1.5, extent.height / 2 + 1.0
    best: tuple[float, Any, tuple[float, float], float] | None = None
    for far, (right, up) in product(LABEL_PIXELS, DIRECTIONS):
        x = point[0] + right * (half + far + width)
        y = point[1] + up * (half + far + height)
        box = (x - width, y - height, x + width, y + height)
        cost = sum(_overlap(box, other) for other in taken) + 4 * _outside(box, inside)
        if best is None or cost < best[0]:
            best = (cost, box, (x, y), far)
        if cost == 0:
            break
    assert best is not None
    label.set_position(best[2])
    taken.append(best[1])
    return best[3]


def _overlap(one: Any, two: Any) -> float:
    """Area that two boxes (left, bottom, right, top) share."""
    width = min(one[2], two[2]) - max(one[0], two[0])
    height = min(one[3], two[3]) - max(one[1], two[1])
    return max(0.0, width) * max(0.0, height)


def _outside(box: Any, frame: Any) -> float:
    """Area of a box that lies outside a frame."""
    return (box[2] - box[0]) * (box[3] - box[1]) - _overlap(box, frame)


def _finite(outcome: Outcome) -> list[Point]:
    """Points that have a place; a decoder that overflows has none."""
    return [
        point for point in outcome.points if math.isfinite(point.text_nll + point.caption_score)
    ]


def _score(point: Point) -> float:
    return point.caption_nll if point.caption_chrf is None else point.caption_chrf
