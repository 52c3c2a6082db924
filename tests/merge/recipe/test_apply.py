"""merge.recipe.apply.merge_whole: rows of the VLM, methods that prepare, tied heads."""

from pathlib import Path

import pytest
import torch
from merge_tensors import Inputs, make_inputs, run

from merge.matching.tensor_table import EMBEDDING, LM_HEAD, TensorClass, TensorPlan
from merge.reading.checkpoint import StoredTensor
from merge.recipe import segments
from merge.recipe.apply import merge_whole
from merge.recipe.interface import Settings
from merge.recipe.methods import METHODS

ROWS, WIDTH = 20, 12
VLM_ROWS = ((3, 4), (17, 20))
MERGED = [row for row in range(ROWS) if row not in (3, 17, 18, 19)]
SETTINGS = {
    "slerp": Settings(alpha=0.4),
    "ties": Settings(alpha=0.4, density=0.3, has_base=True),
    "dare_ties": Settings(alpha=0.4, density=0.3, has_base=True),
}


def plan_of(name: str, tensor_class: TensorClass = TensorClass.MERGED) -> TensorPlan:
    """Of an embedding whose image row, and three rows that only it has, come from the VLM."""
    stored = StoredTensor("vlm name", Path("none"), "F32", (ROWS, WIDTH), 0)
    return TensorPlan("decoder", name, tensor_class, stored, stored, vlm_rows=VLM_ROWS)


def inputs() -> Inputs:
    shaped = {key: value.reshape(ROWS, WIDTH) for key, value in make_inputs(ROWS * WIDTH).items()}
    shaped["vlm"][3] *= 1000  # far out: seen by a norm or a threshold, it would move it
    return shaped | {key: shaped[key][:17] for key in ("text", "base")}


def whole(name: str, plan: TensorPlan) -> torch.Tensor:
    return merge_whole(plan, METHODS[name], SETTINGS[name], **inputs(), dtype=torch.float32)


@pytest.mark.parametrize("name", ["slerp", "ties"])
def test_rows_of_the_vlm_are_kept_and_not_looked_at(name):
    """What `prepare` finds is of the merged rows alone."""
    assert METHODS[name].prepare is not None
    given = inputs()
    before = {key: value.clone() for key, value in given.items()}
    found = merge_whole(
        plan_of(EMBEDDING), METHODS[name], SETTINGS[name], **given, dtype=torch.float32
    )
    assert torch.equal(found[3], given["vlm"][3]) and torch.equal(found[17:], given["vlm"][17:])
    merged = {key: value[MERGED].reshape(-1) for key, value in given.items()}
    assert torch.equal(found[MERGED].reshape(-1), run(name, SETTINGS[name], merged))
    assert all(torch.equal(given[key], before[key]) for key in given)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_size_of_chunks_does_not_show(name, monkeypatch):
    expected = whole(name, plan_of(EMBEDDING))
    for size in (1, 7, 64, 239):
        monkeypatch.setattr(segments, "CHUNK_ELEMENTS", size)
        assert torch.equal(whole(name, plan_of(EMBEDDING)), expected), size


@pytest.mark.parametrize("name", SETTINGS)
def test_a_tied_head_stays_equal_to_the_embedding(name):
    """It is stored under another name, and what is dropped goes by name."""
    tied = whole(name, plan_of(LM_HEAD, TensorClass.TIED))
    assert torch.equal(tied, whole(name, plan_of(EMBEDDING)))
    other = whole(name, plan_of(LM_HEAD))
    assert torch.equal(other, tied) == (name != "dare_ties")


def test_end_points_are_copied_without_preparing():
    given = inputs()
    given["text"][0, 0] = float("inf")
    for alpha, source in ((0, "text"), (1, "vlm")):
        found = merge_whole(
            plan_of(EMBEDDING),
            METHODS["slerp"],
            Settings(alpha=alpha),
            **given,
            dtype=torch.float32,
        )
        assert torch.equal(found[MERGED], given[source][MERGED])


def test_one_rounding_to_the_stored_dtype():
    given = {key: value.bfloat16() for key, value in inputs().items()}
    found = merge_whole(
        plan_of(EMBEDDING), METHODS["ties"], SETTINGS["ties"], **given, dtype=torch.bfloat16
    )
    exact = merge_whole(
        plan_of(EMBEDDING), METHODS["ties"], SETTINGS["ties"], **given, dtype=torch.float32
    )
    assert torch.equal(found, exact.bfloat16())
