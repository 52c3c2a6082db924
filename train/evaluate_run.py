"""The work of `python -m train.evaluate`: one table, and pictures with every model's caption."""

import json
import logging
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from configs.errors import ConfigError
from configs.schema import EvaluateConfig
from data.processor import load, load_processor
from data.render import Renderer
from data.rows import Row
from train.measuring.evaluation import HeldOut
from train.measuring.held_out import prepare_held_out
from train.measuring.results import SCHEMA, Results, as_json
from train.measuring.side_by_side import Example, format_examples, format_table
from train.model.load import load_text_lm, load_vlm
from train.model.loss import add_token_losses, check_against_text_class
from train.process import set_up_process

log = logging.getLogger(__name__)


def evaluate(config: EvaluateConfig) -> None:
    """Measure each model on `data.held_out`; write evaluation.json, report.md and pictures."""
    set_up_process(config.engine.num_threads, config.seed)
    out = Path(config.out)
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"out={config.out!r} is not empty; give a new folder")
    if config.dry_run:
        for name, path in config.models.items():
            log.info("%s: %s (%s)", name, path, _config_of(path).model_type)
        return
    results: dict[str, Results] = {}
    shown: HeldOut | None = None
    for name, path in config.models.items():
        log.info("measuring %s (%s)", name, path)
        results[name], held_out = _measure(path, config)
        shown = shown if shown is not None and shown.num_groups >= held_out.num_groups else held_out
    assert shown is not None
    out.mkdir(parents=True, exist_ok=True)
    models = {
        name: {"path": config.models[name], "groups": as_json(result)}
        for name, result in results.items()
    }
    content = {"schema": SCHEMA, "models": models}
    text = json.dumps(content, ensure_ascii=False, indent=1)
    (out / "evaluation.json").write_text(text, encoding="utf-8")
    examples = _examples(results, shown, out, config.num_examples)
    report = f"{format_table(results)}\n\n{format_examples(examples, list(results))}\n"
    (out / "report.md").write_text(report, encoding="utf-8")
    log.info("wrote %s", out / "report.md")


def _measure(path: str, config: EvaluateConfig) -> tuple[Results, HeldOut]:
    processing_class = load_processor(path)
    data = config.data
    is_text_lm = not hasattr(processing_class, "image_processor")
    held_out = prepare_held_out(
        data, config.evaluation, Renderer(processing_class), seed=config.seed, text_only=is_text_lm
    )
    model: Any = (load_text_lm if is_text_lm else load_vlm)(path, dtype="auto")
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    add_token_losses(model)
    check_against_text_class(model)
    return held_out.measure(model, generate=config.evaluation.generate), held_out


def _config_of(path: str) -> Any:
    return load("model", AutoConfig, path)


def _examples(
    results: dict[str, Results], held_out: HeldOut, out: Path, num_examples: int
) -> list[Example]:
    """Save pictures spread over the held-out rows, with what every model says of them."""
    (out / "pictures").mkdir(exist_ok=True)
    chosen = []
    for with_picture in (True, False):
        rows = [
            (name, sample.row)
            for name, samples in held_out.groups.items()
            for sample in samples
            if bool(sample.row.images) is with_picture and len(sample.row.turns) > 1
        ]
        step = max(1, len(rows) // max(1, num_examples))
        # An odd step meets every language in turn, also where they come in turn.
        chosen += rows[:: step | 1][:num_examples]
    files = {str(row): f"{at}.png" for at, (_, row) in enumerate(chosen, 1) if row.images}
    (out / "pictures.json").write_text(json.dumps(files), encoding="utf-8")  # for reports
    return [_example(results, name, row, out, at) for at, (name, row) in enumerate(chosen, 1)]


def _example(results: dict[str, Results], group: str, row: Row, out: Path, number: int) -> Example:
    picture = out / "pictures" / f"{number}.png"  # ids may hold what file names may not
    if row.images:
        row.images[0].load().resize((128, 128)).save(picture)
    answers = {
        name: next((a.answer for a in result[group].answers if a.row_id == str(row)), "")
        for name, result in results.items()
        if group in result
    }
    return Example(
        picture=str(picture.relative_to(out)) if row.images else None,
        language=row.language,
        question=row.turns[-2].text,
        reference=row.turns[-1].text,
        answers=answers,
    )
