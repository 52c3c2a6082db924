"""Sweeps over the small pipeline: their config, and what they leave behind."""

import json
from pathlib import Path
from typing import Any

from configs.command import load_config

HELD_OUT = [
    "data.languages=[en,fr]", "data.held_out.scenes.num_rows=4", "data.held_out.numbers.num_rows=4",
    "evaluation.max_rows=2", "evaluation.max_new_tokens=4", "engine.num_threads=1",
    "evaluation.num_choices=2", "evaluation.blind=true",
]  # fmt: skip
NAMES = ["0", "0.5", "1", "falling"]
FILES = ["config.json", "sweep.json", "sweep.csv", "sweep_languages.csv", "sweep.md"]
POINTS = ["alpha-0.5.json", "alpha-0.json", "alpha-1.json", "falling.json"]


def overrides(pipeline: Any, out: Path, *more: str) -> list[str]:
    """Two alphas and the text LM, one schedule."""
    return [
        f"vlm={pipeline.sft}", f"text={pipeline.text}", f"out={out}", "alphas=[0,0.5,1]",
        "schedules={falling: {alpha: [0.8, 0.2], alpha_overrides: {embeddings: 0}}}",
        "tracker=jsonl", *HELD_OUT, *more,
    ]  # fmt: skip


def configure(pipeline: Any, out: Path, *more: str) -> Any:
    """The same as a checked config."""
    return load_config("sweep", overrides(pipeline, out, *more))


def points_of(folder: Path) -> list[dict[str, Any]]:
    """The means of a finished sweep."""
    points: list[dict[str, Any]] = json.loads((folder / "sweep.json").read_text())["points"]
    return points


def same_files(one: Path, two: Path) -> None:
    """Assert that two sweeps have left the same bytes, but for W&B and the picture's metadata."""
    for name in [*FILES, "metrics.jsonl", "sweep.png", *(f"points/{point}" for point in POINTS)]:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
