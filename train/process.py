"""What every command that loads a model does first to its process."""

import os
import warnings

import torch
from transformers import set_seed
from transformers.utils import logging as transformers_logging


def set_up_process(num_threads: int | None, seed: int) -> None:
    """Seed everything, set the threads of this process, and quieten the libraries."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed warns that it looked
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    set_seed(seed)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
