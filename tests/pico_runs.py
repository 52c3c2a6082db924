"""Tiny real runs in this process: overrides, the command's own path, and what they leave behind."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from configs.command import load_config
from data.build import build_training_data
from train.model.prepare import prepare_model
from train.process import set_up_process
from train.run import build_trainer
from train.start import start

SHAPES = [
    "model.decoder.vocab_size=400",
    "model.decoder.hidden_size=64",
    "model.decoder.intermediate_size=128",
    "model.decoder.num_attention_heads=4",
    "model.decoder.num_key_value_heads=2",
    "model.decoder.sliding_window=16",
    "model.decoder.initializer_range=0.1",  # large enough that a wrong loss shows
]
TOWER = [
    "model.vision_tower.hidden_size=64",
    "model.vision_tower.intermediate_size=64",
    "model.vision_tower.num_hidden_layers=2",
    "model.vision_tower.num_attention_heads=2",
    "model.vision_tower.image_size=32",
    "model.projector_intermediate_size=128",  # all wide enough for blocks of 64, which 4 bits need
]
HELD_OUT = ["data.held_out.numbers.num_rows=4"]
SCENES = ["data=scenes", "data.sources.scenes.num_rows=60", "data.held_out.scenes.num_rows=4"]
TEXT = ["data=text", "data.sources.numbers.num_rows=60", "data.sources.names.num_rows=60"]
# A step of packs without pictures beside packs with some, for losses and for engines.
MIXED = [
    *SCENES,
    "data.sources.scenes.num_rows=12",
    "data.max_tiles=3",
    "+data.sources.numbers={kind: number_words, num_rows: 60}",
]
FAST = [
    "debug=fast",
    "tracker=jsonl",
    "engine.num_threads=1",
    "data.languages=[en,fr]",
    "data.max_tokens=512",
]
LEARN = ["stage.parts.decoder.learning_rate=3e-3", "stage.parts.projector.learning_rate=3e-3"]


def run(*overrides: str) -> Path:
    """Train with the overrides in this process; return the run folder."""
    config: Any = load_config("train", [*FAST, *overrides])
    start(config)
    return Path(config.output_dir)


def vlm(path: Path) -> list[str]:
    """Overrides that load a VLM."""
    return ["model=vlm", f"model.path={path}"]


def grafted_on(text: Path) -> list[str]:
    """Overrides that compose a VLM."""
    return ["model=compose", f"model.decoder.path={text}", *TOWER]


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without what the clock measures."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [
        {key: value for key, value in json.loads(line).items() if not key.startswith("perf/")}
        for line in lines
    ]


def losses(folder: Path) -> dict[int, float]:
    """{step: train/loss} of a run."""
    return {line["step"]: line["train/loss"] for line in metrics(folder) if "train/loss" in line}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a one-file checkpoint folder."""
    return load_file(folder / "model.safetensors")


def same_weights(first: Path, second: Path) -> bool:
    """Whether two checkpoint folders hold the same bits under the same names."""
    one, two = weights(first), weights(second)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@dataclass(frozen=True)
class Pipeline:
    """Export folders of one small pipeline; never written to."""

    text: Path
    align: Path
    sft: Path
    lora: Path
    merged: Path


def run_pipeline(folder: Path) -> Pipeline:
    """Text LM, graft and align, tune in full and by LoRA, merge."""
    from merge.api import merge_checkpoints

    text = run("model=pico_text", *SHAPES, *TEXT, "stage=text", f"output_dir={folder}/text")
    graft = [*grafted_on(text / "export"), *SCENES, "stage=align"]
    tower = ["stage.parts.vision_tower.mode=full", "stage.parts.vision_tower.learning_rate=3e-3"]
    align = run(*graft, *tower, LEARN[1], f"output_dir={folder}/align")
    tune = [*vlm(align / "export"), *SCENES, *LEARN]
    sft = run(*tune, "stage=sft", f"output_dir={folder}/sft")
    lora = run(*tune, "stage=sft_lora", "adapter.r=4", f"output_dir={folder}/lora")
    merged = folder / "merged"
    merge_checkpoints(vlm=sft / "export", text=text / "export", out=merged, alpha=0.5)
    return Pipeline(*(path / "export" for path in (text, align, sft, lora)), merged)


def all_samples(table: Any) -> list[Any]:
    """Every sample of a table, rendered."""
    return [table.sample(number) for number in range(len(table))]


def make_trainer(*overrides: str, callbacks: tuple[Any, ...] = ()) -> Any:
    """The trainer of a run, with `trainer.samples` and `trainer.plan`; nothing is measured."""
    config: Any = load_config("train", [*FAST, *overrides])
    set_up_process(config.engine.num_threads, config.seed)
    renderer, data = build_training_data(config.model, config.data, seed=config.seed)
    processing_class = renderer.processing_class
    model, table = prepare_model(config, processing_class)
    trainer: Any = build_trainer(
        config, model, table, processing_class, data, config.optim.max_steps, list(callbacks)
    )
    trainer.samples, trainer.plan = all_samples(data.samples), data.plan
    return trainer
