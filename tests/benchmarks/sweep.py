"""A sweep of 11 alphas against one load and 11 evaluations, on models of the demo's size.

    python tests/benchmarks/sweep.py [folder of a demo] [alphas] [evaluations]

Without a folder the demo's three stages run for one step each: shapes and rows are the demo's, the
weights as good as random (answers then end early). One process, one thread, the rows of
`data=demo_held_out`. What is set against each other is measured in the same run: the load (headers,
held-out rows, model, both decoders), evaluations at a fixed alpha of a model that remembers nothing
(median; half of them before the sweep and half after it), and `python -m merge.sweep`'s own work,
from its config to its report. Seconds of the clock, and of the CPU, which other jobs on the machine
disturb less. Target: at most 1.2 times one load + n evaluations.
"""

import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:] = [str(Path(__file__).resolve().parents[2]), *sys.path[1:]]

import torch

from configs.command import load_config
from data.processor import load_processor
from data.render import Renderer
from merge.matching.plan import plan_merge
from merge.recipe.recipe import make_recipe
from merge.sweeping.features import remember_image_features
from merge.sweeping.in_place import AlphaDial
from merge.sweeping.run import sweep
from train.measuring.evaluation import HeldOut
from train.measuring.held_out import prepare_held_out
from train.model.load import load_vlm
from train.model.loss import add_token_losses, check_against_text_class
from train.start import start

TARGET = 1.2
SHORT = (
    "optim.max_steps=1", "evaluation.generate=false", "evaluation.max_rows=1", "tracker=jsonl",
    "engine.num_threads=1", "export.verify=false",
)  # fmt: skip
Seconds = tuple[float, float]  # of the clock, of the CPU


def main() -> None:
    """Measure and tell."""
    given, counts = sys.argv[1:2], [int(text) for text in sys.argv[2:]]
    number, repeats = [*counts, *(11, 6)[len(counts) :]]
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        demo = Path(given[0]) if given else make_demo(Path(scratch) / "demo")
        compare(demo, Path(scratch), number, repeats)


def make_demo(out: Path) -> Path:
    """Text LM, aligned and tuned VLM of the demo, after one step each."""
    grafts = {
        "text": [],
        "align": [f"model.decoder.path={out}/text/export"],
        "sft": [f"model.path={out}/align/export"],
    }
    for stage, more in grafts.items():
        options = [f"experiment=demo_{stage}", *SHORT, f"output_dir={out}/{stage}", *more]
        start(load_config("train", options))
    return out


def compare(demo: Path, scratch: Path, number: int, repeats: int) -> None:
    """One load, some evaluations, the sweep, more evaluations."""
    vlm, text = demo / "sft/export", demo / "text/export"
    alphas = [round(i / (number - 1), 4) for i in range(number)]

    def config(out: str) -> Any:
        return load_config("sweep", [
            f"vlm={vlm}", f"text={text}", f"out={scratch / out}", "data=demo_held_out",
            "tracker=jsonl", "engine.num_threads=1", f"alphas={alphas}",
        ])  # fmt: skip

    prepare(config("warm"))  # fills the index of held-out rows, which is kept on disk
    (model, dial, held_out), load = timed(lambda: prepare(config("load")))
    dial.set(make_recipe(alpha=0.4))
    held_out.measure(model)  # the first one warms up
    half = max(1, repeats // 2)
    evaluations = [timed(lambda: held_out.measure(model))[1] for _ in range(half)]
    _, whole = timed(lambda: sweep(config("sweep")))
    evaluations += [timed(lambda: held_out.measure(model))[1] for _ in range(half)]
    moves = [timed(lambda: dial.set(make_recipe(alpha=0.3)))[1] for _ in range(half)]
    remember_image_features(model)
    held_out.measure(model)
    remembering = [timed(lambda: held_out.measure(model))[1] for _ in range(half)]
    for at, clock in enumerate(("clock", "CPU")):
        one = statistics.median(seconds[at] for seconds in evaluations)
        again = statistics.median(seconds[at] for seconds in remembering)
        move = statistics.median(seconds[at] for seconds in moves)
        wanted = load[at] + number * one
        ratio = whole[at] / wanted
        print(f"{clock}: load {load[at]:.2f} s, evaluation {one:.2f} s "
              f"({min(s[at] for s in evaluations):.2f} to {max(s[at] for s in evaluations):.2f}), "
              f"sweep of {number} {whole[at]:.2f} s")  # fmt: skip
        print(f"  sweep / (load + {number} evaluations): {ratio:.2f} (target {TARGET})")
        print(f"  alpha moved in {1000 * move:.1f} ms; an evaluation that remembers image features "
              f"{again:.2f} s, {100 * (1 - again / one):.0f} % less")  # fmt: skip


def prepare(config: Any) -> tuple[Any, AlphaDial, HeldOut]:
    """What a sweep does before its first point."""
    table = plan_merge(Path(config.vlm), Path(config.text)).table
    held_out = prepare_held_out(
        config.data, config.evaluation, Renderer(load_processor(config.vlm))
    )
    model: Any = load_vlm(config.vlm, dtype=torch.float32)
    add_token_losses(model)
    check_against_text_class(model)
    return model, AlphaDial(model, table), held_out


def timed(work: Callable[[], Any]) -> tuple[Any, Seconds]:
    """(result, seconds) of a piece of work."""
    clock, cpu = time.perf_counter(), time.process_time()
    found = work()
    return found, (time.perf_counter() - clock, time.process_time() - cpu)


if __name__ == "__main__":
    main()
