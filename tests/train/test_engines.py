"""Two processes with DDP, ZeRO-2 and ZeRO-3 learn what one process learns, and export it.

Both ZeROs are interrupted after step 2 and go on from their checkpoint.

The data holds packs without pictures, so at some steps one rank has pictures and the other none:
without care that hangs DDP (a gradient never comes) and breaks ZeRO-3 (other weights are gathered).
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pico_runs import FAST, MIXED, losses, make_trainer, metrics, run, same_weights, vlm, weights
from transformers import AutoModelForImageTextToText

from configs.command import load_config
from train.export_run import export

ROOT = Path(__file__).resolve().parents[2]
WORST_LOSS = 5e-6  # nats; measured 4.8e-7
WORST_WEIGHT = 2e-6  # of weights up to 1; measured 7.7e-8
LENGTH = [
    "optim.max_steps=3",
    "evaluation.max_rows=2",
    "evaluation.max_new_tokens=2",
    "data.sources.scenes.num_rows=6",
]
RUNS = {
    # In full, for `post_layernorm` of the tower has no gradient, which DDP would wait for.
    "ddp": ["stage=scratch", "data.packs_per_step=4"],
    "zero2": ["stage=sft", "data.packs_per_step=4"],
    "zero3": ["stage=sft_lora", "adapter.r=4", "evaluation.eval_steps=2"],
}
# ZeRO-3 keeps small weights whole, which is all of ours: share out every one of them. And build no
# kernel: DeepSpeed would compile one for gloo.
SCRIPT = """
import json, sys
import deepspeed.comm.torch
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from configs.command import load_config
from train import arguments, run
from train.trainer import GraftTrainer

deepspeed.comm.torch.build_shm_op = lambda: None
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
for overrides in json.loads(sys.argv[1]):
    config = load_config("train", overrides)
    if config.engine.kind.name != "ddp":  # interrupted after a checkpoint, then resumed
        GraftTrainer.get_batch_samples = stop
        try:
            run.train(config)
        except KeyboardInterrupt:
            GraftTrainer.get_batch_samples = fetch
            unset_hf_deepspeed_config()  # as in the new process that a user would start
    run.train(config)
"""


def overrides_of(engine: str, pipeline: Any) -> list[str]:
    return [*vlm(pipeline.align), *MIXED, *LENGTH, *RUNS[engine]]


@pytest.fixture(scope="module")
def folders(pipeline, tmp_path_factory) -> dict[str, tuple[Path, Path]]:
    """{engine: (run of two processes, run of one)}"""
    root = tmp_path_factory.mktemp("engines")
    (root / "script.py").write_text(SCRIPT)
    runs = [
        [*FAST, *overrides_of(engine, pipeline), f"engine={engine}", f"output_dir={root}/{engine}"]
        for engine in RUNS
    ]
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    done = subprocess.run(
        [sys.executable, *launch, str(root / "script.py"), json.dumps(runs)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-9000:]
    return {
        engine: (
            root / engine,
            run(*overrides_of(engine, pipeline), f"output_dir={root}/{engine}-alone"),
        )
        for engine in RUNS
    }


@pytest.mark.slow
@pytest.mark.parametrize("engine", RUNS)
def test_at_some_steps_one_rank_alone_has_pictures(engine, pipeline, tmp_path):
    """What makes the runs below worth running."""
    trainer = make_trainer(*overrides_of(engine, pipeline), f"output_dir={tmp_path}")
    size = trainer.plan.packs_per_step
    shown = [
        [any(trainer.samples[i].row.images for i in trainer.plan.pack(step * size + at))
         for at in range(size)]
        for step in range(3)
    ]  # fmt: skip
    micro_batches = [packs[at : at + 2] for packs in shown for at in range(0, size, 2)]
    assert [True, False] in micro_batches or [False, True] in micro_batches, shown


@pytest.mark.slow
@pytest.mark.parametrize("engine", RUNS)
def test_the_curve_is_that_of_one_process(engine, folders):
    two, one = (metrics(folder) for folder in folders[engine])
    assert [line.keys() for line in two] == [line.keys() for line in one]
    for ours, alone in zip(two, one, strict=True):
        for name, value in ours.items():
            if "nll" in name or name == "train/loss":
                assert value == pytest.approx(alone[name], abs=WORST_LOSS), name
            if name == "train/grad_norm":
                assert value == pytest.approx(alone[name], rel=1e-4)
    assert sorted(losses(folders[engine][0])) == [1, 2, 3]


@pytest.mark.slow
@pytest.mark.parametrize("engine", RUNS)
def test_the_export_is_whole(engine, folders):
    two, one = (folder / "export" for folder in folders[engine])
    ours, alone = weights(two), weights(one)
    assert ours.keys() == alone.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, alone[name], rtol=0, atol=WORST_WEIGHT)
    model, info = AutoModelForImageTextToText.from_pretrained(two, output_loading_info=True)
    assert not any(info.values()), info
    assert model.generate(torch.arange(20, 24)[None], max_new_tokens=2).shape[1] > 4
    files = {path.name for path in two.rglob("*")}
    assert files == {path.name for path in one.rglob("*")}


@pytest.mark.slow
@pytest.mark.parametrize("engine", RUNS)
def test_a_checkpoint_is_exported_by_one_process(engine, folders, tmp_path):
    """Whatever engine wrote it: at the last step it is what the run itself exported."""
    two, _ = folders[engine]
    given = [f"run={two}", f"out={tmp_path}/out", "engine.num_threads=1"]
    export(load_config("export", given))
    assert same_weights(tmp_path / "out", two / "export")


@pytest.mark.slow
@pytest.mark.parametrize("engine", RUNS)
def test_one_process_writes_the_folder(engine, folders):
    two, _ = folders[engine]
    lines = (two / "environment.jsonl").read_text().splitlines()
    starts = 1 if engine == "ddp" else 2
    assert [json.loads(line)["world_size"] for line in lines] == [2] * starts
    checkpoints = sorted(path.name for path in (two / "checkpoints").iterdir())
    assert checkpoints == ["checkpoint-2", "checkpoint-3"]
