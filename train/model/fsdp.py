"""FSDP2: weights, gradients and optimizer state shared out over ranks by torch's `fully_shard`.

Applied here and not by accelerate 1.15, which computes without autocast, so that losses would not
be DDP's, and writes checkpoints as pickles. Ours are the files that DDP writes: a run goes on with
another number of ranks, or with DDP.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.utils import ModulesToSaveWrapper
from safetensors import safe_open
from torch import distributed, nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from configs.errors import CheckpointError
from train.model.parts import list_first

LAYERS = "layers"  # the list of blocks in each decoder and tower
PROJECTOR = "multi_modal_projector"


def shard(model: Any, device: torch.device) -> None:
    """Share out the parameters of `model` in place, on `device`, with the values of rank 0.

    Each layer and the projector is a group that is gathered for its own call. The rest (embeddings,
    the head that may be tied to them, norms) belongs to the outermost module: it stays gathered
    from the forward until the backward, where our loss reads the head's weight.

    Groups move to the device one by one, so that it never holds the whole model. On ranks other
    than 0 the model may be on `meta`: it is never held whole there at all.
    """
    for module in [*_blocks(model), model]:
        _take_values_of_rank_0(module, device)
        fully_shard(module)
    register_fsdp_forward_method(model, "generate")


def is_sharded(model: Any) -> bool:
    """Whether `shard` was applied to a model."""
    return isinstance(model, FSDPModule)


def _blocks(model: nn.Module) -> list[nn.Module]:
    """Return the modules that are gathered one by one."""
    found: list[nn.Module] = []
    for name, module in model.named_modules():
        leaf = name.rsplit(".", 1)[-1]
        if leaf == LAYERS and isinstance(module, nn.ModuleList):
            found += module
        elif leaf == PROJECTOR and isinstance(module, ModulesToSaveWrapper):
            # The one that trains, and the one it is a copy of, which is never called.
            found += [*module.modules_to_save.values(), module.original_module]
        elif leaf == PROJECTOR:
            found.append(module)
    return found


@torch.no_grad()
def _take_values_of_rank_0(module: nn.Module, device: torch.device) -> None:
    seen: dict[int, Any] = {}  # tied parameters stay one
    for owner in module.modules():
        for held in (owner._parameters, owner._buffers):
            for name, tensor in held.items():
                if tensor is None or isinstance(tensor, DTensor):
                    continue
                if id(tensor) not in seen:
                    moved = torch.empty_like(tensor, device=device)
                    if not tensor.is_meta:
                        moved.copy_(tensor)
                    distributed.broadcast(moved, src=0)
                    if isinstance(tensor, nn.Parameter):
                        moved = nn.Parameter(moved, tensor.requires_grad)
                    seen[id(tensor)] = moved
                held[name] = seen[id(tensor)]


@contextlib.contextmanager
def plain_classes(model: nn.Module) -> Iterator[None]:
    """Give modules the classes they had: transformers names tensors in files by them."""
    sharded = [(module, type(module)) for module in model.modules() if is_sharded(module)]
    for module, kind in sharded:
        module.__class__ = kind.__mro__[2]  # (FSDPX, FSDPModule, X, ...)
    try:
        yield
    finally:
        for module, kind in sharded:
            module.__class__ = kind


# ---------------------------------------------------------------------------- checkpoints


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return all of a tensor on the CPU; of a shared-out one on rank 0 alone. All ranks call it."""
    if not isinstance(tensor, DTensor):
        return tensor.detach().cpu()
    gathered: torch.Tensor = cast(DTensor, tensor.detach()).full_tensor()
    return gathered.cpu() if distributed.get_rank() == 0 else torch.empty(0)


def whole_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return what a checkpoint holds of `model`, by name in memory: of an adapter what trains.

    Tied weights are one tensor under both names. All ranks call it; rank 0 gets the values.
    """
    only_trained = isinstance(model, PeftModel)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # the outermost stays gathered after it was measured
    found: dict[int, torch.Tensor] = {}
    state = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if only_trained and not tensor.requires_grad:
            continue
        if id(tensor) not in found:
            found[id(tensor)] = whole(tensor)
        state[name] = found[id(tensor)]
    return state


def load_adapter(model: PeftModel, folder: Path) -> None:
    """Copy the adapter in `folder`, as PEFT writes it, into a shared-out model.

    Raises:
        CheckpointError: the file lacks or has other tensors than the adapter.
    """
    live = get_peft_model_state_dict(model, model.state_dict())
    with safe_open(str(folder / "adapter_model.safetensors"), framework="pt") as file:
        there = set(file.keys())
        if differing := sorted(there ^ live.keys()):
            raise CheckpointError(
                f"{str(folder)!r} does not hold this run's adapter; one of the two lacks "
                f"{list_first(differing)}"
            )
        for name, tensor in live.items():
            copy_into(tensor, file.get_slice(name))


@torch.no_grad()
def copy_into(tensor: torch.Tensor, values: Any) -> None:
    """Copy whole `values`, a tensor or a slice of a file, into a tensor that may be shared out."""
    if not isinstance(tensor, DTensor):
        tensor.copy_(values[...])
        return
    local = tensor.to_local()
    if local.numel():
        first = _first_row(tensor)
        local.copy_(values[first : first + len(local)])


def _first_row(tensor: DTensor) -> int:
    """Return the row of the whole at which this rank's part begins. Parts are cut along rows."""
    _, offset = compute_local_shape_and_global_offset(
        tensor.shape, tensor.device_mesh, tensor.placements
    )
    return offset[0]


def whole_optimizer(optimizer: Any) -> dict[str, Any]:
    """Return the state of an optimizer as one that shares nothing out would have it.

    All ranks call it; rank 0 gets the values.
    """
    state = optimizer.state_dict()
    moments = {
        number: {
            name: whole(value) if isinstance(value, torch.Tensor) else value
            for name, value in of_one.items()
        }
        for number, of_one in state["state"].items()
    }
    return {"state": moments, "param_groups": state["param_groups"]}


def load_optimizer(optimizer: Any, path: Path) -> None:
    """Give an optimizer its part of what `whole_optimizer` saved in `path`."""
    state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number, of_one in state["state"].items():
        for name, value in of_one.items():
            if value.shape == parameters[number].shape and value.ndim:  # not `step`
                part = torch.empty_like(parameters[number], dtype=value.dtype)
                copy_into(part, value)
                of_one[name] = part
    optimizer.load_state_dict(state)


# -------------------------------------------------------------------------------- the end


def unshard(model: nn.Module) -> None:
    """Give the modules on rank 0 their whole weights on the CPU, and the class they had.

    Nothing can be trained or measured afterwards. All ranks call it.
    """
    gathered: dict[int, nn.Parameter] = {}
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    for module in list(model.modules()):
        for name, tensor in module.named_parameters(recurse=False, remove_duplicate=False):
            if id(tensor) not in gathered:
                gathered[id(tensor)] = nn.Parameter(whole(tensor), tensor.requires_grad)
            module._parameters[name] = gathered[id(tensor)]
    model.__dict__.pop("generate", None)  # the one that gathers
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.__class__ = type(module).__mro__[2]  # (FSDPX, FSDPModule, X, ...)
