"""Two processes with each engine, in full and by LoRA, learn what one process learns.

Some runs are stopped after step 2 and go on from their checkpoint.

The data holds packs without pictures, so at some steps one rank has pictures and the other none:
without care that hangs DDP (a gradient never comes) and breaks ZeRO-3 and FSDP2 (other weights are
gathered).
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pico_runs import (
    FAST,
    MIXED,
    SHAPES,
    TOWER,
    losses,
    make_trainer,
    metrics,
    run,
    same_weights,
    vlm,
    weights,
)
from transformers import AutoModelForImageTextToText

from configs.command import load_config
from configs.errors import ConfigError
from train.engines import check_ranks
from train.export_run import export

pytestmark = pytest.mark.timeout(1200)  # the first test waits for all runs
ROOT = Path(__file__).resolve().parents[2]
WORST_LOSS = 5e-6  # nats; measured 4.8e-7, one step of float32
WORST_NORM = 1e-5  # of the gradient's norm; measured 2.3e-7
WORST_WEIGHT = 2e-6  # of weights up to 1; measured 2.6e-7
WORST_FRESH = 1e-4  # where gradients are near 0 and AdamW's first steps are not; measured 1.5e-5
# DeepSpeed computes in bfloat16 throughout, the others by autocast: measured 9.7e-4 nats, 8.5e-3 of
# the norm of gradients, 8.1e-4 of that of all weights; without DeepSpeed 2.7e-4 nats, one weight.
HALF_LOSS, HALF_NORM, HALF_WEIGHT = 5e-3, 0.03, 4e-3
LENGTH = [
    "optim.max_steps=3",
    "evaluation.max_rows=2",
    "evaluation.max_new_tokens=2",
    "evaluation.batch_size=1",
    "evaluation.num_choices=2",
    "evaluation.eval_on_start=false",
    "data.sources.scenes.num_rows=6",
    "data.packs_per_step=4",
    "stage.parts.projector.learning_rate=2e-3",
    "stage.parts.decoder.learning_rate=3e-3",
]
PEAKS = {"vision_tower": 1e-3, "projector": 2e-3, "decoder": 3e-3}
CHECKPOINTING = "engine.gradient_checkpointing=true"
MODES = {
    # In full, for `post_layernorm` of the tower has no gradient, which DDP would wait for.
    "full": ["stage=scratch", "evaluation.generate=false"],
    "lora": ["stage=sft_lora", "adapter.r=3", "evaluation.eval_steps=2"],
}
# What saves memory and is to change nothing; tensors of any size are moved.
MODES["saving-full"] = [*MODES["full"], CHECKPOINTING, "engine.activation_offloading=true"]
MODES["saving-lora"] = [*MODES["lora"], CHECKPOINTING]
# Put together here: transformers knows nothing of how its tensors were named in a file.
MODES["fresh"] = [*MODES["full"], "model=pico_vlm", *SHAPES, *TOWER]
MODES["qlora"] = [*MODES["lora"], "adapter.quantization=nf4"]
# A model in half precision: what trains is held in float32, by us or by DeepSpeed.
MODES["bf16"] = [*MODES["lora"], "model.dtype=bfloat16"]
MODES["bf16-full"] = [*MODES["full"], "model.dtype=bfloat16"]
ENGINES = ["ddp", "fsdp2", "zero2", "zero3"]  # DeepSpeed last: accelerate does not forget it
LEFT_OUT = [("zero2", "saving-full"), ("zero2", "saving-lora"), ("ddp", "saving-lora")]  # for time
RUNS = [(engine, mode) for engine in ENGINES for mode in MODES if mode not in ("qlora", "fresh")]
RUNS = [("ddp", "qlora"), *(each for each in RUNS if each not in LEFT_OUT)]
RUNS += [("fsdp2", "fresh"), ("zero3", "fresh")]
RUNS.sort(key=lambda each: ENGINES.index(each[0]))
# Stopped after step 2, to go on from their checkpoint; between them they load all there is to load.
BROKEN = ["ddp-lora", "fsdp2-full", "fsdp2-lora", "fsdp2-fresh", "zero2-full", "zero3-lora"]
UNBROKEN_TOO = ["fsdp2-full", "fsdp2-lora", "fsdp2-fresh"]
# ZeRO-3 keeps small weights whole, which is all of ours: share out every one of them. And build no
# kernel: DeepSpeed would compile one for gloo.
SCRIPT = """
import json, sys
import deepspeed.comm.torch
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from configs.command import load_config
from train import arguments, run, trainer
from train.model import offload
from train.trainer import GraftTrainer

deepspeed.comm.torch.build_shm_op = lambda: None
trainer.offloading = lambda: offload.offloading(smallest=1)
inner = arguments.deepspeed_config
def shared_out(kind):
    config = inner(kind)
    if config is not None:
        config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    return config
arguments.deepspeed_config = shared_out
fetch = GraftTrainer.get_batch_samples
def stop(self, *args):
    if self.state.global_step == 2:
        raise KeyboardInterrupt
    return fetch(self, *args)
runs, broken = map(json.loads, sys.argv[1:])
for overrides in runs:
    config = load_config("train", overrides)
    if config.output_dir.rsplit("/", 1)[-1] in broken:
        GraftTrainer.get_batch_samples = stop
        try:
            run.train(config)
        except KeyboardInterrupt:
            GraftTrainer.get_batch_samples = fetch
            unset_hf_deepspeed_config()  # as in the new process that a user would start
    run.train(config)
    unset_hf_deepspeed_config()
"""


@pytest.mark.parametrize(
    ("engine", "ranks", "message"),
    [
        ("single", 2, r"engine=single is for one process, but torchrun started 2; take engine=ddp"),
        ("fsdp2", 1, r"engine=fsdp2 shares a model out .* there is one: .* or engine=single"),
    ],
)
def test_an_engine_for_more_or_fewer_processes(engine, ranks, message, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    with pytest.raises(ConfigError, match=message):
        check_ranks(load_config("train", [f"engine={engine}"]))


def overrides_of(mode: str, pipeline: Any) -> list[str]:
    model = [] if mode == "fresh" else vlm(pipeline.align)
    return [*model, *MIXED, *LENGTH, *MODES[mode]]


def test_fsdp2_needs_a_trainer_that_knows_of_it(monkeypatch):
    """transformers 5.17 would shard the sharded model again."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("train.engines.version", lambda package: "5.17.0")
    with pytest.raises(ConfigError, match=r"5\.23 or newer; here is .*: use engine=zero3"):
        check_ranks(load_config("train", [*FAST, "engine=fsdp2", "data.packs_per_step=2"]))


@pytest.fixture(scope="module")
def root(pipeline, tmp_path_factory) -> Path:
    """A folder with a run of each engine and mode by two processes, and of each mode by one."""
    root = tmp_path_factory.mktemp("engines")
    (root / "script.py").write_text(SCRIPT)
    runs = [
        [*FAST, *overrides_of(mode, pipeline), f"engine={engine}", f"output_dir={root}/{name}"]
        for engine, mode in RUNS
        for name in [f"{engine}-{mode}", f"{engine}-{mode}-unbroken"]
        if f"{engine}-{mode}" in UNBROKEN_TOO or not name.endswith("unbroken")
    ]
    arguments = [str(root / "script.py"), json.dumps(runs), json.dumps(BROKEN)]
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    done = subprocess.run(
        [sys.executable, *launch, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=1000, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-6000:]
    for mode in MODES:
        run(*overrides_of(mode, pipeline), "engine=single", f"output_dir={root}/single-{mode}")
    return root


def shown_to_ranks(mode: str, pipeline: Any, folder: Path) -> list[list[bool]]:
    """Whether each of the two packs of each micro-batch has pictures."""
    trainer = make_trainer(*overrides_of(mode, pipeline), f"output_dir={folder}")
    size = trainer.plan.packs_per_step
    shown = [
        any(trainer.samples[i].row.images for i in trainer.plan.pack(at)) for at in range(3 * size)
    ]
    return [shown[at : at + 2] for at in range(0, 3 * size, 2)]


@pytest.mark.slow
@pytest.mark.parametrize("mode", sorted({*MODES} - {"fresh"}))
def test_at_some_steps_one_rank_alone_has_pictures(mode, pipeline, tmp_path):
    """What makes the runs below worth running."""
    micro_batches = shown_to_ranks(mode, pipeline, tmp_path)
    assert [True, False] in micro_batches or [False, True] in micro_batches, micro_batches


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "mode"), RUNS)
def test_the_curve_is_that_of_one_process(engine, mode, root):
    two, one = (metrics(root / f"{name}-{mode}") for name in (engine, "single"))
    half = mode.startswith("bf16")
    worst_loss, worst_norm = (HALF_LOSS, HALF_NORM) if half else (WORST_LOSS, WORST_NORM)
    assert [line.keys() for line in two] == [line.keys() for line in one]
    for ours, alone in zip(two, one, strict=True):
        for name, value in ours.items():
            if "nll" in name or name.startswith("train/loss"):
                assert value == pytest.approx(alone[name], abs=worst_loss), name
            if name.startswith("train/grad_norm"):
                assert value == pytest.approx(alone[name], rel=worst_norm)
    assert sorted(losses(root / f"{engine}-{mode}")) == [1, 2, 3]


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "mode"), [r for r in RUNS if not r[1].startswith("bf16")])
def test_what_ranks_measure_together_is_what_one_measures(engine, mode, root):
    """Every measure by language, and every answer: batches are the same, whoever takes them.

    Not in bfloat16: gradients of ranks are added in another order, and what was trained differs.
    """
    two, one = (sorted((root / f"{n}-{mode}/evaluation").glob("step-*.json"))
                for n in (engine, "single"))  # fmt: skip
    assert [path.name for path in two] == [path.name for path in one] and two
    for ours, alone in zip(two, one, strict=True):
        found, wanted = (json.loads(path.read_text())["groups"] for path in (ours, alone))
        assert found.keys() == wanted.keys()
        for name, group in found.items():
            assert group["num_rows"] == wanted[name]["num_rows"]
            assert group["answers"] == wanted[name]["answers"]
            for measure, values in group["by_language"].items():
                assert values == pytest.approx(wanted[name]["by_language"][measure], abs=WORST_LOSS)


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "mode"), RUNS)
def test_each_part_keeps_its_learning_rate(engine, mode, root):
    """Through the schedule and over the checkpoint: always the same share of its peak."""
    parts = 3 if mode.endswith("full") or mode == "fresh" else 2
    for line in metrics(root / f"{engine}-{mode}"):
        rates = {
            name.rsplit("/", 1)[-1]: value
            for name, value in line.items()
            if "learning_rate" in name
        }
        if "train/loss" in line:
            assert len(rates) == parts
            shares = [value / PEAKS[part] for part, value in rates.items()]
            assert shares == pytest.approx([shares[0]] * parts)
            # one step of warm-up, from 0; then a cosine down to a tenth, of which one step is half
            assert shares[0] == pytest.approx({1: 0.0, 2: 1.0, 3: 0.55}[line["step"]])


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "mode"), RUNS)
def test_the_export_is_whole(engine, mode, root):
    two, one = (root / f"{name}-{mode}" / "export" for name in (engine, "single"))
    ours, alone = weights(two), weights(one)
    assert ours.keys() == alone.keys()
    half = mode.startswith("bf16")
    if half:  # as a whole: what has no gradient but rounding errors goes anywhere
        apart = torch.stack([(ours[name].float() - alone[name].float()).norm() for name in ours])
        size = torch.stack([value.float().norm() for value in alone.values()])
        assert float(apart.norm() / size.norm()) < HALF_WEIGHT
    else:
        worst = WORST_FRESH if mode == "fresh" else WORST_WEIGHT
        for name, value in ours.items():
            torch.testing.assert_close(value, alone[name], rtol=0, atol=worst)
    model, info = AutoModelForImageTextToText.from_pretrained(two, output_loading_info=True)
    assert not any(info.values()), info
    assert type(model).__name__ == model.config.architectures[0]
    assert model.generate(torch.arange(20, 24)[None], max_new_tokens=2).shape[1] > 4
    files = {path.name for path in two.rglob("*")}
    assert files == {path.name for path in one.rglob("*")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "mode"), [each for each in RUNS if "full" not in each[1] and each[1] != "fresh"]
)
def test_what_is_frozen_is_exported_as_it_was(engine, mode, root, pipeline):
    """To the bit, whatever the engine makes of dtypes while it trains."""
    before, after = weights(pipeline.align), weights(root / f"{engine}-{mode}" / "export")
    frozen = [name for name in after if "vision_tower" in name or "embed_tokens" in name]
    assert len(frozen) > 10
    for name in frozen:
        assert torch.equal(after[name], before[name].to(after[name].dtype)), name


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "mode"), RUNS)
def test_a_checkpoint_is_exported_by_one_process(engine, mode, root, tmp_path):
    """Whatever engine wrote it: at the last step it is what the run itself exported."""
    two = root / f"{engine}-{mode}"
    given = [f"run={two}", f"out={tmp_path}/out", "engine.num_threads=1"]
    export(load_config("export", given))
    assert same_weights(tmp_path / "out", two / "export")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["full", "lora", "fresh"])
def test_a_broken_run_with_fsdp2_is_an_unbroken_one(mode, root):
    """To the bit: what a checkpoint gathers is what it shares out again."""
    broken, unbroken = (root / f"fsdp2-{mode}{end}" for end in ("", "-unbroken"))
    assert metrics(broken) == metrics(unbroken)
    assert same_weights(broken / "export", unbroken / "export")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["full", "lora", "fresh"])
def test_one_process_goes_on_from_what_fsdp2_saved(mode, root, pipeline, tmp_path):
    """The same files on any number of ranks: the last of three steps is that of a run alone."""
    for name in ("config.yaml", "metrics.jsonl", "rows.jsonl", "checkpoints/checkpoint-2"):
        whole = root / f"fsdp2-{mode}" / name
        (shutil.copytree if whole.is_dir() else shutil.copy)(whole, tmp_path / name)
    alone = run(*overrides_of(mode, pipeline), "engine=single", f"output_dir={tmp_path}")
    assert losses(alone) == pytest.approx(losses(root / f"single-{mode}"), abs=WORST_LOSS)
    ours, theirs = (weights(folder / "export") for folder in (alone, root / f"single-{mode}"))
    worst = WORST_FRESH if mode == "fresh" else WORST_WEIGHT
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=worst)


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "mode"), RUNS)
def test_one_process_writes_the_folder(engine, mode, root):
    two = root / f"{engine}-{mode}"
    lines = (two / "environment.jsonl").read_text().splitlines()
    starts = 2 if two.name in BROKEN else 1
    assert [json.loads(line)["world_size"] for line in lines] == [2] * starts
    checkpoints = sorted(path.name for path in (two / "checkpoints").iterdir())
    assert checkpoints == ["checkpoint-2", "checkpoint-3"]
