"""Which process of the run this is. Nothing heavy is imported here: the plan starts fast by it."""

import os


def num_ranks() -> int:
    """Return the number of processes of this run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Return the number of this process in the run."""
    return int(os.environ.get("RANK", "0"))


def is_under_torchrun() -> bool:
    """Whether torchrun, or what sets the same variables, has started this process."""
    return "RANK" in os.environ
