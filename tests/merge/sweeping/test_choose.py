"""The rule that chooses alpha, worked by hand."""

import pytest

from merge.sweeping.choose import Point, choose_alpha, make_point


def point(alpha, text_nll, chrf=None, caption_nll=1.0):
    return Point(alpha, text_nll, None, caption_nll, 0.1, None, chrf)


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
    choice = choose_alpha(POINTS, max_text_loss_increase=allowed)
    assert choice.alpha == alpha
    assert f"among the {count} of 5 alphas" in choice.rule
    assert f"at most {2 + allowed:.3f} nats a token" in choice.rule
    assert f"alpha 0 (2.000) plus max_text_loss_increase={allowed:g}" in choice.rule


def test_the_order_of_points_does_not_matter():
    shuffled = [POINTS[i] for i in (3, 0, 4, 2, 1)]
    assert choose_alpha(shuffled, max_text_loss_increase=0.2).alpha == 0.6


def test_a_tie_goes_to_the_smaller_alpha():
    points = [point(0.0, 2.0, chrf=10.0), point(0.5, 2.0, chrf=20.0), point(0.7, 2.0, chrf=20.0)]
    assert choose_alpha(points, max_text_loss_increase=0.2).alpha == 0.5


def test_text_that_gets_better_is_no_cost():
    points = [point(0.0, 2.0, chrf=10.0), point(0.5, 1.9, chrf=20.0)]
    assert choose_alpha(points, max_text_loss_increase=0.0).alpha == 0.5


def test_without_generated_captions_likelihood_decides():
    points = [point(0.0, 2.0, caption_nll=3.0), point(0.5, 2.1, caption_nll=1.5),
              point(1.0, 2.1, caption_nll=1.6)]  # fmt: skip
    choice = choose_alpha(points, max_text_loss_increase=0.2)
    assert choice.alpha == 0.5 and choice.rule.startswith("largest likelihood of held-out captions")


def test_the_smallest_alpha_stands_for_the_text_lm():
    choice = choose_alpha(POINTS[1:], max_text_loss_increase=0.15)
    assert choice.alpha == 0.6
    assert "that of alpha 0.3 (2.050)" in choice.rule


def test_a_point_is_the_mean_over_groups():
    results = {
        "scenes": {"nll": 1.0, "picture_gap": 0.5, "exact_match": 0.2, "chrf": 40.0, "nll/en": 9.0},
        "photos": {"nll": 3.0, "picture_gap": 0.1, "exact_match": 0.4, "chrf": 50.0},
        "numbers": {"nll": 2.0, "exact_match": 0.9, "chrf": 95.0},
        "udhr": {"nll": 4.0},
    }
    found = make_point(0.4, results, ["scenes", "photos"])
    assert found == Point(
        alpha=0.4, text_nll=3.0, text_exact_match=0.9, caption_nll=2.0,
        picture_gap=pytest.approx(0.3), caption_exact_match=pytest.approx(0.3), caption_chrf=45.0,
    )  # fmt: skip
