"""QLoRA: a decoder whose frozen linear layers are held in 4 bits (arXiv 2305.14314).

NF4 blocks of 64 values with quantized scales, by bitsandbytes, on CPU and GPU. Vision tower,
projector, embeddings and head stay as they are.

Not done: PEFT's `prepare_model_for_kbit_training` would hold embeddings and norms in float32 (4 GiB
of a vocabulary of 256,000) and let gradients flow into the embeddings, which reentrant
checkpointing needs and ours does not.
"""

import importlib.util
import logging
from typing import Any

import torch
from torch import nn

from configs.errors import ConfigError
from train.model.empty_nf4 import BLOCK, empty_packed, empty_state

log = logging.getLogger(__name__)


def quantize(module: nn.Module, *, device: torch.device, compute_dtype: torch.dtype) -> int:
    """Hold the linear layers below `module` in 4 bits, in place, moving each to `device` for it.

    Args:
        module: the decoder without its head.
        device: where blocks are quantized; they stay there. On `meta` they hold no values.
        compute_dtype: of the multiplication, into which blocks are unpacked.

    Returns:
        how many layers were quantized.

    Raises:
        ConfigError: bitsandbytes is not installed.
    """
    bnb = _bitsandbytes()
    found = [
        (owner, name, child)
        for owner in module.modules()
        for name, child in owner.named_children()
        if type(child) is nn.Linear
    ]
    for owner, name, linear in found:
        setattr(owner, name, _quantized(bnb, linear, device, compute_dtype))
    return len(found)


def is_quantized(parameter: torch.Tensor) -> bool:
    """Whether a parameter holds two values of 4 bits in each byte."""
    return getattr(parameter, "quant_state", None) is not None


def num_values(parameter: torch.Tensor) -> int:
    """Return how many weights a parameter stands for."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else int(state.shape.numel())


@torch.no_grad()
def take_trained(original: nn.Module, trained: nn.Module) -> nn.Module:
    """Return `original`, a model of the same names, with all of `trained` but what is quantized.

    Folding an adapter into unpacked 4-bit weights would export their rounding errors; the weights
    they were made of are better than those.
    """
    values = dict(trained.named_parameters())
    for name, parameter in original.named_parameters():
        if not is_quantized(values[name]):
            parameter.data = values[name].detach().to("cpu", copy=True)
    return original


def _quantized(
    bnb: Any, linear: nn.Linear, device: torch.device, compute_dtype: torch.dtype
) -> nn.Module:
    has_bias = linear.bias is not None
    packed = bnb.nn.Linear4bit(
        linear.in_features,
        linear.out_features,
        bias=has_bias,
        compute_dtype=compute_dtype,
        compress_statistics=True,
        quant_type="nf4",
        device="meta",
    )
    options = dict(blocksize=BLOCK, compress_statistics=True, quant_type="nf4", module=packed)
    if device.type == "meta":
        with device:
            data = empty_packed(linear.weight.numel())
            state = empty_state(linear.weight.shape, linear.weight.dtype)
        packed.weight = bnb.nn.Params4bit(data, quant_state=state, bnb_quantized=True, **options)
    else:
        packed.weight = bnb.nn.Params4bit(linear.weight.detach(), **options).to(device)
    packed.bias = linear.bias
    # On CPUs with AVX512-BF16 it would repack the weights whenever it is called in evaluation.
    packed.support_avx512bf16_for_cpu = False
    return packed


def check_installed() -> None:
    """Refuse 4 bits where they cannot be had, before anything is read.

    Raises:
        ConfigError: bitsandbytes is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            "adapter.quantization: needs bitsandbytes, which is not installed; "
            "pip install 'visiongraft[quant]'"
        )


def _bitsandbytes() -> Any:
    check_installed()
    import bitsandbytes

    return bitsandbytes
