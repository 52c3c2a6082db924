"""Which process of the run this is, its device, and what the processes tell each other.

torch is imported by the functions that need it: the plan starts fast by it.
"""

import os
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


def num_ranks() -> int:
    """Return the number of processes of this run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Return the number of this process in the run."""
    return int(os.environ.get("RANK", "0"))


def is_under_torchrun() -> bool:
    """Whether torchrun, or what sets the same variables, has started this process."""
    return "RANK" in os.environ


def device_of_rank() -> "torch.device":
    """Return the device this process computes on."""
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def gather_objects(value: T) -> list[T]:
    """Return every rank's value; all ranks call it together."""
    import torch

    if num_ranks() == 1 or not torch.distributed.is_initialized():
        return [value]
    found: list[Any] = [None] * num_ranks()
    torch.distributed.all_gather_object(found, value)
    return found
