"""Means, intervals and the table's figures, against numbers worked out by hand."""

import dataclasses

import numpy as np
import pytest
from scripts_by_path import load

from common.figures import plt
from common.statistics_bootstrap import (
    improvement,
    improvement_interval,
    interquartile_interval,
    interquartile_mean,
)
from common.statistics_seeds import episode_mean, final_span, mean_interval, with_interval
from lad_ts.plots import Curve, draw_curves, draw_inset, plot_gaps, smooth

compare = load("compare")


def test_interval_is_students():
    """Of 1, 2, 3, 4: mean 2.5, standard deviation sqrt(5/3); t with 3 degrees of freedom is 3.182."""
    mean, half = mean_interval(np.array([1.0, 2.0, 3.0, 4.0]))
    assert mean == 2.5
    assert half == pytest.approx(3.182 * (5 / 3) ** 0.5 / 2)
    assert with_interval(np.array([1.0, 2.0, 3.0, 4.0])) == "2.50 ± 2.05"
    assert with_interval(np.array([3.0])) == "3.00"
    assert with_interval(np.array([3.0, np.nan])) == "-"
    assert mean_interval(np.arange(41.0))[1] == pytest.approx(2.021 * 11.979 / 41**0.5, rel=1e-3)  # t of 40 degrees


def test_delays_of_milliseconds_show_their_digits():
    assert with_interval(np.array([0.00121, 0.00125]), None) == "0.00123 ± 0.00025"
    assert with_interval(np.array([1e-7, 1e-7]), None) == "0.000000100 ± 0.000000000"
    assert with_interval(np.array([7.9, 7.9]), None) == "7.90 ± 0.00"
    assert with_interval(np.array([0.72]), None) == "0.72"
    assert with_interval(np.array([0.0]), None) == "0.00"


def plain_middle(values: list[float]) -> float:
    """The mean without the quarter at each end."""
    cut = len(values) // 4
    kept = sorted(values)[cut : len(values) - cut]
    return sum(kept) / len(kept)


def plain_improvement(ours: np.ndarray, others: np.ndarray) -> float:
    """The share of all pairs of a task in which ours is less, a tie counting half; then the mean over tasks."""
    shares = []
    for mine, theirs in zip(ours.T, others.T, strict=True):
        points = [1.0 if x < y else 0.5 if x == y else 0.0 for x in mine for y in theirs]
        shares.append(sum(points) / len(points))
    return sum(shares) / len(shares)


def test_interquartile_means_and_improvement_are_those_of_plain_loops():
    rng = np.random.default_rng(3)
    for seeds, rivals, tasks in ((1, 1, 1), (3, 3, 1), (4, 7, 2), (9, 5, 3)):
        ours, others = rng.integers(0, 6, (seeds, tasks)) / 4, rng.integers(1, 7, (rivals, tasks)) / 4  # with ties
        assert interquartile_mean(ours) == pytest.approx(plain_middle(ours.ravel().tolist()))
        assert improvement(ours, others) == pytest.approx(plain_improvement(ours, others))
        assert improvement(ours, others) + improvement(others, ours) == pytest.approx(1)
    assert interquartile_mean(np.array([[1.0], [2.0], [3.0], [100.0]])) == 2.5  # an outlier does not rule it
    assert improvement(np.array([[1.0], [2.0]]), np.array([[3.0], [4.0]])) == 1  # less is better


def test_bootstrap_intervals_are_those_of_plain_loops():
    """Loops with draws of their own; ends of an interval from 3,000 repetitions lie within some 0.03 of each other."""
    rng = np.random.default_rng(5)
    ours, others = rng.normal(0, 1, (6, 2)), rng.normal(0.5, 1, (5, 2)) + np.array([0, 3])

    def again(values: np.ndarray) -> np.ndarray:
        """Every task's seeds drawn again by themselves."""
        return np.array([[rng.choice(column) for _ in column] for column in values.T]).T

    middles = [plain_middle(again(ours).ravel().tolist()) for _ in range(3000)]
    shares = [plain_improvement(again(ours), again(others)) for _ in range(3000)]
    assert interquartile_interval(ours) == pytest.approx(np.percentile(middles, [2.5, 97.5]), abs=0.06)
    assert improvement_interval(ours, others) == pytest.approx(np.percentile(shares, [2.5, 97.5]), abs=0.04)
    assert interquartile_interval(ours) == interquartile_interval(ours.copy())  # seeded
    assert np.isnan([*interquartile_interval(ours[:1]), *improvement_interval(ours, others[:1])]).all()


def test_final_values_leave_the_start_and_empty_episodes_out():
    assert [final_span(n) for n in (1, 2, 5, 60, 500)] == [1, 1, 2, 30, 100]
    values = np.array([[1.0, np.nan], [np.nan, np.nan], [4.0, np.nan]])
    assert episode_mean(values)[0] == 2.5
    assert np.isnan(episode_mean(values)[1])


def test_smoothing_is_the_mean_of_the_last_episodes():
    values = np.array([[6.0], [2.0], [1.0], [3.0]])
    assert smooth(values, 3)[:, 0].tolist() == [6, 4, 3, 2]
    empty = np.array([[np.nan], [2.0], [np.nan], [np.nan], [5.0]])  # episodes without a task
    assert np.isnan(smooth(empty, 2)[[0, 3], 0]).all()
    assert smooth(empty, 2)[[1, 2, 4], 0].tolist() == [2, 2, 5]


def test_reaching_counts_episodes_from_one():
    ratio = np.array([[1.2, 1.3], [1.0, 1.1], [1.0, 1.04], [1.2, 1.2]])
    limit = np.array([1.05, 1.05])
    assert compare.first_within(ratio, limit).tolist() == [2, 3]
    assert compare.reach_words(np.array([2.0, 3.0])).startswith("2 ±")  # 2.5 is rounded to even
    assert compare.reach_words(compare.first_within(ratio[:, :1], limit[:1])) == "2"
    assert compare.reach_words(compare.first_within(ratio + 1, limit)) == "never"
    assert compare.reach_words(compare.first_within(ratio + np.array([0, 1]), limit)) == "1 of 2 seeds"


def test_table_row_is_worked_out_from_the_columns(tmp_path):
    """Two seeds, eight episodes; the last half counts, and an episode's ratio to Opt-TS is smoothed over two."""
    delay = np.array([[30, 30], [20, 20], [12, 12], [10.4, 11], [10.4, 10.4], [10.2, 10.5], [10, 11], [10, 11]])
    opt = np.full_like(delay, 10.0)
    columns = {"delay_s": delay, "opt_delay_s": opt, "p50_s": delay, "p95_s": delay, "p99_s": delay}
    columns["seconds"] = np.full_like(delay, 0.25)
    name, parameters = "LAD-TS (tuned)", dict.fromkeys(compare.ENVIRONMENT) | {"checkpoint_every": 1}
    run = compare.Run(name, name, parameters, [0, 1], columns, tmp_path)
    finals = compare.Finals.of(run, last=4, window=2)
    row, numbers = finals.words(), finals.numbers()
    # finals: 10.15 and 10.725; t with 1 degree of freedom is 12.706, so half the interval is 12.706 * 0.2875
    assert row[0] == "10.44 ± 3.65" and row[1] == "10.44 [10.15, 10.72]"
    assert numbers["delay s"] == pytest.approx(10.4375)
    assert numbers["delay s half width"] == pytest.approx(3.653, abs=0.001)
    assert numbers["above Opt-TS %"] == pytest.approx(4.375) and row[2].startswith("4.38 ±")
    # the mean of two is within 5 % of Opt-TS at episode 5 (10.4, 10.4) and at 6 (10.4, 10.5)
    assert row[6].startswith("6 ±")  # 5.5, rounded to even
    assert numbers["episodes to 5 % of Opt-TS"] == 5.5 and numbers["seeds within 5 % of Opt-TS"] == 2
    # within 5 % of the own final, 10.66 and 11.26: episodes 5 (10.4) and 5 (10.7)
    assert row[7] == "5 ± 0"
    assert row[8:] == ["0.250", "-"]


def curves_of(count: int, reference: bool, scale: float = 1.0) -> list[Curve]:
    episodes = np.arange(1, 21)
    return [Curve(f"{k} $", episodes, np.full((20, 2), scale * (8 + k / 10)), reference) for k in range(count)]


def test_thirty_curves_and_thirty_references_are_all_drawn_differently():
    figure, axes = plt.subplots()
    draw_curves(axes, curves_of(30, False) + curves_of(30, True), 1)
    looks = {(str(line.get_color()), str(line._dash_pattern), line.get_marker()) for line in axes.lines}
    assert len(axes.lines) == len(looks) == 60
    plt.close(figure)


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_the_inset_lies_closely_around_its_curves(scale):
    figure, axes = plt.subplots()
    draw_inset(axes, curves_of(4, False, scale), 1)
    low, high = axes.child_axes[0].get_ylim()
    assert 7.5 * scale < low < 8 * scale and 8.3 * scale < high < 8.8 * scale
    one, other = curves_of(2, False)
    draw_inset(axes, [one, dataclasses.replace(other, values=9 * other.values)], 1)  # neither is near the mean of both
    plt.close(figure)


@pytest.mark.parametrize("percent", [0.02, 1.0, 5000.0])
def test_the_axis_of_gaps_reaches_what_it_shows(tmp_path, monkeypatch, percent):
    figures = []
    monkeypatch.setattr("lad_ts.plots.save_figure", lambda figure, path: figures.append(figure))
    plot_gaps(tmp_path / "gap", {"all": [Curve("one", np.arange(1, 5), np.full((4, 2), percent))]})
    low, high = figures[0].axes[0].get_ylim()
    assert low <= 0.3 and high >= 300 and low < percent < high
    plt.close(figures[0])
