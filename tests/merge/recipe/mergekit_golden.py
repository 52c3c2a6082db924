"""Writes what mergekit 0.1.5 makes of small seeded inputs to mergekit_golden.json, beside it.

mergekit's pins do not go with ours, so it is no dependency; this was run once, with a wheel:

    pip install --no-deps --target /tmp/mk/site mergekit==0.1.5
    PYTHONPATH=.:/tmp/mk/site python tests/merge/recipe/mergekit_golden.py

Arrays are float32, stored as the hexadecimal of their little-endian bytes.
"""

import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from mergekit import sparsify
from mergekit.merge_methods.base import TensorGroup
from mergekit.merge_methods.registry import get
from mergekit.merge_methods.slerp import slerp

from merge.recipe.dare import keep_mask

OUT = Path(__file__).with_suffix(".json")
COMMAND = "PYTHONPATH=.:/tmp/mk/site python tests/merge/recipe/mergekit_golden.py"
SIZE = 96
SHAPE = (8, 12)
NAME = "model.layers.0.mlp.up_proj.weight"
DENSITY, DROP_SEED = 0.4, 5
WEIGHTS = ((1.0, 0.4), (0.7, 0.3), (1.0, 1.0), (1.0, -0.5))

Inputs = dict[str, torch.Tensor]


def make_inputs() -> Inputs:
    """A base and two models trained from it; `near` is colinear with text but for 1e-3."""
    torch.manual_seed(0)
    base = torch.randn(SHAPE)
    text, vlm = (base + 0.5 * torch.randn(SHAPE) for _ in range(2))
    near = text * 1.1 + 1e-3 * torch.randn(SHAPE)
    return {"base": base, "text": text, "vlm": vlm, "near": near, "zero": torch.zeros(SHAPE)}


def masks() -> Inputs:
    """Our masks, by task vector."""
    return {
        key: keep_mask(
            0, SIZE, tensor=NAME, vector=key, density=DENSITY, drop_seed=DROP_SEED
        ).reshape(SHAPE)
        for key in ("text", "vlm")
    }


def on_vectors(
    method: str, inputs: Inputs, weights: dict[str, float], base: str = "base", **settings: Any
) -> torch.Tensor:
    """One of mergekit's methods on task vectors; {model: weight} names the models."""
    names = (base, *weights)
    group = TensorGroup.from_tensors([inputs[name] for name in names], ids=names, base_index=0)
    density = settings.pop("density", 1.0)
    options = {"int8_mask": False, "normalize": False, "rescale": False, "lambda": 1.0} | settings
    densities = dict.fromkeys(weights, density)
    return get(method).merge_group(group, weight=weights, density=densities, **options)


def ours_dropped(order: list[str]) -> Callable[..., torch.Tensor]:
    """In place of mergekit's `bernoulli`: our mask, and the division by density."""
    left = list(order)
    return lambda tensor, density, rescale_norm=None: tensor * masks()[left.pop(0)] / density


def slerp_cases(inputs: Inputs) -> list[dict[str, Any]]:
    cases = []
    for first, second in (("text", "vlm"), ("text", "near"), ("zero", "vlm")):
        for alpha in (0.3, 0.8):
            pair = (inputs[first].unsqueeze(0), inputs[second].unsqueeze(0))
            result = slerp(torch.tensor([alpha]), *pair)[0]
            told = {"method": "slerp", "text": first, "vlm": second, "alpha": alpha}
            cases.append(told | {"result": result})
    return cases


def vector_cases(inputs: Inputs) -> list[dict[str, Any]]:
    cases = []
    for text_weight, alpha in WEIGHTS:
        weights = {"text": text_weight, "vlm": alpha}
        for method, normalize in (
            ("task_arithmetic", False),
            ("ties", False),
            ("ties", True),
            ("dare_linear", False),
            ("dare_ties", False),
            ("dare_ties", True),
        ):
            with mock.patch.object(sparsify, "bernoulli", ours_dropped(["text", "vlm"])):
                density = 1.0 if method == "task_arithmetic" else DENSITY
                result = on_vectors(method, inputs, weights, normalize=normalize, density=density)
            cases.append(
                {
                    "method": "dare" if method == "dare_linear" else method,
                    "text_weight": text_weight,
                    "alpha": alpha,
                    "density": density,
                    "normalize": normalize,
                    "result": result,
                }
            )
    return cases


def single_cases(inputs: Inputs) -> list[dict[str, Any]]:
    """With the text LM as mergekit's base there is one task vector."""
    cases = []
    for method in ("task_arithmetic", "ties", "dare_linear", "dare_ties"):
        with mock.patch.object(sparsify, "bernoulli", ours_dropped(["vlm"])):
            density = 1.0 if method == "task_arithmetic" else DENSITY
            result = on_vectors(method, inputs, {"vlm": 0.4}, base="text", density=density)
        ours = {"task_arithmetic": "linear", "dare_linear": "dare"}.get(method, method)
        cases.append({"method": ours, "alpha": 0.4, "density": density, "result": result})
    return cases


def own_rescale(inputs: Inputs) -> torch.Tensor:
    """mergekit's dare_linear as it comes (rescale=True), but for our masks in its draws."""
    drawn = [mask.float() for mask in masks().values()]
    with mock.patch.object(torch, "bernoulli", side_effect=drawn):
        weights = {"text": 1.0, "vlm": 0.4}
        return on_vectors("dare_linear", inputs, weights, density=DENSITY, rescale=True)


def to_hex(tensor: torch.Tensor) -> str:
    return tensor.numpy().astype("<f4").tobytes().hex()


def main() -> None:
    inputs = make_inputs()
    cases = [*slerp_cases(inputs), *vector_cases(inputs), *single_cases(inputs)]
    golden = {
        "mergekit": importlib.metadata.version("mergekit"),
        "torch": torch.__version__,
        "command": COMMAND,
        "tensor": NAME,
        "drop_seed": DROP_SEED,
        "inputs": {key: to_hex(value) for key, value in inputs.items()},
        "masks": {
            key: "".join(str(int(keep)) for keep in mask.reshape(-1))
            for key, mask in masks().items()
        },
        "cases": [case | {"result": to_hex(case["result"])} for case in cases],
        "own_rescale": {
            "text_weight": 1.0,
            "alpha": 0.4,
            "density": DENSITY,
            "result": to_hex(own_rescale(inputs)),
        },
    }
    assert all(np.isfinite(case["result"].numpy()).all() for case in cases)
    OUT.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
