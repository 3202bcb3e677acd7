"""What depends on the coordinates of the state says so, and what does not does not."""

import numpy as np
import pytest

from depthsys import ltv
from tests.ltv.test_system import random_arrays


@pytest.fixture
def twins():
    """One system in two bases, the second badly scaled, so that states rank other layers first."""
    A, B, C, D = random_arrays(3, n_layers=6, n=3)
    A *= 0.5
    T = np.random.default_rng(1).standard_normal((7, 3, 3))
    T *= 10.0 ** np.array([-2, 2, -1])[:, None]
    inverse = np.linalg.inv(T)
    other = T[1:] @ A @ inverse[:-1], T[1:] @ B, C @ inverse, D
    return ltv.system(A, B, C, D), ltv.system(*other)


OF_OUTPUTS = ["output_average", "output_average_from_layer", "output_worst_case_energy"]
OF_OUTPUTS += ["energy_from_layer", "state_rank", "output_rank"]


def test_measures_of_outputs_are_the_same_in_any_basis(twins):
    one, two = (ltv.controllability(s) for s in twins)
    for name in OF_OUTPUTS:
        np.testing.assert_allclose(one[name], two[name], rtol=1e-8, err_msg=name)


def test_the_note_names_every_measure_that_is_not(twins):
    one, two = (ltv.controllability(s) for s in twins)
    said, _ = one.attrs["note"].split(" are of states")
    differ = [n for n in one.data_vars if not np.allclose(one[n], two[n], rtol=1e-3)]
    assert set(said.replace(" and ", ", ").split(", ")) >= set(differ)
    assert set(said.replace(" and ", ", ").split(", ")) & set(OF_OUTPUTS) == set()
    assert {"average", "average_from_layer", "log_volume"} <= set(differ)


def test_output_average_is_the_energy_of_the_impulse_responses(twins):
    """Per depth: the summed squares of a row of the map. Per layer: of its column at the end."""
    system = twins[0].copy(deep=True)
    found = ltv.controllability(system)
    G = ltv.io_matrix(system.assign(D=system.D * 0)).values
    np.testing.assert_allclose(found.output_average, (G**2).sum((1, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(
        found.output_average_from_layer, (G[-1] ** 2).sum((0, 2)), rtol=1e-12
    )


@pytest.mark.parametrize(
    "objective", [ltv.Trace(of="output"), ltv.Volume(0.5, of="output"), ltv.Energy([1.0, 2.0])]
)
def test_objectives_of_outputs_choose_the_same_layers_in_any_basis(twins, objective):
    one, two = (ltv.actuator_layers(s, 3, objective) for s in twins)
    np.testing.assert_array_equal(one.layers, two.layers)
    np.testing.assert_allclose(one.value, two.value, rtol=1e-8)
    assert "note" not in one.attrs


def test_objectives_of_states_say_that_another_basis_may_choose_otherwise(twins):
    one, two = (ltv.actuator_layers(s, 2, ltv.Trace()) for s in twins)
    assert one.layers.values.tolist() != two.layers.values.tolist()
    for found in (one, two, ltv.actuator_layers(twins[0], 2, ltv.Volume(0.5))):
        assert "depends on its coordinates" in found.attrs["note"]


def test_the_trace_of_outputs_ranks_layers_by_their_gains(twins):
    squares = (ltv.gains(twins[0]) ** 2).sum(["output", "input"])
    found = ltv.actuator_layers(twins[0], 3, ltv.Trace(of="output"))
    assert found.layers.values.tolist() == np.argsort(-squares.values)[:3].tolist()
    np.testing.assert_allclose(found.optimum, np.sort(squares)[-3:].sum())
    assert found.attrs["objective"] == "Trace(of='output')"
    volume = ltv.actuator_layers(twins[0], 1, ltv.Volume(0.5, of="output"))
    assert volume.attrs["objective"] == "Volume(floor=0.5, of='output')"


def test_only_states_and_outputs_are_measured():
    for make in (lambda: ltv.Trace(of="input"), lambda: ltv.Volume(1.0, of="feature")):
        with pytest.raises(ValueError, match="`of` must be 'state' or 'output'; got "):
            make()
