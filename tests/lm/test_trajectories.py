"""Statistics of trajectories, against cases that are known by hand."""

import mpmath
import numpy as np
import pytest
import scipy.stats

from depthsys.lm import trajectories
from depthsys.lm.trajectories import Moments, adjusted, components, information, p_values, turns


def test_parts_add_up_where_raw_sums_would_cancel():
    """Means of 1e7 times the spread: sums of squares keep two digits of float64."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 40, 2)) + 1e7
    x[1] = 0.6 * x[0] + 0.8 * x[1]
    parts = [Moments.of(x[:, part]) for part in (slice(0, 1), slice(1, 9), slice(9, 40))]
    total = parts[0] + (parts[1] + parts[2])
    with mpmath.workdps(50):
        for step in range(2):
            for unit in range(2):
                a, b = ([mpmath.mpf(v) for v in x[s, :, unit]] for s in (step, step + 1))
                exact = _pearson(a, b)
                here = total.correlation(1e-15)[step, unit]
                assert abs(here - float(exact)) < 1e-7


def _pearson(a, b):
    mean_a, mean_b = mpmath.fsum(a) / len(a), mpmath.fsum(b) / len(b)
    a, b = [v - mean_a for v in a], [v - mean_b for v in b]
    dot = lambda p, q: mpmath.fsum(x * y for x, y in zip(p, q, strict=True))  # noqa: E731
    return dot(a, b) / mpmath.sqrt(dot(a, a) * dot(b, b))


def test_a_unit_that_does_not_vary_has_no_correlation():
    x = np.random.default_rng(0).standard_normal((2, 9, 2))
    x[:, :, 1] = 3.0
    x[0, :, 1] += 1e-9 * x[0, :, 0]
    found = Moments.of(x).correlation(1e-7)
    assert np.isfinite(found[0, 0])
    assert np.isnan(found[0, 1])


@pytest.mark.parametrize("periods", [1, 5, 12])
def test_an_oscillation_turns_once_a_period_and_clockwise(periods):
    at = np.arange(601) / 600
    assert turns(np.sin(2 * np.pi * periods * at + 0.7)) == pytest.approx(periods, abs=0.02)


def test_turns_mind_direction_and_nothing_of_scale():
    a = np.cumsum(np.random.default_rng(1).standard_normal((4, 60)), axis=1)
    np.testing.assert_allclose(turns(3.0 * a - 8.0), turns(a), atol=1e-9)
    # backwards in depth: the gradient changes its sign, so it turns the same way round
    np.testing.assert_allclose(turns(a[:, ::-1]), turns(a), atol=1e-9)
    assert np.isnan(turns(np.ones(9)))


def test_noise_turns_more_than_what_is_smooth():
    """So a trajectory must be compared with shuffles of itself, and not with zero."""
    rng = np.random.default_rng(2)
    noise = rng.standard_normal((50, 60))
    smooth = np.cumsum(noise, axis=1)
    assert turns(noise).mean() > 3 * turns(smooth).mean() > 0


def test_p_values_are_even_where_the_order_means_nothing():
    rng = np.random.default_rng(3)
    noise = rng.standard_normal((400, 24))
    shuffled = np.array(list(trajectories.shuffled_turns(noise, rng, 199)))
    p = p_values(turns(noise), shuffled)
    assert scipy.stats.kstest(p, "uniform").pvalue > 0.01
    wave = np.sin(2 * np.pi * np.arange(60) / 59)[None]
    shuffled = np.array(list(trajectories.shuffled_turns(wave, rng, 199)))
    assert p_values(turns(wave), shuffled)[0] == pytest.approx(1 / 200)


def test_p_values_count_both_sides():
    shuffled = np.array([[-2.0], [-1.0], [1.0], [2.0]])
    assert p_values(np.array([1.5]), shuffled)[0] == (1 + 2) / 5
    assert p_values(np.array([-1.0]), shuffled)[0] == (1 + 4) / 5
    assert np.isnan(p_values(np.array([np.nan]), shuffled)[0])


def test_adjusted_by_hand():
    """Benjamini and Hochberg: of three, 0.01 is 0.03; 0.02 and 0.03 are 0.03."""
    p = np.array([0.02, np.nan, 0.01, 0.03])
    np.testing.assert_allclose(adjusted(p), [0.03, np.nan, 0.03, 0.03])
    assert np.isnan(adjusted(np.array([np.nan]))).all()


def test_information_of_normal_numbers():
    """Against -log(1 - r^2) / 2."""
    rng = np.random.default_rng(4)
    x, noise = rng.standard_normal((2, 2000))
    for r in (0.0, 0.6, 0.95):
        found = information(x, r * x + np.sqrt(1 - r**2) * noise, 0, 3)
        assert found == pytest.approx(-np.log(1 - r**2) / 2, abs=0.06)


@pytest.mark.parametrize(("n", "width", "count"), [(40, 6, 2), (5, 30, 4), (4, 3, 3)])
def test_components_of_rows(n, width, count):
    rng = np.random.default_rng(5)
    rows = rng.standard_normal((n, width)) * np.arange(1, width + 1) + 100
    found = components(rows, count, rng)
    np.testing.assert_allclose(found.rows @ found.rows.T, np.eye(len(found.rows)), atol=1e-9)
    variance, vectors = np.linalg.eigh(np.cov(rows.T))
    expected = (variance[::-1] / variance.sum())[:count]
    np.testing.assert_allclose(found.explained, expected, rtol=1e-7, atol=1e-12)
    for axis, row in enumerate(found.rows[: min(count, n - 1)]):
        assert abs(vectors[:, -1 - axis] @ row) == pytest.approx(1, abs=1e-7)
        assert row[np.abs(row).argmax()] > 0
    np.testing.assert_allclose(found.scores(found.states(np.ones(len(found.rows)))), 1, atol=1e-9)
