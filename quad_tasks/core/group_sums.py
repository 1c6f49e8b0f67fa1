"""Sum and average values by group: per arm, per document, per cluster.

The one place for grouped sums; counts are `np.bincount`. Values are added in the order of the rows, in float64, so that
equal rows give equal bytes.

Shape suffixes: N rows, G groups, D columns.
"""

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

Float64 = npt.NDArray[np.float64]


def group_sums(
    value_N: npt.NDArray[np.floating] | npt.NDArray[np.integer], group_N: npt.NDArray[np.integer], n_groups: int
) -> Float64:
    """Sum values by group.

    Args:
        value_N: [N] or [N, D] values.
        group_N: [N] group of each row, 0 to ``n_groups - 1``.
        n_groups: G.

    Returns:
        [G] or [G, D] float64; 0 for a group without rows.
    """
    if value_N.ndim == 1:
        return np.bincount(group_N, weights=value_N, minlength=n_groups).astype(np.float64)
    n = len(group_N)
    member_GN = csr_matrix((np.ones(n), (group_N, np.arange(n))), shape=(n_groups, n))
    return np.asarray(member_GN @ value_N, dtype=np.float64)


def add_group_sums(total_G: Float64, value_N: Float64, group_N: npt.NDArray[np.integer]) -> Float64:
    """Add values to running totals by group, one row after another.

    A total that is summed in parts equals one summed at once, bit for bit; ``total_G + group_sums(...)`` may not.

    Args:
        total_G: [G] totals so far; not changed.
        value_N: [N] values to add.
        group_N: [N] group of each, 0 to G - 1.

    Returns:
        [G] the new totals.
    """
    new_G = total_G.copy()
    np.add.at(new_G, group_N, value_N)
    return new_G


def group_means(value_N: npt.NDArray[np.floating], group_N: npt.NDArray[np.integer], n_groups: int) -> Float64:
    """Average values by group.

    Args:
        value_N: [N] values.
        group_N: [N] group of each, 0 to ``n_groups - 1``.
        n_groups: G.

    Returns:
        [G] float64; NaN for a group without rows.
    """
    count_G = np.bincount(group_N, minlength=n_groups)
    mean_G = np.full(n_groups, np.nan)
    np.divide(group_sums(value_N, group_N, n_groups), count_G, out=mean_G, where=count_G > 0)
    return mean_G
