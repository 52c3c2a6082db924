"""Activation offloading: what backward needs of the forward waits in host memory.

With gradient checkpointing that is one hidden state a layer, the only thing that still grows with
depth times tokens. TRL 1.16 has this too, for GPUs alone (it asks for an accelerator's streams), so
that nothing of it could be tested here; ours copies in order and is the same on any device.
"""

from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks

SMALLEST = 1 << 20  # bytes; what is smaller is not worth its copy


def offloading(smallest: int = SMALLEST) -> saved_tensors_hooks:
    """Return a context for a forward, or for both passes; it may be entered again and again.

    Parameters stay where they are: they are there anyway.

    Args:
        smallest: bytes of the smallest tensor that is moved.
    """

    def move_out(tensor: torch.Tensor) -> Any:
        if stays(tensor, smallest):
            return tensor
        # Pinned memory is read back without a stop of the device.
        is_pinned = tensor.device.type == "cuda"
        host = torch.empty_like(tensor, device="cpu", pin_memory=is_pinned)
        host.copy_(tensor)
        return tensor.device, host

    def bring_back(kept: Any) -> torch.Tensor:
        if isinstance(kept, torch.Tensor):
            return kept
        device, host = kept
        return host.to(device, non_blocking=True)

    return saved_tensors_hooks(move_out, bring_back)


def stays(tensor: torch.Tensor, smallest: int = SMALLEST) -> bool:
    """Whether a tensor that backward needs is left where it is.

    A parameter is, and a view of one: `nn.Linear` keeps its weight transposed.
    """
    is_weight = any(isinstance(one, torch.nn.Parameter) for one in (tensor, tensor._base))
    return is_weight or tensor.numel() * tensor.element_size() < smallest
