"""The work of `python -m merge.sweep`."""

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from configs.errors import DataError, Preempted
from configs.schema import Attention, MethodConfig, SweepConfig
from data.processor import load_processor
from data.render import Renderer
from merge.matching.plan import plan_merge
from merge.matching.tensor_table import TensorPlan
from merge.recipe.torch_dtypes import TORCH_DTYPES
from merge.sweeping.candidates import Candidate, check_against, find_text_lm, list_candidates
from merge.sweeping.choose import choose_candidate
from merge.sweeping.features import remember_image_features
from merge.sweeping.folder import check_folders, claim
from merge.sweeping.in_place import AlphaDial
from merge.sweeping.plot import write_plot
from merge.sweeping.points import Measured, PointFiles
from merge.sweeping.report import LANGUAGE_COLUMNS, Outcome, write_tables
from merge.sweeping.share import ended_by_signals, meet, share_of, wait_until
from merge.sweeping.write import write_chosen
from train.measuring.evaluation import HeldOut
from train.measuring.held_out import prepare_held_out
from train.model.attention import set_attention
from train.model.load import load_vlm
from train.model.loss import add_token_losses, check_against_text_class
from train.process import set_up_process
from train.ranks import device_of_rank, rank
from train.reporting.any_folder import write_any_report
from train.saving.run_folder import to_plain
from train.tracking.tracker import Tracker, start_tracker

log = logging.getLogger(__name__)


def sweep(config: SweepConfig) -> None:
    """Measure every candidate, choose one, and write tables, plot and points to `config.out`."""
    set_up_process(config.engine.num_threads, config.seed)
    candidates = candidates_of(config)
    check_folders(config)
    table = plan_merge(
        Path(config.vlm),
        Path(config.text),
        base=None if config.base is None else Path(config.base),
        lora=None if config.lora is None else Path(config.lora),
        force=config.force,
    ).table
    check_against(candidates, table)
    held_out = prepare_held_out(
        config.data,
        config.evaluation,
        Renderer(load_processor(config.vlm)),
    )
    captions = _caption_groups(held_out)
    points = PointFiles(Path(config.out) / "points")
    finished = [points.read(c).point.name for c in candidates if points.has(c)]
    pending = [candidate for candidate in candidates if candidate.name not in finished]
    if config.dry_run:
        _tell_plan(config, candidates, finished, held_out)
        return
    with ended_by_signals():
        if pending:
            meet()
        board = Board(candidates, points, _open(config))
        try:
            longest = _measure(share_of(pending), config, table, held_out, captions, board)
            wait_until(board.is_full, board.count, longest=longest)
            if rank() == 0:
                _conclude(config, candidates, captions, board)
        except BaseException as error:
            board.tracker.finish(failed=True, preempted=isinstance(error, Preempted))
            raise
        board.tracker.finish()


def candidates_of(config: SweepConfig) -> list[Candidate]:
    """Every alpha and schedule of a config, with its method."""
    method = {item.name: getattr(config, item.name) for item in fields(MethodConfig)}
    base = method.pop("base")
    method["method"] = config.method.value
    return list_candidates(
        alphas=config.alphas,
        schedules={k: (v.alpha, v.alpha_overrides) for k, v in config.schedules.items()},
        has_base=base is not None,
        **method,
    )


class Board:
    """What is finished, by whichever process; told in the candidates' order as it comes."""

    def __init__(
        self, candidates: Sequence[Candidate], points: PointFiles, tracker: Tracker
    ) -> None:
        """Nothing is told yet, not even what an earlier sweep has finished."""
        self.candidates, self.points, self.tracker = candidates, points, tracker
        self.measured: list[Measured] = []
        self._bar: Any = tqdm(
            total=len(candidates), desc="sweep", unit="point", disable=rank() != 0
        )

    def count(self) -> int:
        """Finished points."""
        return sum(map(self.points.has, self.candidates))

    def is_full(self) -> bool:
        """Tell what is new; whether all is finished."""
        for candidate in self.candidates[len(self.measured) :]:
            if not self.points.has(candidate):
                return False
            self.measured.append(self.points.read(candidate))
            self.tracker.log(_metrics(self.measured[-1]), len(self.measured) - 1)
            self._bar.update()
        self._bar.close()
        return True


def _measure(
    mine: Sequence[Candidate],
    config: SweepConfig,
    table: Sequence[TensorPlan],
    held_out: HeldOut,
    captions: Sequence[str],
    board: Board,
) -> float:
    """Measure what falls to this process; return the seconds of the longest one."""
    board.is_full()
    if not mine:
        return 0.0
    started = time.monotonic()
    model = _load(config.vlm, table)
    dial = AlphaDial(model, table, num_threads=config.engine.num_threads or _cores_of_process())
    longest = 0.0
    for candidate in mine:
        dial.set(candidate.recipe)
        evaluation = config.evaluation
        results = held_out.measure(model, generate=evaluation.generate, blind=evaluation.blind)
        board.points.write(candidate, results, captions)
        board.is_full()
        now = time.monotonic()
        started, longest = now, max(longest, now - started)
    return longest


def _load(vlm: str, table: Sequence[TensorPlan]) -> Any:
    """Return the VLM on this process's device, ready to be measured."""
    model: Any = load_vlm(vlm, dtype=_stored_dtype(table))
    model.to(device_of_rank())
    add_token_losses(model)
    check_against_text_class(model)
    set_attention(model, Attention.auto, half=model.dtype != torch.float32)
    remember_image_features(model)
    return model


def _conclude(
    config: SweepConfig, candidates: Sequence[Candidate], captions: Sequence[str], board: Board
) -> None:
    """Choose, report, and write the chosen model where that is asked for."""
    out, limit = Path(config.out), config.max_text_loss_increase
    measured, text_lm = board.measured, find_text_lm(candidates).name
    choice = choose_candidate(
        [each.point for each in measured], text_lm=text_lm, max_text_loss_increase=limit
    )
    outcome = Outcome(candidates, measured, captions, text_lm, choice)
    write_tables(out, outcome)
    write_plot(out / "sweep.png", outcome, max_text_loss_increase=limit)
    chosen = next(candidate for candidate in candidates if candidate.name == choice.name)
    log.info("chosen: %s, the %s; see %s", chosen, choice.rule, out / "sweep.md")
    _track(board.tracker, outcome, out)
    write_any_report(out)
    if config.write_to is not None:
        write_chosen(
            chosen,
            vlm=config.vlm,
            text=config.text,
            base=config.base,
            lora=config.lora,
            out=config.write_to,
            force=config.force,
            num_threads=config.engine.num_threads,
        )
        board.tracker.log_model(Path(config.write_to), "model", label="chosen")


def _track(tracker: Tracker, outcome: Outcome, out: Path) -> None:
    step, choice = len(outcome.measured), outcome.choice
    number = {} if choice.alpha is None else {"sweep/chosen_alpha": choice.alpha}
    tracker.log({"sweep/chosen": choice.name, **number}, step)
    rows = [outcome.cells(point) for point in outcome.points]
    tracker.log_table("sweep/points", outcome.columns(), rows, step)
    languages = [list(row) for row in outcome.language_rows()]
    tracker.log_table("sweep/languages", list(LANGUAGE_COLUMNS), languages, step)
    for name in ("sweep.json", "sweep.md", "sweep.png", "sweep.csv", "sweep_languages.csv"):
        tracker.save_file(out / name)


def _metrics(measured: Measured) -> dict[str, float]:
    values = asdict(measured.point)
    values.pop("name")
    return {f"sweep/{name}": value for name, value in values.items() if value is not None}


def _tell_plan(
    config: SweepConfig,
    candidates: Sequence[Candidate],
    finished: Sequence[str],
    held_out: HeldOut,
) -> None:
    told = ", ".join(f"{c}{' (finished)' if c.name in finished else ''}" for c in candidates)
    rows = ", ".join(f"{name} ({len(group)} rows)" for name, group in held_out.groups.items())
    log.info("would measure %s", told)
    log.info("on %s", rows)
    if config.write_to is not None:
        log.info("and write the chosen model to %s", config.write_to)


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


def _open(config: SweepConfig) -> Tracker:
    """Claim the folder and start the tracker, in the first process alone."""
    out = Path(config.out)
    if rank() == 0:
        claim(config)
        (out / "metrics.jsonl").unlink(missing_ok=True)
    tracker = start_tracker(
        config.tracker,
        out,
        job_type="sweep",
        run_config=to_plain(config),
        first_process=rank() == 0,
    )
    for role in ("vlm", "text", "base", "lora"):
        tracker.use_model(role, getattr(config, role))
    return tracker


def _stored_dtype(table: Sequence[TensorPlan]) -> torch.dtype:
    """Return the dtype of the VLM's decoder on disk, whatever its config says."""
    return next(TORCH_DTYPES[plan.vlm.dtype] for plan in table if plan.text is not None)


def _cores_of_process() -> int:
    """This process's part of the machine; torchrun gives each of its processes one thread."""
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
