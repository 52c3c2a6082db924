"""Reads a PEFT LoRA adapter: low-rank changes by weight, and what was trained whole.

Headers and settings only, no torch. Format: `adapter_config.json` and `adapter_model.safetensors`
as peft 0.21 writes them; names are those in memory, behind `base_model.model.`.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configs.errors import CheckpointError
from merge.reading.checkpoint import Shard, StoredTensor, read_shard

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
PICKLED_FILE = "adapter_model.bin"
PLACES = ("", "adapter", "export/adapter")  # in an adapter, an export of ours, a run of ours
PREFIX = "base_model.model."
LOW_RANK = re.compile(
    r"^(?P<module>.+)\.(?P<kind>lora_A|lora_B|lora_magnitude_vector)(?:\.weight)?$"
)
# What changes the meaning of lora_A and lora_B, and is not computed here.
UNSUPPORTED = (
    *("fan_in_fan_out", "lora_bias", "layer_replication", "trainable_token_indices"),
    *("target_parameters", "use_qalora", "use_bdlora", "kasa_config", "monteclora_config"),
    *("alora_invocation_tokens", "megatron_config", "velora_config"),
)
# Ways to start that change the base weights too, so that the base on disk is not what was trained.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
FACTOR_DTYPES = ("BF16", "F16", "F32")


@dataclass(frozen=True)
class LowRank:
    """`scale * (b @ a)`, added to a weight [out, in]; with a magnitude, then scaled by row."""

    a: StoredTensor
    """[r, in]"""
    b: StoredTensor
    """[out, r]"""
    scale: float
    magnitude: StoredTensor | None = None
    """[out], of DoRA: each row of the sum gets this norm."""

    @property
    def rank(self) -> int:
        """Number of directions."""
        return self.a.shape[0]

    @property
    def factors(self) -> tuple[StoredTensor, ...]:
        """All that is stored of it."""
        return (self.a, self.b) if self.magnitude is None else (self.a, self.b, self.magnitude)

    @property
    def shape(self) -> list[int]:
        """[out, in] of the weight it is added to."""
        return [self.b.shape[0], self.a.shape[1]]


@dataclass(frozen=True)
class Adapter:
    """An adapter folder: layout and settings, no weights."""

    folder: Path
    config: dict[str, Any] = field(repr=False)
    shard: Shard = field(repr=False)
    low_rank: Mapping[str, LowRank] = field(repr=False)
    """{name of the weight in memory: its low-rank change}."""
    whole: Mapping[str, StoredTensor] = field(repr=False)
    """{name in memory: tensor that was trained whole}, such as those of the projector."""


def read_adapter(folder: Path) -> Adapter:
    """Reads settings and header of an adapter.

    Args:
        folder: holds `adapter_config.json`, or is an export or a run folder of ours.

    Raises CheckpointError for what is missing, damaged, pickled, or no LoRA that can be folded in.
    """
    holding = [place for place in PLACES if (folder / place / CONFIG_FILE).is_file()]
    folder = folder / holding[0] if holding else folder
    config = _read_config(folder)
    if not (folder / WEIGHTS_FILE).is_file():
        pickled = (folder / PICKLED_FILE).is_file()
        why = f"; {PICKLED_FILE} is a pickle and is not loaded: save it again" if pickled else ""
        raise CheckpointError(f"lora={folder} has no {WEIGHTS_FILE}{why}")
    shard = read_shard(folder / WEIGHTS_FILE)
    factors: dict[str, dict[str, StoredTensor]] = {}
    whole: dict[str, StoredTensor] = {}
    for tensor in shard.tensors:
        name = tensor.name.removeprefix(PREFIX)
        found = LOW_RANK.match(name)
        if found:
            factors.setdefault(found["module"], {})[found["kind"]] = tensor
        elif "lora_" in name:
            raise CheckpointError(
                f"lora={folder}: {tensor.name} is of a kind that cannot be folded in (known: "
                "lora_A and lora_B of linear layers, DoRA's magnitudes, and modules_to_save)"
            )
        else:
            whole[name] = tensor
    low_rank = {
        f"{module}.weight": _low_rank(folder, module, parts, config)
        for module, parts in factors.items()
    }
    return Adapter(folder, config, shard, low_rank, whole)


def _read_config(folder: Path) -> dict[str, Any]:
    """`adapter_config.json`, refused where it asks for what is not computed here."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise CheckpointError(
            f"lora={folder} has no {CONFIG_FILE}; give a PEFT adapter, a LoRA run "
            "that has ended, or a checkpoint of one"
        )
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if config.get("peft_type") != "LORA":
        raise CheckpointError(f"{path}: peft_type is {config.get('peft_type')!r}; LORA is wanted")
    wrong = [f"{key}={config[key]!r}" for key in UNSUPPORTED if config.get(key)]
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(CHANGES_BASE):
        wrong.append(f"init_lora_weights={start!r} (it changes the base weights too)")
    if config.get("bias", "none") != "none":
        wrong.append(f"bias={config['bias']!r}")
    if wrong:
        raise CheckpointError(
            f"{path} asks for what cannot be folded in here: {', '.join(wrong)}. Fold it in with "
            "PEFT (merge_and_unload), save that, and merge it as vlm="
        )
    return config


def _low_rank(
    folder: Path, module: str, parts: Mapping[str, StoredTensor], config: Mapping[str, Any]
) -> LowRank:
    """The factors of one module, checked against each other."""
    a, b = parts.get("lora_A"), parts.get("lora_B")
    if a is None or b is None:
        lacking = "lora_A" if a is None else "lora_B"
        raise CheckpointError(f"lora={folder}: {module} has no {lacking}")
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or not a.shape[0]:
        raise CheckpointError(
            f"lora={folder}: {module} has lora_A {list(a.shape)} and lora_B {list(b.shape)}; "
            "wanted are [r, in] and [out, r] of a linear layer"
        )
    magnitude = parts.get("lora_magnitude_vector")
    _check_factors(folder, module, {"lora_A": a, "lora_B": b, "lora_magnitude_vector": magnitude})
    if (magnitude is not None) != bool(config.get("use_dora")):
        has = "no" if magnitude is None else "a"
        raise CheckpointError(
            f"lora={folder}: {module} has {has} lora_magnitude_vector, but {CONFIG_FILE} has "
            f"use_dora={bool(config.get('use_dora'))}; are the two of one adapter?"
        )
    if not isinstance(config.get("lora_alpha"), int | float):
        raise CheckpointError(f"{folder / CONFIG_FILE} has no lora_alpha, by which changes scale")
    rank, alpha = a.shape[0], config["lora_alpha"]
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = value
            break
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return LowRank(a, b, scale, magnitude)


def _check_factors(folder: Path, module: str, factors: Mapping[str, StoredTensor | None]) -> None:
    """Raises CheckpointError for factors whose bytes would be read as something else."""
    for kind, tensor in factors.items():
        if tensor is not None and tensor.dtype not in FACTOR_DTYPES:
            raise CheckpointError(
                f"lora={folder}: {kind} of {module} is {tensor.dtype}; known are "
                f"{', '.join(FACTOR_DTYPES)}"
            )
    b, magnitude = factors["lora_B"], factors["lora_magnitude_vector"]
    if b is not None and magnitude is not None and magnitude.shape != b.shape[:1]:
        raise CheckpointError(
            f"lora={folder}: {module} has a lora_magnitude_vector {list(magnitude.shape)}; wanted "
            f"is one number a row, {list(b.shape[:1])}"
        )
