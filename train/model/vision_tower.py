"""A SigLIP tower: fresh, loaded, of NaFlex weights, at another size. Always a SiglipVisionModel."""

import logging
from typing import Any

import torch
from torch import nn
from transformers import Siglip2VisionModel, SiglipVisionConfig, SiglipVisionModel

from configs.schema import VisionTowerConfig
from data.processor import vision_config
from train.model.load import load_checked

log = logging.getLogger(__name__)
POSITIONS = "embeddings.position_embedding.weight"
PATCHES = "embeddings.patch_embedding.weight"
# How a grid of positions is brought to another size. SigLIP2 at 384 pixels (27 x 27) is used at 364
# (26 x 26) in Aya Vision (arXiv 2505.08751); NaFlex is as its own class does for each picture.
FIXED_MODE, NAFLEX_MODE = "bicubic", "bilinear"
# What a SigLIP tower of fixed size shares with any other, NaFlex too.
SHARED_KEYS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "patch_size",
    "num_channels", "hidden_act", "layer_norm_eps", "attention_dropout",
)  # fmt: skip


def build_vision_tower(
    config: VisionTowerConfig, *, image_size: int, dtype: torch.dtype
) -> SiglipVisionModel:
    """Return the tower of `config.path` for tiles of `image_size` pixels a side, or a fresh one."""
    if config.path is not None:
        return load_tower(config.path, image_size=image_size, dtype=dtype)
    shape = SiglipVisionConfig(
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        image_size=image_size,
        patch_size=config.patch_size,
        vision_use_head=False,
    )
    return SiglipVisionModel._from_config(shape, dtype=dtype)


def load_tower(path: str, *, image_size: int, dtype: torch.dtype) -> SiglipVisionModel:
    """Return a tower from a folder or the hub, without its pooling head, which we have no use for.

    Raises:
        CheckpointError: it is no SigLIP, or weights are missing or left over.
    """
    config = vision_config(path)
    is_naflex = config.model_type.startswith("siglip2")
    kind: Any = Siglip2VisionModel if is_naflex else SiglipVisionModel
    # Set here: the config of a NaFlex tower does not have the key in transformers 5.17.
    config.vision_use_head = False
    tower = load_checked("vision tower", kind, path, dtype, config=config)
    return from_naflex(tower, image_size) if is_naflex else resample_positions(tower, image_size)


def resample_positions(tower: Any, image_size: int) -> Any:
    """Return the tower for tiles of `image_size` pixels a side; all weights but positions are its.

    Its [P, V] position embeddings are a square grid, brought to the new grid by interpolation.
    """
    config = tower.config
    if image_size == config.image_size:
        return tower
    old, new = config.image_size // config.patch_size, image_size // config.patch_size
    state: dict[str, torch.Tensor] = tower.state_dict()
    state[POSITIONS] = resample_grid(state[POSITIONS], new, mode=FIXED_MODE)
    config.image_size = image_size
    log.info("vision tower: position embeddings resampled from %d x %d to %d x %d",
             old, old, new, new)  # fmt: skip
    return _with_weights(config, state, tower.dtype)


def from_naflex(tower: Any, image_size: int) -> SiglipVisionModel:
    """Return the fixed-resolution tower that sees square tiles as SigLIP2 NaFlex does.

    NaFlex takes patches that are cut already, each a row of pixels by line, column and channel; a
    convolution has channel, line, column. It resamples its grid of positions for each picture, we
    do so once.
    """
    naflex = tower.config
    state: dict[str, torch.Tensor] = tower.state_dict()
    patch, channels = naflex.patch_size, naflex.num_channels
    rows = state[PATCHES].reshape(-1, patch, patch, channels)
    state[PATCHES] = rows.permute(0, 3, 1, 2).contiguous()
    new = image_size // patch
    state[POSITIONS] = resample_grid(state[POSITIONS], new, mode=NAFLEX_MODE)
    config = SiglipVisionConfig(
        **{name: getattr(naflex, name) for name in SHARED_KEYS},
        image_size=image_size,
        vision_use_head=False,
    )
    log.info("vision tower: NaFlex weights, used at %d pixels, %d x %d patches",
             image_size, new, new)  # fmt: skip
    return _with_weights(config, state, tower.dtype)


def resample_grid(positions: torch.Tensor, side: int, *, mode: str) -> torch.Tensor:
    """Return [side * side, V] position embeddings from [P, V] of a square grid; float32 between."""
    old = int(positions.shape[0] ** 0.5)
    grid = positions.float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = nn.functional.interpolate(grid, size=(side, side), mode=mode, antialias=True)
    return grid.permute(0, 2, 3, 1).reshape(side * side, -1).to(positions.dtype)


def _with_weights(config: Any, state: dict[str, torch.Tensor], dtype: torch.dtype) -> Any:
    """Return a tower that takes the tensors over as they are: none is allocated twice."""
    config.vision_use_head = False
    state = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
    with torch.device("meta"):
        tower = SiglipVisionModel._from_config(config, dtype=dtype)
    tower.load_state_dict(state, strict=True, assign=True)
    num_positions = state[POSITIONS].shape[0]
    tower.embeddings.position_ids = torch.arange(num_positions).expand((1, -1))
    return tower.eval()
