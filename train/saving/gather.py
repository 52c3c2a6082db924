"""Whole weights on rank 0, of engines that share them out."""

from typing import Any

from torch import nn

from train.model import fsdp
from train.ranks import rank


def gather_weights(model: Any) -> None:
    """Give the modules on rank 0 the whole weights that ZeRO-3 or FSDP2 has shared out.

    They are then on the CPU, buffers too. All ranks call this. Nothing can be trained or measured
    afterwards. Nothing happens to a model that each rank holds whole.
    """
    if fsdp.is_sharded(model):
        fsdp.unshard(model)
    elif any(hasattr(p, "ds_id") for p in model.parameters()):
        _gather_zero3(model)
    else:
        return
    for module in model.modules():  # those left on a GPU would not go with weights on the CPU
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.cpu()


def _gather_zero3(model: Any) -> None:
    import deepspeed

    whole = {}
    for parameter in model.parameters():  # one at a time: no GPU needs room for them all
        with deepspeed.zero.GatheredParameters([parameter]):
            if rank() == 0:
                values = parameter.detach().cpu().clone()
                whole[id(parameter)] = nn.Parameter(values, parameter.requires_grad)
    for module in model.modules() if whole else ():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, whole[id(parameter)])
