"""A tuned pico model, ready to be measured."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from train.model.load import load_vlm
from train.model.loss import add_token_losses


@pytest.fixture(scope="module")
def model(pipeline: Any) -> Any:
    """In float32; never changed."""
    model = load_vlm(str(pipeline.sft), dtype=torch.float32)
    add_token_losses(model)
    return model
