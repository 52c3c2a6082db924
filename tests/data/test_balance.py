"""What ranks wait for: the most work over the mean, of packs that run side by side."""

from typing import Any

import numpy as np
import pytest

from configs.errors import DataError
from data.balance import Balance, describe_balance, step_balance
from data.pack import PackPlan


def plan_of(num_tokens: list[int], num_tiles: list[int], packs_per_step: int) -> PackPlan:
    """Samples of more than half a pack, so that each is a pack of its own."""
    return PackPlan(
        num_tokens=np.array(num_tokens),
        num_tiles=np.array(num_tiles),
        weights=np.ones(len(num_tokens)),
        max_tokens=100,
        max_tiles=10,
        packs_per_step=packs_per_step,
        seed=0,
    )


def test_one_step_worked_by_hand() -> None:
    balance = step_balance(plan_of([60, 70, 80, 90], [0, 0, 2, 6], 4))
    assert balance == Balance(
        num_side_by_side=4,
        median_token_ratio=pytest.approx(90 / 75),
        worst_token_ratio=pytest.approx(90 / 75),
        median_tile_ratio=3.0,
        worst_tile_ratio=3.0,
        token_fill_ratio=0.75,
        tile_fill_ratio=0.2,
    )


def test_two_ranks_take_alike_packs_at_a_time() -> None:
    """In order of work: (6, 90) beside (2, 80), then (0, 70) beside (0, 60), which has no tiles."""
    balance = step_balance(plan_of([60, 70, 80, 90], [0, 0, 2, 6], 4), num_ranks=2)
    assert balance.num_side_by_side == 2
    assert balance.worst_tile_ratio == 6 / 4
    assert balance.median_tile_ratio == (6 / 4 + 1) / 2
    assert balance.worst_token_ratio == pytest.approx(70 / 65)
    assert balance.median_token_ratio == pytest.approx((90 / 85 + 70 / 65) / 2)
    assert balance.token_fill_ratio == 0.75


def test_ratios_are_those_of_the_packs_that_ranks_take() -> None:
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 5, 400)
    tokens = 12 * tiles + rng.integers(1, 20, 400)
    plan = plan_of(tokens.tolist(), tiles.tolist(), 8)
    for epoch in (1, 0):
        packs = plan.epoch(epoch)
        for num_ranks in (2, 4, 8):
            ratios = []
            for start in range(0, len(packs), num_ranks):
                held = [tokens[pack].sum() for pack in packs[start : start + num_ranks]]
                ratios.append(max(held) / np.mean(held))
            balance = step_balance(plan, epoch, num_ranks)
            assert balance.worst_token_ratio == pytest.approx(max(ratios))
            assert balance.median_token_ratio == pytest.approx(np.median(ratios))
            assert balance.token_fill_ratio == pytest.approx(plan.fill_ratio(epoch))


def test_one_rank_waits_for_nobody() -> None:
    balance = step_balance(plan_of([60, 90], [0, 6], 2), num_ranks=1)
    assert balance.worst_token_ratio == balance.worst_tile_ratio == 1
    text = describe_balance(balance)
    assert text == "packs hold 75.0% of data.max_tokens and 30.0% of data.max_tiles on average"


def test_text_alone_is_even_in_tiles() -> None:
    balance = step_balance(plan_of([60, 90], [0, 0], 2))
    assert balance.worst_tile_ratio == balance.median_tile_ratio == 1
    assert balance.tile_fill_ratio == 0


def test_what_the_log_says() -> None:
    text = describe_balance(step_balance(plan_of([60, 70, 80, 90], [0, 0, 2, 6], 4), num_ranks=2))
    assert text.splitlines() == [
        "packs hold 75.0% of data.max_tokens and 20.0% of data.max_tiles on average",
        "fullest over mean of 2 packs side by side: tokens 1.07 (worst 1.08), tiles 1.25 (worst "
        "1.50)",
    ]
    assert all(len(line) <= 100 for line in text.splitlines())


@pytest.mark.parametrize("num_ranks", [3, 0, -2, 8])
def test_ranks_that_cannot_share_a_step(num_ranks: Any) -> None:
    plan = plan_of([60, 70, 80, 90], [0, 0, 2, 6], 4)
    with pytest.raises(DataError, match=rf"packs_per_step=4 cannot be shared by {num_ranks} ranks"):
        step_balance(plan, num_ranks=num_ranks)
