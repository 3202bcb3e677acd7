"""A depth without a direction: undefined there, and everything else goes on."""

import numpy as np
import pytest
import xarray as xr

from depthsys import export, lm, ltv
from depthsys.lm import concepts
from tests.conftest import TINY
from tests.lm import whole_sequence
from tests.lm.conftest import LabelledIds, labelled_ids

KINDS = ("mean_difference", "whitened", "logistic", "pca")
LAST = 7  # the token that texts end in


def ended(count, seed, other=()):
    """Texts that end in the same token, but for those whose numbers are given."""
    drawn = labelled_ids(count, seed)
    ids = [[*row, 9 if i in other else LAST] for i, row in enumerate(drawn.ids)]
    return LabelledIds(ids, drawn.labels, sha256=f"ended {seed} {other}")


@pytest.fixture(scope="module")
def llama():
    """Without position embeddings, the state at depth 0 is that of the last token."""
    return lm.DepthModel(TINY["llama"]().double(), name="llama")


@pytest.fixture(scope="module")
def runs(llama):
    return [llama.run(ended(12, seed)) for seed in (1, 2, 3)]


@pytest.fixture(scope="module")
def undefined(runs):
    return lm.mean_difference(runs[2], held_out=runs[1])


@pytest.fixture(scope="module")
def system(runs, undefined):
    return lm.identify(runs[0], undefined, lm.Ensemble(order=4))


@pytest.mark.parametrize("kind", KINDS)
def test_all_kinds_of_directions_go_on_at_other_depths(llama, runs, kind):
    texts = runs[2].texts
    found = getattr(lm, kind)(runs[2], held_out=runs[1])
    assert found.direction[0].isnull().all()
    assert np.allclose(np.linalg.norm(found.direction[1:], axis=-1), 1)
    assert np.isnan(found.auc[0])
    assert found.auc[1:].notnull().all()
    assert found.attrs["direction_note"] == (
        "no direction at depth 0: all texts are in the same state there"
    )
    if kind == "mean_difference":
        states = np.array([whole_sequence.states(llama.hf, ids) for ids in texts.ids])
        mean = states[texts.labels == 1, 1:].mean(0) - states[texts.labels == 0, 1:].mean(0)
        unit = mean / np.linalg.norm(mean, axis=1)[:, None]
        np.testing.assert_allclose(found.direction[1:], unit, atol=1e-6)


@pytest.mark.parametrize(("others", "is_defined"), [((0,), False), ((0, 2), True)])
def test_a_direction_that_would_rest_on_a_few_other_endings_is_none(llama, others, is_defined):
    """One text of twelve, and two: nine in ten is the limit."""
    found = lm.mean_difference(llama, ended(12, 3, others))
    assert bool(found.direction[0].notnull().all()) == is_defined
    if not is_defined:
        assert "depth 0: 11 of 12 texts are in the same state" in found.attrs["direction_note"]


def test_texts_without_a_direction_at_any_depth_are_refused(llama):
    same = LabelledIds([[1, 2], [1, 2], [3, 4], [3, 4]], np.arange(4) % 2)
    with pytest.raises(ValueError, match=r"at some depth; got none .*class means coincide"):
        lm.mean_difference(llama, same)


def test_depths_are_told_by_the_reason():
    reasons = {0: "a", 2: "b", 3: "a"}
    assert concepts._reasons(reasons) == "depths 0, 3: a; depth 2: b"


def test_gains_are_unknown_where_there_is_no_direction(llama, runs, undefined):
    v = undefined.direction.fillna(0).values
    found = lm.measure_gains(runs[1], undefined, eps=0.1, relative=False)
    linear = lm.linear_gains(runs[1], undefined)
    for gains in (found, linear):
        assert gains.gain.isel(layer=0).isnull().all()
        assert gains.attrs["direction_note"] == undefined.attrs["direction_note"]
    for prompt in (0, 5):
        expected = whole_sequence.measured_gains(llama.hf, runs[1].texts.ids[prompt], v, 0.1)
        np.testing.assert_allclose(found.gain[prompt, 1:], expected[1:], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", lm.methods.METHODS)
@pytest.mark.parametrize("readout", ["concept", "profile"])
def test_every_method_identifies_what_is_left(runs, undefined, name, readout):
    system = lm.identify(runs[0], undefined, lm.methods.METHODS[name](order=8), readout=readout)
    assert system.v[0].isnull().all()
    assert system.v[1:].notnull().all()
    gains = ltv.gains(system).values.ravel()
    assert gains[0] == 0
    assert np.isnan(system.gain_full[0])
    assert system.gain_full[1:].notnull().all()
    if name == "ensemble":
        expected = lm.linear_gains(runs[0], undefined).gain.mean("prompt")
        np.testing.assert_allclose(gains[1:], expected[1:], rtol=1e-6)
    assert system.attrs["direction_note"] == undefined.attrs["direction_note"]


def test_agreement_leaves_the_layer_out(runs, undefined, system):
    measured = lm.measure_gains(runs[1], undefined)
    linear = [lm.linear_gains(run, undefined) for run in (runs[1], runs[0])]
    report = lm.gain_report(system, measured, *linear)
    for name in ("surrogate_gain", "full_gain"):
        assert np.isnan(report[name][0])
        assert report[name][1:].notnull().all()
    without = report.sel(layers="without_layer_0")
    xr.testing.assert_equal(
        report.relative_l2.sel(layers="all", drop=True), without.relative_l2.drop_vars("layers")
    )
    assert report.error_budget.sel(bound="estimate").notnull().all()


def test_no_schedule_pushes_where_there_is_no_direction(runs, undefined, system):
    plan = ltv.minimum_energy(system, target=0.1)
    assert float(plan.u[0, 0]) == 0
    found = lm.compare_energies(runs[1], undefined, system, 0.02)
    pushed = found.layer_pushed.to_series()
    assert pushed["first_layer"] == 1
    assert (pushed[["middle_layer", "last_layer", "best_single_layer"]] >= 1).all()
    assert np.isnan(found.single_energy[0])
    assert found.single_energy[1:].notnull().all()
    assert float(found.u[0]) == 0


def test_a_push_along_no_direction_is_refused(runs, undefined, system, tmp_path):
    plan = xr.Dataset({"u": ("layer", np.ones(runs[0].n_layers))})
    with pytest.raises(ValueError, match="must not push at layer 0, which has no direction"):
        lm.play(runs[1], undefined, plan)
    with pytest.raises(ValueError, match="must not push at layer 0, which has no direction"):
        export.to_safetensors(system, plan, tmp_path / "plan.safetensors")
    schedules = plan["u"].expand_dims(schedule=["mine"])
    with pytest.raises(ValueError, match="`schedules` must not push at layer 0"):
        lm.required_energy(runs[1], undefined, schedules, 0.1, amplitude=1.0)
    plan["u"][0] = 0
    shift = lm.play(runs[1], undefined, plan).response
    filled = undefined.assign(direction=undefined.direction.fillna(1 / 4))  # any, as nothing pushes
    xr.testing.assert_allclose(shift, lm.play(runs[1], filled, plan).response)
    export.to_safetensors(system, plan, tmp_path / "plan.safetensors")


@pytest.mark.parametrize("ending", ["nc", "zarr", "npz", "json"])
def test_files_keep_it_undefined(system, tmp_path, ending):
    path = tmp_path / f"system.{ending}"
    write = {
        "nc": export.to_netcdf, "zarr": export.to_zarr, "npz": export.to_npz,
        "json": export.to_json,
    }[ending]  # fmt: skip
    write(system, path)
    found = export.read(path)
    xr.testing.assert_equal(found.v, system.v)
    assert found.attrs["direction_note"] == system.attrs["direction_note"]


def test_several_concepts_may_be_undefined_at_different_depths(llama, undefined):
    other = lm.mean_difference(llama, labelled_ids(12, 5))
    both = lm.several({"one": undefined, "two": other})
    assert both.direction.isnull().all("feature").values[0].tolist() == [True, False]
    assert both.attrs["direction_note"].startswith("one: no direction at depth 0")
    system = lm.identify(llama, labelled_ids(6, 6), both, lm.Ensemble(order=2))
    gains = ltv.gains(system).transpose("layer", "output", "input").values
    assert not gains[0, :, 0].any()
    assert gains[0, :, 1].all()
    measured = lm.measure_gains(llama, labelled_ids(6, 6), both)
    known = measured.gain.notnull().all("prompt").transpose("layer", "output", "input")
    assert known[0].values.tolist() == [[False, True]] * 2
    assert np.isfinite(lm.agreement(system, measured).relative_l2.sel(bound="estimate")).all()


def test_the_last_depth_needs_one_for_a_readout_of_the_concept(llama, undefined):
    broken = undefined.copy(deep=True)
    broken.direction[-1] = np.nan
    for readout in ("concept", "profile"):
        with pytest.raises(ValueError, match="must have a direction at the last depth"):
            lm.linear_gains(llama, labelled_ids(4, 1), broken, readout=readout)
    found = lm.linear_gains(llama, labelled_ids(4, 1), broken, readout=lm.LogitDifference(3, 5))
    assert found.gain.isel(layer=slice(1, None)).notnull().all()


def test_a_concept_without_any_direction_is_refused(llama, undefined):
    none = undefined.assign(direction=undefined.direction * np.nan)
    with pytest.raises(ValueError, match="must have a direction at some depth; got none"):
        lm.linear_gains(llama, labelled_ids(4, 1), none)
    partly = undefined.copy(deep=True)
    partly.direction[1, 0] = np.nan
    with pytest.raises(ValueError, match="must hold a finite direction"):
        lm.linear_gains(llama, labelled_ids(4, 1), partly)


def test_a_surrogate_is_corrected_on_the_layers_that_are_left(runs, undefined, system):
    whole = lm.corrected(system, runs[1], undefined)
    exact = lm.linear_gains(runs[1], undefined).gain
    np.testing.assert_allclose(ltv.gains(whole).values[:, 1:, 0, 0], exact[:, 1:], rtol=1e-6)
    assert whole.error_before.notnull().all()


def test_a_comparison_goes_on(runs, undefined):
    splits = lm.Splits(concept=runs[2], operating=runs[0], held_out=runs[1])
    table = lm.compare(
        runs[0].model, splits, ["ensemble", "krylov"], [1, 2], concept=undefined, n_each=2,
        n_bootstrap=5,
    )  # fmt: skip
    assert table.attrs["direction_note"] == undefined.attrs["direction_note"]
    assert table.relative_l2.sel(bound="estimate").notnull().all()
    assert table.prompt_relative_l2.notnull().all()
    for name in (
        "surrogate_gain", "mean_system_gain", "measured_gain", "linear_gain", "prompt_gain",
    ):  # fmt: skip
        assert table[name].isel(layer=0).isnull().all()
        assert table[name].isel(layer=slice(1, None)).notnull().all()
