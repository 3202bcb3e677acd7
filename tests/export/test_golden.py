import numpy as np
import pytest
import xarray as xr

from depthsys import export, ltv
from tests.export.systems import random_system, varying_system


def recursion(system, x0, u):
    """The definition, written out: no call of depthsys."""
    A, B, C, D = (system[name].values for name in "ABCD")
    x, states, outputs = x0, [], []
    for k in range(len(C)):
        states.append(x)
        outputs.append(C[k] @ x + (D[k] @ u[k] if k < len(A) else 0))
        if k < len(A):
            x = A[k] @ x + B[k] @ u[k]
    return np.array(states), np.array(outputs)


def test_it_is_a_run_of_the_system_and_the_same_every_time(system):
    golden = export.golden_trajectory(system)
    x, y = recursion(system, golden["x0"].values, golden["u"].values)
    np.testing.assert_allclose(golden["x"], x, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(golden["y"], y, rtol=1e-12, atol=1e-12)
    xr.testing.assert_identical(golden, export.golden_trajectory(system))
    assert (golden["u"].values != 0).all()
    export.check_golden(system, golden)


def test_states_that_do_not_exist_are_zero():
    golden = export.golden_trajectory(varying_system())
    assert (golden["x0"].values != 0).tolist() == [True, True, False, False]


def test_every_member_of_a_batch_has_one():
    members = [random_system(seed=i) for i in range(3)]
    batch = xr.concat(members, dim="prompt")
    golden = export.golden_trajectory(batch)
    for i, member in enumerate(members):
        np.testing.assert_allclose(
            golden["y"].isel(prompt=i), export.golden_trajectory(member)["y"]
        )
    export.check_golden(batch, golden)
    with pytest.raises(ValueError, match="must replay its golden trajectory"):
        export.check_golden(batch.isel(prompt=[0, 2, 1]), golden)


def changed(system, **values):
    return system.assign({name: (system[name].dims, value) for name, value in values.items()})


@pytest.mark.parametrize("name", ["A", "B", "C", "D"])
def test_a_shift_by_one_layer_is_noticed(name):
    system = random_system()
    values = system[name].values.copy()
    own = slice(None, -1) if name == "D" else slice(None)  # the last D stays zero
    values[own] = np.roll(values[own], 1, axis=0)
    with pytest.raises(ValueError, match="shuffled"):
        export.check_golden(changed(system, **{name: values}), export.golden_trajectory(system))


@pytest.mark.parametrize("make", [random_system, varying_system])
def test_a_transposed_system_is_called_that(make):
    system = make()
    turned = changed(system, A=system["A"].values.swapaxes(1, 2))
    with pytest.raises(ValueError, match="with every A transposed: a reader has reversed the axes"):
        export.check_golden(turned, export.golden_trajectory(system), "file.mat")


def test_where_sizes_agree_every_matrix_is_told_from_its_transpose():
    system = random_system(n=5, m=5, p=5, L=5)
    golden = export.golden_trajectory(system)
    for name in "ABCD":
        turned = changed(system, **{name: system[name].values.swapaxes(1, 2)})
        with pytest.raises(ValueError, match="must replay"):
            export.check_golden(turned, golden)


def test_a_changed_system_with_padding_is_called_that():
    """Not a word on states beyond `order`, which the change has nothing to do with."""
    system = varying_system()
    golden = export.golden_trajectory(system)
    A = system["A"].values.copy()
    A[1] *= 1.02
    A[2, 3, 1] = 1.0
    with pytest.raises(ValueError, match="It was changed after its export"):
        export.check_golden(changed(system, A=A), golden)


def test_a_small_change_is_noticed_and_rounding_is_not():
    system = random_system()
    golden = export.golden_trajectory(system)
    export.check_golden(changed(system, A=system["A"].values * (1 + 1e-13)), golden)
    with pytest.raises(ValueError, match=r"relative error of \d\.\de-0\d in x at depth 1 "):
        export.check_golden(changed(system, A=system["A"].values * (1 + 1e-6)), golden)


def test_another_size_is_noticed():
    with pytest.raises(
        ValueError, match=r"must hold a golden x0 of numbers with {'state': 2}; got"
    ):
        export.check_golden(random_system(n=2), export.golden_trajectory(random_system()))


def test_not_a_number_is_no_agreement():
    system = random_system()
    golden = export.golden_trajectory(system)
    golden["y"][2, 1] = np.nan
    with pytest.raises(ValueError, match="relative error of inf in y at depth 2"):
        export.check_golden(system, golden)


def test_an_overflow_is_refused():
    huge = ltv.constant([[1e200]], [[1.0]], [[1.0]], horizon=3)
    with pytest.raises(ValueError, match="must keep all products finite"):
        export.golden_trajectory(huge)


def test_an_error_does_not_hide_behind_a_large_depth():
    """After a peak of 1e6 everything is small; a measure by the largest norm would not see it."""
    system = random_system()
    A = system["A"].values.copy()
    A[0], A[1:3] = 1e6 * A[0], 1e-6 * A[1:3]
    system = changed(system, A=A, B=1e-6 * system["B"].values)
    golden = export.golden_trajectory(system)
    export.check_golden(system, golden)
    A = A.copy()
    A[2:] = A[2:].swapaxes(1, 2)
    with pytest.raises(ValueError, match="in x at depth 3 "):
        export.check_golden(changed(system, A=A), golden)


def test_an_error_does_not_hide_beside_a_large_output():
    system = random_system()
    C = system["C"].values.copy()
    C[:, 0] *= 1e12
    system = changed(system, C=C)
    golden = export.golden_trajectory(system)
    C = C.copy()
    C[3, 1] = C[2, 1]
    with pytest.raises(ValueError, match="in y at depth 3 "):
        export.check_golden(changed(system, C=C), golden)


def test_what_is_left_when_terms_cancel_is_no_error():
    system = random_system(D=False)
    A = system["A"].values.copy()
    A[0] *= 1e8
    system = changed(system, A=A)
    x = export.golden_trajectory(system)["x"].values[1]
    C = system["C"].values.copy()
    C[1] -= np.outer(C[1] @ x, x) / (x @ x)
    system = changed(system, C=C)
    golden = export.golden_trajectory(system)
    assert abs(golden["y"][1]).max() < 1e-6 * abs(x).max()
    noise = 1 + 1e-15 * np.random.default_rng(0).standard_normal(C.shape)
    export.check_golden(changed(system, C=C * noise), golden)


def test_what_overflows_is_no_agreement():
    """A finite error over an infinite size is not zero."""
    system = random_system()
    golden = export.golden_trajectory(system)
    with pytest.raises(ValueError, match="must replay"):
        export.check_golden(changed(system, A=np.full((5, 3, 3), 1e308)), golden)


def test_rounding_of_the_smallest_numbers_is_no_error():
    system = random_system(D=False)
    system = changed(system, B=1e-310 * system["B"].values)
    golden = export.golden_trajectory(system)
    golden["x0"] = 1e-310 * golden["x0"]
    run = ltv.simulate(system, golden["u"], golden["x0"])
    noise = 5e-324 * np.ones(golden["x"].shape)
    golden["x"] = golden["x"].dims, np.asarray(run["x"]) + noise
    golden["x0"] = golden["x"][0].drop_vars("depth", errors="ignore")
    golden["y"] = golden["y"].dims, np.asarray(run["y"])
    export.check_golden(system, golden)


def test_another_start_is_noticed():
    system = random_system()
    golden = export.golden_trajectory(system)
    golden["x0"] = golden["x0"] * (1 + 1e-6)
    with pytest.raises(ValueError, match="in x at depth 0 "):
        export.check_golden(system, golden)


@pytest.mark.parametrize("factor", [1 + 1e-8, 1 + 3e-9])
def test_the_allowed_error_is_one_in_a_billion(factor):
    system = random_system()
    golden = export.golden_trajectory(system)
    with pytest.raises(ValueError, match="allowed: 1e-09"):
        export.check_golden(changed(system, C=system["C"].values * factor), golden)


def test_the_seed_is_what_files_were_written_with():
    golden = export.golden_trajectory(random_system())
    assert golden.attrs["seed"] == 2603
    expected = np.random.default_rng(2603).standard_normal(3 + 10)
    np.testing.assert_array_equal(golden["x0"], expected[:3])
    np.testing.assert_array_equal(golden["u"], expected[3:].reshape(5, 2))


def test_a_trajectory_of_texts_or_of_another_system_is_refused():
    system = random_system()
    golden = export.golden_trajectory(system)
    for bad in (golden.assign(y=golden["y"].astype(str)), golden.isel(layer=slice(3))):
        with pytest.raises(ValueError, match=r"must hold a golden \w of numbers with"):
            export.check_golden(system, bad)
