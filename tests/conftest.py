"""Fixtures for all tests: one thread, and one small pipeline that has been through every stage."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

# importlib mode puts no test folder on the path, and there are no test packages.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Two cores are shared by all workers, and one thread makes sums repeatable."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep what is measured out of the home folder; commands that tests start do so too."""
    os.environ["VISIONGRAFT_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Exports of text LM, aligned, tuned (in full and by LoRA) and merged model."""
    from pico_runs import run_pipeline

    torch.set_num_threads(1)
    return run_pipeline(tmp_path_factory.mktemp("pipeline"))
