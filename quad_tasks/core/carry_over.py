"""Carry the bandit's statistics over from one stage to the next: count them less, and on the new direction's scale."""

import dataclasses

import numpy as np
import numpy.typing as npt

from quad_tasks.records import BanditState


def discount(state: BanditState, gamma: float) -> BanditState:
    """Discount the statistics of an older checkpoint: ``S, T <- γ S, γ T``, and the reward moments with them.

    Means and σ stay, confidence falls. Cursors stay: each document is drawn once.

    Args:
        state: the state at the end of a stage; not changed.
        gamma: γ in [0, 1]; 0 forgets.

    Returns:
        The state the next stage starts from.

    Raises:
        ValueError: γ outside [0, 1].
    """
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma: expected a share in [0, 1], got {gamma}")
    return dataclasses.replace(
        state,
        pulls=gamma * state.pulls,
        reward_sum=gamma * state.reward_sum,
        reward_moments=gamma * state.reward_moments,
    )


def rescale(state: BanditState, ratio: float) -> BanditState:
    """Put the statistics of an earlier direction on the scale of a new one: ``S <- ratio S``, reward moments likewise.

    Args:
        state: statistics along the earlier direction; not changed.
        ratio: influence along the new direction for one unit along the earlier one (`scale_between`).
    """
    return dataclasses.replace(
        state, reward_sum=ratio * state.reward_sum, reward_moments=ratio ** np.arange(3) * state.reward_moments
    )


def scale_between(before_M: npt.NDArray[np.floating], after_M: npt.NDArray[np.floating]) -> float:
    """Estimate influence along a new direction for one unit along the earlier one: a regression through the origin.

    Unlike the ratio of standard deviations it falls with the two directions' agreement and may be negative, so that
    arms' old means count for what they still tell. After a simulated refit (core tests) pulls reached more of the best
    arms' reward with it than with that ratio, than with nothing carried over, and than with old sums left as they were.

    Args:
        before_M: [M] influence of the same documents along the earlier direction.
        after_M: [M] along the new one.

    Returns:
        The slope; 0 where the influence before is 0.
    """
    squares = float(before_M @ before_M)
    return float(before_M @ after_M) / squares if squares > 0 else 0.0
