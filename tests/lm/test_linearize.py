import numpy as np
import pytest
import torch
import xarray as xr

from depthsys import lm
from depthsys.lm import linearize
from tests.conftest import TINY
from tests.lm import whole_sequence
from tests.lm.conftest import counted_block_calls
from tests.lm.test_model import IDS


def cubic(z):
    """A block map with a known Jacobian: diag(3 x^2) + ones."""
    return z**3 + z.sum(-1, keepdim=True)


def test_jvp_vjp_and_jacobian_of_a_known_map():
    x = torch.randn(4, 5, dtype=torch.float64)
    J = torch.diag_embed(3 * x**2) + 1
    V = torch.randn(4, 7, 5, dtype=torch.float64)
    np.testing.assert_allclose(linearize.jvp(cubic, x, V), V @ J.mT)
    np.testing.assert_allclose(linearize.vjp(cubic, x, V), V @ J)
    np.testing.assert_allclose(linearize.jacobian(linearize.Linearised(cubic, x)), J)
    np.testing.assert_allclose(linearize.jvp(cubic, x, V[0]), V[0] @ J.mT)


def test_directions_in_chunks_give_the_same(monkeypatch):
    x, V = torch.randn(3, 5), torch.randn(7, 5)
    whole = linearize.jvp(cubic, x, V), linearize.vjp(cubic, x, V)
    monkeypatch.setattr(linearize, "ROWS", 6)
    original, rows = torch.func.vmap, []

    def counted(function):
        def apply(seeds):
            rows.append(seeds.shape[0] * seeds.shape[1])
            return original(function)(seeds)

        return apply

    monkeypatch.setattr(torch.func, "vmap", counted)
    chunked = linearize.jvp(cubic, x, V), linearize.vjp(cubic, x, V)
    assert max(rows) == 6
    assert sum(rows) == 2 * 3 * 7
    for a, b in zip(whole, chunked, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_directions_of_the_wrong_width():
    with pytest.raises(ValueError, match="must have 5 features in the last dim"):
        linearize.jvp(cubic, torch.zeros(2, 5), torch.zeros(5, 4))


def test_jacobians_equal_whole_sequence_autograd(tiny):
    limit = 1e-10 if tiny.name == "gpt2" else 1e-6  # Llama's norms compute in float32
    for ids in IDS:
        run = tiny.run([ids])
        expected = whole_sequence.jacobians(tiny.hf, ids)
        for layer, J in enumerate(expected):
            np.testing.assert_allclose(run.jacobian(layer)[0], J, atol=limit * abs(J).max())
            V = np.random.default_rng(layer).standard_normal((3, 16))
            scale = limit * abs(J).max() * 20
            np.testing.assert_allclose(run.jvp(layer, V)[0], V @ J.T, atol=scale)
            np.testing.assert_allclose(run.vjp(layer, V)[0], V @ J, atol=scale)


def test_linear_gains_equal_the_chain_of_full_jacobians(tiny, tokens, concept):
    gains = lm.linear_gains(tiny, tokens, concept)
    v = concept.direction.values
    for prompt, ids in enumerate(tokens.ids):
        A = whole_sequence.jacobians(tiny.hf, ids)
        expected = whole_sequence.chain_gains(A, v)
        np.testing.assert_allclose(gains.gain[prompt], expected, rtol=1e-5, atol=1e-7)
        x = whole_sequence.states(tiny.hf, ids)
        norm = np.linalg.norm(x[:-1], axis=1)
        np.testing.assert_allclose(gains.state_norm[prompt], norm, rtol=1e-6)
        np.testing.assert_allclose(gains.readout[prompt], v[-1] @ x[-1], rtol=1e-6)


def test_all_linear_gains_take_one_pass_over_the_blocks(monkeypatch, tokens, concept):
    """Cost as a count: block calls beyond the nominal run do not grow with L."""
    model = lm.DepthModel(TINY["gpt2"]())
    calls = counted_block_calls(model, monkeypatch)
    lm.linear_gains(model, tokens, concept)
    n_batches = len(model.run(tokens, contexts=False).batches)
    assert len(calls) == n_batches * 2 * model.n_layers  # one prefill, one replay


def test_mean_products_equal_the_dense_mean_jacobian(tiny, tokens):
    A = np.mean([whole_sequence.jacobians(tiny.hf, ids) for ids in tokens.ids], axis=0)
    V = np.random.default_rng(0).standard_normal((3, 2, 16))
    directions = xr.DataArray(V, dims=["layer", "direction", "feature"])
    scale = 1e-6 * abs(A).max() * 16
    forward = lm.mean_jvp(tiny, tokens, directions)
    np.testing.assert_allclose(forward, np.einsum("lij,ldj->ldi", A, V), atol=scale)
    back = lm.mean_vjp(tiny, tokens, directions.transpose())
    np.testing.assert_allclose(back, np.einsum("lij,ldi->ldj", A, V), atol=scale)
    with pytest.raises(ValueError, match="`directions` must have 3 layers; got 2"):
        lm.mean_jvp(tiny, tokens, directions[:2])
