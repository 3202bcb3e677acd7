"""Arguments in the other shapes that people have them in give the same numbers, or say the cure."""

from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

from depthsys import lm, ltv
from tests.conftest import tiny_gpt2
from tests.lm.conftest import labelled_ids
from tests.lm.every_function import works


@pytest.fixture(scope="module")
def tiny():
    return lm.DepthModel(tiny_gpt2().double())


@pytest.fixture(scope="module")
def system(tiny, tokens, concept):
    return lm.identify(tiny, tokens, concept, lm.Ensemble(order=1))


# ----------------------------------------------------------------------- concept.direction


def test_the_direction_of_a_concept_stands_for_it(tiny, tokens, concept, system):
    """In every function that takes one."""
    run = tiny.run(tokens)
    calls = works(concept, system).values()
    tried = {work.function: work for work in calls if "concept" in work.after}
    assert len(tried) >= 9
    for work in tried.values():
        alone = replace(work, after=work.after | {"concept": concept["direction"]})
        found, expected = alone(run), work(run)
        if not isinstance(found, list):
            found, expected = [found], [expected]
        for one, other in zip(found, expected, strict=True):
            xr.testing.assert_identical(one.drop_attrs(), other.drop_attrs())


def test_directions_of_several_concepts_are_joined(concept):
    other = xr.Dataset({"direction": concept["direction"].roll(feature=1)})
    joined = lm.several({"a": concept["direction"], "b": other})
    xr.testing.assert_identical(
        joined["direction"], lm.several({"a": concept, "b": other})["direction"]
    )


@pytest.mark.parametrize("given", [np.eye(4), xr.Dataset({"A": 1}), "mean_difference"])
def test_what_holds_no_direction_is_no_concept(tiny, tokens, given):
    with pytest.raises(TypeError, match="must be concept directions; got"):
        lm.linear_gains(tiny, tokens, given)


def test_a_comparison_takes_the_direction_alone(demo_model, demo_texts):
    concept = lm.mean_difference(demo_model, demo_texts.concept)
    settings = {"n_each": 0, "n_bootstrap": 5, "ablate_eps": False}
    both = [
        lm.compare(demo_model, demo_texts, ["ensemble"], [1], concept=given, **settings)
        for given in (concept, concept["direction"])
    ]
    np.testing.assert_array_equal(both[0]["surrogate_gain"], both[1]["surrogate_gain"])


# ----------------------------------------------------------------------- splits and texts


def test_texts_are_no_splits(tiny, tokens):
    texts = lm.read_texts([([3, 1], 0), ([4, 1], 1)])
    for call in (lm.compare, lm.comparison_cost):
        with pytest.raises(TypeError, match=r"must be Splits, .* got Texts, 2 .*`texts\.split\("):
            call(tiny, texts)


def test_splits_are_no_texts(tiny, demo_texts):
    with pytest.raises(TypeError, match="must be the texts of one split; got Splits"):
        lm.mean_difference(tiny, demo_texts)
    with pytest.raises(TypeError, match=r"`held_out` must be labelled texts, .* got Splits"):
        lm.mean_difference(tiny, labelled_ids(8, 0), held_out=demo_texts)


# ----------------------------------------------------------------------- schedules


def played(tiny, tokens, concept, plan, **options):
    return lm.play(tiny, tokens, concept, plan, **options)["response"]


def test_several_schedules_are_all_played(tiny, tokens, concept, system):
    plan = ltv.minimum_energy(system, target=0.3)
    u = plan["u"].transpose("layer", "input")
    many = xr.concat([u, -2 * u, 0 * u], dim="schedule").assign_coords(schedule=["a", "b", "c"])
    twice = xr.concat([many, 3 * many], dim="size").assign_coords(size=[1, 3])
    found = played(tiny, tokens, concept, xr.Dataset({"u": twice}), scale=[1.0, 0.5])
    assert found.dims == ("prompt", "size", "schedule", "scale")
    for size in (1, 3):
        for name in "abc":
            one = xr.Dataset({"u": twice.sel(size=size, schedule=name)})
            expected = played(tiny, tokens, concept, one, scale=[1.0, 0.5])
            np.testing.assert_allclose(
                found.sel(size=size, schedule=name), expected, rtol=1e-6, atol=1e-9
            )
    assert abs(found.sel(schedule="a", scale=1.0)).min() > 0


def test_a_stored_file_of_schedules_is_played(tiny, tokens, concept, system, tmp_path):
    """As `depthsys control` writes it, and joined with others."""
    energies = lm.compare_energies(tiny, tokens, concept, system, 0.3)
    energies.to_netcdf(tmp_path / "schedule.nc", engine="h5netcdf")
    stored = xr.load_dataset(tmp_path / "schedule.nc", engine="h5netcdf")
    found = played(tiny, tokens, concept, stored)
    assert found.dims == ("prompt", "scale")
    np.testing.assert_allclose(found, played(tiny, tokens, concept, energies["u"]))
    several = xr.concat([stored[["u"]], 2 * stored[["u"]]], dim="target")
    both = played(tiny, tokens, concept, several)
    assert both.dims == ("prompt", "target", "scale")
    np.testing.assert_allclose(both.isel(target=0), found, rtol=1e-6)
    doubled = played(tiny, tokens, concept, stored, scale=[2.0])
    np.testing.assert_allclose(both.isel(target=1), doubled, rtol=1e-6)


def test_schedules_that_cannot_be_meant(tiny, tokens, concept, system):
    u = ltv.minimum_energy(system, target=0.3)["u"]
    per_prompt = xr.Dataset({"u": xr.concat([u, u], dim="prompt")})
    with pytest.raises(ValueError, match=r"than the prompts .*plan\.rename\(prompt="):
        played(tiny, tokens, concept, per_prompt)
    found = played(tiny, tokens, concept, per_prompt.rename(prompt="schedule"))
    np.testing.assert_allclose(found.isel(schedule=0), found.isel(schedule=1), rtol=1e-6)
    short = xr.Dataset({"u": xr.concat([u[:2], u[:2]], dim="schedule")})
    with pytest.raises(ValueError, match=r"must hold u \(layer=3, input=1\)"):
        played(tiny, tokens, concept, short)
