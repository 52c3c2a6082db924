"""The trainer against naive arithmetic: global-batch mean, groups, schedule, checkpoints."""

import json
import logging
import re
from math import cos, pi
from typing import Any

import pytest
import torch
from pico_models import gradients, largest_difference
from pico_runs import MIXED, SCENES, make_trainer, metrics, run, vlm, weights
from torch.nn import functional
from transformers import TrainerCallback

import train.watching.callbacks
from configs.command import load_config
from configs.errors import ConfigError
from data.batches import load_pixels
from train.engines import check_ranks
from train.model.load import load_vlm
from train.planning.flops import flop_shape, flops_of_pack
from train.schedule import warmup_steps

WORST_LOSS = 2e-6  # nats; measured 4.8e-7
WORST_GRADIENT = 5e-6  # share of the largest gradient of a tensor; measured 8.4e-7
SFT = [*MIXED, "stage=sft", "optim.max_steps=1"]


class KeepGradients(TrainerCallback):
    """Copies what the optimizer is about to be given."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.found = {
            name: p.grad.clone()
            for name, p in kwargs["model"].named_parameters()
            if p.requires_grad
        }


def naive_losses(model: Any, trainer: Any) -> list[torch.Tensor]:
    """For each pack of the first step, the nats of its tokens, each sample forwarded alone."""
    size = trainer.plan.packs_per_step
    return [torch.cat(naive_pack(model, trainer, index)) for index in range(size)]


def naive_pack(model: Any, trainer: Any, index: int) -> list[torch.Tensor]:
    """For each sample of a pack the nats of its tokens."""
    losses = []
    for i in trainer.plan.pack(index):
        sample = trainer.samples[i]
        ids = torch.from_numpy(sample.input_ids).long()[None]
        pixels = {}
        if sample.row.images:
            pixels = {"pixel_values": load_pixels(sample, trainer.batches.image_processor)}
        logits = model(input_ids=ids, **pixels).logits[0] * model.config.text_config.logit_scale
        chosen = torch.from_numpy(sample.supervised)[1:]
        losses.append(functional.cross_entropy(logits[:-1][chosen], ids[0, 1:][chosen],
                                               reduction="none"))  # fmt: skip
    return losses


@pytest.mark.parametrize("num_packs", [1, 4])
def test_a_step_is_the_mean_over_all_supervised_tokens(num_packs, pipeline, tmp_path):
    """Accumulated over uneven packs; the mean of the packs' means would be another number."""
    keep = KeepGradients()
    trainer = make_trainer(
        *vlm(pipeline.align), *SFT, "optim.max_grad_norm=0", "data.max_tokens=512",
        f"data.packs_per_step={num_packs}", f"output_dir={tmp_path}", callbacks=(keep,),
    )  # fmt: skip
    trainer.train()
    model: Any = load_vlm(str(pipeline.align), dtype=torch.float32)
    model.model.vision_tower.requires_grad_(False)
    by_pack = naive_losses(model, trainer)
    wanted = torch.cat(by_pack).mean()
    wanted.backward()

    logged = trainer.state.log_history[0]["loss"]
    assert logged == pytest.approx(wanted.item(), abs=WORST_LOSS)
    assert largest_difference(keep.found, gradients(model)) < WORST_GRADIENT
    if num_packs > 1:
        sizes = [len(losses) for losses in by_pack]
        assert max(sizes) > 1.2 * min(sizes), sizes
        of_means = torch.stack([losses.mean() for losses in by_pack]).mean().item()
        assert abs(logged - of_means) > 100 * WORST_LOSS


def test_losses_by_source_and_language_are_those_of_their_rows(pipeline, tmp_path):
    """Over two steps with a learning rate of 0: all tokens of a group weigh alike, in all packs."""
    overrides = [
        *vlm(pipeline.align), *MIXED, "stage=sft", "optim.max_steps=2", "data.packs_per_step=3",
        "stage.parts.decoder.learning_rate=0", "stage.parts.projector.learning_rate=0",
        "evaluation.eval_on_start=false", "evaluation.generate=false", "tracker.logging_steps=2",
    ]  # fmt: skip
    folder = run(*overrides, f"output_dir={tmp_path}/run")
    trainer = make_trainer(*overrides, f"output_dir={tmp_path}/other")
    model: Any = load_vlm(str(pipeline.align), dtype=torch.float32)
    groups: dict[str, list[torch.Tensor]] = {}
    for index in range(6):
        samples = [trainer.samples[i] for i in trainer.plan.pack(index)]
        lengths = [int(sample.supervised.sum()) for sample in samples]
        with torch.no_grad():
            nats = torch.cat(naive_pack(model, trainer, index)).split(lengths)
        for sample, values in zip(samples, nats, strict=True):
            for key in (f"source/{sample.row.source}", f"language/{sample.row.language}"):
                groups.setdefault(key, []).append(values)
    told = next(line for line in metrics(folder) if "train/loss" in line)
    found = {name: value for name, value in told.items() if name.startswith("train/loss/")}
    assert len(groups) == 4  # two sources, two languages
    assert found.keys() == {f"train/loss/{key}" for key in groups}
    for key, values in groups.items():
        wanted = torch.cat(values).mean().item()
        assert found[f"train/loss/{key}"] == pytest.approx(wanted, abs=WORST_LOSS)


@pytest.mark.slow
def test_mfu_counts_the_work_of_all_packs_and_the_wait_for_them(pipeline, tmp_path, monkeypatch):
    """Where the peak of the device is given; and none is told where nobody knows it."""
    overrides = [
        *vlm(pipeline.align), *MIXED, "stage=sft", "optim.max_steps=2", "evaluation.generate=false",
        "evaluation.eval_on_start=false", "tracker.logging_steps=2",
    ]  # fmt: skip
    counts = []
    module = train.watching.callbacks
    inner = module.metrics_of
    monkeypatch.setattr(
        module, "metrics_of", lambda told, **k: counts.extend(told) or inner(told, **k)
    )
    folder = run(*overrides, "engine.peak_tflops=0.001", f"output_dir={tmp_path}/run")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    told = next(line for line in lines if "train/loss" in line)
    trainer = make_trainer(*overrides, f"output_dir={tmp_path}/other")
    shape = flop_shape(trainer.model)
    wanted = 0.0
    for index in range(2 * trainer.plan.packs_per_step):
        samples = [trainer.samples[i] for i in trainer.plan.pack(index)]
        wanted += flops_of_pack(
            shape, [s.num_tokens for s in samples],
            sum(int(s.supervised.sum()) for s in samples), sum(sum(s.num_tiles) for s in samples),
        )  # fmt: skip
    (count,) = counts
    assert count.flops == pytest.approx(wanted)
    assert told["perf/mfu"] == pytest.approx(wanted / (count.seconds * 1e9))
    assert count.data_wait_seconds < count.seconds
    if not torch.cuda.is_available():
        monkeypatch.undo()
        without = run(*overrides, f"output_dir={tmp_path}/without")
        assert "perf/mfu" not in (without / "metrics.jsonl").read_text()


def test_the_last_steps_are_logged_too(pipeline, tmp_path, caplog):
    """And what was measured is told on the console."""
    given = [*vlm(pipeline.align), *SCENES, "stage=sft", "optim.max_steps=3"]
    with caplog.at_level(logging.INFO):
        folder = run(*given, "tracker.logging_steps=2", f"output_dir={tmp_path}/run")
    lines = {line["step"]: line for line in metrics(folder) if "train/loss" in line}
    assert sorted(lines) == [2, 3]
    assert "train/grad_norm/decoder" in lines[3]
    assert re.search(
        r"step 3, scenes: \d\.\d+ nats a token, picture gap .*% exact, chrF", caplog.text
    )


def test_no_sample_supervises_its_first_token(pipeline, tmp_path):
    """Contract: the token before it in a pack belongs to another sample."""
    trainer = make_trainer(*vlm(pipeline.align), *SFT, f"output_dir={tmp_path}")
    assert not any(sample.supervised[0] for sample in trainer.samples)


def test_groups_hold_each_parts_rate_and_decay_matrices_alone(pipeline, tmp_path):
    trainer = make_trainer(
        *vlm(pipeline.align), *SFT, "optim.weight_decay=0.1", f"output_dir={tmp_path}",
        "stage.parts.projector.learning_rate=3e-4", "stage.parts.decoder.learning_rate=2e-5",
    )  # fmt: skip
    optimizer = trainer.create_optimizer()
    rates = {"projector": 3e-4, "decoder": 2e-5}
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    seen = []
    for group in optimizer.param_groups:
        assert group["lr"] == rates[group["part"]] and group["betas"] == (0.9, 0.95)
        for parameter in group["params"]:
            name = names[id(parameter)]
            seen.append(name)
            assert (group["part"] == "projector") is ("multi_modal_projector" in name)
            assert group["weight_decay"] == (0.1 if parameter.ndim > 1 else 0)
    wanted = [name for name, p in trainer.model.named_parameters() if p.requires_grad]
    assert sorted(seen) == sorted(wanted)


def test_each_rate_rises_from_0_and_falls_to_its_share(pipeline, tmp_path):
    """Warm-up, then cosine to min_lr_ratio of each part's own peak (arXiv 2505.08751)."""
    folder = run(
        *vlm(pipeline.align), *MIXED, "stage=sft", "optim.max_steps=13", "optim.warmup_steps=4",
        "optim.min_lr_ratio=0.1", "stage.parts.decoder.learning_rate=2e-5",
        f"output_dir={tmp_path}", "checkpoint.save_steps=100", "evaluation.generate=false",
    )  # fmt: skip
    history = [line for line in metrics(folder) if "train/loss" in line]
    for part, peak in (("projector", 1e-4), ("decoder", 2e-5)):
        rates = [line[f"train/learning_rate/{part}"] / peak for line in history]
        # The rate that each step was made with: the first one moves nothing yet.
        assert rates[:5] == pytest.approx([0, 0.25, 0.5, 0.75, 1])
        assert rates[5] < 1 and rates[12] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + cos(pi * 8 / 9)))


@pytest.mark.parametrize(
    ("wanted", "num_steps", "steps"),
    [(None, 9700, 200), (None, 50, 5), (None, 5, 0), (30, 1000, 30), (30, 10, 10), (0, 10, 0)],
)
def test_warmup(wanted, num_steps, steps):
    assert warmup_steps(wanted, num_steps) == steps


def test_a_global_batch_that_ranks_cannot_share(monkeypatch):
    """Told before anything is read or written, so that the same folder can be used again."""
    config = load_config("train", ["data.packs_per_step=2"])
    check_ranks(config)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ConfigError, match=r"packs_per_step=2 cannot be shared by 3 processes; .*3"):
        check_ranks(config)


def test_deepspeed_without_torchrun(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ConfigError, match="engine=zero2 needs torchrun, also for one process"):
        check_ranks(load_config("train", ["engine=zero2"]))


# ------------------------------------------------------------------------------ checkpoints


def test_a_checkpoint_appears_when_it_is_whole(pipeline, tmp_path, monkeypatch):
    """Nothing is seen under its name until everything is written, and old ones go after that."""
    from transformers import Trainer

    seen = []
    inner = Trainer._save_checkpoint

    def spy(self, *args):
        seen.append(sorted(path.name for path in (tmp_path / "checkpoints").glob("checkpoint-*")))
        inner(self, *args)
        seen.append(sorted(path.name for path in (tmp_path / "checkpoints").glob("checkpoint-*")))

    monkeypatch.setattr(Trainer, "_save_checkpoint", spy)
    run(*vlm(pipeline.align), *MIXED, "stage=align", "checkpoint.save_steps=1",
        "checkpoint.save_total_limit=2", f"output_dir={tmp_path}")  # fmt: skip
    one, two, three = (f"checkpoint-{step}" for step in (1, 2, 3))
    assert seen == [[], [], [one], [one], [one, two], [one, two], [two, three], [two, three]]
    left = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert left == [three, "checkpoint-4"]
    names = weights(tmp_path / "checkpoints/checkpoint-4").keys()
    assert names == weights(tmp_path / "export").keys()
