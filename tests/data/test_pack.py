"""The pack plan: whole samples, within budget, the same for everyone who asks."""

from collections import Counter
from typing import Any

import numpy as np
import pytest

from configs.errors import DataError
from data.pack import KEPT_EPOCHS, WINDOW, PackPlan, pack_window


def plan_of(num_tokens: Any, **changes: Any) -> PackPlan:
    lengths = np.asarray(num_tokens)
    settings: dict[str, Any] = dict(
        num_tokens=lengths,
        num_tiles=np.zeros(len(lengths), dtype=np.int64),
        weights=np.ones(len(lengths)),
        max_tokens=2048,
        max_tiles=64,
        packs_per_step=1,
        seed=0,
    )
    return PackPlan(**(settings | changes))


def mixed(num_samples: int, *, seed: int = 0, most: int = 2048) -> np.ndarray:
    """Lengths as captioned pictures have them: one tile or a few, short words or long."""
    rng = np.random.default_rng(seed)
    tiles = rng.choice([0, 1, 3, 5, 13], size=num_samples, p=[0.2, 0.5, 0.1, 0.1, 0.1])
    words = rng.lognormal(4, 0.8, size=num_samples).astype(np.int64)
    return np.clip(tiles * 130 + words, 8, most)


def seen(plan: PackPlan, epoch: int) -> Counter[int]:
    return Counter(index for pack in plan.epoch(epoch) for index in pack)


@pytest.mark.parametrize("num_samples", [7, 300, WINDOW + 100])
@pytest.mark.parametrize("packs_per_step", [1, 4])
def test_every_sample_is_in_each_epoch_once(num_samples: int, packs_per_step: int) -> None:
    plan = plan_of(mixed(num_samples), packs_per_step=packs_per_step)
    for epoch in range(3):
        assert seen(plan, epoch) == Counter(range(num_samples))
        assert len(plan.epoch(epoch)) % packs_per_step == 0
        assert all(plan.epoch(epoch))


def test_budgets_are_kept() -> None:
    tokens = mixed(2000)
    tiles = np.minimum(tokens // 130, 12)
    plan = plan_of(tokens, num_tiles=tiles, max_tiles=13, packs_per_step=3)
    for pack in plan.epoch(0) + plan.epoch(1):
        assert tokens[pack].sum() <= 2048
        assert tiles[pack].sum() <= 13
    assert max(tiles[pack].sum() for pack in plan.epoch(0)) == 13
    free = plan_of(tokens, num_tiles=tiles, max_tiles=1000)
    assert len(free.epoch(0)) < len(plan.epoch(0))


def test_a_sample_as_long_as_a_pack_has_one_to_itself() -> None:
    plan = plan_of([2048, 2047, 1, 2048], max_tokens=2048)
    assert sorted(sorted(pack) for pack in plan.epoch(0)) == [[0], [1, 2], [3]]


@pytest.mark.parametrize("max_tokens", [2048, 8192])
def test_mixed_sizes_fill_97_percent(max_tokens: int) -> None:
    plan = plan_of(mixed(5000), max_tokens=max_tokens, packs_per_step=8)
    for epoch in range(2):
        packs = plan.epoch(epoch)
        used = sum(int(plan.num_tokens[pack].sum()) for pack in packs)
        assert plan.fill_ratio(epoch) == used / (len(packs) * max_tokens)
        assert plan.fill_ratio(epoch) >= 0.97


def test_a_weight_of_two_is_twice_and_of_a_half_is_a_seeded_half() -> None:
    weights = np.repeat([2.0, 0.5, 1.0, 0.0, 2.5], 400)
    plan = plan_of(mixed(2000), weights=weights)
    halves = []
    for epoch in range(2):
        counted = seen(plan, epoch)
        times = np.array([counted[index] for index in range(2000)])
        assert (times[:400] == 2).all()
        assert (times[800:1200] == 1).all()
        assert (times[1200:1600] == 0).all()
        assert set(times[400:800]) == {0, 1}
        assert 150 < times[400:800].sum() < 250
        assert set(times[1600:]) == {2, 3}
        halves.append(times[400:800])
    assert not np.array_equal(*halves)  # another half in another epoch


def test_a_plan_is_a_pure_function_of_seed_and_epoch() -> None:
    lengths = mixed(500)
    first, second = plan_of(lengths), plan_of(lengths)
    second.epoch(3)  # asked in another order
    for epoch in range(3):
        assert first.epoch(epoch) == second.epoch(epoch)
    assert first.epoch(0) != first.epoch(1)
    assert first.epoch(0) != plan_of(lengths, seed=1).epoch(0)
    assert first.epoch(1) != plan_of(lengths, seed=1).epoch(0)


def test_an_epoch_is_shuffled() -> None:
    """Neither the order of the rows nor that of their lengths is left."""
    plan = plan_of(mixed(3000))
    packs = plan.epoch(0)
    firsts = np.array([np.mean(pack) for pack in packs])
    lengths = np.array([plan.num_tokens[pack].max() for pack in packs])
    order = np.arange(len(packs))
    assert abs(np.corrcoef(order, firsts)[0, 1]) < 0.15
    assert abs(np.corrcoef(order, lengths)[0, 1]) < 0.15


def test_packs_are_counted_through_the_epochs() -> None:
    plan = plan_of(mixed(200), packs_per_step=3)
    packs = [pack for epoch in range(3) for pack in plan.epoch(epoch)]
    fresh = plan_of(mixed(200), packs_per_step=3)
    assert [fresh.pack(index) for index in range(len(packs))] == packs
    backwards = plan_of(mixed(200), packs_per_step=3)
    assert [backwards.pack(i) for i in reversed(range(len(packs)))] == packs[::-1]


def test_steps_and_epochs() -> None:
    plan = plan_of(mixed(400), packs_per_step=2)
    sizes = [len(plan.epoch(epoch)) // 2 for epoch in range(2)]
    assert plan.num_steps(1) == sizes[0]
    assert plan.num_steps(2) == sum(sizes)
    assert plan.num_steps(1.5) == pytest.approx(sizes[0] + sizes[1] / 2, abs=1)
    assert plan.num_steps(0.001) == 1
    assert plan.epoch_of(0) == 0
    assert plan.epoch_of(sizes[0]) == 1
    assert plan.epoch_of(sum(sizes)) == 2
    assert plan.epoch_of(sizes[0] + 1) == pytest.approx(1 + 1 / sizes[1])
    assert 0 < plan.epoch_of(1) < 1


def test_steps_are_filled_by_more_packs_of_a_level_not_by_splitting_samples() -> None:
    plan = plan_of([100] * 30, max_tokens=900, packs_per_step=5)  # 4 packs would do
    packs = plan.epoch(0)
    assert list(map(len, packs)) == [6] * 5
    assert seen(plan, 0) == Counter(range(30))


def test_steps_are_filled_though_no_level_suits() -> None:
    """Three long samples of which no two share a pack, and five short: packs are split then."""
    plan = plan_of([1500] * 3 + [10] * 5, packs_per_step=8)
    assert sorted(map(len, plan.epoch(0))) == [1] * 8
    assert seen(plan, 0) == Counter(range(8))


@pytest.mark.parametrize("num_samples", [1, 3])
def test_too_few_samples_for_a_step(num_samples: int) -> None:
    plan = plan_of([10] * num_samples, packs_per_step=4)
    with pytest.raises(DataError, match=r"too few for data\.packs_per_step=4; lower it or"):
        plan.epoch(0)


def test_weights_that_leave_nothing() -> None:
    """It would look for the first pack for ever."""
    plan = plan_of([10, 10], weights=np.zeros(2))
    with pytest.raises(DataError, match="epoch 0 holds no sample: 2 rows with weights of 0 in all"):
        plan.pack(0)


# ------------------------------------------------------------------------------ near-equal work


def with_pictures(num_samples: int, share: float = 0.5, seed: int = 0) -> tuple[Any, Any]:
    """Tokens and tiles of texts mixed with pictures of 1 to 13 tiles of 169 tokens."""
    rng = np.random.default_rng(seed)
    has_picture = rng.random(num_samples) < share
    tiles = np.where(has_picture, rng.integers(1, 14, num_samples), 0)
    words = np.clip(rng.lognormal(5, 0.9, num_samples), 12, 4000).astype(np.int64)
    return 169 * tiles + words, tiles


def worst_ratio(work: Any, packs: Any) -> float:
    held = np.array([work[pack].sum() for pack in packs])
    return float(held.max() / held.mean())


def pack_all(tokens: Any, tiles: Any, seed: int = 0, **changes: Any) -> list[list[int]]:
    order = np.random.default_rng(seed).permutation(len(tokens))
    budgets = dict(max_tokens=8192, max_tiles=64) | changes
    packs = pack_window(order, tokens, tiles, **budgets)
    assert sorted(index for pack in packs for index in pack) == list(range(len(tokens)))
    assert all(tokens[pack].sum() <= budgets["max_tokens"] for pack in packs)
    assert all(tiles[pack].sum() <= budgets["max_tiles"] for pack in packs)
    return packs


def test_packs_of_texts_and_pictures_cost_alike() -> None:
    """Measured worst of four seeds: tokens 1.017, tiles 1.16; plain best fit: 1.006 and 1.32."""
    for seed in range(2):
        tokens, tiles = with_pictures(2000, seed=seed)
        packs = pack_all(tokens, tiles, seed)
        assert worst_ratio(tokens, packs) < 1.05
        assert worst_ratio(tiles, packs) < 1.2
        assert tokens.sum() / (len(packs) * 8192) >= 0.97


def test_texts_do_not_gather_where_tiles_are_scarce() -> None:
    """Measured: tokens 2.0 where plain best fit has 3.8, most texts in packs of their own."""
    tokens, tiles = with_pictures(2000, share=0.7)
    tokens = tokens - 149 * tiles
    packs = pack_all(tokens, tiles, max_tiles=32)
    assert tiles.sum() / (len(packs) * 32) > 0.97
    assert worst_ratio(tokens, packs) < 2.3


@pytest.mark.parametrize("num_samples", [150, 250, 350, 400])
def test_the_last_pack_is_about_as_full_as_others(num_samples: int) -> None:
    """Measured: at least 0.76 of the fullest; 0.1 to 0.3 with best fit up to the budget alone."""
    lengths = mixed(num_samples, most=200)
    packs = pack_all(lengths, np.zeros_like(lengths), max_tokens=2048)
    held = [lengths[pack].sum() for pack in packs]
    assert min(held) > 0.7 * max(held)


def test_a_window_of_nothing_has_no_packs() -> None:
    assert pack_all(np.array([], dtype=np.int64), np.array([], dtype=np.int64)) == []


def test_samples_that_share_a_pack_do_not_share_it_again() -> None:
    """All lengths differ, so any order by length would make every epoch's packs alike."""
    rng = np.random.default_rng(0)
    tokens = rng.permutation(np.arange(200, 1200))
    tiles = tokens // 169
    epochs = [pack_all(tokens, tiles, seed) for seed in range(2)]
    pack_of = np.empty(len(tokens), dtype=np.int64)
    for number, pack in enumerate(epochs[1]):
        pack_of[pack] = number
    pairs = [(a, b) for pack in epochs[0] for a in pack for b in pack if a < b]
    again = np.mean([pack_of[a] == pack_of[b] for a, b in pairs])
    assert again < 3 / len(epochs[0])  # by chance 1 / packs; in order of length: most of them


def test_mean_lengths_of_packs_spread_as_by_chance() -> None:
    tokens, tiles = with_pictures(4000)
    packs = pack_all(tokens, tiles)
    means = np.array([tokens[pack].mean() for pack in packs])
    by_chance = tokens.std() / np.sqrt(len(tokens) / len(packs))
    assert 0.5 < means.std() / by_chance < 1.3


def test_packs_of_a_step_come_in_order_of_work() -> None:
    tokens, tiles = with_pictures(1500)
    plan = plan_of(tokens, num_tiles=tiles, max_tokens=8192, packs_per_step=8)
    num_tokens, num_tiles = plan.held(0)
    packs = plan.epoch(0)
    assert num_tokens.tolist() == [tokens[pack].sum() for pack in packs]
    assert num_tiles.tolist() == [tiles[pack].sum() for pack in packs]
    work = list(zip(num_tiles.tolist(), num_tokens.tolist(), strict=True))
    steps = [work[start : start + 8] for start in range(0, len(work), 8)]
    assert all(step == sorted(step, reverse=True) for step in steps)
    assert work != sorted(work, reverse=True)


# ------------------------------------------------------------------------------ memory


def test_old_epochs_are_forgotten_and_come_back_the_same() -> None:
    plan = plan_of(mixed(300), weights=np.full(300, 1.5), packs_per_step=2)
    first = [plan.epoch(number) for number in range(5)]
    assert len(plan._kept) == KEPT_EPOCHS
    assert [plan.epoch(number) for number in range(5)] == first
    assert [plan.num_samples(number) for number in range(5)] == [
        sum(map(len, packs)) for packs in first
    ]
    assert len(plan._kept) == KEPT_EPOCHS
    assert plan.pack(0) == first[0][0]


def test_an_epoch_takes_few_bytes_a_sample_and_gives_plain_ints() -> None:
    plan = plan_of(mixed(5000))
    kept = plan._epoch(0)
    assert kept.samples.nbytes + kept.ends.nbytes < 8 * 5000
    assert all(type(index) is int for index in plan.pack(0))
