"""ZeRO-3: DeepSpeed's shares of the weights, from a model that is whole on the CPU of each rank."""

import torch
from torch import nn


def share_out(model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Share out the parameters of `model` in place, one by one, with the values of rank 0.

    DeepSpeed would do so when it starts, but from the device: it first moves the whole model there.

    Args:
        model: on the CPU.
        device: of this rank; buffers go there, and its shares.
        dtype: of all parameters, as DeepSpeed would cast them.
    """
    import deepspeed

    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    deepspeed.zero.Init(module=model, dtype=dtype)
    for module in model.modules():
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(device)


def num_dimensions(parameter: nn.Parameter) -> int:
    """Return the dimensions of a parameter, also of one that is shared out."""
    return len(getattr(parameter, "ds_shape", parameter.shape))
