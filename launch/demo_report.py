"""The report of a demo: what was lost, what the merge gave back, and pictures to look at."""

import json
import shlex
from pathlib import Path
from typing import Any

from train.reporting.any_folder import write_any_report
from train.reporting.content import Block, Cell, Column, Heading, Table, Text
from train.reporting.markdown import table_lines
from train.reporting.preface import Preface, write_preface

TITLE = "Grafting vision on a small text LM, and keeping its text"
NOTES = (
    "Captions name what is in the picture from top to bottom. Held-out pictures show pairs of "
    "things that no training picture shows; held-out numbers are asked in no language in "
    "training; one paragraph in ten of the declaration is held out. The text LM has seen no "
    "picture, but half of its naming rows ask in the words of a caption request, with words "
    "where the picture will be. The vision tower is small and has no pretraining, so it is "
    "trained together with the projector in align."
)


def write_report(out: Path, commands: list[list[str]]) -> str:
    """Write `preface.json`, `report.md` and `report.html` into `out`.

    Args:
        out: folder of the demo.
        commands: the pipeline, as typed.

    Returns:
        the summary at its head, in a few lines.
    """
    sweep = _read(out / "sweep" / "sweep.json")
    alpha = _read(out / "merged" / "merge_report.json")["method"]["alpha"]
    names = (
        "before_sft is the aligned model, whose decoder is the text LM unchanged; after_sft was "
        f"fine-tuned on captions alone; merged is the merge at alpha {alpha:g}. At alpha 0 the "
        "sweep has the same decoder as before_sft, but the projector of after SFT."
    )
    preface = Preface(
        title=TITLE,
        lead=[*summary_blocks(sweep, alpha=alpha), Text(names)],
        commands=[shlex.join(command) for command in commands],
        notes=[Heading("The data"), Text(NOTES)],
    )
    write_preface(out, preface)  # every later report of the folder tells the same
    write_any_report(out)
    return summarise(sweep, alpha=alpha)


def summarise(sweep: dict[str, Any], *, alpha: float) -> str:
    """Return what the figures say, whichever way they fall, for a terminal."""
    table, text = summary_blocks(sweep, alpha=alpha)
    assert isinstance(table, Table)
    assert isinstance(text, Text)
    return f"{table_lines(table)}\n\n{text.text}"


def summary_blocks(sweep: dict[str, Any], *, alpha: float) -> list[Block]:
    """Return the table and the sentence at the head of the report."""
    points = [point for point in sweep["points"] if point["alpha"] is not None]
    before, after = (_at(points, end) for end in (0.0, 1.0))
    between = _at(points, alpha)
    rows: list[list[Cell | str]] = [
        [
            name,
            f"{point['text_exact_match']:.0%}",
            f"{point['caption_exact_match']:.0%}",
            f"{point['picture_gap']:.2f}",
        ]
        for name, point in (
            ("decoder of the text LM (alpha 0)", before),
            (f"merged (alpha {alpha:g})", between),
            ("decoder after SFT (alpha 1)", after),
        )
    ]
    columns = [
        Column("", is_number=False),
        Column("text questions answered exactly"),
        Column("captions exactly right"),
        Column("picture gap, nats"),
    ]
    kept_text = _share(between["text_exact_match"], before["text_exact_match"])
    kept_captions = _share(between["caption_exact_match"], after["caption_exact_match"])
    left = _share(after["text_exact_match"], before["text_exact_match"])
    told = (
        f"SFT on captions left {left} of what the text LM could do; the merge at alpha {alpha:g} "
        f"has {kept_text} of it, with {kept_captions} of the captioning. "
        f"The sweep chose alpha {sweep['chosen']['name']}."
    )
    return [Table("In short", columns, rows), Text(told)]


def _at(points: list[dict[str, Any]], alpha: float) -> dict[str, Any]:
    return min(points, key=lambda point: abs(point["alpha"] - alpha))


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.0%}" if whole else "none"


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
