"""Statistics of few seeds that outliers do not rule: interquartile means, and who is better how often.

The definitions are those of rliable (Agarwal et al. 2021, arXiv 2108.13264). Values are [S, T]: S seeds of each of T
tasks, where a task is a setting whose values are drawn apart from the others'. Intervals hold 95 % of what a stratified
bootstrap gives, which draws S seeds again for every task by itself. The draws are the same in every call.
"""

import numpy as np
from scipy.stats import mannwhitneyu, trim_mean

from common.random_streams import Stream, random_generator

REPETITIONS = 10_000
AT_ONCE = 2_000_000  # numbers that a bootstrap holds in memory


def interquartile_mean(values: np.ndarray) -> float:
    """Mean of the middle half of all values [S, T]: a quarter of them, rounded down, is left out at each end.

    NaN where a value is NaN.
    """
    return np.nan if np.isnan(values).any() else float(trim_mean(values, 0.25, axis=None))


def interquartile_interval(values: np.ndarray) -> tuple[float, float]:
    """Ends of the 95 % bootstrap interval of the interquartile mean of values [S, T]; NaN for a single seed or NaN."""
    seeds, tasks = values.shape
    if seeds < 2 or np.isnan(values).any():
        return np.nan, np.nan
    rng, means = random_generator(Stream.STATISTICS), []
    for first in range(0, REPETITIONS, block := max(1, AT_ONCE // values.size)):
        count = min(block, REPETITIONS - first)
        drawn = values[rng.integers(seeds, size=(count, seeds, tasks)), np.arange(tasks)]
        means.append(trim_mean(drawn.reshape(count, -1), 0.25, axis=1))
    return percentiles(np.concatenate(means))


def improvement(ours: np.ndarray, others: np.ndarray) -> float:
    """Probability that a seed of ours [S, T] has less than one of the others [R, T], a tie counting half.

    It is the Mann-Whitney statistic over S R, as a mean over tasks. Less is better, as of delays.
    """
    more = mannwhitneyu(others, ours, axis=0).statistic  # pairs in which the others have more
    return float(more.mean() / (len(ours) * len(others)))


def improvement_interval(ours: np.ndarray, others: np.ndarray) -> tuple[float, float]:
    """Ends of the 95 % bootstrap interval of `improvement`; NaN where either has a single seed."""
    if min(len(ours), len(others)) < 2:
        return np.nan, np.nan
    rng, shares = random_generator(Stream.STATISTICS), np.zeros(REPETITIONS)
    for mine, theirs in zip(ours.T, others.T, strict=True):
        wins = np.heaviside(theirs - mine[:, None], 0.5)  # [S, R]
        # how often each seed is drawn is all that counts
        often, others_often = (rng.multinomial(n, np.full(n, 1 / n), REPETITIONS) for n in wins.shape)
        shares += ((often @ wins) * others_often).sum(1) / wins.size
    return percentiles(shares / ours.shape[1])


def percentiles(values: np.ndarray) -> tuple[float, float]:
    """Ends of the interval that holds the middle 95 % of the values."""
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)
