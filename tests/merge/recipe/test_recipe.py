"""merge.recipe.recipe: what a method may be given, and the settings of each tensor."""

import json
import logging
from dataclasses import fields
from pathlib import Path

import pytest

from configs.errors import ConfigError
from merge.matching.tensor_table import EMBEDDING, LM_HEAD, TensorClass, TensorPlan
from merge.reading.checkpoint import StoredTensor
from merge.recipe.interface import Settings
from merge.recipe.methods import METHODS
from merge.recipe.recipe import make_recipe

GIVEN = {"text_weight": 0.5, "density": 0.5, "normalize": True, "drop_seed": 3}
NEEDS_DENSITY = ("ties", "dare", "dare_ties")


def settings_of(name: str) -> dict[str, object]:
    """Every setting that a method reads, with a value."""
    return {key: value for key, value in GIVEN.items() if key in METHODS[name].uses}


def plan_of(name: str, tensor_class: TensorClass = TensorClass.MERGED) -> TensorPlan:
    stored = StoredTensor(name, Path("none"), "F32", (4, 4), 0)
    copied = tensor_class is TensorClass.COPIED
    part = "vision_tower" if copied else "decoder"
    return TensorPlan(part, name, tensor_class, stored, None if copied else stored)


def table(*, tied: bool) -> list[TensorPlan]:
    return [
        plan_of("encoder.layers.7.mlp.fc1.weight", TensorClass.COPIED),
        plan_of(LM_HEAD, TensorClass.TIED if tied else TensorClass.MERGED),
        plan_of(EMBEDDING),
        *(plan_of(f"model.layers.{i}.mlp.up_proj.weight") for i in range(3)),
        plan_of("model.norm.weight"),
    ]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_takes_what_it_reads(name):
    method = METHODS[name]
    recipe = make_recipe(alpha=0.3, method=name, has_base=method.takes_base, **settings_of(name))
    assert recipe.method is method
    assert recipe.settings == Settings(**settings_of(name), has_base=method.takes_base)
    assert {"alpha", *GIVEN} >= method.uses


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("key", GIVEN)
def test_every_method_refuses_what_it_does_not_read(name, key):
    if key in METHODS[name].uses:
        return
    given = settings_of(name) | {key: GIVEN[key]}
    readers = ", ".join(other for other, item in METHODS.items() if key in item.uses)
    message = f"^{key}={GIVEN[key]}: method={name} does not read it; {readers} do. Leave it out"
    with pytest.raises(ConfigError, match=message):
        make_recipe(method=name, has_base=METHODS[name].takes_base, **given)
    without = settings_of(name) | {key: None}
    make_recipe(method=name, has_base=METHODS[name].takes_base, **without)


def test_a_setting_that_none_reads():
    with pytest.raises(ConfigError, match="beta=1: method=linear does not read it; none does"):
        make_recipe(beta=1)


def test_unknown_method():
    with pytest.raises(ConfigError, match="method=mean: there is no such one; linear, slerp, task"):
        make_recipe(method="mean")


@pytest.mark.parametrize("name", ["linear", "slerp"])
def test_base_not_taken(name):
    told = f"base: method={name} takes no third model; task_arithmetic, ties, dare, dare_ties do"
    with pytest.raises(ConfigError, match=told):
        make_recipe(method=name, has_base=True)


def test_task_arithmetic_needs_a_base():
    told = "needs a base: with the text LM as the base it is method=linear; give base=FOLDER"
    with pytest.raises(ConfigError, match=f"^method=task_arithmetic {told}"):
        make_recipe(method="task_arithmetic")


@pytest.mark.parametrize("name", ["ties", "dare_ties"])
def test_normalize_needs_a_base(name):
    with pytest.raises(ConfigError, match=r"^normalize=true without base: alpha would be divided"):
        make_recipe(method=name, density=0.5, normalize=True)
    make_recipe(method=name, density=0.5, normalize=False)


@pytest.mark.parametrize("name", NEEDS_DENSITY)
def test_text_weight_needs_a_base(name):
    with pytest.raises(
        ConfigError, match=r"^text_weight=0.5 without base: the text LM is the base"
    ):
        make_recipe(method=name, density=0.5, text_weight=0.5)


@pytest.mark.parametrize("name", NEEDS_DENSITY)
@pytest.mark.parametrize("density", [None, 0, -0.1, 1.1, float("nan")])
def test_density(name, density):
    told = "not given" if density is None else density
    with pytest.raises(ConfigError, match=f"^density is {told}; method={name} needs the share"):
        make_recipe(method=name, has_base=True, density=density)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_text_weight_is_a_number(value):
    with pytest.raises(ConfigError, match=f"^text_weight={value}: give a number"):
        make_recipe(method="task_arithmetic", has_base=True, text_weight=value)


@pytest.mark.parametrize("name", NEEDS_DENSITY)
def test_thinning_out_the_only_task_vector_is_warned_of(name, caplog):
    with caplog.at_level(logging.WARNING):
        make_recipe(method=name, has_base=True, density=0.5)
        make_recipe(method=name, density=1)
        make_recipe(method="slerp")
        assert not caplog.records
        make_recipe(method=name, density=0.5)
    assert f"method={name} without base thins out the VLM's only task vector" in caplog.text


@pytest.mark.parametrize("tied", [False, True])
def test_settings_of_each_tensor(tied):
    """Layers are counted in the decoder; a tied head goes with the embedding, another is last."""
    recipe = make_recipe(alpha=[0.8, 0.2], method="ties", density=0.5, has_base=True)
    found = recipe.for_tensors(table(tied=tied))
    assert {name: item.alpha for name, item in found.items()} == pytest.approx(
        {
            EMBEDDING: 0.8,
            "model.layers.0.mlp.up_proj.weight": 0.8,
            "model.layers.1.mlp.up_proj.weight": 0.5,
            "model.layers.2.mlp.up_proj.weight": 0.2,
            "model.norm.weight": 0.2,
            LM_HEAD: 0.8 if tied else 0.2,
        }
    )
    assert all(item.density == 0.5 and item.has_base for item in found.values())


def test_overrides_reach_the_tensors():
    recipe = make_recipe(alpha=0.5, alpha_overrides={"embeddings": 0, r"layers\.2": 1})
    found = {name: item.alpha for name, item in recipe.for_tensors(table(tied=True)).items()}
    assert found[EMBEDDING] == found[LM_HEAD] == 0
    assert found["model.layers.2.mlp.up_proj.weight"] == 1
    assert found["model.norm.weight"] == 0.5
    with pytest.raises(ConfigError, match="no tensor of the decoder: head"):
        make_recipe(alpha_overrides={"head": 1}).for_tensors(table(tied=True))
    with pytest.raises(ConfigError, match=r"no tensor of the decoder: fc1"):
        make_recipe(alpha_overrides={"fc1": 1}).for_tensors(table(tied=True))


def test_alpha_is_checked():
    with pytest.raises(ConfigError, match=r"alpha=1.5 is outside \[0, 1\]"):
        make_recipe(alpha=1.5)
    assert make_recipe(alpha=1.5, extrapolate=True).alpha.number == 1.5


@pytest.mark.parametrize("name", METHODS)
def test_the_description_is_json_and_holds_what_is_read(name):
    has_base = METHODS[name].takes_base
    recipe = make_recipe(
        alpha=[0.8, 0.2],
        alpha_overrides={"mlp": 0.1},
        method=name,
        has_base=has_base,
        **settings_of(name),
    )
    told = json.loads(json.dumps(recipe.describe()))
    assert told == {
        "name": name,
        "formula": METHODS[name].formula,
        "url": METHODS[name].url,
        "alpha": [[0, 0.8], [1, 0.2]],
        "alpha_overrides": {"mlp": 0.1},
        **settings_of(name),
    }


def test_every_setting_is_read_by_some_method():
    read = set().union(*(method.uses for method in METHODS.values()))
    assert read | {"has_base"} == {item.name for item in fields(Settings)}
