"""The report of a demo: what was lost, what the merge gave back, and pictures to look at."""

import json
import shlex
from pathlib import Path
from typing import Any


def write_report(out: Path, commands: list[list[str]]) -> str:
    """Write `report.md` into `out`.

    Args:
        out: folder of the demo.
        commands: the pipeline, as typed.

    Returns:
        the summary at its head, in a few lines.
    """
    sweep = _read(out / "sweep" / "sweep.json")
    merged = _read(out / "merged" / "merge_report.json")
    comparison = (out / "comparison" / "report.md").read_text(encoding="utf-8")
    table = (out / "sweep" / "sweep.md").read_text(encoding="utf-8").split("\n\n", 1)[1]
    summary = summarise(sweep, alpha=merged["method"]["alpha"])
    typed = "\n".join(shlex.join(command) for command in commands)
    text = f"""# Grafting vision on a small text LM, and keeping its text

{summary}

## Text kept and pictures seen, against alpha

{table.replace("(sweep.png)", "(sweep/sweep.png)")}

## The models side by side, on held-out rows

`before_sft` is the aligned model, whose decoder is the text LM unchanged; `after_sft` was
fine-tuned on captions alone; `merged` is the merge at alpha {merged["method"]["alpha"]:g}. (At
alpha 0 the sweep has the same decoder as `before_sft`, but the projector of after SFT.)

{comparison.replace("(pictures/", "(comparison/pictures/")}

## What was run

```
{typed}
```

{_run_times(out)}

Captions name what is in the picture from top to bottom. Held-out pictures show pairs of things that
no training picture shows; held-out numbers are asked in no language in training; one paragraph in
ten of the declaration is held out. The text LM has seen no picture, but half of its naming rows ask
in the words of a caption request, with words where the picture will be. The vision tower is small
and has no pretraining, so it is trained together with the projector in align.
"""
    (out / "report.md").write_text(text, encoding="utf-8")
    return summary


def summarise(sweep: dict[str, Any], *, alpha: float) -> str:
    """Return what the figures say, whichever way they fall."""
    points = [point for point in sweep["points"] if point["alpha"] is not None]
    before, after = (_at(points, end) for end in (0.0, 1.0))
    between = _at(points, alpha)
    lines = [
        "| | text questions answered exactly | captions exactly right | picture gap, nats |",
        "|---|---:|---:|---:|",
    ]
    for name, point in (
        ("decoder of the text LM (alpha 0)", before),
        (f"merged (alpha {alpha:g})", between),
        ("decoder after SFT (alpha 1)", after),
    ):
        lines.append(
            f"| {name} | {point['text_exact_match']:.0%} | {point['caption_exact_match']:.0%} | "
            f"{point['picture_gap']:.2f} |"
        )
    kept_text = _share(between["text_exact_match"], before["text_exact_match"])
    kept_captions = _share(between["caption_exact_match"], after["caption_exact_match"])
    left = _share(after["text_exact_match"], before["text_exact_match"])
    lines.append(
        f"\nSFT on captions left {left} of what the text LM could do; the merge at alpha {alpha:g} "
        f"has {kept_text} of it, with {kept_captions} of the captioning. "
        f"The sweep chose alpha {sweep['chosen']['name']}."
    )
    return "\n".join(lines)


def _at(points: list[dict[str, Any]], alpha: float) -> dict[str, Any]:
    return min(points, key=lambda point: abs(point["alpha"] - alpha))


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.0%}" if whole else "none"


def _run_times(out: Path) -> str:
    seconds = {
        stage: _read(out / stage / "finished.json")["seconds"] for stage in ("text", "align", "sft")
    }
    times = ", ".join(f"{stage} {value:.0f} s" for stage, value in seconds.items())
    environment = (out / "sft" / "environment.jsonl").read_text(encoding="utf-8").splitlines()[-1]
    facts = json.loads(environment)
    versions = ", ".join(f"{name} {value}" for name, value in facts["packages"].items() if value)
    return f"Training took {times} on {facts['cpus']} cores. Versions: {versions}."


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
