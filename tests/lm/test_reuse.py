"""A surrogate on new prompts: expected error against refitting, correction against exact gains."""

import numpy as np
import pytest
import xarray as xr

from depthsys import lm, ltv
from tests.lm import one_family
from tests.lm.conftest import LabelledIds, labelled_ids

tiny = one_family.tiny


@pytest.fixture(scope="module")
def new():
    return labelled_ids(5, 9)


def without(tokens, left_out):
    kept = [i for i in range(len(tokens)) if i != left_out]
    return LabelledIds([tokens.ids[i] for i in kept], tokens.labels[kept], sha256=f"-{left_out}")


def test_expected_error_is_that_of_leaving_each_prompt_out(tiny, tokens, concept):
    system = lm.identify(tiny, tokens, concept, lm.Ensemble(order=1))
    linear = lm.linear_gains(tiny, tokens, concept)
    found = lm.expected_error(system, linear)
    for prompt in (0, 3, 7):
        again = lm.identify(tiny, without(tokens, prompt), concept, lm.Ensemble(order=1))
        g = linear.gain[prompt].values
        miss = np.linalg.norm(ltv.gains(again).values.ravel() - g) / np.linalg.norm(g)
        np.testing.assert_allclose(found.relative_l2[prompt], miss, rtol=1e-8)
    np.testing.assert_allclose(
        found.expected, np.quantile(found.relative_l2, [0.1, 0.5, 0.9]), rtol=1e-12
    )


@pytest.mark.parametrize("readout", ["concept", "profile"])
@pytest.mark.parametrize("method", [lm.Ensemble(order=1), lm.Krylov(order=2), lm.Random(order=3)])
def test_corrected_systems_have_each_new_prompts_exact_gains(
    tiny, tokens, new, concept, method, readout
):
    system = lm.identify(tiny, tokens, concept, method, readout=readout)
    fixed = lm.corrected(system, tiny, new, concept)
    exact = lm.linear_gains(tiny, new, concept).gain.values
    gains = ltv.gains(fixed)[..., 0, 0].transpose("prompt", "layer").values
    np.testing.assert_allclose(gains, exact, rtol=1e-9, atol=1e-9 * abs(exact).max())
    h = ltv.gains(system).values.ravel()
    before = np.linalg.norm(exact - h, axis=1) / np.linalg.norm(exact, axis=1)
    np.testing.assert_allclose(fixed.error_before, before, rtol=1e-9)
    assert before.max() > 0.01
    earlier = (ltv.io_matrix(fixed) - ltv.io_matrix(system)).isel(depth=slice(-1))
    assert float(abs(earlier).max()) < 1e-12
    assert int(fixed.order.max()) <= int(system.order.max()) + 1


def test_correction_of_several_concepts(tiny, tokens, new):
    v = np.random.default_rng(5).standard_normal((4, 2, 16))
    v /= np.linalg.norm(v, axis=-1, keepdims=True)
    two = xr.Dataset({"direction": (("depth", "input", "feature"), v)})
    system = lm.identify(tiny, tokens, two, lm.Ensemble(order=2))
    fixed = lm.corrected(system, tiny, new, two)
    exact = lm.linear_gains(tiny, new, two).gain
    gains = ltv.gains(fixed).transpose("prompt", "layer", "output", "input")
    np.testing.assert_allclose(gains, exact, rtol=1e-8, atol=1e-8 * float(abs(exact).max()))


def test_correction_costs_one_pass_and_one_product_per_layer(
    tiny, tokens, new, concept, monkeypatch
):
    from depthsys.lm.linearize import Linearised

    system = lm.identify(tiny, tokens, concept, lm.Ensemble(order=1))
    original, count = Linearised.vjp, [0]

    def counted(linear, v):
        product = original(linear, v)
        count[0] += product.shape[0] * product.shape[1]
        return product

    monkeypatch.setattr(Linearised, "vjp", counted)
    lm.corrected(system, tiny, new, concept)
    assert count[0] == len(new) * 3


def test_corrected_systems_say_whose_they_are(tiny, tokens, new, concept):
    system = lm.identify(tiny, tokens, concept, lm.Ensemble(order=1))
    fixed = lm.corrected(system, tiny, new, concept)
    assert fixed.attrs["prompts_sha256"] == new.sha256 != system.attrs["prompts_sha256"]
    assert fixed.attrs["tokens_sha256"] == tiny.tokens_sha256(new)
    assert fixed.attrs["model_fingerprint"] == tiny.fingerprint
    assert fixed.attrs["per_prompt"] == 1
    assert fixed.attrs["readout"] == "concept"
    assert fixed.attrs["history"].endswith("depthsys.lm.corrected")
    assert fixed.sizes["prompt"] == len(new)
    assert system.attrs["per_prompt"] == 0  # the surrogate is as it was


def test_a_small_correction_is_still_made(tiny, concept):
    """A surrogate that is right but for 1e-5 of its gains."""
    one = labelled_ids(1, 9)
    system = lm.identify(tiny, one, concept, lm.Ensemble(order=1))
    off = system.assign(B=system["B"] * (1 + 1e-5))
    fixed = lm.corrected(off, tiny, one, concept)
    np.testing.assert_allclose(fixed.error_before, 1e-5, rtol=1e-3)
    exact = lm.linear_gains(tiny, one, concept).gain.values
    gains = ltv.gains(fixed)[..., 0, 0].transpose("prompt", "layer").values
    np.testing.assert_allclose(gains, exact, rtol=1e-9)


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_a_direction_that_is_a_little_different_is_refused(tiny, tokens, new, concept, depth):
    system = lm.identify(tiny, tokens, concept, lm.Ensemble(order=1))
    v = concept.direction.values.copy()
    aside = np.eye(16)[0] - v[depth][0] * v[depth]
    turned = v[depth] + 0.01 * aside / np.linalg.norm(aside)
    v[depth] = turned / np.linalg.norm(turned)
    other = xr.Dataset({"direction": (("depth", "feature"), v)})
    with pytest.raises(ValueError, match="must be the one of `system`; got other directions"):
        lm.corrected(system, tiny, new, other)


def test_bad_arguments(tiny, tokens, new, concept):
    system = lm.identify(tiny, tokens, concept)
    with pytest.raises(ValueError, match="must come from the operating prompts of `system`"):
        lm.expected_error(system, lm.linear_gains(tiny, new, concept))
    one = labelled_ids(1, 0)
    single = lm.identify(tiny, one, concept)
    with pytest.raises(ValueError, match="must hold two prompts at least; got 1"):
        lm.expected_error(single, lm.linear_gains(tiny, one, concept))
    each = lm.identify(tiny, tokens, concept, per_prompt=True)
    with pytest.raises(ValueError, match="must be one system shared by prompts"):
        lm.corrected(each, tiny, new, concept)
    with pytest.raises(ValueError, match="must be the one of `system`; got other directions"):
        lm.corrected(system, tiny, new, xr.Dataset({"direction": -concept.direction}))
    free = lm.identify(tiny, tokens, concept, lm.Ensemble(order=1), inputs="free")
    with pytest.raises(ValueError, match="must be driven along the concept; got inputs 'free'"):
        lm.corrected(free, tiny, new, concept)
    read = lm.identify(tiny, tokens, concept, readout=np.ones((1, 16)))
    with pytest.raises(ValueError, match="must read the concept at the last depth"):
        lm.corrected(read, tiny, new, concept)
