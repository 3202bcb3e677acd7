"""Axes: ticks at round numbers within the ends, and places in proportion."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthsys.report.html.scales import Scale, counts, linear, logarithmic, rows

NUMBERS = st.floats(-1e6, 1e6, allow_nan=False).filter(lambda x: x == 0 or abs(x) > 1e-6)
POSITIVE = st.floats(1e-9, 1e9)


@given(st.lists(NUMBERS, min_size=1, max_size=5), st.booleans())
def test_linear_ticks_are_round_and_inside(values, zero):
    scale = linear(values, zero=zero)
    ticks = [tick for tick, _ in scale.labels(5)]
    assert 2 <= len(ticks) <= 12
    assert all(scale.within(tick) for tick in ticks)
    steps = np.diff(ticks)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-6)
    head = steps[0] / 10 ** math.floor(math.log10(steps[0]) + 1e-9)
    assert min(abs(head - n) for n in (1, 2, 5, 10)) < 1e-6
    assert all(scale.within(value) for value in values)


@given(st.lists(POSITIVE, min_size=1, max_size=5))
def test_logarithmic_ticks_are_inside_and_apart(values):
    scale = logarithmic(values, decades=30).over(0, 100)
    ticks = [tick for tick, _ in scale.labels(5)]
    assert 2 <= len(ticks) <= 8
    assert ticks == sorted(set(ticks))
    assert all(scale.low <= tick <= scale.high for tick in ticks)
    half = math.sqrt(scale.low * scale.high)
    assert scale(half) == pytest.approx(50)


def test_places_are_in_proportion_and_ends_hold_what_is_beyond():
    scale = Scale(0.0, 10.0, 100.0, 0.0)
    assert [scale(0), scale(2.5), scale(10), scale(11), scale(-1)] == [100, 75, 0, 0, 100]


def test_rows_go_down_from_the_first():
    scale = rows(3).over(90, 10)  # from the floor to the top, as charts set it
    places = [scale(row) for row in range(3)]
    assert places == sorted(places)
    assert np.diff(places) == pytest.approx([25, 25])


@pytest.mark.parametrize(
    ("scale", "labels"),
    [
        (linear([0, 1], zero=True, unit="%"), ["0\u00a0%", "50\u00a0%", "100\u00a0%"]),
        (linear([-0.4, 0.4]), ["−0.4", "−0.2", "0"]),
        (logarithmic([1e-7, 1e-3]), ["10⁻⁷", "10⁻⁶", "10⁻⁵"]),
        (logarithmic([8e-8, 1.8e-7]), ["10⁻⁷", "1.5·10⁻⁷"]),
        (logarithmic([1.1, 4], unit=" ×"), ["2 ×"]),
        (counts([0, 11], 6), ["0", "2", "4"]),
        (counts([0, 79]), ["0", "20", "40"]),
        (Scale(1e5, 1e7, log=True, unit="parameters", ticks=(168_480.0, 1e6)), ["168 k", "1 M"]),
    ],
)  # fmt: skip
def test_labels(scale, labels):
    found = [said for _, said in scale.labels(5)]
    assert [said for said in found if said in labels] == labels


def test_nothing_known_has_an_axis_all_the_same():
    for scale in (linear([np.nan]), logarithmic([0.0, -1.0]), counts([])):
        assert scale.high > scale.low
        assert scale.labels()


@given(NUMBERS, NUMBERS, st.integers(2, 4))
def test_an_axis_has_two_ticks_however_little_room_there_is(one, other, most):
    if abs(one - other) > 1e-3 * max(abs(one), abs(other)):
        assert len(Scale(min(one, other), max(one, other)).labels(most)) >= 2


def test_a_short_axis_around_zero_is_not_named_by_zero_alone():
    assert [tick for tick, _ in Scale(-0.9, 1.9).labels(2)] == [0.0, 1.0]
