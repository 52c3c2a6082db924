"""Samples a second and memory of training: ours against stock `trl.SFTTrainer`, in one run.

    python tests/benchmarks/train_vs_trl.py                    # CPU: pico and mid, an hour
    python tests/benchmarks/train_vs_trl.py --size 8b          # one GPU: 8B-shaped, bf16, LoRA
    python tests/benchmarks/train_vs_trl.py --profile          # where the time goes instead

Same random Aya Vision model, same JPEG files of mixed sizes with the same captions, same number of
samples, same AdamW, peak and schedule; gradient checkpointing on both sides; the tower is frozen on
both. Stock TRL gets prompt-completion rows, so that its loss too falls on the captions alone. Each
side takes turns in a process of its own, repeated; afterwards one and the same code measures the
loss of both on held-out rows. Figures are medians; the ratio is what to read. The first step of a
run is not timed. Memory is the most that the process had resident in training (on a GPU: that torch
had allocated), above what it had when training began.
"""

import argparse
import ctypes
import gc
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path[:] = [str(Path(__file__).resolve().parents[2]), *sys.path[1:]]

import numpy as np
import torch
from torch.autograd import DeviceType

SIDES = ("trl", "ours")
LEARNING_RATE = 5e-4
ASK = "What is in the picture?"
COLOURS = ("red", "green", "blue", "yellow", "black", "white")
PLACES = ("left", "right", "top", "bottom")
PROFILED_STEPS, PROFILE_ROWS = 4, 8
# Ops of a profile: within a range of one of these names, else by their own. The first match wins.
RANGES = {
    "pictures and text": r"enumerate\(DataLoader\)",
    "vision tower": r"^vision tower$",
    "optimizer": r"Optimizer\.step",
}
GROUPS = {
    "matrix products": r"::(mm|addmm|bmm|baddbmm)$",
    "attention": r"attention",
    "elementwise": r"::(mul|add|addc\w+|sub|div|neg|pow|exp|rsqrt|mean|sum|gelu|silu|where)"
    r"(_|_backward)?$",
    "softmax": r"softmax",
    "copies": r"::(copy_|cat|fill_|zero_|gather|embedding\w*|_?index\w*|masked_\w+)$",
    "autograd's own": r"Backward\d*$|^autograd::|AccumulateGrad",
}


@dataclass(frozen=True)
class Size:
    """A model, its pictures, and how many of them are learned from."""

    decoder: dict[str, Any]
    tower: dict[str, Any]
    vocab_size: int  # rows of the embedding; the tokenizer fills the first of them
    max_patches: int  # tiles a picture at most, without the thumbnail
    longest: int  # pixels
    num_samples: int
    samples_a_step: int
    max_tokens: int  # of a pack: about `samples_a_step` samples
    dtype: str = "float32"


def decoder(hidden: int, inner: int, layers: int, heads: int, groups: int) -> dict[str, int]:
    """Return the shape of a Cohere2."""
    return dict(hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
                num_attention_heads=heads, num_key_value_heads=groups)  # fmt: skip


def tower(hidden: int, inner: int, layers: int, heads: int, image: int = 364) -> dict[str, int]:
    """Return the shape of a SigLIP with patches of 14 pixels."""
    return dict(hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
                num_attention_heads=heads, image_size=image, patch_size=14)  # fmt: skip


SIZES = {
    # Tiles of 140 pixels (25 image tokens) and few of them, for a quick look.
    "tiny": Size(decoder(64, 128, 4, 4, 2), tower(64, 128, 2, 2, 140), 2048, 4, 600, 960, 8, 1000),
    "pico": Size(decoder(128, 352, 4, 4, 2), tower(96, 256, 3, 3), 8192, 12, 1600, 48, 8, 12288),
    "mid": Size(decoder(384, 1024, 8, 6, 2), tower(192, 512, 6, 3), 32768, 12, 1600, 32, 8, 12288),
    "8b": Size(decoder(4096, 14336, 32, 32, 8), tower(1152, 4304, 27, 16), 256_000, 12, 1600, 258,
               6, 8192, dtype="bfloat16"),
}  # fmt: skip


# ------------------------------------------------------------------------- model and rows


def write_rows(folder: Path, size: Size, num_rows: int, *, seed: int) -> None:
    """Write JPEG files of mixed sizes and `rows.jsonl` with captions that the pictures decide."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    lines = []
    for number in range(num_rows):
        long = int(np.exp(rng.uniform(np.log(size.longest / 8), np.log(size.longest))))
        short = int(long * rng.uniform(0.4, 1.0))
        width, height = (long, short) if rng.random() < 0.7 else (short, long)
        noise = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        image = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
        said = []
        for _ in range(int(rng.integers(1, 8))):
            colour, place = str(rng.choice(COLOURS)), str(rng.choice(PLACES))
            image.paste(colour, place_of(place, width, height))
            said.append(f"something {colour} at the {place}")
        name = f"{number:05}.jpg"
        image.save(folder / name, quality=90)
        lines.append({"image": name, "caption": " and ".join(said), "language": "en"})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "rows.jsonl").write_text(text, encoding="utf-8")


def place_of(place: str, width: int, height: int) -> tuple[int, int, int, int]:
    """Return the box of a quarter of the picture at one of its sides."""
    boxes = {
        "left": (0, height // 4, width // 4, 3 * height // 4),
        "right": (3 * width // 4, height // 4, width, 3 * height // 4),
        "top": (width // 4, 0, 3 * width // 4, height // 4),
        "bottom": (width // 4, 3 * height // 4, 3 * width // 4, height),
    }
    return boxes[place]


def write_model(folder: Path, size: Size, rows: Path) -> None:
    """Save a random Aya Vision model and its processor, tokenizer made of the captions."""
    from transformers import (
        Cohere2Config,
        Cohere2ForCausalLM,
        SiglipVisionConfig,
        SiglipVisionModel,
    )

    from data.processor import compose_processor
    from data.tokenizer import train_tokenizer
    from train.model.compose import compose

    texts = [json.loads(line)["caption"] for line in (rows / "rows.jsonl").open()]
    tokenizer = train_tokenizer([*texts, ASK], vocab_size=512)
    torch.manual_seed(0)
    # Random logits then spread by 1, and frozen embeddings leave LoRA room to learn.
    logit_scale = 1 / (0.02 * size.decoder["hidden_size"] ** 0.5)
    shape = Cohere2Config(
        **size.decoder, vocab_size=size.vocab_size, logit_scale=logit_scale, sliding_window=4096,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    device, dtype = "cuda" if torch.cuda.is_available() else "cpu", getattr(torch, size.dtype)
    with torch.device(device):
        text_lm = Cohere2ForCausalLM._from_config(shape, dtype=dtype)
        vision = SiglipVisionModel._from_config(
            SiglipVisionConfig(**size.tower, vision_use_head=False), dtype=dtype
        )
    model = compose(text_lm.cpu(), vision.cpu(), tokenizer, downsample_factor=2)
    model.save_pretrained(folder)
    compose_processor(
        tokenizer,
        image_size=size.tower["image_size"],
        patch_size=size.tower["patch_size"],
        downsample_factor=2,
        crop_to_patches=True,
        max_patches=size.max_patches,
    ).save_pretrained(folder)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # the sides, processes of their own, need all of it


# ---------------------------------------------------------------------------------- sides


class Clock:
    """A trainer callback: seconds and memory from the end of the first step to that of the last."""

    def __init__(self, *, profiles: bool = False) -> None:
        """Nothing has been measured yet. With `profiles` training ends after PROFILED_STEPS."""
        self.started = self.ended = (0.0, 0.0)
        self.num_steps = 0
        self.bytes_before = 0
        self.profiler = torch.profiler.profile() if profiles else None

    @property
    def is_done(self) -> bool:
        """Whether there is nothing left to measure."""
        return self.profiler is not None and self.num_steps > PROFILED_STEPS

    def on_train_begin(self, model: Any) -> None:
        """Take the memory that model and data have, without what was freed before."""
        if self.profiler is not None:
            parts = ((name.rsplit(".", 1)[-1], part) for name, part in model.named_modules())
            tower = next(part for name, part in parts if name == "vision_tower")
            tower.forward = torch.profiler.record_function("vision tower")(tower.forward)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            self.bytes_before = torch.cuda.memory_allocated()
            return
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): VmHWM begins anew
        self.bytes_before = bytes_of_process("VmRSS")

    def on_step_end(self) -> None:
        """Take the time of a step; the first one warms up."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = (time.perf_counter(), time.process_time())
        self.num_steps += 1
        if self.num_steps == 1:
            self.started = now
            if self.profiler is not None:
                self.profiler.start()
        self.ended = now

    def on_train_end(self) -> None:
        """Stop what was begun."""
        if self.profiler is not None:
            self.profiler.stop()

    def figures(self) -> dict[str, float]:
        """Return seconds, CPU seconds and bytes; call it as soon as training has ended."""
        wall, cpu = (end - start for start, end in zip(self.started, self.ended, strict=True))
        if torch.cuda.is_available():
            peak = torch.cuda.max_memory_allocated()
        else:
            peak = bytes_of_process("VmHWM")
        grown = peak - self.bytes_before
        return {"seconds": wall, "cpu_seconds": cpu, "peak_bytes": peak, "grown_bytes": grown}

    def profile(self) -> dict[str, Any]:
        """Return the groups of ops with the most time of their own, with shares of all time."""
        assert self.profiler is not None
        on_gpu, spent = torch.cuda.is_available(), Counter[str]()
        num_ops = 0
        for op in self.profiler.events() or ():
            if op.device_type == DeviceType.CPU:  # a kernel counts for the op that started it
                own = op.self_device_time_total if on_gpu else op.self_cpu_time_total
                spent[group_of(op)] += own / 1e6
                num_ops += 1
        whole = self.ended[0] - self.started[0]
        rest = "GPU at rest" if on_gpu else "outside of ops"
        spent[rest] = whole - spent.total()
        shares = {name: seconds / whole for name, seconds in spent.most_common(PROFILE_ROWS)}
        return {"num_ops": num_ops, "shares": shares}


def group_of(op: Any) -> str:
    """Return the group of an op of a profile."""
    own, names = op.name, [op.name]
    while (op := op.cpu_parent) is not None:
        names.append(op.name)
    within = (key for key, found in RANGES.items() if any(re.search(found, x) for x in names))
    alike = (key for key, found in GROUPS.items() if re.search(found, own))
    return next(within, None) or next(alike, "other ops")


def bytes_of_process(counter: str) -> int:
    """Return what proc(5) tells of this process: VmRSS, resident now, or VmHWM, at its highest."""
    text = Path("/proc/self/status").read_text()
    return int(text.split(f"{counter}:")[1].split()[0]) * 1024


def callback_of(clock: Clock) -> Any:
    """Return the clock as transformers' trainer takes it."""
    from transformers import TrainerCallback

    class Callback(TrainerCallback):
        def on_train_begin(self, *_: Any, model: Any, **__: Any) -> None:
            clock.on_train_begin(model)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            clock.on_step_end()
            control.should_training_stop |= clock.is_done

        def on_train_end(self, *_: Any, **__: Any) -> None:
            clock.on_train_end()

    return Callback()


def our_config(folder: Path, size: Size, mode: str) -> Any:
    """Return the config of our side."""
    from configs.command import load_config

    return load_config("train", [
        "model=vlm", f"model.path={folder / 'model'}", f"model.dtype={size.dtype}",
        "data=files", f"data.sources.files.path={folder / 'rows/rows.jsonl'}",
        "+data.sources.files.prompts={en: ['" + ASK + "']}", "data.packs_per_step=1",
        f"data.max_tokens={size.max_tokens}", "data.max_tiles=4096",
        f"data.num_workers={num_workers()}",
        f"data.cache_dir={folder / 'cache'}",
        f"stage={'sft' if mode == 'full' else 'sft_lora'}", "tracker=jsonl",
        *(["adapter.r=16", "adapter.lora_alpha=32"] if mode == "lora" else []),
        f"stage.parts.projector.learning_rate={LEARNING_RATE}",
        f"stage.parts.decoder.learning_rate={LEARNING_RATE}",
        "optim.warmup_steps=0", "optim.weight_decay=0", "engine.gradient_checkpointing=true",
        f"output_dir={folder / 'ours'}",
    ])  # fmt: skip


def train_ours(folder: Path, size: Size, mode: str, clock: Clock, seed: int) -> tuple[Any, int]:
    """Train with this project; return the model and the number of samples of the timed steps."""
    from data.build import build_training_data
    from train.model.prepare import prepare_model
    from train.process import set_up_process
    from train.run import build_trainer
    from train.watching import memory_peaks

    config = our_config(folder, size, mode)
    config.seed = seed
    set_up_process(num_threads(), seed)
    renderer, data = build_training_data(config.model, config.data, seed=seed)
    model, table = prepare_model(config, renderer.processing_class)
    assert data.plan is not None and data.samples is not None
    num_steps = data.plan.num_steps(1)
    trainer = build_trainer(
        config, model, table, renderer.processing_class, data, num_steps, [callback_of(clock)]
    )
    trainer.args.save_strategy = "no"
    # It would let the peak that the clock reads begin anew at each phase.
    with mock.patch.object(memory_peaks, "reset_peak"):
        trainer.train()
    seen = sum(len(data.plan.pack(step)) for step in range(1, clock.num_steps))
    return trainer.model, seen


def train_trl(folder: Path, size: Size, mode: str, clock: Clock, seed: int) -> tuple[Any, int]:
    """Train with stock TRL, as its documentation has it for pictures."""
    import datasets
    from peft import LoraConfig
    from transformers import AutoModelForImageTextToText, AutoProcessor, set_seed
    from trl import SFTConfig, SFTTrainer

    set_seed(seed)
    torch.set_num_threads(num_threads())
    rows = [json.loads(line) for line in (folder / "rows/rows.jsonl").open()]
    table = datasets.Dataset.from_list(
        [
            {
                "images": [str(folder / "rows" / row["image"])],
                "prompt": [{"role": "user", "content": ASK}],
                "completion": [{"role": "assistant", "content": row["caption"]}],
            }
            for row in rows
        ]
    ).cast_column("images", datasets.List(datasets.Image()))
    dtype = getattr(torch, size.dtype)
    # Weights that train are held in float32 on both sides.
    held = torch.float32 if mode == "full" else dtype
    model = AutoModelForImageTextToText.from_pretrained(folder / "model", dtype=held)
    model.model.vision_tower.requires_grad_(False)
    adapter = LoraConfig(
        r=16, lora_alpha=32, task_type="CAUSAL_LM",
        target_modules=r"model\.language_model\..*\.(q|k|v|o|gate|up|down)_proj",
        modules_to_save=["multi_modal_projector"],
    )  # fmt: skip
    num_steps = len(rows) // size.samples_a_step
    arguments = SFTConfig(
        output_dir=str(folder / "trl"), max_length=None, completion_only_loss=True,
        per_device_train_batch_size=size.samples_a_step, max_steps=num_steps,
        learning_rate=LEARNING_RATE, lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.1}, warmup_steps=0, weight_decay=0.0,
        adam_beta1=0.9, adam_beta2=0.95, optim="adamw_torch_fused", max_grad_norm=1.0,
        gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": False},
        bf16=size.dtype != "float32", use_cpu=not torch.cuda.is_available(),
        dataloader_num_workers=num_workers(), report_to=[], save_strategy="no", disable_tqdm=True,
        logging_steps=10**6, seed=seed,
    )  # fmt: skip
    trainer = SFTTrainer(
        model=model, args=arguments, train_dataset=table,
        processing_class=AutoProcessor.from_pretrained(folder / "model"),
        peft_config=adapter if mode == "lora" else None, callbacks=[callback_of(clock)],
    )  # fmt: skip
    trainer.train()
    return trainer.model, size.samples_a_step * (clock.num_steps - 1)


def num_threads() -> int:
    """Return the CPU threads of a side: one, for other jobs share the machine."""
    return 8 if torch.cuda.is_available() else 1


def num_workers() -> int:
    """Return the processes that prepare batches; a CPU run has no core to spare for them."""
    return 8 if torch.cuda.is_available() else 0


def flops_a_sample(model: Any, folder: Path, size: Size, mode: str) -> float:
    """Return the mean FLOPs of a row, by one formula for both sides.

    Both see every row once, so that the mean is also that of the timed steps, but for the first.
    """
    from data.batches import PackedSample
    from data.build import build_training_data
    from train.planning.flops import flop_shape
    from train.watching.meter import flops_of

    config = our_config(folder, size, mode)
    _, data = build_training_data(config.model, config.data, seed=0)
    assert data.samples is not None
    table, shape = data.samples, flop_shape(model)
    rows = [PackedSample.of(table.sample(number)) for number in range(len(table))]
    return flops_of(shape, rows) / len(rows)


def held_out_loss(model: Any, folder: Path) -> float:
    """Return the mean nats a token of held-out captions, by the same code for both sides."""
    from peft import PeftModel

    from configs.command import load_config
    from data.processor import load_processor
    from data.render import Renderer
    from train.measuring.held_out import prepare_held_out
    from train.model.loss import add_token_losses

    config = load_config("train", [
        "model=vlm", f"model.path={folder / 'model'}", "data=files",
        f"data.sources.files.path={folder / 'rows/rows.jsonl'}",
        f"+data.held_out.files={{kind: files, path: {folder / 'held_out/rows.jsonl'}}}",
        "+data.held_out.files.prompts={en: ['" + ASK + "']}",
        f"data.cache_dir={folder / 'cache'}", "data.max_tokens=8192", "data.max_tiles=4096",
    ])  # fmt: skip
    renderer = Renderer(load_processor(str(folder / "model")))
    held_out = prepare_held_out(config.data, config.evaluation, renderer)
    if isinstance(model, PeftModel):
        model = model.merge_and_unload()
    add_token_losses(model)
    with torch.autocast("cuda", torch.bfloat16, enabled=torch.cuda.is_available()):
        return held_out.measure(model, generate=False)["files"].metrics()["nll"]


# ------------------------------------------------------------------------------- the runs


def child(side: str, folder: Path, size: Size, mode: str, seed: int, *, profiles: bool) -> None:
    """Train one side once and write its figures to standard output as the last line."""
    from train.planning.flops import peak_flops

    clock = Clock(profiles=profiles)
    train = train_ours if side == "ours" else train_trl
    model, num_samples = train(folder, size, mode, clock, seed)
    figures: dict[str, Any] = clock.figures() | {"samples": num_samples, "steps": clock.num_steps}
    if profiles:
        print("\n" + json.dumps(figures | clock.profile()))
        return
    flops = flops_a_sample(model, folder, size, mode) * num_samples / figures["seconds"]
    peak = peak_flops(None, model.device)
    figures |= {"flops": flops, "mfu": flops / peak if peak else None}
    print("\n" + json.dumps(figures | {"held_out": held_out_loss(model, folder)}))


def run_child(side: str, folder: Path, name: str, mode: str, *options: str) -> dict[str, Any]:
    """Start a process for one side; return its figures."""
    command = [sys.executable, __file__, "--child", side, "--folder", str(folder), *options]
    done = subprocess.run(
        [*command, "--size", name, "--mode", mode], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-4000:]}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def compare(name: str, modes: Sequence[str], repeats: int, *, profiles: bool) -> None:
    """Print the figures of both sides and their ratios for one size, or where their time goes."""
    size = SIZES[name]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_rows(folder / "rows", size, size.num_samples, seed=0)
        write_rows(folder / "held_out", size, 32, seed=1)
        write_model(folder / "model", size, folder / "rows")
        for mode in modes:
            title = f"\n{name}, sft-{mode}, gradient checkpointing, {device_name()}"
            if profiles:
                print(title)
                for side in SIDES:
                    report_profile(side, run_child(side, folder, name, mode, "--profile"))
                continue
            found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
            for seed in range(repeats):  # of the order of rows and of LoRA
                for side in SIDES:
                    found[side].append(run_child(side, folder, name, mode, "--seed", str(seed)))
            print(title)
            report(found)


def report_profile(side: str, run: dict[str, Any]) -> None:
    """Print where the time of a side goes."""
    steps = run["steps"] - 1
    print(
        f"  {side}: {steps} steps of {1e3 * run['seconds'] / steps:,.0f} ms under the profiler, "
        f"{run['samples'] / steps:.1f} samples and {run['num_ops'] / steps:,.0f} ops each"
    )
    for group, share in run["shares"].items():
        print(f"    {share:>6.1%}  {group}", flush=True)


def report(found: dict[str, list[dict[str, Any]]]) -> None:
    """Print medians and ratios of one size and mode."""
    for side, runs in found.items():
        per_second = statistics.median(run["samples"] / run["seconds"] for run in runs)
        cpu = statistics.median(run["samples"] / run["cpu_seconds"] for run in runs)
        grown = statistics.median(run["grown_bytes"] for run in runs)
        flops = statistics.median(run["flops"] for run in runs)
        mfu = statistics.median(run["mfu"] or 0 for run in runs)
        losses = sorted(run["held_out"] for run in runs)
        print(
            f"  {side:<6}{per_second:>8.3f} samples/s{cpu:>8.3f} a CPU second"
            f"{flops / 1e9:>10,.1f} GFLOP/s{f' ({mfu:.1%} MFU)' if mfu else ''}"
            f"{grown / 2**20:>9,.0f} MiB above the loaded model, held-out loss "
            f"{statistics.median(losses):.3f} ({losses[0]:.3f} to {losses[-1]:.3f}) after "
            f"{runs[0]['steps']} steps"
        )
    pairs = list(zip(found["trl"], found["ours"], strict=True))

    def ratios(key: str) -> list[float]:
        return sorted(
            (ours["samples"] / ours[key]) / (trl["samples"] / trl[key]) for trl, ours in pairs
        )

    wall, cpus = ratios("seconds"), ratios("cpu_seconds")
    memory = statistics.median(trl["grown_bytes"] / ours["grown_bytes"] for trl, ours in pairs)
    print(
        f"  ours is {statistics.median(wall):.2f} times as fast ({wall[0]:.2f} to {wall[-1]:.2f}), "
        f"{statistics.median(cpus):.2f} by CPU seconds ({cpus[0]:.2f} to {cpus[-1]:.2f}), "
        f"with 1/{memory:.2f} of the memory",
        flush=True,
    )


def device_name() -> str:
    """Return what it ran on."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "1 CPU thread"


def main() -> None:
    """Compare, or be one side of a comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--size", choices=SIZES, action="append")
    parser.add_argument("--mode", choices=("full", "lora"), action="append")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--profile", action="store_true", help="tell where the time goes instead")
    parser.add_argument("--child", choices=SIDES)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.child:
        size, mode = SIZES[options.size[0]], options.mode[0]
        child(options.child, options.folder, size, mode, options.seed, profiles=options.profile)
        return
    names = options.size or ("pico", "mid")
    print(json.dumps({name: asdict(SIZES[name]) for name in names}))
    for name in names:
        # Weights that train in full are held in float32, 8B of which fit on no card with AdamW.
        modes = options.mode or (("lora",) if name == "8b" else ("full", "lora"))
        compare(name, modes, options.repeats, profiles=options.profile)


if __name__ == "__main__":
    main()
