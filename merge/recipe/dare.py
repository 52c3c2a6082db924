"""DARE: drop elements of task vectors at random, scale up the rest (arXiv 2311.03099, section 3).

What is dropped is a pure function of (drop_seed, tensor, task vector, place of the element): word i
of Philox4x64-10 (Salmon et al., SC 2011), whose counter can start anywhere, so that no cut into
stretches, thread or machine changes it.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from merge.recipe.interface import MergeMethod, Settings, Source, Values
from merge.recipe.task_vectors import Vectors, add_all, only_input, take_vectors

if TYPE_CHECKING:
    from torch import Tensor

WORDS = 4  # 64-bit words that Philox4x64 makes of one count


def keep_mask(
    start: int, stop: int, *, tensor: str, vector: Source, density: float, drop_seed: int
) -> Tensor:
    """Which of the elements `start:stop` of a task vector stay, as bool.

    An element stays where its 64-bit word is below `density * 2**64`.
    """
    import numpy as np
    import torch

    name = json.dumps([drop_seed, tensor, vector]).encode()
    key = np.frombuffer(hashlib.blake2b(name, digest_size=16).digest(), dtype="<u8")
    # numpy counts up before it makes words, so that word 0 is of count 1.
    philox = np.random.Philox(key=key.astype(np.uint64), counter=start // WORDS)
    words = philox.random_raw(start % WORDS + stop - start)[start % WORDS :]
    return torch.from_numpy(words < np.uint64(int(density * 2.0**64)))


def drop(vectors: Vectors, values: Values, settings: Settings) -> Vectors:
    """Sets what is dropped to zero and divides the rest by `density`, in place."""
    if settings.density == 1:
        return vectors
    for name, vector in vectors.items():
        mask = keep_mask(
            values.start,
            values.start + vector.numel(),
            tensor=values.tensor,
            vector=name,
            density=settings.density,
            drop_seed=settings.drop_seed,
        )
        vector.mul_(mask).div_(settings.density)
    return vectors


def dare(values: Values, settings: Settings, _: None = None) -> Tensor:
    """A weighted sum of what was not dropped, on the base. Overwrites `values`."""
    vectors = drop(take_vectors(values, settings), values, settings)
    return add_all(values.base, vectors, settings)


DARE = MergeMethod(
    name="dare",
    formula=(
        "base + (text_weight * drop(text - base) + alpha * drop(vlm - base)), drop: zero with "
        "probability 1 - density, else divided by density"
    ),
    url="https://arxiv.org/abs/2311.03099",
    merge=dare,
    copies=only_input,
    uses=frozenset({"alpha", "text_weight", "density", "drop_seed"}),
    takes_base=True,
)
