"""A wanted shift and its units."""

import pytest
import xarray as xr

from depthsys.shift import Shift


def test_units_are_those_of_the_system():
    system = xr.Dataset({"y_std": 0.5, "log_odds_per_unit": ("depth", [9.0, 4.0])})
    assert Shift.read("3std").in_readout(system) == 1.5
    assert Shift.read("-2log-odds").in_readout(system) == -0.5
    assert Shift.read(0.25).in_readout(system) == 0.25
    assert Shift.read(Shift(1.0, "std")) == Shift(1.0, "std")


@pytest.mark.parametrize("text", ["1std", "-2 log-odds", "0.3", "1e-05"])
def test_a_shift_is_typed_as_it_is_shown(text):
    assert str(Shift.read(text)) == text
    assert Shift.read(str(Shift.read(text))) == Shift.read(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("one std", "`target` must be a number, alone .* got 'one std'. Write it as in 1std"),
        ("1 volt", "`target` must be a number"),
        ("0std", "`target` must be finite and not zero; got 0"),
        ("1e999", "`target` must be finite and not zero; got inf"),
    ],
)
def test_what_is_no_shift(text, message):
    with pytest.raises(ValueError, match=message):
        Shift.read(text)


def test_no_such_unit():
    with pytest.raises(
        ValueError, match="`unit` must be one of readout, std, log-odds; got 'volt'"
    ):
        Shift(1.0, "volt")


@pytest.mark.parametrize(
    ("system", "text", "message"),
    [
        (xr.Dataset({"y_std": 1.0}), "1log-odds", "needs `log_odds_per_unit` of the system"),
        (xr.Dataset({"y_std": ("output", [1.0, 2.0])}), "1std", "must be of one output; got 2"),
        (xr.Dataset({"y_std": 0.0}), "1std", "needs a readout that varies; got y_std = 0"),
        (
            xr.Dataset({"y_std": float("nan")}),
            "1std",
            "needs a readout that varies; got y_std = nan",
        ),
    ],
)
def test_systems_that_do_not_know(system, text, message):
    with pytest.raises(ValueError, match=message):
        Shift.read(text).in_readout(system)
