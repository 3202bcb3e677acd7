"""Agreement by size: what stands for the cells of a model, and that models keep clear."""

import re
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

from depthsys.report.html.facts import Facts
from depthsys.report.html.results import CellResults
from depthsys.report.html.scaling import LABEL, section, sizes_along
from depthsys.report.stage import Stage

ERRORS = {"small": [0.04, 0.01, 0.3], "near": [0.02, 0.05, 0.08], "large": [0.5, 0.2, 0.1]}
SIZES = {"small": 340_000, "near": 350_000, "large": 135_000_000}


def cells() -> list[Facts]:
    dims = ("basis", "order", "layers", "injection", "bound")
    found = []
    for model, errors in ERRORS.items():
        for task, error in zip("abc", errors, strict=True):
            values = np.array([[[[[error, error / 2, error * 2]]]]])
            data = xr.Dataset(
                {"relative_l2": (dims, values)},
                coords={
                    "basis": ["krylov"], "order": [4], "layers": ["all"],
                    "injection": ["absolute"], "bound": ["estimate", "low", "high"],
                },
                attrs={"n_parameters": SIZES[model]},
            )  # fmt: skip
            cell = CellResults(model, task, "0", "", {"comparison": Stage.of(data)})
            found.append(Facts(cell, f"{model} · {task}", f"{model}-{task}"))
    return found


def test_a_method_has_a_median_between_the_least_and_the_largest_of_a_model():
    made = section(cells())
    assert made is not None
    said = re.findall(r"<title>([a-z]+, krylov: [^<]*)</title>", made.body)
    assert said == [
        "small, krylov: 4.00\u00a0%, 1.00\u00a0% to 30.0\u00a0% in 3 cells",
        "near, krylov: 5.00\u00a0%, 2.00\u00a0% to 8.00\u00a0% in 3 cells",
        "large, krylov: 20.0\u00a0%, 10.0\u00a0% to 50.0\u00a0% in 3 cells",
    ]
    assert made.body.count('class="w ') == 3
    assert "the median over tasks; lines from the least to the largest" in made.body
    assert "340 k is small, 350 k is near and 135 M is large" in made.body


def test_what_is_known_of_one_size_alone_is_not_drawn():
    facts = [
        each
        if each.cell.model == "large"
        else Facts(replace(each.cell, stages={"gains": stage}), each.name, each.anchor)
        for each in cells()
        for stage in [Stage({}, {"n_parameters": SIZES[each.cell.model]})]
    ]
    assert section(facts) is None


def test_models_of_near_sizes_stand_in_order():
    axis, at, in_order = sizes_along([340_000, 350_000, 135_000_000], 4)
    assert in_order
    assert at == [0.0, 1.0, 2.0]
    assert [name for _, name in axis.labels(7)] == ["340 k", "350 k", "135 M"]


def test_models_of_far_sizes_stand_by_the_logarithm():
    axis, at, in_order = sizes_along([10**5, 10**7, 10**8], 4)
    assert not in_order
    assert (at[1] - at[0]) / (at[2] - at[1]) == pytest.approx(2)
    places = [axis.over(52, 442)(x) for x in at]
    assert min(np.diff(places)) >= LABEL


def test_of_many_names_some_stand_beside_the_axis():
    axis, *_ = sizes_along([10**5 + n for n in range(20)], 4)
    assert len(axis.labels(6)) <= 7
