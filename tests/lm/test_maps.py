"""The maps of a run: Jacobians, sub-blocks, transitions, operators."""

import numpy as np
import pytest
import scipy.sparse.linalg
import torch

from depthsys import lm, ltv
from tests.conftest import tiny_gpt2
from tests.lm import whole_sequence

IDS = [[3, 1, 4, 1, 5], [9, 2, 6], [5], [8, 9, 7, 9, 3]]


@pytest.fixture(scope="module")
def model():
    return lm.DepthModel(tiny_gpt2().double())


@pytest.fixture(scope="module")
def run(model):
    return model.run(IDS)


@pytest.fixture(scope="module")
def A(model):
    """Dense Jacobians (prompt, layer, state_next, state) by whole-sequence autograd."""
    return np.stack([whole_sequence.jacobians(model.hf, ids) for ids in IDS])


def test_jacobian_in_chunks(run, A):
    for chunk in (None, 1, 5, 16, 100):
        np.testing.assert_allclose(run.jacobian(1, chunk=chunk), A[:, 1], atol=1e-10)
    with pytest.raises(ValueError, match="`chunk` must be >= 1 rows; got 0"):
        run.jacobian(1, chunk=0)


def test_transition_is_the_product_of_jacobians(run, A):
    V = np.random.default_rng(0).standard_normal((len(IDS), 3, 16))
    product = A[:, 2] @ A[:, 1]
    np.testing.assert_allclose(run.transition(1, 3, V), V @ product.swapaxes(1, 2), atol=1e-9)
    np.testing.assert_allclose(run.transition(1, 3, V, adjoint=True), V @ product, atol=1e-9)
    shared = run.transition(0, 1, V[0])
    np.testing.assert_allclose(shared, V[0] @ A[:, 0].swapaxes(1, 2), atol=1e-9)
    np.testing.assert_array_equal(run.transition(2, 2, V), V)
    for start, stop in ((2, 1), (-1, 2), (0, 4)):
        with pytest.raises(ValueError, match="0 <= start <= stop <= 3"):
            run.transition(start, stop, V)


def test_linear_operator_of_one_prompt_and_of_the_mean(run, A):
    X = np.random.default_rng(0).standard_normal((16, 3))
    for prompt, matrix in [(None, A[:, 1].mean(0)), *((p, A[p, 1]) for p in range(len(IDS)))]:
        operator = run.linear_operator(1, prompt)
        assert operator.shape == (16, 16)
        np.testing.assert_allclose(operator @ X, matrix @ X, atol=1e-10)
        np.testing.assert_allclose(operator.H @ X, matrix.T @ X, atol=1e-10)
        np.testing.assert_allclose(operator @ X[:, 0], matrix @ X[:, 0], atol=1e-10)
        np.testing.assert_allclose(operator.rmatvec(X[:, 0]), matrix.T @ X[:, 0], atol=1e-10)
    sigma = scipy.sparse.linalg.svds(operator, 3, rng=0)[1]
    expected = np.linalg.svd(A[-1, 1], compute_uv=False)[:3]
    np.testing.assert_allclose(np.sort(sigma)[::-1], expected, rtol=1e-8)
    with pytest.raises(ValueError, match=r"`prompt` must be in 0..3; got 4"):
        run.linear_operator(1, 4)
    with pytest.raises(TypeError, match="must be real"):
        operator @ (1j * X)


def test_operators_hand_over_to_the_ltv_wing(run, A):
    """Hankel singular values of the mean system at full order, with and without H x H matrices."""
    rng, mean = np.random.default_rng(0), A.mean(0)
    B = [rng.standard_normal((16, 2)) for _ in range(3)]
    C = [np.zeros((1, 16)), *(rng.standard_normal((1, 16)) for _ in range(3))]
    free = ltv.MatrixFree([run.linear_operator(layer) for layer in range(3)], B, C)
    dense = ltv.system(mean, np.stack(B), np.stack(C))
    np.testing.assert_allclose(ltv.gains(free), ltv.gains(dense), rtol=1e-9)
    values = (ltv.hankel_singular_values(s).values for s in (free, dense))
    free_values, dense_values = (v[:, :2] for v in values)
    np.testing.assert_allclose(free_values, dense_values, rtol=1e-7, atol=1e-12)


def dense_parts(hf, ids, layer):
    """Jacobians of a GPT-2 block's two halves, by autograd on the modules themselves."""
    block, kept = hf.transformer.h[layer], []
    handle = block.register_forward_pre_hook(lambda m, args: kept.append(args[0]))
    hf(torch.tensor([ids]), use_cache=False)
    handle.remove()

    def at(push):
        hidden = kept[0].clone()
        hidden[0, -1] = hidden[0, -1] + push
        mask = torch.full((len(ids), len(ids)), -torch.inf, dtype=hidden.dtype).triu(1)
        wrote = block.attn(block.ln_1(hidden), attention_mask=mask[None, None])[0]
        return (hidden + wrote)[0, -1]

    def after(middle):
        return middle + block.mlp(block.ln_2(middle))

    zero = torch.zeros(16, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian
    return jacobian(at, zero).numpy(), jacobian(after, at(zero)).numpy()


def test_parts_of_a_sequential_block(model, run, A):
    for prompt, ids in enumerate(IDS):
        attention, mlp = dense_parts(model.hf, ids, 1)
        np.testing.assert_allclose(run.jacobian(1, part="attention")[prompt], attention, atol=1e-9)
        np.testing.assert_allclose(run.jacobian(1, part="mlp")[prompt], mlp, atol=1e-9)
    assert run.batches[0].blocks[1].arrangement == "sequential"
    X = np.random.default_rng(0).standard_normal((16, 2))
    operator = run.linear_operator(1, 3, part="mlp")
    np.testing.assert_allclose(operator @ X, run.jacobian(1, part="mlp")[3].numpy() @ X, atol=1e-9)
    with pytest.raises(ValueError, match=r"`part` must be one of .* got 'head'"):
        run.jvp(1, X.T, part="head")


def test_parts_that_do_not_make_up_the_block_are_refused():
    """A third branch beside attention and MLP."""
    hf = tiny_gpt2().double()
    block = hf.transformer.h[0]
    original = block.forward
    block.forward = lambda x, *args, **kwargs: original(x, *args, **kwargs) + torch.tanh(x)
    run = lm.DepthModel(hf).run(IDS[:1])
    with pytest.raises(ValueError, match="must split the block into attention and MLP"):
        run.jacobian(0, part="mlp")
    run.jacobian(0)
    run.jacobian(1, part="mlp")


def test_maps_leave_no_hooks_behind(model, run):
    before = [len(m._forward_hooks) for m in model.hf.modules()]
    run.jvp(0, np.eye(16), part="attention")
    assert [len(m._forward_hooks) for m in model.hf.modules()] == before
    assert model.hf.config._attn_implementation != "depthsys_last_token"
