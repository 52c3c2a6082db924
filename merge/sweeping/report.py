"""The table and the picture of a sweep."""

import csv
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

from merge.sweeping.choose import Choice, Point

HEADINGS = {
    "alpha": "alpha",
    "text_nll": "text loss",
    "text_exact_match": "text exact match",
    "caption_nll": "caption loss",
    "picture_gap": "picture gap",
    "caption_exact_match": "caption exact match",
    "caption_chrf": "caption chrF",
}
TEXT_COLOUR, CAPTION_COLOUR = "#b4512d", "#1f6f8b"


def write_csv(path: Path, points: Sequence[Point]) -> None:
    """Write one line a point."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Point)])
        writer.writeheader()
        writer.writerows(asdict(point) for point in points)


def write_markdown(path: Path, points: Sequence[Point], choice: Choice) -> None:
    """Write the table, with the chosen alpha in bold and the rule below."""
    path.write_text(
        f"# Sweep over alpha\n\n{format_table(points, choice)}\n\n"
        f"Chosen: **alpha {choice.alpha:g}**, the {choice.rule}.\n\n"
        "Losses and the gap are nats a supervised token; the gap is the caption loss with a "
        "shuffled picture minus that with the right one.\n\n![sweep](sweep.png)\n",
        encoding="utf-8",
    )


def format_table(points: Sequence[Point], choice: Choice) -> str:
    """Return the points as a Markdown table."""
    lines = [
        "| " + " | ".join(HEADINGS.values()) + " |",
        "|" + "---:|" * len(HEADINGS),
    ]
    for point in points:
        cells = [_cell(name, getattr(point, name)) for name in HEADINGS]
        if point.alpha == choice.alpha:
            cells = [f"**{cell}**" for cell in cells]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_plot(path: Path, points: Sequence[Point], choice: Choice) -> None:
    """Draw what is known of text and of pictures against alpha."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    shown = sorted(points, key=lambda point: point.alpha)
    alphas = [point.alpha for point in shown]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    if all(p.text_exact_match is not None and p.caption_exact_match is not None for p in shown):
        text = [100 * (p.text_exact_match or 0) for p in shown]
        caption = [100 * (p.caption_exact_match or 0) for p in shown]
        left.plot(alphas, text, "o-", color=TEXT_COLOUR, label="text questions")
        left.plot(alphas, caption, "s-", color=CAPTION_COLOUR, label="captions")
        left.set(ylabel="answered exactly, %", ylim=(-3, 103), title="Skills")
    else:
        left.plot(alphas, [p.picture_gap for p in shown], "s-", color=CAPTION_COLOUR, label="gap")
        left.set(ylabel="picture gap, nats a token", title="Use of the picture")
    text_loss, caption_loss = [p.text_nll for p in shown], [p.caption_nll for p in shown]
    right.plot(alphas, text_loss, "o-", color=TEXT_COLOUR, label="text")
    right.plot(alphas, caption_loss, "s-", color=CAPTION_COLOUR, label="captions")
    right.set(ylabel="loss, nats a token", title="Held-out loss")
    for axes in (left, right):
        axes.axvline(choice.alpha, color="0.6", linestyle="--", linewidth=1)
        axes.annotate(
            f"chosen: {choice.alpha:g}", (choice.alpha, 1.0), xycoords=("data", "axes fraction"),
            xytext=(3, -10), textcoords="offset points", fontsize=8, color="0.4",
        )  # fmt: skip
        axes.set_xlabel("alpha (0: text LM, 1: VLM)")
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    if name.endswith("exact_match"):
        return f"{value:.0%}"
    return {"alpha": f"{value:g}", "caption_chrf": f"{value:.1f}"}.get(name, f"{value:.3f}")
