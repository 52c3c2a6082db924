"""Which parts train: `requires_grad`, adapters, and the table that says so."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn

from configs.errors import CheckpointError, ConfigError
from configs.schema import AdapterConfig, PartMode, PartsConfig
from train.model.loss import black_tile_features, frozen_without_graph, vision_parameters
from train.model.parts import PARTS, TRAINED_MODEL_TYPES, Part, find_part, list_first
from train.model.quantize import is_quantized, num_values

log = logging.getLogger(__name__)
# Module names in memory, the same in every family of TRAINED_MODEL_TYPES.
MODULES: Mapping[Part, tuple[str, ...]] = {
    "vision_tower": ("model.vision_tower",),
    "projector": ("model.multi_modal_projector",),
    "decoder": ("model.language_model", "model"),
}
PEFT_PREFIX = "base_model.model."
# What PEFT puts into names, between those of the model.
PEFT_WRAPPERS = re.compile(r"\.(base_layer|modules_to_save\.default|original_module)(?=\.)")
ADAPTER = re.compile(r"\.(lora_\w+)\.")


@dataclass(frozen=True)
class PartRow:
    """A line of the table of what trains."""

    part: Part
    mode: PartMode
    learning_rate: float
    num_trainable: int
    num_total: int


def set_what_trains(
    model: Any, parts: PartsConfig, adapter: AdapterConfig
) -> tuple[Any, list[PartRow]]:
    """Freeze, open or adapt each part of `model`.

    Returns:
        the model (wrapped by PEFT where a part has mode `lora`) and the table of what trains.

    Raises:
        CheckpointError: the model is of a type that can be merged, but not trained.
        ConfigError: a part with mode `lora` has no linear layer that is asked for; adapters are
            elsewhere than asked.
    """
    _check_trained(model.config.model_type)
    modes: dict[Part, PartMode] = {part: getattr(parts, part).mode for part in PARTS}
    present = {part_of(model, name) for name, _ in model.named_parameters()}
    if any(modes[part] is PartMode.lora for part in present):
        model = _add_adapters(model, {p: modes[p] for p in PARTS if p in present}, adapter)
    for name, parameter in model.named_parameters():
        mode = modes[part_of(model, name)]
        is_adapter = ADAPTER.search(name) is not None
        kept_copy = "original_module" in name
        parameter.requires_grad_(
            (is_adapter if mode is PartMode.lora else mode is PartMode.full) and not kept_copy
        )
    tower = _find(model, "model.vision_tower")
    if tower is not None and modes["vision_tower"] is PartMode.frozen:
        frozen_without_graph(tower)
    _freeze_unreached(model)
    return model, _table(model, parts, modes)


def hold_in_float32(model: Any, parts: PartsConfig) -> None:
    """Hold adapters and parts that train in float32; the trainer computes in bfloat16.

    A bfloat16 weight of 0.02 has its neighbours 1.2e-4 apart, and a step of 1e-5 is lost: of a
    decoder tuned so, 2.7 % of the weights had changed after 20 steps (measured).
    """
    for name, parameter in model.named_parameters():
        # The whole part: norms on the CPU take weights and states of one dtype.
        in_full = getattr(parts, part_of(model, name)).mode is PartMode.full
        if parameter.requires_grad or (in_full and "original_module" not in name):
            parameter.data = parameter.data.float()


def part_of(model: Any, parameter_name: str) -> Part:
    """Return the part of a parameter of a live model, also under PEFT."""
    plain = PEFT_WRAPPERS.sub("", parameter_name.removeprefix(PEFT_PREFIX))
    place = find_part(_base(model).config.model_type, plain)
    assert place is not None, plain
    return place.part


def trainable_by_part(model: Any) -> dict[Part, list[tuple[str, nn.Parameter]]]:
    """Return the (name, parameter) pairs that train, for each part that has any."""
    found: dict[Part, list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            found.setdefault(part_of(model, name), []).append((name, parameter))
    return found


def format_table(rows: list[PartRow]) -> str:
    """Return the table of what trains as text."""
    lines = [f"{'part':<14}{'mode':<8}{'learning_rate':>14}{'trainable':>16}{'total':>16}"]
    lines += [
        f"{row.part:<14}{row.mode.value:<8}"
        f"{row.learning_rate if row.num_trainable else 0:>14.2e}"
        f"{row.num_trainable:>16,}{row.num_total:>16,}"
        for row in rows
    ]
    return "\n".join(lines)


def _check_trained(model_type: str) -> None:
    if model_type not in TRAINED_MODEL_TYPES:
        raise CheckpointError(
            f"a model of model_type {model_type!r} cannot be trained, only merged; these can: "
            f"{', '.join(sorted(TRAINED_MODEL_TYPES))}"
        )


def _add_adapters(model: Any, modes: dict[Part, PartMode], adapter: AdapterConfig) -> Any:
    # A part that trains in full beside an adapter is saved whole with it (PEFT's modules_to_save).
    whole = [
        module.rsplit(".", 1)[-1]
        for part, mode in modes.items()
        for module in MODULES[part][:1]
        if mode is PartMode.full
    ]
    targets = [
        name
        for part, mode in modes.items()
        if mode is PartMode.lora
        for name in _linear_layers(model, part, adapter.target_modules)
    ]
    _check_names(targets, adapter.target_modules)
    config = LoraConfig(
        r=adapter.r,
        lora_alpha=adapter.lora_alpha,
        lora_dropout=adapter.lora_dropout,
        use_rslora=adapter.use_rslora,
        use_dora=adapter.use_dora,
        target_modules=_pattern(targets),
        modules_to_save=whole or None,
        task_type="CAUSAL_LM",
    )
    # PEFT asks the model; TRL would hold adapters in bfloat16 if it could ask too.
    model.is_loaded_in_4bit = any(is_quantized(p) for p in model.parameters())
    wrapped = get_peft_model(model, config)
    del model.is_loaded_in_4bit
    _check_scope(wrapped, targets)
    return wrapped


def _linear_layers(model: Any, part: Part, wanted: Sequence[str]) -> list[str]:
    """Return the names of the linear layers of one part, no head; with `wanted`, of those."""
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and name != "lm_head"
        and part_of(model, f"{name}.weight") == part
    ]
    if not names:
        raise ConfigError(f"stage.parts.{part}.mode: is lora, but the part has no linear layer")
    leaves = sorted({_leaf(name) for name in names})
    chosen = [name for name in names if not wanted or _leaf(name) in wanted]
    if not chosen:
        raise ConfigError(
            f"adapter.target_modules: {list(wanted)} names no linear layer of the {part}, whose "
            f"mode is lora; it has {', '.join(leaves)}"
        )
    return chosen


def _check_names(targets: Sequence[str], wanted: Sequence[str]) -> None:
    leaves = {_leaf(name) for name in targets}
    if unmatched := [name for name in wanted if name not in leaves]:
        raise ConfigError(
            f"adapter.target_modules: {', '.join(unmatched)} names no linear layer of a part with "
            f"mode lora; matched: {', '.join(sorted(leaves))}"
        )


def _pattern(names: Sequence[str]) -> str:
    """Return a pattern of these names alone, short by writing any number for the layers'."""
    shapes = sorted({re.sub(r"\\\.\d+\\\.", r"\\.\\d+\\.", re.escape(name)) for name in names})
    return "|".join(shapes)


def _check_scope(wrapped: PeftModel, targets: Sequence[str]) -> None:
    """Hold where adapters are against where they were to be: a pattern may match more, or less."""
    found = {
        name.removeprefix(PEFT_PREFIX)
        for name, module in wrapped.named_modules()
        if isinstance(module, LoraLayer)
    }
    if differing := sorted(found ^ set(targets)):
        kinds = {part_of(wrapped, f"{name}.weight") for name in found - set(targets)}
        where = f", of {' and '.join(sorted(kinds))}" if kinds else ""
        raise ConfigError(
            f"adapter: {len(found)} layers have one, {len(targets)} were to; they differ in "
            f"{list_first(differing)}{where}"
        )


def _leaf(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def _freeze_unreached(model: Any) -> None:
    """Freeze what no picture's gradient reaches, for which DDP would wait in vain.

    Aya Vision takes the state before the tower's `post_layernorm` and pooling head, for example.
    """
    base = _base(model)
    open_ones = [p for p in vision_parameters(base) if p.requires_grad]
    if not open_ones:
        return
    features = black_tile_features(base)
    gradients = torch.autograd.grad(features.float().sum(), open_ones, allow_unused=True)
    for parameter, gradient in zip(open_ones, gradients, strict=True):
        parameter.requires_grad_(gradient is not None)


def _base(model: Any) -> Any:
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _find(model: Any, name: str) -> nn.Module | None:
    return dict(_base(model).named_modules()).get(name)


def _table(model: Any, parts: PartsConfig, modes: dict[Part, PartMode]) -> list[PartRow]:
    trainable: dict[Part, int] = dict.fromkeys(PARTS, 0)
    total: dict[Part, int] = dict.fromkeys(PARTS, 0)
    for name, parameter in model.named_parameters():
        if "original_module" in name:
            continue
        part = part_of(model, name)
        total[part] += num_values(parameter)
        trainable[part] += parameter.numel() if parameter.requires_grad else 0
    return [
        PartRow(part, modes[part], getattr(parts, part).learning_rate, trainable[part], total[part])
        for part in PARTS
        if total[part]
    ]
