"""Coupling of blocks, against loops over dense Jacobians of whole sequences."""

import numpy as np
import pytest
import torch

from depthsys import lm, ltv
from depthsys.lm.linearize import Linearised
from tests.conftest import tiny_gpt2, tiny_llama
from tests.lm import whole_sequence
from tests.lm.conftest import labelled_ids, no_block_runs

IDS = labelled_ids(5, 3).ids
K = 4


@pytest.fixture(scope="module", params=[tiny_gpt2, tiny_llama])
def model(request):
    return lm.DepthModel(request.param().double())


@pytest.fixture(scope="module")
def run(model):
    return model.run(IDS)


@pytest.mark.parametrize("form", ["signed", "absolute"])
def test_every_pair_of_every_prompt_is_that_of_a_loop(model, run, form):
    found = lm.coupling(run, top=K, form=form)
    tolerance = 1e-9 if model.hf.config.model_type == "gpt2" else 1e-4  # norms in float32
    for prompt, ids in enumerate(IDS):
        J = whole_sequence.jacobians(model.hf, ids) - np.eye(model.n_features)
        svds = [np.linalg.svd(one) for one in J]
        for one, (_, s, _) in enumerate(svds):
            np.testing.assert_allclose(found["singular_value"][prompt, one], s[:K], rtol=tolerance)
            for two, (U, _, Vt) in enumerate(svds):
                M = U[:, :K].T @ J[one] @ Vt[:K].T
                M = np.abs(M) if form == "absolute" else M
                m = np.linalg.norm(M - np.diag(s[:K])) / np.linalg.norm(s[:K])
                assert float(found["coupling"][prompt, one, two]) == pytest.approx(
                    m, rel=tolerance, abs=tolerance
                )
    assert found.attrs["form"] == form


def test_it_is_that_of_given_matrices(model, run):
    of_each = ltv.coupling(lm.jacobians(run, per_prompt=True), top=K)
    found = lm.coupling(run, top=K)
    rtol = 1e-9 if model.hf.config.model_type == "gpt2" else 1e-5
    for name in ("coupling", "singular_value"):
        np.testing.assert_allclose(found[name], of_each[name], rtol=rtol, atol=rtol)


def test_prompts_in_parts_give_the_same(run, monkeypatch):
    whole = lm.coupling(run, top=K)
    monkeypatch.setattr("depthsys.lm.block_coupling.whole_jacobians", lambda *_: 1)
    parts = lm.coupling(run, top=K)
    np.testing.assert_allclose(parts["coupling"], whole["coupling"], rtol=1e-6, atol=1e-9)


def test_rows_are_those_that_are_said(model, run, monkeypatch):
    """H transposed products at each layer, and K for each pair of a layer and a later one."""
    rows = {"vjp": 0, "jvp": 0}
    for name in rows:
        original = getattr(Linearised, name)

        def counted(linear, directions, name=name, original=original):
            rows[name] += len(linear.x) * directions.shape[-2]
            return original(linear, directions)

        monkeypatch.setattr(Linearised, name, counted)
    lm.coupling(run, top=K)
    P, H, L = len(run), model.n_features, model.n_layers
    assert rows == {"vjp": P * H * L, "jvp": P * K * L * (L - 1) // 2}


def test_two_equal_blocks_are_coupled_at_the_same_state():
    """Blocks 0 and 1 the same, with attention off and an MLP that is linear in small states."""
    hf = tiny_gpt2().double()
    with torch.no_grad():
        for block in hf.transformer.h:
            block.attn.c_proj.weight.zero_()
            block.attn.c_proj.bias.zero_()
            block.mlp.c_proj.weight.mul_(1e-7)  # so the state stays where it is
            block.mlp.c_proj.bias.zero_()
        hf.transformer.h[1].load_state_dict(hf.transformer.h[0].state_dict())
    found = lm.coupling(lm.DepthModel(hf), IDS, top=2)["coupling"]
    assert float(found[:, 0, 1].max()) < 1e-4
    assert float(found[:, 0, 2].min()) > 0.1


def test_what_cannot_be_is_refused_before_any_work(run, monkeypatch):
    no_block_runs(monkeypatch)
    with pytest.raises(ValueError, match=r"`top` must be a whole number in 1..16"):
        lm.coupling(run, top=17)
    with pytest.raises(ValueError, match=r"`form` must be one of"):
        lm.coupling(run, form="both")


def test_a_jacobian_that_is_not_finite_is_told(model, monkeypatch):
    run = model.run(IDS[:2])
    jvp = Linearised.jvp
    monkeypatch.setattr(Linearised, "jvp", lambda linear, d: jvp(linear, d) * torch.nan)
    with pytest.raises(FloatingPointError, match="`model` must have finite Jacobians"):
        lm.coupling(run, top=K)
