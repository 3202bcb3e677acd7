"""How numbers are told."""

import numpy as np
import pytest

from depthsys.wording import counted, fixed, listed, number, percent, size, small_order


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([0.5], "50.0 %"),
        ([0.05, 0.01, 0.2], "5.00 % [1.0, 20]"),
        ([1.0, 0.999, 12.0], "100 % [100, 1200]"),
        ([1e-7], "< 0.001 %"),
        ([0.0, 0.0, 0.1], "< 0.001 % [0, 10]"),
        ([1e-7, 0.0, 2e-7], "< 0.001 %"),
        ([0.0, np.nan, np.nan], "< 0.001 %"),
        ([0.05, np.nan, np.nan], "5.00 %"),
        ([np.nan, 0.1, 0.2], "not known"),
        ([-0.05], "-5.00 %"),
    ],
)
def test_percent(values, text):
    assert percent(values) == text


def test_percent_of_pages_has_two_digits():
    page = {"digits": 2, "zeros": False, "least": 0.01, "unknown": "-"}
    assert percent([0.05, 0.012, 1.2], **page) == "5 % [1.2, 120]"
    assert percent([0.00001], **page) == "< 0.01 %"
    assert percent([0.0], **page | {"small": "0"}) == "0"
    assert percent([np.inf], **page) == "-"


@pytest.mark.parametrize(
    ("value", "digits", "zeros", "text"),
    [
        (0.5, 3, True, "0.500"),
        (0.5, 3, False, "0.5"),
        (99.5, 2, True, "100"),
        (99.4, 2, True, "99"),
        (1234.5678, 3, True, "1235"),
        (1e7, 3, True, "1.00e+07"),
        (100.0, 3, True, "100"),
    ],
)
def test_number(value, digits, zeros, text):
    assert number(value, digits, zeros=zeros) == text


def test_fixed():
    assert fixed([0.98765, 0.9, 1.0]) == "0.99 [0.90, 1.00]"
    assert fixed([0.5, np.nan, np.nan], 4) == "0.5000"
    assert fixed([np.nan, 0.0, 1.0]) == "not known"


def test_sizes_lists_and_counts():
    assert [size(n) for n in (999, 1e3, 2.5e6, 3e9)] == ["999 B", "1 kB", "2.5 MB", "3 GB"]
    assert [listed(list(names)) for names in ("a", "ab", "abc")] == ["a", "a and b", "a, b and c"]
    assert (counted(1, "layer"), counted(2, "layer")) == ("1 layer", "2 layers")


def test_the_small_order_is_that_nearest_to_4():
    assert small_order([1, 4, 8]) == 4
    assert small_order([1, 3, 5]) == 3
    assert small_order([5, 3]) == 3
    assert small_order(np.array([8, 16, 32])) == 8
