"""Fingerprints of two kinds cannot be compared, and every refusal of them says so."""

import pytest
import xarray as xr

from depthsys import export, lm
from depthsys.fingerprints import KIND, why_another, why_rounded
from depthsys.study import stored
from tests.conftest import TINY
from tests.lm.conftest import labelled_ids

OLD = "0" * 64
CANNOT = "cannot be compared: make the older one again, or `del` its attrs"


def test_of_one_kind_nothing_is_added():
    assert why_another(KIND + "1", KIND + "2", None) == why_another(OLD, "1" * 64) == ""
    assert CANNOT in why_another(KIND + "1", None, OLD)


@pytest.fixture(scope="module")
def model():
    return lm.DepthModel(TINY["gpt2"]())


@pytest.fixture(scope="module")
def concept():
    direction = xr.DataArray([[1.0] + [0.0] * 15] * 4, dims=("depth", "feature"))
    return xr.Dataset({"direction": direction})


def with_mark(data, mark):
    return data.assign_attrs(model_fingerprint=mark)


@pytest.mark.parametrize(("mark", "is_told"), [(OLD, True), (KIND + "f" * 64, False)])
def test_every_refusal_of_an_old_fingerprint_says_that_it_cannot_be_compared(
    model, concept, mark, is_told
):
    assert model.fingerprint.startswith(KIND)
    ids = labelled_ids(4, 0)
    system = lm.identify(model, ids.ids, concept)
    linear = lm.linear_gains(model, ids.ids, concept)
    plan = xr.Dataset({"u": ("layer", [1.0, 0.0, 0.0])})

    def steer(hf):
        with lm.steering(hf, concept, with_mark(plan, mark)):
            pass

    one_of_each = {"a": with_mark(concept, mark), "b": with_mark(concept, model.fingerprint)}
    calls = [
        lambda: steer(model),
        lambda: steer(model.hf),
        lambda: lm.several(one_of_each),
        lambda: lm.expected_error(with_mark(system, mark), linear),
        lambda: lm.corrected(with_mark(system, mark), model, ids.ids, concept),
        lambda: export.steering.injections(system, with_mark(plan, mark)),
        lambda: stored._check(
            with_mark(system, mark), {"model_fingerprint": model.fingerprint}, "weights", "s.nc"
        ),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="fingerprint") as refusal:
            call()
        assert (CANNOT in str(refusal.value)) == is_told


def test_weights_rounded_to_16_bits_are_told_from_others(concept, tmp_path):
    half = lm.DepthModel(TINY["gpt2"]().bfloat16())
    whole = lm.DepthModel(TINY["gpt2"]())
    ids = labelled_ids(4, 0)
    system = lm.identify(half, ids.ids, concept)
    plan = xr.Dataset({"u": ("layer", [1.0, 0.0, 0.0])}, attrs=system.attrs)
    known = "made in bfloat16, and the model is in float32: .* Load the model in bfloat16"
    for model in (whole, whole.hf):
        with pytest.raises(ValueError, match=known), lm.steering(model, concept, plan):
            pass
    found = {"model_fingerprint": whole.fingerprint}
    with pytest.raises(ValueError, match=known):
        stored._check(system, found, "weights", tmp_path / "s.nc", whole.dtype_name)
    # of other weights in the same dtype nothing is added
    with pytest.raises(ValueError, match=r"Identify again\.$"):
        stored._check(system, found, "weights", tmp_path / "s.nc", "bfloat16")
    assert why_rounded("float64", "float32") == why_rounded(None, "float16") == ""
