"""TRL's arguments from ours: optimizer, schedule, checkpoints, engine."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from trl import SFTConfig

from configs.schema import DEEPSPEED, EngineKind, TrainConfig
from train.lost import set_group_timeouts
from train.precision import computes_in_bf16
from train.ranks import num_ranks
from train.schedule import warmup_steps


@dataclass
class GraftArguments(SFTConfig):
    """TRL's arguments, and what its trainer does not know of."""

    is_placed: bool = False  # by train/model/fsdp.py: to move it again would undo that
    offload: bool = False  # see train/model/offload.py

    @property
    def place_model_on_device(self) -> bool | None:
        """Whether the trainer moves the model; None lets the trainer decide."""
        return False if self.is_placed else None


def build_arguments(config: TrainConfig, checkpoints: Path, num_steps: int) -> GraftArguments:
    """Return the arguments of a run. They set up the process group where there are several."""
    packs, ranks = config.data.packs_per_step, num_ranks()
    optim, peak = config.optim, max_learning_rate(config)
    on_cpu = not torch.cuda.is_available()
    set_group_timeouts(config.engine.timeout_seconds)
    arguments = GraftArguments(
        is_placed=config.engine.kind is EngineKind.fsdp2,
        output_dir=str(checkpoints),
        max_steps=num_steps,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=packs // ranks,
        learning_rate=peak,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": optim.min_lr_ratio},
        warmup_steps=warmup_steps(optim.warmup_steps, num_steps),
        adam_beta1=optim.adam_beta1,
        adam_beta2=optim.adam_beta2,
        weight_decay=optim.weight_decay,
        max_grad_norm=optim.max_grad_norm,
        optim="adamw_torch_fused",
        bf16=computes_in_bf16(config),
        gradient_checkpointing=config.engine.gradient_checkpointing,
        offload=config.engine.activation_offloading,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        use_cpu=on_cpu,
        ddp_backend="gloo" if on_cpu and ranks > 1 else None,
        ddp_timeout=math.ceil(config.engine.timeout_seconds),
        ddp_find_unused_parameters=False,
        deepspeed=deepspeed_config(config.engine.kind),
        dataloader_num_workers=config.data.num_workers,
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        ignore_data_skip=True,  # our loader starts where it is told
        max_length=None,
        save_strategy="steps",
        save_steps=config.checkpoint.save_steps,
        save_total_limit=config.checkpoint.save_total_limit,
        logging_steps=config.tracker.logging_steps,
        logging_nan_inf_filter=False,
        eval_strategy="no",
        disable_tqdm=True,
        report_to=[],
        seed=config.seed,
        data_seed=config.seed,
    )
    # More GPUs are for torchrun: nn.DataParallel would cut packs in pieces.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def max_learning_rate(config: TrainConfig) -> float:
    """Return the highest peak of any part; the groups of the optimizer hold their own."""
    parts = config.stage.parts
    return max(part.learning_rate for part in (parts.vision_tower, parts.projector, parts.decoder))


def deepspeed_config(kind: EngineKind) -> dict[str, Any] | None:
    """Return DeepSpeed's config for an engine; "auto" is filled in from the arguments."""
    if kind not in DEEPSPEED:
        return None
    return {
        "zero_optimization": {
            "stage": {EngineKind.zero2: 2, EngineKind.zero3: 3}[kind],
            "overlap_comm": torch.cuda.is_available(),
            "stage3_gather_16bit_weights_on_model_save": True,
        },
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": "auto"},
        "data_types": {"grad_accum_dtype": "fp32"},  # over micro-batches; bfloat16 would lose some
        "gradient_clipping": "auto",
        "gradient_accumulation_steps": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "train_batch_size": "auto",
        "steps_per_print": 10**9,
    }
