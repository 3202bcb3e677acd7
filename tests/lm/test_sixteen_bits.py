"""Models kept in 16 bits: what they give is that of float32 but for their rounding.

The oracle is the same model, with the same weights, in float32. Tolerances are roundings: eps is
that of the dtype, and the largest number seen stands beside each.
"""

import numpy as np
import pytest
import torch
import xarray as xr

from depthsys import lm, ltv
from depthsys.lm import contract, precision
from depthsys.lm.contexts import Budget
from tests.conftest import TINY
from tests.lm import families
from tests.lm.conftest import labelled_ids, no_block_runs
from tests.lm.families import FAMILIES

MODELS = [("gpt2", "bfloat16"), ("llama", "bfloat16"), ("llama", "float16")]
IDS = labelled_ids(8, 0)


def pair(name, dtype):
    """A model in 16 bits, and the same weights in float32."""
    dtype = getattr(torch, dtype)
    rounded = TINY[name]().to(dtype)
    same = TINY[name]()
    same.load_state_dict({key: w.float() for key, w in rounded.state_dict().items()})
    return lm.DepthModel(rounded, name=name), lm.DepthModel(same, name=name)


# each family and each precision once
@pytest.fixture(
    scope="module",
    params=[pytest.param(m, marks=pytest.mark.slow if m == MODELS[1] else []) for m in MODELS],
    ids="-".join,
)
def models(request):
    return pair(*request.param)


@pytest.fixture(scope="module")
def kept():
    """A model in bfloat16."""
    return lm.DepthModel(TINY["llama"]().bfloat16(), name="llama")


def roundings(found, wanted, model):
    """Relative distance in units of the model's rounding."""
    found, wanted = np.asarray(found), np.asarray(wanted)
    assert found.shape == wanted.shape
    assert found.dtype == np.float64
    distance = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
    # below one rounding of the weights' products nothing was kept in 16 bits
    assert distance > 0
    return distance / precision.eps(model.dtype)


# ------------------------------------------------------------------------------- the same numbers


def test_states(models):
    found, wanted = (model.run(IDS.ids).states for model in models)
    assert roundings(found, wanted, models[0]) < 4  # 1.4


def test_a_state_is_exactly_one_of_the_model(models):
    """Nothing is rounded again on the way to the user."""
    model, _ = models
    ids = torch.tensor([IDS.ids[0]])
    own = model.hf(ids, output_hidden_states=True).hidden_states
    x = model.run([IDS.ids[0]]).states.values[:, 0]
    np.testing.assert_array_equal(x[0], own[0][0, -1].double())


@pytest.mark.parametrize("place", ["file", "again"])
def test_where_contexts_lie_changes_no_bit(models, place):
    """Numpy has no bfloat16: files hold bytes."""
    model, _ = models
    budget = Budget(0, 0, None if place == "file" else 0)
    run, whole = model.run(IDS.ids, budget=budget), model.run(IDS.ids)
    assert run.place == place
    np.testing.assert_array_equal(run.states, whole.states)
    one, other = (lm.jacobians(r).A.values for r in (run, whole))
    np.testing.assert_array_equal(one, other)
    assert one.dtype == np.float32


def test_jacobian_products(models):
    V = np.random.default_rng(1).standard_normal((5, 16))
    for name in ("jvp", "vjp"):
        for layer in range(3):
            found, wanted = (
                getattr(m.run(IDS.ids), name)(layer, V).double().numpy() for m in models
            )
            assert roundings(found, wanted, models[0]) < 6  # 1.9
    found, wanted = (lm.jacobians(m, IDS.ids).A.values.astype(float) for m in models)
    assert roundings(found, wanted, models[0]) < 4


def test_linear_gains(models, concept):
    found, wanted = (lm.linear_gains(m, IDS.ids, concept) for m in models)
    assert roundings(found.gain, wanted.gain, models[0]) < 8  # 2.8
    assert roundings(found.state_norm, wanted.state_norm, models[0]) < 1
    assert roundings(found.readout, wanted.readout, models[0]) < 8
    assert found.attrs["dtype"] == models[0].dtype_name


@pytest.mark.parametrize(
    ("method", "most"),
    [
        (lm.Ensemble(order=1), 12),  # 3.9
        # the gains of the mean Jacobians are small differences of larger ones
        (lm.Krylov(order=4), 60),
        pytest.param(lm.Balanced(order=4), 60, marks=pytest.mark.slow),
        pytest.param(lm.Arnoldi(order=4), 60, marks=pytest.mark.slow),
    ],
)
def test_identified_systems(models, concept, method, most):
    systems = [lm.identify(m, IDS.ids, concept, method) for m in models]
    found, wanted = (ltv.gains(s) for s in systems)
    assert roundings(found, wanted, models[0]) < most
    assert all(v.dtype != np.float16 for v in systems[0].data_vars.values())


def test_played_schedules(models, concept):
    plan = xr.DataArray(np.ones(3), dims="layer")
    found, wanted = (lm.play(m, IDS.ids, concept, plan).response for m in models)
    assert roundings(found, wanted, models[0]) < 20  # 6.5


def test_directions(models):
    runs = [m.run(IDS) for m in models]
    for find in (lm.mean_difference, lm.whitened, lm.pca):
        found, wanted = (find(run).direction.values[1:] for run in runs)
        assert roundings(found, wanted, models[0]) < 20


def test_directions_are_not_rounded_to_16_bits(kept, concept):
    """A projection on a direction is made in float32: rows of the readout are the user's own."""
    reader = lm.readouts.checked_readout(kept, "concept", concept)
    np.testing.assert_allclose(reader.rows[-1, 0], concept.direction[-1], rtol=1e-6)


def test_texts_are_written_and_steered(models, concept):
    """Greedily, a token that is far ahead of the next one is the same."""
    prompts = [row[:3] for row in IDS.ids]
    plan = xr.Dataset({"u": ("layer", [1.0, -1.0, 1.0])})
    for steered in (False, True):
        found, wanted = [], []
        for model, texts in zip(models, (found, wanted), strict=True):
            if not steered:
                texts += model.new_tokens(prompts, max_new_tokens=1)
                continue
            with lm.steering(model, concept, plan, positions="generated"):
                texts += model.new_tokens(prompts, max_new_tokens=1)
        assert np.mean(np.array(found) == np.array(wanted)) >= 0.75
    logits = [m.head(m.run(prompts).batches[0].x[-1]).detach() for m in models]
    assert logits[0].dtype == models[0].dtype
    assert roundings(logits[0].double(), logits[1].double(), models[0]) < 8


def test_weights_stay_in_16_bits(live_bytes, concept):
    """No copy of the model in float32 is made, in loading or in any work with it."""
    hf = TINY["llama"](intermediate_size=4096).bfloat16()
    size, before, most = sum(p.nbytes for p in hf.parameters()), live_bytes(), []
    model = lm.DepthModel(hf)
    own = model.blocks.call

    def call(layer, *args):
        most.append(live_bytes())
        return own(layer, *args)

    model.blocks.call = call
    run = model.run([[3, 1, 4]])
    for work in (lm.linear_gains, lm.identify):
        work(run, concept)
    lm.jacobians(run)
    model.blocks.call = own
    assert all(p.dtype == torch.bfloat16 for p in hf.parameters())
    # the states and Jacobians of this model are small beside its weights
    assert max(most) - before < size / 4
    assert live_bytes() - before < size / 8


# ------------------------------------------------------------------------------- the contract


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_the_limits_of_the_contract_follow_from_the_dtype(dtype):
    limits, eps = contract.limits_of(precision.Arithmetic(dtype)), torch.finfo(dtype).eps
    if dtype.itemsize == 2:
        assert limits["states"] == limits["adjoint"] == 32 * eps
        assert limits["jvp"] == pytest.approx(6 * eps ** (2 / 3))
    else:
        assert limits["states"] == (1e-4 if dtype == torch.float32 else 1e-5)
        assert limits["jvp"] == 1e-2


def test_the_contract_is_kept_by_far(models):
    model, _ = models
    limits = contract.limits_of(precision.Arithmetic.of(model))
    for name, error in model.contract.items():
        assert error < limits[name] / 2, name


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_keeps_it_in_bfloat16(family):
    model = lm.DepthModel(families.make(family, dtype=torch.bfloat16), name=family)
    assert model.left_padding
    assert model.contract["states"] < 10 * precision.eps(model.dtype)  # 4.1


@pytest.mark.parametrize(
    ("rule", "message"),
    [("jvp", "Jacobians that agree with central"), ("states", "reproduced by replaying its")],
)
def test_a_wrong_model_is_still_refused(monkeypatch, rule, message):
    from depthsys.lm.linearize import Linearised

    hf = TINY["llama"]().bfloat16()
    if rule == "jvp":
        own = Linearised.jvp
        monkeypatch.setattr(Linearised, "jvp", lambda self, d: 1.5 * own(self, d))
    else:
        monkeypatch.setattr(contract, "ROUNDINGS", 1e-3)
    with pytest.raises(ValueError, match=message):
        lm.DepthModel(hf)


# ------------------------------------------------------------------------------- two runs


@pytest.mark.parametrize(
    ("dtype", "least", "good"), [("bfloat16", "7.8e-01", 1.0), ("float16", "9.8e-02", 0.2)]
)
def test_a_step_must_stand_above_the_rounding(concept, monkeypatch, dtype, least, good):
    model, same = pair("gpt2", dtype)
    found, wanted = (lm.measure_gains(m, IDS.ids, concept, eps=good) for m in (model, same))
    assert found.attrs["least_step"] == 100 * precision.eps(model.dtype)
    assert roundings(found.gain, wanted.gain, model) < 20
    message = rf"got 1.0e-02 where {least} is the least in {dtype}. Use a larger step or float32"
    calls = [
        lambda: lm.measure_gains(model, IDS.ids, concept),
        lambda: lm.check_step(lm.Step(), model),
        lambda: lm.identify(model, IDS.ids, concept, lm.Pod(order=2)),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call()
    run = model.run(IDS.ids)
    no_block_runs(monkeypatch)
    with pytest.raises(ValueError, match=r"relative one \(.*\) or float32"):
        lm.measure_gains(run, concept, eps=1e-3, relative=False)


def test_the_linear_range_needs_steps_that_can_be_told(concept, kept):
    with pytest.raises(ValueError, match=r"got 5\.0e-01 where 7\.8e-01 is the least in bfloat16"):
        lm.linear_range(kept, IDS.ids, concept)
    half, same = pair("gpt2", "float16")
    found, wanted = (lm.linear_range(m, IDS.ids, concept).step_error[..., 0] for m in (half, same))
    can = found.step >= 100 * precision.eps(half.dtype)
    assert found[~can].isnull().all()
    assert can.sum() >= 3
    np.testing.assert_allclose(found[can], wanted.sel(step=found.step[can]), atol=0.05)


def test_a_search_of_energies_asks_for_a_target_that_can_be_told(kept, concept):
    texts = labelled_ids(8, 3)
    system = lm.identify(kept, texts.ids, concept, lm.Ensemble(order=1))
    with pytest.raises(ValueError, match=r"is the least in bfloat16. Ask for more or use float32"):
        lm.compare_energies(kept, texts.ids, concept, system, target=1e-3)


def test_a_comparison_is_refused_before_any_work(kept, monkeypatch):
    no_block_runs(monkeypatch)
    texts = lm.Splits(labelled_ids(8, 0), labelled_ids(8, 1), labelled_ids(8, 2))
    with pytest.raises(ValueError, match="is the least in bfloat16"):
        lm.compare(kept, texts, {"ensemble": lm.Ensemble()}, [1])


def test_certificates_know_what_16_bits_cannot_tell(models, concept):
    from depthsys.lm.references import RESOLUTION, References

    class Full:
        mean_system = lm.exact_system(models[0], IDS.ids, concept)
        mean_response = xr.Dataset({"io": ltv.io_matrix(mean_system)})
        channels = lm.channels.Channels.checked(models[0], concept, "concept", "concept", None)

    found = References(Full, [1])
    share = float((found.resolution / ltv.norms.spectral_norm(found.maps)).max())
    assert share == pytest.approx(10 * precision.eps(models[0].dtype))
    assert share > RESOLUTION


# ------------------------------------------------------------------------------- loading


@pytest.fixture
def saved(tmp_path):
    import shutil

    from depthsys.demo import model_path

    TINY["gpt2"](vocab_size=1024).bfloat16().save_pretrained(tmp_path)
    for file in model_path("demo_48x4").glob("tokenizer*"):
        shutil.copy(file, tmp_path)
    return tmp_path


def test_weights_of_16_bits_are_read_into_float32_unless_asked_for(saved):
    wide = lm.DepthModel.load(saved, device="cpu")
    kept = lm.DepthModel.load(saved, device="cpu", dtype="bfloat16")
    assert (wide.dtype_name, kept.dtype_name) == ("float32", "bfloat16")
    assert all(p.dtype == torch.bfloat16 for p in kept.hf.parameters())
    # the same checkpoint; the dtype is said beside it
    assert wide.fingerprint == kept.fingerprint
    assert lm.DepthModel.load(saved, device="cpu", dtype=np.float16).dtype == torch.float16


@pytest.mark.slow  # what it sets is tested above
def test_at_the_shell(run, saved, tmp_path):
    texts = tmp_path / "texts.csv"
    lines = [f"the food was {w} {'and ' * n}good,{w}" for n in range(9) for w in ("good", "bad")]
    texts.write_text("\n".join(["text,label", *lines]))
    out = tmp_path / "out"
    options = ("--split", "4/3/2", "--out", out, "--dtype", "bfloat16")
    code, _, err = run("identify", saved, texts, *options, "--order", "2")
    assert code == 0, err
    with xr.open_dataset(out / "system.nc") as system:
        assert system.attrs["dtype"] == "bfloat16"
    code, _, err = run("gains", out / "system.nc", "--out", tmp_path / "gains")
    assert code == 2
    assert "is the least in bfloat16. Use a larger step or float32" in " ".join(err.split())


def test_an_unknown_dtype_at_the_shell(run, saved, tmp_path):
    code, _, err = run("identify", saved, "texts.csv", "--dtype", "float8", "--out", tmp_path / "o")
    assert code == 2
    assert "bfloat16" in err
