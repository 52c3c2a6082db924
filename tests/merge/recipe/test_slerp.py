"""merge.recipe.slerp against numpy and by hand."""

import numpy as np
import pytest
import torch
from merge_tensors import Inputs, make_inputs, run

from merge.recipe.interface import Settings


def naive(inputs: Inputs, alpha: float) -> np.ndarray:
    text, vlm = inputs["text"].numpy(), inputs["vlm"].numpy()
    one, two = text.astype(np.float64), vlm.astype(np.float64)
    cosine = (one @ two) / (np.linalg.norm(one) * np.linalg.norm(two))
    if abs(cosine) > 0.9995:
        return text + np.float32(alpha) * (vlm - text)
    angle = np.arccos(cosine)
    first = np.float32(np.sin((1 - alpha) * angle) / np.sin(angle))
    second = np.float32(np.sin(alpha * angle) / np.sin(angle))
    return first * text + second * vlm


def of(text: list[float], vlm: list[float]) -> Inputs:
    return {"text": torch.tensor(text).float(), "vlm": torch.tensor(vlm).float()}


@pytest.mark.parametrize("alpha", [0.1, 0.4, 0.999, 1.5, -0.5])
@pytest.mark.parametrize("delta", [3.0, 0.5, 0.01])
def test_equals_numpy(alpha, delta):
    """Deltas: nearly at right angles, on the circle, nearly colinear."""
    inputs = make_inputs(10_000, delta=delta)
    assert torch.equal(
        run("slerp", Settings(alpha=alpha), inputs), torch.from_numpy(naive(inputs, alpha))
    )


def test_by_hand():
    """At right angles: 2 sin(60 degrees) and 2 sin(30 degrees), on the circle of radius 2."""
    found = run("slerp", Settings(alpha=1 / 3), of([2, 0], [0, 2]))
    assert found.tolist() == pytest.approx([3**0.5, 1], abs=1e-7)
    assert float(found.norm()) == pytest.approx(2, abs=1e-6)


@pytest.mark.parametrize(
    "inputs",
    [
        of([1, 2, 3], [2, 4, 6]),
        of([1, 2, 3], [-1, -2, -3]),
        of([0, 0, 0], [1, 2, 3]),
        of([1, 2, 3], [0, 0, 0]),
        of([0, 0, 0], [0, 0, 0]),
    ],
    ids=["same direction", "opposite", "text zero", "vlm zero", "both zero"],
)
def test_a_line_where_there_is_no_circle(inputs):
    settings = Settings(alpha=0.3)
    assert torch.equal(run("slerp", settings, inputs), run("linear", settings, inputs))


def test_the_threshold():
    for cosine, is_line in ((0.9995 + 1e-6, True), (0.9995 - 1e-6, False)):
        for sign in (1, -1):
            inputs = of([1, 0], [sign * cosine, (1 - cosine**2) ** 0.5])
            settings = Settings(alpha=0.5)
            same = torch.equal(run("slerp", settings, inputs), run("linear", settings, inputs))
            assert same == is_line


def test_sums_neither_overflow_nor_vanish():
    """Squares of 1e30 and 1e-30 are no float32."""
    small = run("slerp", Settings(alpha=1 / 3), of([2e-30, 0], [0, 2e-30]))
    large = run("slerp", Settings(alpha=1 / 3), of([2e30, 0], [0, 2e30]))
    expected = run("slerp", Settings(alpha=1 / 3), of([2, 0], [0, 2]))
    torch.testing.assert_close(small * 1e30, expected)
    torch.testing.assert_close(large * 1e-30, expected)


def test_threads_do_not_show():
    inputs = make_inputs(300_000)
    one = run("slerp", Settings(alpha=0.4), inputs)
    torch.set_num_threads(3)
    assert torch.equal(run("slerp", Settings(alpha=0.4), inputs), one)


@pytest.mark.parametrize("alpha", [0.1, 0.4, 0.8])
def test_close_to_the_exact_result(alpha):
    """Worst error over 2**18 elements: 8.1e-8 of the largest value, against float64."""
    inputs = make_inputs(1 << 18, delta=0.3)
    text, vlm = inputs["text"].double(), inputs["vlm"].double()
    angle = torch.acos(text @ vlm / (text.norm() * vlm.norm()))
    exact = (torch.sin((1 - alpha) * angle) * text + torch.sin(alpha * angle) * vlm) / angle.sin()
    error = (run("slerp", Settings(alpha=alpha), inputs).double() - exact).abs().max()
    assert float(error / exact.abs().max()) <= 1.2e-7
