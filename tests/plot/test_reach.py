import numpy as np
import pytest
import xarray as xr

from depthsys import ltv, plot
from depthsys.plot import sheets
from tests.plot.drawing import drawn, labels_of, lines_of, marks_of, written_over


@pytest.fixture
def system():
    """Six layers, of which layer 2 has no input; output 1 is never read at the end."""
    rng = np.random.default_rng(0)
    A, B = rng.standard_normal((6, 4, 4)), rng.standard_normal((6, 4, 1))
    C = rng.standard_normal((7, 2, 4))
    B[2], C[-1, 1] = 0.0, 0.0
    return ltv.system(A, B, C)


def test_controllability_shows_ranks_over_depth_and_energies_over_layers(system, tmp_path):
    measures = ltv.controllability(system)
    fig = sheets.controllability(measures)
    ranks, energies = fig.axes[:2]
    plot.save(fig, tmp_path / "a.png", "png")
    lines = lines_of(ranks)
    np.testing.assert_array_equal(lines["states reached (rank)"].get_ydata(), measures.state_rank)
    np.testing.assert_array_equal(lines["outputs reached (rank)"].get_ydata(), measures.output_rank)
    assert lines["states reached (rank)"].get_xdata().tolist() == list(range(7))
    lines = lines_of(energies)
    want = measures.energy_from_layer.values
    np.testing.assert_array_equal(
        lines["output 0"].get_ydata(), np.where(np.isinf(want[:, 0]), np.nan, want[:, 0])
    )
    assert energies.get_yscale() == "log"
    assert labels_of(energies) == ["output 0", "output 1", "not reached"]
    lost = [line.get_xdata().tolist() for line in energies.lines if line.get_label() == "_lost"]
    assert lost == [[2], [0, 1, 2, 3, 4, 5]]
    heights = [line.get_ydata()[0] for line in energies.lines if line.get_label() == "_lost"]
    assert len(set(heights)) == 2
    assert not written_over(fig)


def test_a_rank_that_rounding_leaves_in_doubt_is_open(system):
    measures = ltv.controllability(system)
    certain = measures.state_rank_is_certified.copy()
    certain[3] = False
    _, axes = plot.figure(10, 4, columns=2)
    plot.controllability(axes, measures.assign(state_rank_is_certified=certain))
    doubt = lines_of(axes[0])["state rank in doubt: rounding"]
    assert doubt.get_xdata().tolist() == [3]
    assert doubt.get_markerfacecolor() == "w"


@pytest.mark.parametrize(("n_layers", "n_outputs"), [(1, 1), (70, 8)])
def test_controllability_of_one_layer_and_of_many(n_layers, n_outputs):
    rng = np.random.default_rng(1)
    system = ltv.system(
        0.5 * rng.standard_normal((n_layers, 3, 3)),
        rng.standard_normal((n_layers, 3, 1)),
        rng.standard_normal((n_layers + 1, n_outputs, 3)),
    )
    fig = sheets.controllability(ltv.controllability(system))
    assert not written_over(fig)
    joined = [line for ax in fig.axes for line in ax.lines if line.get_linestyle() != "None"]
    assert max(map(marks_of, joined)) <= 16


def test_controllability_refuses_other_data(system):
    measures = ltv.controllability(system)
    _, axes = plot.figure(columns=2)
    with pytest.raises(ValueError, match=r"`axes` must be two; got 1"):
        plot.controllability(axes[:1], measures)
    with pytest.raises(TypeError, match=r"`measures` must be a Dataset; got DataArray"):
        plot.controllability(axes, measures.average)
    with pytest.raises(ValueError, match=r"without \['state_rank'\]. Use `ltv.controllability`"):
        plot.controllability(axes, measures.drop_vars("state_rank"))
    with pytest.raises(ValueError, match=r"`state_rank` must have dims .*isel\(prompt=0\)"):
        plot.controllability(axes, measures.expand_dims(prompt=2))


def test_actuator_layers_stand_at_their_layers_with_their_order_and_value(system, tmp_path):
    found = ltv.actuator_layers(system, 3, ltv.Trace(of="output"))
    ax = drawn(tmp_path, plot.actuator_layers, found, n_layers=6)
    rows = [line for line in ax.lines if line.get_marker() not in ("", "None")]
    names = ["layers", "kept_layers", "optimal_layers"]
    for row, (line, name) in enumerate(zip(rows, names, strict=True)):
        assert sorted(line.get_xdata()) == sorted(found[name].values)
        assert set(line.get_ydata()) == {row}
    assert len({line.get_marker() for line in rows}) == 3
    numbers = {int(t.xy[0]): t.get_text() for t in ax.texts if t.get_text().isdigit()}
    assert numbers == {layer: str(i) for i, layer in enumerate(found.layers.values.tolist(), 1)}
    texts = [text.get_text() for text in ax.texts if text.get_text().startswith("value")]
    assert texts[0].endswith("100 % of the optimum")
    assert float(texts[2].removeprefix("value ")) == pytest.approx(float(found.optimum), rel=0.05)
    assert ax.get_title() == "3 layers to act on, Trace(of='output')"
    assert ax.get_xlim() == (-0.5, 5.5)


def test_actuator_layers_that_do_not_reach_the_target_say_the_residual(system, tmp_path):
    one = ltv.system(system.A, system.B, np.random.default_rng(2).standard_normal((7, 2, 4)))
    found = ltv.actuator_layers(one, 1, ltv.Energy(target=[1.0, 2.0]))
    ax = drawn(tmp_path, plot.actuator_layers, found)
    texts = [text.get_text() for text in ax.texts if "residual" in text.get_text()]
    assert len(texts) == 3
    assert texts[0].startswith("target not reached:\nresidual ")
    assert float(texts[0].split()[4]) == pytest.approx(-100 * float(found.value[-1]), rel=0.05)
    assert ax.get_title() == "1 layer to act on, Energy"


def test_many_layers_to_act_on_are_named_beside_their_row():
    system = ltv.constant([[0.9]], [[1.0]], [[1.0]], horizon=60)
    found = ltv.actuator_layers(system, 8, ltv.Trace(), max_subsets=5)
    fig, (ax,) = plot.figure()
    plot.actuator_layers(ax, found, n_layers=60)
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        "greedy, added one by one",
        "removed one by one",
    ]
    assert ax.texts[0].get_text().endswith("\norder: 59, 58, 57, 56, 55, 54, ...")
    assert not written_over(fig)


def test_actuator_layers_refuse_other_data(system):
    found = ltv.actuator_layers(system, 2, ltv.Trace())
    _, (ax,) = plot.figure()
    last = int(max(found.layers.max(), found.kept_layers.max()))
    with pytest.raises(ValueError, match=rf"`n_layers` must be more than .* {last}; got {last}"):
        plot.actuator_layers(ax, found, n_layers=last)
    with pytest.raises(TypeError, match=r"`found` must be a Dataset; got DataArray"):
        plot.actuator_layers(ax, found.layers)
    with pytest.raises(ValueError, match=r"`found` must hold .* without \['value'\]"):
        plot.actuator_layers(ax, found.drop_vars("value"))
    with pytest.raises(ValueError, match=r"`layers` must have dims .*isel\(prompt=0\)"):
        plot.actuator_layers(ax, xr.concat([found, found], "prompt"))
