"""In what a model computes."""

import torch

from configs.schema import Dtype, TrainConfig


def computes_in_bf16(config: TrainConfig) -> bool:
    """Whether forward and backward run in bfloat16.

    What trains is held in float32 (train/model/what_trains.py), beside half precision or not.
    """
    return config.engine.bf16 or config.model.dtype is not Dtype.float32


def compute_dtype(config: TrainConfig) -> torch.dtype:
    """Return the dtype in which forward and backward run."""
    return torch.bfloat16 if computes_in_bf16(config) else torch.float32
