"""Means and 95 % confidence intervals over seeds, as numbers and in words."""

import math

import numpy as np

# Quantiles 0.975 of Student's t distribution with 1, 2, .. 30 degrees of freedom; beyond, 1.96 + 2.4 / df.
T_975 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


def final_span(episodes: int, most: int = 100) -> int:
    """How many last episodes a run's final values are means of: `most`, but at most the last half."""
    return min(most, max(1, episodes // 2))


def episode_mean(values: np.ndarray) -> np.ndarray:
    """Mean [S] over episodes of values [E, S], without episodes that had no task (NaN), unless none had one."""
    counted = ~np.isnan(values)
    total = np.where(counted, values, 0).sum(0)
    return np.where(counted.any(0), total / np.maximum(counted.sum(0), 1), np.nan)


def mean_interval(values: np.ndarray, axis: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Mean over seeds and half the width of its 95 % interval (NaN for a single seed)."""
    seeds = values.shape[axis]
    mean = values.mean(axis)
    if seeds < 2:
        return mean, np.full_like(mean, np.nan)
    freedom = seeds - 1
    quantile = T_975[freedom - 1] if freedom <= len(T_975) else 1.96 + 2.4 / freedom
    return mean, quantile * values.std(axis, ddof=1) / seeds**0.5


def decimals(value: float) -> int:
    """Decimals that show a delay in s: two, and below 0.1 s what three significant digits take."""
    return 2 - math.floor(math.log10(abs(value))) if 0 < abs(value) < 0.1 else 2


def seconds(value: float) -> str:
    """A delay in s in words, without its unit: 7.96, and 0.00123 where two decimals would tell nothing."""
    return f"{value:.{decimals(value)}f}"


def with_interval(values: np.ndarray, digits: int | None = 2) -> str:
    """`mean ± half width` of seeds' values in words; a dash where there are none.

    Without `digits`, they are delays in s and have as many decimals as their mean needs.
    """
    if np.isnan(values).any():
        return "-"
    mean, half = mean_interval(np.asarray(values, dtype=float))
    digits = decimals(float(mean)) if digits is None else digits
    return f"{mean:.{digits}f}" + ("" if np.isnan(half) else f" ± {half:.{digits}f}")
