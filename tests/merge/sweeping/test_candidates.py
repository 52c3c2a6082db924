"""What is measured: names, files, recipes, and which of them is the text LM."""

import math
from types import MappingProxyType

import pytest

from configs.errors import ConfigError
from configs.rules import TEXT_LM
from merge.recipe import recipe as recipes
from merge.recipe.methods import METHODS, MergeMethod
from merge.sweeping.candidates import find_text_lm, list_candidates
from merge.sweeping.points import PointFiles


def test_alphas_then_schedules_in_their_order():
    found = list_candidates(
        alphas=[0.5, 0, 1 / 3, 1], schedules={"b": ([0.8, 0.2], {}), "a": (0.4, {"mlp": 0})}
    )
    assert [c.name for c in found] == ["0.5", "0", "0.3333333333333333", "1", "b", "a"]
    assert [c.alpha for c in found] == [0.5, 0, 1 / 3, 1, None, None]
    assert [c.file_name for c in found][3:] == ["alpha-1.json", "b.json", "a.json"]
    assert [str(c) for c in found][-2:] == ["b (0.8 -> 0.2)", "a (0.4 (mlp: 0))"]
    assert find_text_lm(found).name == "0"


def test_zero_below_zero_is_zero():
    (found,) = list_candidates(alphas=[-0.0], schedules={})
    assert (found.name, math.copysign(1, found.alpha or 0.0)) == ("0", 1)


def test_a_schedule_may_be_a_number_and_keeps_its_name():
    found = list_candidates(alphas=[0], schedules={"mine": (0.3, {})})[1]
    assert (found.name, found.alpha, found.recipe.alpha.number) == ("mine", None, 0.3)


@pytest.mark.parametrize(
    ("alpha", "overrides", "told"),
    [
        (1.2, {}, r"schedules.mine: alpha=1.2 is outside \[0, 1\]"),
        ("x", {}, "schedules.mine: alpha='x': give a number"),
        (0.4, {"(": 0}, r"schedules.mine: alpha_overrides: '\(' is neither one of embeddings"),
    ],
)
def test_what_cannot_be_a_schedule(alpha, overrides, told):
    with pytest.raises(ConfigError, match=told):
        list_candidates(alphas=[0], schedules={"mine": (alpha, overrides)})


def test_settings_of_the_method_go_to_all():
    with pytest.raises(ConfigError, match=r"density=0.5: method=linear does not read it"):
        list_candidates(alphas=[0], schedules={}, density=0.5)
    assert len(list_candidates(alphas=[0, 1.5], schedules={}, extrapolate=True)) == 2


@pytest.fixture
def trimming(monkeypatch) -> None:
    """A method whose alpha 0 is not the text LM."""
    linear = METHODS["linear"]
    method = MergeMethod(
        "trimming", "", "", linear.merge, copies=lambda settings: None, takes_base=True
    )
    monkeypatch.setattr(recipes, "METHODS", MappingProxyType({**METHODS, "trimming": method}))


@pytest.mark.usefixtures("trimming")
def test_the_text_lm_is_added_where_alpha_0_is_something_else():
    found = list_candidates(alphas=[0, 0.5], schedules={}, method="trimming", has_base=True)
    assert [c.name for c in found] == [TEXT_LM, "0", "0.5"]
    assert [c.recipe.method.name for c in found] == ["linear", "trimming", "trimming"]
    assert [c.has_base for c in found] == [False, True, True]
    assert find_text_lm(found) is found[0] and found[0].file_name == "text_lm.json"


@pytest.mark.usefixtures("trimming")
def test_a_point_of_another_method_is_not_taken(tmp_path):
    ours = list_candidates(alphas=[0], schedules={})[0]
    theirs = list_candidates(alphas=[0], schedules={}, method="trimming")[1]
    files = PointFiles(tmp_path)
    files.write(ours, {}, [])
    assert files.read(ours).point.name == "0"
    with pytest.raises(
        ConfigError, match=r"0: .*alpha-0.json was measured with name linear, now t"
    ):
        files.read(theirs)
