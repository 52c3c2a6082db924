"""merge.recipe.threshold against torch.topk on whole tensors."""

from collections.abc import Iterator

import pytest
import torch

from merge.recipe.threshold import kth_largest

SIZE = 10_007
TINY = 2.0**-149  # the smallest denormal


def bits(low: int, high: int) -> torch.Tensor:
    """Floats whose bits are drawn from a range, with both signs."""
    drawn = torch.randint(low, high, (SIZE,), dtype=torch.int32).view(torch.float32)
    return drawn * (torch.randint(0, 2, (SIZE,)) * 2 - 1)


def make_vectors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    normal = torch.randn(SIZE)
    return {
        "normal": normal,
        "as bf16": normal.bfloat16().float(),
        "few values": torch.randint(-3, 4, (SIZE,)).float(),
        "mostly zero": normal * (torch.rand(SIZE) < 0.01),
        "all zero": torch.zeros(SIZE),
        "all minus zero": -torch.zeros(SIZE),
        "all equal": torch.full((SIZE,), -0.1),
        "denormal": bits(1, 0x800000),
        "few denormals": torch.randint(-3, 4, (SIZE,)) * TINY,
        "any finite": bits(0, 0x7F800000),
        "one upper half": bits(0x3F800000, 0x3F810000),
        "edges of upper halves": bits(0x3F80FFF0, 0x3F810010),
        "largest": torch.full((SIZE,), torch.finfo(torch.float32).max),
    }


VECTORS = make_vectors()


@pytest.mark.parametrize("name", VECTORS)
def test_equals_topk(name):
    vector = VECTORS[name]
    ordered = vector.abs().topk(SIZE).values
    for k in (1, 2, 3, SIZE // 3, SIZE // 2, SIZE - 1, SIZE):
        found = kth_largest(lambda: [{"vlm": vector.clone()}], k)
        assert found == {"vlm": float(ordered[k - 1])}, k
        assert found["vlm"] == float(vector.abs().kthvalue(SIZE - k + 1).values)


def test_several_vectors_in_stretches():
    text, vlm = VECTORS["normal"], VECTORS["any finite"]
    passes = []

    def stretches() -> Iterator[dict[str, torch.Tensor]]:
        passes.append(1)
        for start in range(0, SIZE, 999):
            yield {key: vector[start : start + 999].clone() for key, vector in pair.items()}

    pair = {"text": text, "vlm": vlm}
    found = kth_largest(stretches, 4321)
    assert found == {key: float(v.abs().topk(4321).values[-1]) for key, v in pair.items()}
    assert len(passes) == 2
