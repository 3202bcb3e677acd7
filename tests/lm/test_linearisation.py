"""Which derivative is meant, said once and carried through every function to the attrs.

The Jacobians of the parts themselves are proved against autograd on the modules in test_maps.py and
test_families.py; here products of them are.
"""

import importlib

import numpy as np
import pytest
import xarray as xr

from depthsys import lm, ltv
from depthsys.lm.linearize import PARTS
from tests.conftest import TINY
from tests.lm import families, whole_sequence
from tests.lm.conftest import labelled_ids

L, H = 3, 16
parts = pytest.mark.parametrize("part", PARTS)
jacobians = importlib.import_module("depthsys.lm.jacobians")  # the function hides its module


@pytest.fixture(scope="module", params=list(TINY))
def run(request):
    model = lm.DepthModel(TINY[request.param]().double(), name=request.param)
    return model.run(labelled_ids(5, 4))


@pytest.fixture(scope="module")
def dense(run):
    """Jacobians (prompt, layer, state_next, state) of every part."""
    return {
        part: np.stack([run.jacobian(layer, part=part) for layer in range(L)], axis=1)
        for part in PARTS
    }


@pytest.fixture(scope="module")
def close(run):
    """Equal to rounding: Llama's norms are float32 in a float64 model too."""
    rounding = 1e-10 if run.model.name == "gpt2" else 2e-6

    def check(found, expected):
        expected = np.asarray(expected)
        np.testing.assert_allclose(found, expected, rtol=0, atol=rounding * abs(expected).max())

    return check


@pytest.fixture
def v(concept):
    return concept.direction.values


def test_the_parts_are_not_the_block(dense):
    for part in ("attention", "mlp"):
        assert abs(dense[part] - dense["block"]).max() > 0.1
    product = dense["mlp"] @ dense["attention"]
    np.testing.assert_allclose(product, dense["block"], atol=1e-6)


@parts
def test_jacobians(run, close, dense, part):
    each = lm.jacobians(run, part=part, per_prompt=True)
    close(each.A, dense[part])
    mean = lm.jacobians(run, part=part)
    close(mean.A, dense[part].mean(0))
    assert each.attrs["part"] == mean.attrs["part"] == part
    # the nominal run is that of the whole blocks
    close(mean.x_ref, run.states.mean("prompt"))


def test_a_store_of_one_part_is_not_resumed_with_another(run, tmp_path, monkeypatch):
    out = tmp_path / "parts"

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(jacobians, "_check_finite", stop)
        with pytest.raises(KeyboardInterrupt):
            lm.jacobians(run, part="mlp", out=out)
    with pytest.raises(ValueError, match=r"must be resumed with .* part mlp, now attention"):
        lm.jacobians(run, part="attention", out=out)
    stored = lm.jacobians(run, part="mlp", out=out)
    np.testing.assert_array_equal(stored.A, lm.jacobians(run, part="mlp").A)
    assert stored.attrs["part"] == "mlp"


@parts
def test_linear_gains(run, close, concept, dense, v, part):
    found = lm.linear_gains(run, concept, part=part)
    chains = [whole_sequence.chain_gains(A, v) for A in dense[part]]
    close(found.gain, chains)
    assert found.attrs["part"] == part


@parts
def test_exact_system(run, close, concept, dense, v, part):
    mean = dense[part].mean(0)
    full = ltv.system(mean, np.einsum("lij,lj->li", mean, v[:-1])[..., None], profile_rows(v))
    small = lm.exact_system(run, concept, readout="profile", part=part)
    maps = [ltv.io_matrix(s).transpose("depth", "layer", ...).values for s in (small, full)]
    close(*maps)
    values = [ltv.hankel_singular_values(s).values[:, :L] for s in (small, full)]
    close(*values)
    assert small.attrs["part"] == part


def profile_rows(v):
    rows = v[:, None].copy()
    rows[0] = 0
    return rows


@parts
@pytest.mark.parametrize(
    "method",
    [
        lm.Krylov(),
        lm.Balanced(),
        lm.Arnoldi(order=H),
        *(
            pytest.param(m, marks=pytest.mark.slow)
            for m in (lm.TwoSided(), lm.Adjoint(), lm.Random())
        ),
    ],
    ids=lambda m: m.name,
)
def test_identify_the_mean_system(run, close, concept, dense, v, part, method):
    """At full order every basis keeps the gains of the product of mean Jacobians."""
    system = lm.identify(run, concept, method, part=part)
    expected = whole_sequence.chain_gains(dense[part].mean(0), v)
    close(ltv.gains(system).values.ravel(), expected)
    close(system.gain_full, expected)
    assert system.attrs["part"] == part


@parts
def test_identify_the_mean_response(run, close, concept, dense, v, part):
    system = lm.identify(run, concept, lm.Ensemble(order=1), part=part)
    expected = np.mean([whole_sequence.chain_gains(A, v) for A in dense[part]], axis=0)
    close(ltv.gains(system).values.ravel(), expected)
    assert system.attrs["part"] == part


@parts
@pytest.mark.parametrize("method", [lm.Krylov(), lm.Ensemble()], ids=lambda m: m.name)
def test_identify_prompt_by_prompt(run, close, concept, dense, v, part, method):
    system = lm.identify(run, concept, method, part=part, per_prompt=True)
    expected = [whole_sequence.chain_gains(A, v) for A in dense[part]]
    gains = ltv.gains(system).isel(output=0, input=0).transpose("prompt", "layer")
    close(gains, expected)
    assert system.attrs["part"] == part


@parts
def test_columns_of_a_basis_are_of_the_same_part(run, close, concept, dense, v, part):
    """Arnoldi of order 2 spans v and A v, A being the mean Jacobian of the part."""
    system = lm.identify(run, concept, lm.Arnoldi(order=2), part=part)
    A = dense[part].mean(0)
    for layer in range(1, L):
        columns = np.stack([v[layer], A[layer] @ v[layer]], axis=1)
        V = system.V[layer].values
        close(V @ (V.T @ columns), columns)


@parts
def test_mean_products(run, close, dense, part):
    V = np.random.default_rng(0).standard_normal((L, 2, H))
    rows = xr.DataArray(V, dims=("layer", "direction", "feature"))
    mean = dense[part].mean(0)
    forwards, back = (f(run, rows, part=part) for f in (lm.mean_jvp, lm.mean_vjp))
    close(forwards, V @ mean.swapaxes(1, 2))
    close(back, V @ mean)
    assert forwards.attrs["part"] == back.attrs["part"] == part


@parts
def test_transitions_and_operators(run, close, dense, part):
    V = np.random.default_rng(0).standard_normal((5, 2, H))
    product = dense[part][:, 2] @ dense[part][:, 1]
    found = run.transition(1, 3, V, part=part)
    close(found, V @ product.swapaxes(1, 2))
    found = run.transition(1, 3, V, adjoint=True, part=part)
    close(found, V @ product)
    operator = run.linear_operator(1, part=part)
    close(operator @ V[0].T, dense[part][:, 1].mean(0) @ V[0].T)


def test_a_linearisation_or_the_name_of_its_part(run, concept):
    assert lm.Linearisation() == lm.Linearisation(part="block") == lm.Linearisation.of("block")
    for part in PARTS:
        kind = lm.Linearisation(part)
        assert lm.Linearisation.of(kind) is kind
        assert kind.attrs == {"part": part}
        by_name, by_kind = (lm.linear_gains(run, concept, part=p) for p in (part, kind))
        xr.testing.assert_identical(by_name.drop_attrs(), by_kind.drop_attrs())
        np.testing.assert_array_equal(run.jacobian(1, part=part), run.jacobian(1, part=kind))


def test_the_default_is_the_block(run, concept):
    assert lm.linear_gains(run, concept).attrs["part"] == "block"
    assert lm.identify(run, concept).attrs["part"] == "block"
    whole = [lm.linear_gains(run, concept, **o).gain for o in ({}, {"part": "block"})]
    xr.testing.assert_identical(*whole)


def test_an_unknown_part_is_refused_by_everything(run, concept):
    rows = xr.DataArray(np.ones((L, 1, H)), dims=("layer", "direction", "feature"))
    for act in (
        lambda: lm.Linearisation("head"),
        lambda: lm.jacobians(run, part="head"),
        lambda: lm.identify(run, concept, part="head"),
        lambda: lm.identify(run, concept, lm.Ensemble(), part="head", per_prompt=True),
        lambda: lm.exact_system(run, concept, part="head"),
        lambda: lm.linear_gains(run, concept, part="head"),
        lambda: lm.mean_jvp(run, rows, part="head"),
        lambda: lm.mean_vjp(run, rows, part="head"),
        lambda: run.jvp(0, np.eye(H), part="head"),
        lambda: run.vjp(0, np.eye(H), part="head"),
        lambda: run.jacobian(0, part="head"),
        lambda: run.transition(0, 2, np.eye(H), part="head"),
        lambda: run.linear_operator(0, part="head"),
    ):
        with pytest.raises(ValueError, match=r"`part` must be one of \('block', .* got 'head'\."):
            act()


def test_parts_of_a_parallel_block_add_up():
    """GPT-J: attention and MLP both read the input of the block."""
    model = lm.DepthModel(families.make("gptj"))
    run = model.run(labelled_ids(4, 4))
    A = {part: lm.jacobians(run, part=part).A.values for part in PARTS}
    eye = np.eye(model.n_features)
    np.testing.assert_allclose(A["attention"] + A["mlp"] - eye, A["block"], atol=1e-6)
    assert run.batches[0].blocks[0].arrangement == "parallel"
