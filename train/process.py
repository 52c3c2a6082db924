"""What every command that loads a model does first to its process."""

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator

import torch
from transformers import set_seed
from transformers.utils import logging as transformers_logging


@contextlib.contextmanager
def cores_of_all(num_threads: int | None) -> Iterator[None]:
    """Let this process compute on all cores of the machine while the others are done.

    torchrun gives each of its processes one thread.

    Args:
        num_threads: that the user gave each process; then nothing changes.
    """
    before = torch.get_num_threads()
    if num_threads is None:
        torch.set_num_threads(max(before, len(os.sched_getaffinity(0))))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def set_up_process(num_threads: int | None, seed: int) -> None:
    """Seed everything, set the threads of this process, and quieten the libraries."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed warns that it looked
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    set_seed(seed)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    warnings.filterwarnings("ignore", category=FutureWarning, message=r"`?torch\.distributed\.")
    # Nobody writes into what the projector gives: transformers copies it between the words.
    warnings.filterwarnings("ignore", category=UserWarning, message="FSDP2-wrapped module")
    logging.getLogger("huggingface_hub").propagate = False  # it has a handler of its own
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
