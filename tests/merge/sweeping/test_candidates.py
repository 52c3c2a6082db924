"""What is measured: names, files, recipes, and which of them is the text LM."""

import math

import pytest

from configs.errors import CheckpointError, ConfigError
from configs.rules import TEXT_LM
from merge.recipe.recipe import make_recipe
from merge.sweeping.candidates import find_text_lm, list_candidates
from merge.sweeping.choose import make_point
from merge.sweeping.points import PointFiles

MEANS = {"words": {"nll": 1.0}, "seen": {"nll": 2.0}}


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


@pytest.mark.parametrize(
    ("method", "names"),
    [
        ({"method": "slerp"}, ["0", "0.5"]),
        ({"method": "task_arithmetic", "has_base": True}, ["0", "0.5"]),
        (
            {"method": "task_arithmetic", "has_base": True, "text_weight": 0.5},
            [TEXT_LM, "0", "0.5"],
        ),
        ({"method": "ties", "density": 0.5, "has_base": True}, [TEXT_LM, "0", "0.5"]),
        ({"method": "dare", "density": 0.5}, ["0", "0.5"]),
    ],
)
def test_the_text_lm_is_added_where_alpha_0_is_something_else(method, names):
    found = list_candidates(alphas=[0, 0.5], schedules={}, **method)
    assert [c.name for c in found] == names
    text_lm = find_text_lm(found)
    assert text_lm is found[0]
    if text_lm.name == TEXT_LM:
        assert text_lm.file_name == "text_lm.json"
        assert (text_lm.recipe.method.name, text_lm.recipe.settings.has_base) == ("linear", False)
    assert {c.recipe.method.name for c in found[-2:]} == {method["method"]}


def test_what_is_wrong_with_the_method_is_told_once(caplog):
    with caplog.at_level("WARNING"):
        found = list_candidates(alphas=[0, 0.5, 1], schedules={}, method="dare", density=0.5)
    assert caplog.text.count("most damaging settings") == 1
    assert [make_recipe(**c.arguments) for c in found] == [c.recipe for c in found]


def test_a_point_of_another_method_is_not_taken(tmp_path, monkeypatch):
    ours = list_candidates(alphas=[0], schedules={})[0]
    theirs = list_candidates(alphas=[0], schedules={}, method="slerp")[0]
    files = PointFiles(tmp_path)
    with pytest.raises(CheckpointError, match="0: no loss was measured of text"):
        files.write(ours, {}, [])
    point = make_point("0", 0.0, MEANS, ["seen"])
    monkeypatch.setattr("merge.sweeping.points.make_point", lambda *_: point)
    files.write(ours, {}, [])
    assert files.read(ours).point.name == "0"
    with pytest.raises(
        ConfigError, match=r"0: .*alpha-0.json was measured with name linear, now s"
    ):
        files.read(theirs)
