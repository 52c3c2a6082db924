"""The rule that chooses alpha, worked by hand."""

import pytest

from configs.errors import CheckpointError
from merge.sweeping.choose import Point, choose_candidate, make_point, pareto_front


def point(alpha, text_nll, chrf=None, caption_nll=1.0, name=None):
    return Point(name or f"{alpha:g}", alpha, text_nll, None, caption_nll, 0.1, None, chrf)


def choose(points, allowed, text_lm="0"):
    return choose_candidate(points, text_lm=text_lm, max_text_loss_increase=allowed)


POINTS = [
    point(0.0, 2.00, chrf=10.0),
    point(0.3, 2.05, chrf=30.0),
    point(0.6, 2.19, chrf=45.0),
    point(0.8, 2.25, chrf=50.0),
    point(1.0, 3.00, chrf=48.0),
]


@pytest.mark.parametrize(
    ("allowed", "alpha", "count"),
    [
        (0.0, 0.0, 1),  # no loss at all: the text LM itself
        (0.06, 0.3, 2),
        (0.2, 0.6, 3),
        (0.25, 0.8, 4),  # the limit itself is allowed
        (5.0, 0.8, 5),  # everything is: the best captions, which need not be those of alpha 1
    ],
)
def test_best_captions_among_those_that_cost_little_text(allowed, alpha, count):
    choice = choose(POINTS, allowed)
    assert choice.alpha == alpha
    assert f"among the {count} of 5 candidates" in choice.rule
    assert f"at most {2 + allowed:.3f} nats a token" in choice.rule
    assert f"that of the text LM (2.000) plus max_text_loss_increase={allowed:g}" in choice.rule


def test_the_order_of_points_does_not_matter():
    shuffled = [POINTS[i] for i in (3, 0, 4, 2, 1)]
    assert choose(shuffled, 0.2).alpha == 0.6


def test_a_tie_goes_to_the_smaller_alpha():
    points = [point(0.0, 2.0, chrf=10.0), point(0.5, 2.0, chrf=20.0), point(0.7, 2.0, chrf=20.0)]
    assert choose(points, 0.2).alpha == 0.5


def test_text_that_gets_better_is_no_cost():
    points = [point(0.0, 2.0, chrf=10.0), point(0.5, 1.9, chrf=20.0)]
    assert choose(points, 0.0).alpha == 0.5


def test_without_generated_captions_likelihood_decides():
    points = [point(0.0, 2.0, caption_nll=3.0), point(0.5, 2.1, caption_nll=1.5),
              point(1.0, 2.1, caption_nll=1.6)]  # fmt: skip
    choice = choose(points, 0.2)
    assert choice.alpha == 0.5 and choice.rule.startswith("largest likelihood of held-out captions")


def test_the_text_lm_is_the_one_that_is_named():
    """Where alpha 0 of a method is something else, the limit is still the text LM's."""
    points = [point(None, 1.9, chrf=5.0, name="text_lm"), *POINTS]
    choice = choose(points, 0.15, text_lm="text_lm")
    assert (choice.name, choice.alpha) == ("0.3", 0.3)
    assert "at most 2.050 nats a token: that of the text LM (1.900)" in choice.rule


def test_a_schedule_may_be_chosen():
    points = [*POINTS, point(None, 2.1, chrf=46.0, name="falling")]
    choice = choose(points, 0.2)
    assert (choice.name, choice.alpha) == ("falling", None)
    assert "among the 4 of 6 candidates" in choice.rule


def test_a_number_goes_before_a_schedule_that_is_no_better():
    points = [point(0.0, 2.0, 10.0), point(None, 2.0, 45.0, name="falling"), point(0.9, 2.0, 45.0)]
    assert choose(points, 0.2).name == "0.9"


@pytest.mark.parametrize("broken", [{"text_nll": float("nan")}, {"chrf": float("nan")}])
def test_what_has_no_numbers_is_never_chosen(broken):
    good = {"text_nll": 2.0, "chrf": 30.0}
    points = [point(0.5, **good | broken), point(0.0, **good), point(0.7, **good | broken)]
    assert choose(points, 0.2).name == "0"
    with pytest.raises(CheckpointError, match=r"the text LM's held-out text loss is .* nan|nan, "):
        choose([point(0.0, **good | broken), point(0.5, **good)], 0.2)


def test_the_front_holds_what_no_other_beats_in_both():
    points = [
        *POINTS,
        point(None, 2.19, chrf=44.0, name="worse"),
        point(None, 2.06, 30.0, name="x"),
    ]
    front = pareto_front(points[::-1])
    assert [p.name for p in front] == ["0", "0.3", "0.6", "0.8"]


def test_a_point_is_the_mean_over_groups():
    results = {
        "scenes": {"nll": 1.0, "picture_gap": 0.5, "exact_match": 0.2, "chrf": 40.0, "nll/en": 9.0},
        "photos": {"nll": 3.0, "picture_gap": 0.1, "exact_match": 0.4, "chrf": 50.0},
        "numbers": {"nll": 2.0, "exact_match": 0.9, "chrf": 95.0},
        "udhr": {"nll": 4.0},
    }
    found = make_point("0.4", 0.4, results, ["scenes", "photos"])
    assert found == Point(
        name="0.4", alpha=0.4, text_nll=3.0, text_exact_match=0.9, caption_nll=2.0,
        picture_gap=pytest.approx(0.3), caption_exact_match=pytest.approx(0.3), caption_chrf=45.0,
    )  # fmt: skip
