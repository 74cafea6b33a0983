"""metrics/stats.py against slow loops, and its coverage where the truth is known."""
from __future__ import annotations

import numpy as np
import pytest

from stages.core.errors import BadInput
from stages.metrics.stats import difference, interval, spearman


def simulated(rng, rows=8, columns=6, seeds=3, spread=(0.5, 0.5, 0.5), mean=0.3):
    """values, subjects, motions of a crossed design with an effect of each factor."""
    a, b = rng.normal(0, spread[0], rows), rng.normal(0, spread[1], columns)
    where = [(i, j) for i in range(rows) for j in range(columns) for _ in range(seeds)]
    values = [mean + a[i] + b[j] + rng.normal(0, spread[2]) for i, j in where]
    return values, [f"s{i}" for i, _ in where], [f"m{j}" for _, j in where]


def test_the_bootstrap_against_a_slow_loop():
    """Resampled by copying videos, one at a time, from the same draws of the two factors."""
    values, subjects, motions = simulated(np.random.default_rng(0), 4, 3, 2)
    got = interval(values, subjects, motions, draws=300, seed=7)
    rng = np.random.default_rng(7)
    often = [rng.multinomial(count, [1 / count] * count, 300) for count in (4, 3)]
    means = []
    for draw in range(300):
        copies = [value for value, s, m in zip(values, subjects, motions)
                  for _ in range(often[0][draw][int(s[1])] * often[1][draw][int(m[1])])]
        means.append(sum(copies) / len(copies))
    assert got.mean == pytest.approx(sum(values) / len(values), abs=1e-12) and got.n == 24
    assert (got.low, got.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=1e-10)


def test_coverage_on_simulated_data():
    """Of 95 % intervals about nine in ten hold the truth with so few levels; those that take videos for independent do
    in half the cases."""
    rng, hits, naive = np.random.default_rng(1), 0, 0
    for _ in range(200):
        values, subjects, motions = simulated(rng, 10, 10, 2)
        found = interval(values, subjects, motions, draws=400)
        hits += found.low <= 0.3 <= found.high
        error = np.std(values) / np.sqrt(len(values))
        naive += abs(np.mean(values) - 0.3) <= 1.96 * error
    assert 0.86 <= hits / 200 <= 0.99 and naive / 200 < 0.7, (hits, naive)


def test_pairs_take_out_what_both_share():
    rng = np.random.default_rng(2)
    values, subjects, motions = simulated(rng, spread=(1.0, 1.0, 0.3))
    better = np.array(values) + 0.2 + rng.normal(0, 0.1, len(values))
    found = difference(better, values, subjects, motions)
    alone = interval(better, subjects, motions)
    assert found.low > 0.1 and found.high < 0.3 and found.high - found.low < (alone.high - alone.low) / 4
    with pytest.raises(BadInput, match="no pairs"):
        difference([1.0], [1.0, 2.0], ["a"], ["b"])


def test_rates_and_what_has_no_interval():
    found = interval([True] * 8, list("aabbccdd"), ["m", "n"] * 4)
    assert (found.mean, found.low, found.high, found.n) == (1, 1, 1, 8)
    one = interval([0.0, 1.0] * 10, ["a"] * 20, ["m"] * 20)
    assert 0.2 < one.low < 0.5 < one.high < 0.8, "where nothing else differs, videos are resampled"
    holes = interval([0.0, 1.0, 1.0], ["a", "b", "c"], ["m", "n", "o"])
    assert 0 <= holes.low <= holes.high <= 1
    for values, factor in (([], []), ([1.0], ["a", "b"]), ([float("nan")], ["a"])):
        with pytest.raises(BadInput, match="no interval|has no interval|have no interval"):
            interval(values, factor, factor)


def slow_ranks(values):
    return [sum(other < value for other in values) + (sum(other == value for other in values) - 1) / 2
            for value in values]


def test_spearman_against_loops():
    rng = np.random.default_rng(3)
    for _ in range(20):
        a, b = rng.integers(0, 6, 12).tolist(), rng.integers(0, 6, 12).tolist()
        x, y = (np.array(slow_ranks(v)) - np.mean(slow_ranks(v)) for v in (a, b))
        assert spearman(a, b) == pytest.approx((x @ y) / np.sqrt((x @ x) * (y @ y)), abs=1e-12)
    assert spearman([1, 2, 3], [1, 8, 27]) == pytest.approx(1) and spearman([1, 2], [3, 3]) == 0
    with pytest.raises(BadInput, match="no rank correlation"):
        spearman([1], [1, 2])
