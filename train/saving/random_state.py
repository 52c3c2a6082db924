"""The random generators of a process as plain values, so that no pickle is written or read."""

import base64
import random
from typing import Any

import numpy as np
import torch

State = dict[str, Any]


def random_state() -> State:
    """Return where the generators of Python, numpy, torch and this GPU stand, for JSON."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state: State = {
        "python": [version, list(words), gauss],
        "numpy": [name, np.asarray(keys).tolist(), position, has_gauss, cached],
        "torch": _as_text(torch.get_rng_state()),
    }
    if torch.cuda.is_available():
        state["cuda"] = _as_text(torch.cuda.get_rng_state())
    return state


def set_random_state(state: State) -> None:
    """Put the generators where they stood."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(_as_tensor(state["torch"]))
    if torch.cuda.is_available() and "cuda" in state:
        torch.cuda.set_rng_state(_as_tensor(state["cuda"]))


def derive_random_state(seed: int, step: int, rank: int) -> None:
    """Seed the generators for a rank that the checkpoint does not know: always the same way."""
    derived = np.random.SeedSequence([seed, step, rank]).generate_state(3).tolist()
    random.seed(derived[0])
    np.random.seed(derived[1])
    torch.manual_seed(derived[2])  # of GPUs too


def _as_text(state: torch.Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode("ascii")


def _as_tensor(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
