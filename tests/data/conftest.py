"""Fixtures: a tokenizer trained on the shipped text, and processors made of it."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

# importlib mode puts no test folder on the path, and there are no test packages.
sys.path.insert(0, str(Path(__file__).parent))

from data_pico import TILE, udhr

from data.processor import compose_processor
from data.render import Renderer
from data.tokenizer import train_tokenizer


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """A CohereTokenizer; never changed by a test."""
    return train_tokenizer([row["text"] for row in udhr()], vocab_size=2048)


def _processor(tokenizer: Any, *, crop_to_patches: bool) -> Any:
    return compose_processor(
        tokenizer,
        image_size=TILE,
        patch_size=4,
        downsample_factor=2,
        crop_to_patches=crop_to_patches,
        max_patches=6,
    )


@pytest.fixture(scope="session")
def processor(tokenizer: Any) -> Any:
    """An AyaVisionProcessor of one tile a picture."""
    return _processor(tokenizer, crop_to_patches=False)


@pytest.fixture(scope="session")
def tiling_processor(tokenizer: Any) -> Any:
    """An AyaVisionProcessor that cuts pictures into up to six tiles and a thumbnail."""
    return _processor(tokenizer, crop_to_patches=True)


@pytest.fixture(scope="session")
def renderer(processor: Any) -> Renderer:
    return Renderer(processor)


@pytest.fixture(scope="session")
def tiling_renderer(tiling_processor: Any) -> Renderer:
    return Renderer(tiling_processor)
