"""Counts the bytes of tensors that are alive: on a device, and waiting in host memory."""

import weakref
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from train.model.offload import stays

PRODUCT_4BIT = "bitsandbytes::gemm_4bit"


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that are made inside it and still alive, and the most of them."""

    def __init__(self) -> None:
        """Start at nothing."""
        super().__init__()
        self.now = self.most = 0
        self.host = 0  # of what waits in host memory
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and look at what it gives."""
        if func.name() == PRODUCT_4BIT:
            with self:
                return _unpacked_product(*args, **(kwargs or {}))
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._see(tensor.untyped_storage())
        return made

    def ignore(self, *tensors: torch.Tensor) -> None:
        """Leave out tensors that were made before."""
        self._known |= {tensor.untyped_storage()._cdata for tensor in tensors}

    def offloading(self) -> saved_tensors_hooks:
        """Return `train.model.offload.offloading` without its copies: what moves is counted."""

        def move_out(tensor: torch.Tensor) -> Any:
            return tensor if stays(tensor) else _Waiting(self, tensor)

        def bring_back(kept: Any) -> torch.Tensor:
            return kept if isinstance(kept, torch.Tensor) else kept.bring_back()

        return saved_tensors_hooks(move_out, bring_back)

    def _see(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


class _Waiting:
    """Stands for a tensor in host memory."""

    def __init__(self, live: LiveBytes, tensor: torch.Tensor) -> None:
        self.shape, self.dtype, self.device = tensor.shape, tensor.dtype, tensor.device
        self.live, self.size = live, tensor.numel() * tensor.element_size()
        live.host += self.size

    def __del__(self) -> None:
        self.live.host -= self.size

    def bring_back(self) -> torch.Tensor:
        return torch.empty(self.shape, dtype=self.dtype, device=self.device)


def _unpacked_product(
    x: torch.Tensor,
    packed: torch.Tensor,
    shape: list[int],
    scales: torch.Tensor,
    block: int,
    quant_type: str,
    bias: torch.Tensor | None = None,
    absmax_8bit: torch.Tensor | None = None,
    absmax_code: torch.Tensor | None = None,
    absmax_offset: torch.Tensor | None = None,
) -> torch.Tensor:
    """Multiply as bitsandbytes (0.50) does inside its operation, where nobody sees it unpack.

    On GPUs it does so from 1,536 rows on, and below that where its fused kernel would be slower.
    """
    ops = torch.ops.bitsandbytes
    if absmax_8bit is not None and absmax_offset is not None:
        scales = ops.dequantize_blockwise(absmax_8bit, scales, absmax_code, 256, torch.float32)
        scales = scales + absmax_offset
    weight = ops.dequantize_4bit(packed, scales, block, quant_type, shape, x.dtype)
    return functional.linear(x, weight, bias)
