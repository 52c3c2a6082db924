"""What measuring costs: its share of training time, and answers in batches against one at a time.

    make demo
    python tests/benchmarks/evaluation.py --demo outputs/demo

1. The demo's runs, measured at the default interval: seconds of all measurements (step 0, between,
   end) against seconds of training without them, from their own logs.
2. Greedy answers to held-out rows: ours, in batches, against `generate` a row at a time by the
   published way (`AutoProcessor`, `apply_chat_template`, `generate` with its key-value cache). The
   texts must be equal.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from configs.command import load_config
from data.processor import load_processor
from data.render import Renderer, Sample
from train.measuring.evaluation import HeldOut
from train.measuring.held_out import prepare_held_out
from train.measuring.reading import PackedReader
from train.model.load import load_vlm
from train.model.loss import add_token_losses
from train.process import set_up_process

STAGES = ("text", "align", "sft")


def main() -> None:
    """Print both comparisons."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--demo", type=Path, required=True, help="folder of a finished demo")
    parser.add_argument(
        "--rows", type=int, default=64, help="rows with pictures, and as many without"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    for stage in STAGES:
        print_overhead(options.demo / stage)
    set_up_process(options.threads, seed=0)
    compare_answers(options.demo / "merged", options.rows, options.repeats)


def print_overhead(folder: Path) -> None:
    """Print what the measurements of a run took of its training time."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    taken = {line["step"]: line["perf/evaluation_seconds"] for line in lines
             if "perf/evaluation_seconds" in line}  # fmt: skip
    steps = max(taken)
    # What the run notes as its seconds holds all measurements but the last.
    seconds = json.loads((folder / "finished.json").read_text())["seconds"]
    training = seconds - sum(value for step, value in taken.items() if step < steps)
    whole = sum(taken.values())
    told = ", ".join(f"{step}: {value:.1f}" for step, value in taken.items())
    print(f"{folder.name}: {training:.1f} s of training, measured at step {told} s; in all "
          f"{whole:.1f} s, {whole / training:.1%} of training time")  # fmt: skip


def compare_answers(path: Path, num_rows: int, repeats: int) -> None:
    """Print samples a second of both ways, and whether all answers are equal."""
    held_out = prepare(path, num_rows)
    samples = [s for name in ("scenes", "numbers") for s in held_out.groups[name]]
    plain = AutoModelForImageTextToText.from_pretrained(path).eval()
    processor = AutoProcessor.from_pretrained(path)
    ours: Any = load_vlm(str(path), dtype="auto")
    add_token_losses(ours)
    reader = PackedReader(
        ours.eval(), held_out.renderer, held_out.pictures, held_out.max_new_tokens
    )
    ways: dict[str, Callable[[], list[str]]] = {
        "in batches": lambda: in_batches(reader, samples, held_out.batch_size),
        "one at a time": lambda: one_at_a_time(plain, processor, held_out, samples),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    said: dict[str, list[str]] = {}
    for _ in range(repeats):
        for name, answer in ways.items():
            started = time.perf_counter()
            said[name] = answer()
            seconds[name].append(time.perf_counter() - started)
    first, second = (statistics.median(seconds[name]) for name in ways)
    equal = sum(a == b for a, b in zip(*said.values(), strict=True))
    for name, values in seconds.items():
        print(f"{name}: {len(samples) / statistics.median(values):.1f} samples/s "
              f"({', '.join(f'{value:.2f}' for value in values)} s)")  # fmt: skip
    print(f"{second / first:.1f} times as fast; {equal} of {len(samples)} answers equal")


def prepare(path: Path, num_rows: int) -> HeldOut:
    """Return held-out scenes and numbers of the demo."""
    per_language = num_rows // 4
    config = load_config("evaluate", [
        f"model={path}", "out=unused", "data=demo_held_out", f"evaluation.max_rows={per_language}",
    ])  # fmt: skip
    renderer = Renderer(load_processor(str(path)))
    return prepare_held_out(config.data, config.evaluation, renderer)


@torch.no_grad()
def in_batches(reader: PackedReader, samples: list[Sample], batch_size: int) -> list[str]:
    """Answer as `HeldOut.measure` does."""
    found = [""] * len(samples)
    for batch in reader.batches(samples, batch_size):
        for index, text in zip(batch, reader.answers([samples[i] for i in batch]), strict=True):
            found[index] = text
    return found


def one_at_a_time(
    model: Any, processor: Any, held_out: HeldOut, samples: list[Sample]
) -> list[str]:
    """Answer as model cards show it."""
    found = []
    for sample in samples:
        pictures = [{"type": "image", "image": image.load()} for image in sample.row.images]
        content = [*pictures, {"type": "text", "text": sample.row.turns[-2].text}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True,
            return_dict=True, return_tensors="pt",
        )  # fmt: skip
        out = model.generate(
            **inputs, max_new_tokens=held_out.max_new_tokens, do_sample=False,
            eos_token_id=held_out.renderer.stop_token_id,
        )  # fmt: skip
        new = out[0, inputs["input_ids"].shape[1] :]
        found.append(processor.tokenizer.decode(new, skip_special_tokens=True))
    return found


if __name__ == "__main__":
    main()
