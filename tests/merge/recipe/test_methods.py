"""merge.recipe.methods: what holds of every method, bit for bit."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from merge_tensors import make_inputs, run

from configs.schema import MergeMethod
from merge.recipe.interface import Settings, Values
from merge.recipe.linear import linear
from merge.recipe.methods import METHODS

SETTINGS = {
    "linear": Settings(alpha=0.4),
    "slerp": Settings(alpha=0.4),
    "task_arithmetic": Settings(alpha=0.4, text_weight=0.7, has_base=True),
    "ties": Settings(alpha=0.4, density=0.3),
    "ties with base": Settings(alpha=0.4, text_weight=0.7, density=0.3, has_base=True),
    "ties normalized": Settings(alpha=0.4, density=0.3, normalize=True, has_base=True),
    "dare": Settings(alpha=0.4, density=0.3, drop_seed=1),
    "dare with base": Settings(alpha=0.4, text_weight=0.7, density=0.3, has_base=True),
    "dare_ties": Settings(alpha=0.4, density=0.3),
    "dare_ties with base": Settings(alpha=0.4, text_weight=0.7, density=0.3, has_base=True),
    "dare_ties normalized": Settings(alpha=0.4, density=0.3, normalize=True, has_base=True),
}
CASES = [pytest.param(key.split()[0], value, id=key) for key, value in SETTINGS.items()]
WITHOUT_BASE = [case for case in CASES if not case.values[1].has_base]
ON_VECTORS = [case for case in CASES if case.values[0] not in ("linear", "slerp")]


def test_every_method_of_the_config_is_there():
    assert list(METHODS) == [member.value for member in MergeMethod]
    assert all(method.name == key for key, method in METHODS.items())
    assert {case.values[0] for case in CASES} == set(METHODS)
    assert all("alpha" in method.uses for method in METHODS.values())
    assert all(method.url.startswith("https://") for method in METHODS.values())


def test_imports_no_torch():
    code = (
        "import merge.recipe.recipe, sys; "
        "assert not {'torch', 'numpy', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_linear_is_three_rounded_operations():
    inputs = make_inputs(100_000)
    text, vlm = inputs["text"], inputs["vlm"]
    expected = text.numpy() + np.float32(0.4) * (vlm.numpy() - text.numpy())
    before = text.clone()
    found = linear(Values(text=text, vlm=vlm.clone(), base=text), Settings(alpha=0.4))
    assert torch.equal(found, torch.from_numpy(expected))
    assert torch.equal(text, before)


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_no_cut_into_stretches_shows(name, settings):
    inputs = make_inputs(5000)
    whole = run(name, settings, inputs)
    for cuts in ((1,), (4999,), (7, 8, 2501), tuple(range(1, 5000, 333))):
        assert torch.equal(run(name, settings, inputs, cuts=cuts), whole), cuts


@pytest.mark.parametrize(("name", "settings"), WITHOUT_BASE)
def test_a_model_merged_with_itself_is_itself(name, settings):
    """Its task vector is zero; at any alpha."""
    inputs = make_inputs(1000)
    inputs["vlm"] = inputs["text"].clone()
    for alpha in (0.001, 0.4, 0.999, 1.7):
        assert torch.equal(run(name, replace(settings, alpha=alpha), inputs), inputs["text"])


@pytest.mark.parametrize(("name", "settings"), ON_VECTORS)
def test_three_equal_models_are_one(name, settings):
    """With a base of its own, text = vlm is left alone only where it is the base too."""
    inputs = make_inputs(1000)
    inputs |= {"text": inputs["base"].clone(), "vlm": inputs["base"].clone()}
    assert torch.equal(run(name, settings, inputs), inputs["base"])


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_the_base_is_left_alone(name, settings):
    inputs = make_inputs(100)
    values = Values(**{key: value.clone() for key, value in inputs.items()})
    stretches = [Values(**{key: value.clone() for key, value in inputs.items()})]
    method = METHODS[name]
    found = method.prepare(lambda: stretches, settings, 100) if method.prepare else None
    method.merge(values, settings, found)
    assert torch.equal(values.base, inputs["base"])


@pytest.mark.parametrize("name", METHODS)
def test_without_a_base_end_points_are_copies(name):
    copies = METHODS[name].copies
    assert copies(Settings(alpha=0)) == "text"
    assert copies(Settings(alpha=0, density=0.3)) == "text"
    assert copies(Settings(alpha=1)) == "vlm"
    for alpha in (1e-9, 0.5, 1.5, -1):
        assert copies(Settings(alpha=alpha)) is None


@pytest.mark.parametrize("name", ["ties", "dare", "dare_ties"])
def test_a_thinned_vector_is_no_copy(name):
    assert METHODS[name].copies(Settings(alpha=1, density=0.3)) is None


@pytest.mark.parametrize("name", [name for name, item in METHODS.items() if item.takes_base])
def test_with_a_base_one_whole_vector_of_weight_one_is_a_copy(name):
    copies = METHODS[name].copies
    base = Settings(has_base=True)
    assert copies(replace(base, alpha=0, text_weight=1)) == "text"
    assert copies(replace(base, alpha=1, text_weight=0)) == "vlm"
    for alpha, text_weight in ((0, 0), (1, 1), (0, 0.5), (0.5, 0), (0.4, 1), (1, -1)):
        assert copies(replace(base, alpha=alpha, text_weight=text_weight)) is None
    assert copies(replace(base, alpha=0, density=0.9)) is None


@pytest.mark.parametrize("name", ["ties", "dare_ties"])
def test_a_normalized_weight_that_acts_alone_is_one(name):
    copies = METHODS[name].copies
    base = Settings(has_base=True, normalize=True)
    assert copies(replace(base, alpha=0, text_weight=0.3)) == "text"
    assert copies(replace(base, alpha=0.3, text_weight=0)) == "vlm"
    assert copies(replace(base, alpha=0.3, text_weight=1)) is None
    assert copies(replace(base, alpha=0, text_weight=0)) is None


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("has_base", [False, True])
def test_what_is_copied_is_what_the_formula_gives(name, has_base):
    """Up to rounding: base + (text - base) need not be text to the last bit."""
    inputs = make_inputs(1000)
    for alpha, text_weight in ((0, 1), (1, 0)):
        settings = Settings(alpha=alpha, text_weight=text_weight, has_base=has_base)
        source = METHODS[name].copies(settings)
        assert source is not None
        torch.testing.assert_close(run(name, settings, inputs), inputs[source])
