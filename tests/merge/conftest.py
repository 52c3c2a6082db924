"""Fixtures: pairs of a VLM and its text LM on disk."""

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

# importlib mode puts no test folder on the path, and there are no test packages.
sys.path.insert(0, str(Path(__file__).parent))

from merge_pico import DTYPES, Pair, save_pair
from sweep_pico import configure


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session", params=["bf16", "fp32"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """One-file VLM and text LM; never written to."""
    return save_pair(tmp_path_factory.mktemp(request.param), DTYPES[request.param])


@pytest.fixture(scope="session")
def bf16_pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return save_pair(tmp_path_factory.mktemp("bf16_only"), torch.bfloat16)


@pytest.fixture
def copy_pair(bf16_pair: Pair, tmp_path: Path) -> Pair:
    """A copy of the bf16 pair that a test may damage."""
    shutil.copytree(bf16_pair.vlm, tmp_path / "vlm")
    shutil.copytree(bf16_pair.text, tmp_path / "text")
    return Pair(tmp_path / "vlm", tmp_path / "text")


@pytest.fixture(scope="session")
def swept(pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished sweep; never written to."""
    from merge.sweeping.run import sweep

    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("sweep") / "out"
    sweep(configure(pipeline, out))
    return out
