"""The work of `python -m merge.sweep`."""

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from configs.errors import CheckpointError, ConfigError, DataError
from configs.schema import SweepConfig
from data.processor import load_processor
from data.render import Renderer
from merge.matching.plan import plan_merge
from merge.matching.tensor_table import TensorPlan
from merge.reading.chunks import TORCH_DTYPES
from merge.recipe.recipe import make_recipe
from merge.sweeping.choose import Choice, Point, choose_alpha, make_point
from merge.sweeping.in_place import AlphaDial
from merge.sweeping.report import write_csv, write_markdown, write_plot
from train.measuring.evaluation import HeldOut, as_json, flat_metrics
from train.measuring.held_out import prepare_held_out
from train.model.load import load_vlm
from train.model.loss import add_token_losses, check_against_text_class
from train.process import set_up_process
from train.saving.run_folder import to_plain
from train.watching.tracking import Tracker, start_tracker

log = logging.getLogger(__name__)


def sweep(config: SweepConfig) -> None:
    """Measure every alpha, choose one, write table, plot and points to `config.out`."""
    set_up_process(config.engine.num_threads, config.seed)
    out = Path(config.out)
    _check_folder(out, config)
    table = plan_merge(Path(config.vlm), Path(config.text), force=config.force).table
    processor = load_processor(config.vlm)
    held_out = prepare_held_out(
        config.data, config.evaluation, Renderer(processor), seed=config.seed
    )
    captions = _caption_groups(held_out)
    if config.dry_run:
        log.info("would measure %s on %s", config.alphas, ", ".join(held_out.groups))
        return
    model: Any = load_vlm(config.vlm, dtype=_stored_dtype(table))
    model.to(device())
    add_token_losses(model)
    check_against_text_class(model)
    tracker = _open(out, config)
    try:
        dial = AlphaDial(model, table)
        points = []
        for alpha in tqdm(config.alphas, desc="sweep", unit="alpha"):
            points.append(
                _measure(alpha, model, dial, held_out, captions, out, config.evaluation.generate)
            )
            tracker.log(_metrics(points[-1]), len(points) - 1)
        choice = choose_alpha(points, max_text_loss_increase=config.max_text_loss_increase)
        _write(out, points, choice)
        log.info("alpha %g: %s; see %s", choice.alpha, choice.rule, out / "sweep.md")
        tracker.log({"sweep/chosen_alpha": choice.alpha}, len(points))
        tracker.log_table("sweep/points", list(asdict(points[0])),
                          [list(asdict(p).values()) for p in points], len(points))  # fmt: skip
    except BaseException:
        tracker.finish(failed=True)
        raise
    tracker.finish()


def device() -> torch.device:
    """Return the first GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _stored_dtype(table: list[TensorPlan]) -> torch.dtype:
    """Return the dtype of the VLM's decoder on disk, whatever its config says."""
    return next(TORCH_DTYPES[plan.vlm.dtype] for plan in table if plan.text is not None)


def _caption_groups(held_out: HeldOut) -> list[str]:
    captions = [
        name
        for name, samples in held_out.groups.items()
        if samples and all(sample.row.images for sample in samples)
    ]
    if not captions or len(captions) == len(held_out.groups):
        raise DataError(
            "data.held_out: a sweep weighs captions against text, so it needs a group of rows "
            f"with pictures and one without; there are {', '.join(held_out.groups) or 'none'}"
        )
    return captions


def _measure(
    alpha: float,
    model: Any,
    dial: AlphaDial,
    held_out: HeldOut,
    captions: list[str],
    out: Path,
    generate: bool,
) -> Point:
    """Return one point, from its file where an earlier, interrupted sweep has measured it."""
    path = out / "points" / f"alpha-{str(alpha).removesuffix('.0')}.json"
    if path.is_file():
        return Point(**json.loads(path.read_text(encoding="utf-8"))["point"])
    dial.set(make_recipe(alpha=alpha))
    results = held_out.measure(model, generate=generate)
    means = {name: result.metrics() for name, result in results.items()}
    point = make_point(alpha, means, captions)
    staging = path.with_suffix(".writing")
    content = {"point": asdict(point), "results": as_json(results), "means": flat_metrics(results)}
    staging.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
    staging.replace(path)
    return point


def _check_folder(out: Path, config: SweepConfig) -> None:
    """Refuse a folder of another sweep; a missing input is told before anything loads."""
    for key in ("vlm", "text"):
        if not Path(getattr(config, key)).is_dir():
            raise CheckpointError(f"{key}={getattr(config, key)!r} is not a folder")
    if not out.exists() or not any(out.iterdir()):
        return
    file = out / "config.json"
    same = file.is_file() and json.loads(file.read_text(encoding="utf-8")) == _identity(config)
    if not same:
        raise ConfigError(
            f"out={config.out!r} holds something else than this sweep; give a new folder"
        )


def _identity(config: SweepConfig) -> dict[str, Any]:
    """Return what makes two sweeps the same; more alphas may be added to one."""
    plain: dict[str, Any] = to_plain(config)
    for key in ("alphas", "tracker", "engine", "dry_run", "max_text_loss_increase", "out"):
        plain.pop(key)
    return plain


def _open(out: Path, config: SweepConfig) -> Tracker:
    (out / "points").mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(_identity(config), indent=1), encoding="utf-8")
    (out / "metrics.jsonl").unlink(missing_ok=True)
    return start_tracker(
        config.tracker, out, job_type="sweep", run_config=to_plain(config), first_process=True
    )


def _metrics(point: Point) -> dict[str, float]:
    return {f"sweep/{name}": value for name, value in asdict(point).items() if value is not None}


def _write(out: Path, points: list[Point], choice: Choice) -> None:
    plain = {"chosen": asdict(choice), "points": [asdict(point) for point in points]}
    (out / "sweep.json").write_text(json.dumps(plain, indent=1), encoding="utf-8")
    write_csv(out / "sweep.csv", points)
    write_markdown(out / "sweep.md", points, choice)
    write_plot(out / "sweep.png", points, choice)
