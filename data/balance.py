"""How evenly the packs of a plan share out work: what ranks wait for, and what budgets hold."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from configs.errors import DataError
from data.pack import PackPlan


@dataclass(frozen=True)
class Balance:
    """The most work over the mean, among packs that run side by side: 1 is even.

    Ranks wait for the slowest, so a ratio of 1.1 is at most a tenth of the time lost.
    """

    num_side_by_side: int  # packs
    median_token_ratio: float
    worst_token_ratio: float
    median_tile_ratio: float  # 1 where there are no tiles
    worst_tile_ratio: float
    token_fill_ratio: float  # of data.max_tokens, over all packs
    tile_fill_ratio: float  # of data.max_tiles


def step_balance(plan: PackPlan, epoch: int = 0, num_ranks: int | None = None) -> Balance:
    """Return the balance of an epoch's packs, taken `num_ranks` at a time (None: a whole step).

    Raises:
        DataError: a step cannot be shared out over so many ranks.
    """
    side_by_side = plan.packs_per_step if num_ranks is None else num_ranks
    if side_by_side < 1 or plan.packs_per_step % side_by_side:
        raise DataError(
            f"data.packs_per_step={plan.packs_per_step} cannot be shared by {side_by_side} ranks; "
            "give a multiple of them"
        )
    tokens, tiles = plan.held(epoch)
    token_ratios, tile_ratios = _ratios(tokens, side_by_side), _ratios(tiles, side_by_side)
    return Balance(
        num_side_by_side=side_by_side,
        median_token_ratio=float(np.median(token_ratios)),
        worst_token_ratio=float(token_ratios.max()),
        median_tile_ratio=float(np.median(tile_ratios)),
        worst_tile_ratio=float(tile_ratios.max()),
        token_fill_ratio=float(tokens.mean() / plan.max_tokens),
        tile_fill_ratio=float(tiles.mean() / plan.max_tiles),
    )


def _ratios(work: npt.NDArray[np.int64], side_by_side: int) -> npt.NDArray[np.float64]:
    """Return the largest over the mean of each `side_by_side` packs; 1 where all have nothing."""
    groups = work.reshape(-1, side_by_side)
    total = groups.sum(axis=1)
    ratios: npt.NDArray[np.float64] = np.where(
        total > 0, groups.max(axis=1) * side_by_side / np.maximum(total, 1), 1.0
    )
    return ratios


def describe_balance(balance: Balance) -> str:
    """Return two lines for the log; ratios of one pack at a time say nothing and are left out."""
    held = (
        f"packs hold {balance.token_fill_ratio:.1%} of data.max_tokens and "
        f"{balance.tile_fill_ratio:.1%} of data.max_tiles on average"
    )
    if balance.num_side_by_side == 1:
        return held
    return (
        f"{held}\nfullest over mean of {balance.num_side_by_side} packs side by side: "
        f"tokens {balance.median_token_ratio:.2f} (worst {balance.worst_token_ratio:.2f}), "
        f"tiles {balance.median_tile_ratio:.2f} (worst {balance.worst_tile_ratio:.2f})"
    )
