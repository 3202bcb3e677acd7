"""Every reduction method of a language model against dense algebra on whole-sequence Jacobians."""

import functools
from functools import partial

import numpy as np
import pytest
import torch
import xarray as xr

from depthsys import lm, ltv
from depthsys.lm import methods
from tests.conftest import TINY
from tests.lm import one_family, whole_sequence
from tests.lm.conftest import LabelledIds, counted_block_calls, labelled_ids

tiny = one_family.tiny

L, H = 3, 16


@pytest.fixture(scope="module")
def tokens() -> LabelledIds:
    """Fewer than elsewhere: every method runs on them many times.

    With four, two-sided bases are so oblique (1e3) that float32 shows in their projector.
    """
    return labelled_ids(5, 0)


@pytest.fixture(scope="module")
def dense(tiny, tokens):
    """Jacobians (prompt, layer, H, H)."""
    return np.stack([whole_sequence.jacobians(tiny.hf, ids) for ids in tokens.ids])


@pytest.fixture(scope="module")
def two_concepts():
    v = np.random.default_rng(5).standard_normal((L + 1, 2, H))
    v /= np.linalg.norm(v, axis=-1, keepdims=True)
    return xr.Dataset({"direction": (("depth", "input", "feature"), v)})


def rows_of(readout, v):
    """C (depth, output, H) for directions v (depth, input, H)."""
    C = v.copy()
    C[: L if readout == "concept" else 1] = 0
    return C


def dense_system(A, v, C, free=False):
    A = np.asarray(A)
    B = A if free else A @ np.swapaxes(v[:-1], 1, 2)
    return ltv.system(A, B, C)


def io(system):
    return ltv.io_matrix(system).transpose(..., "depth", "output", "layer", "input").values


def directions(concept):
    d = concept.direction
    d = d.expand_dims("input", axis=1) if "input" not in d.dims else d
    return d.transpose("depth", "input", "feature").values


def arnoldi_columns(A, v):
    out = []
    for k in range(L + 1):
        a, columns = A[min(k, L - 1)], [v[k].T]
        for _ in range(4):
            columns.append(a @ columns[-1])
        out.append(np.concatenate(columns, axis=1))
    return np.stack(out)


def random_columns(v, order, seed):
    out = []
    for k in range(L + 1):
        drawn = np.random.default_rng([seed, k]).standard_normal((order, H)).T
        out.append(np.concatenate([v[k].T, drawn], axis=1))
    return np.stack(out)


@functools.cache
def snapshots(tiny, ids: tuple[tuple[int, ...], ...], v: bytes, n_inputs: int) -> np.ndarray:
    """Recorded deviations (depth, feature, push) of all prompts: made once for all orders."""
    pushed = np.frombuffer(v).reshape(L + 1, n_inputs, H)
    return np.concatenate([snapshots_of(tiny, row, pushed, 1e-3) for row in ids], axis=-1)


def snapshots_of(tiny, ids, v, eps):
    """By one hooked forward pass per push, depth and sign."""
    found = np.zeros((L + 1, H, L * v.shape[1]))
    with torch.no_grad():
        for layer in range(L):
            for i in range(v.shape[1]):
                for depth in range(layer + 1, L + 1):
                    push = torch.tensor(eps * v[layer, i])
                    ends = [
                        whole_sequence.state_after(tiny.hf, ids, depth - 1, {layer: s * push})
                        for s in (1, -1)
                    ]
                    change = (ends[0] - ends[1]).numpy() / (2 * eps)
                    found[depth, :, layer * v.shape[1] + i] = change
    return found


def expected(name, order, tiny, A, v, C, ids):
    """The same method by the ltv toolbox on the dense full-order system."""
    full = dense_system(A, v, C)
    start = np.swapaxes(v, 1, 2)
    if name == "krylov":
        basis = ltv.krylov_basis(full, order=order, start=start)
    elif name == "arnoldi":
        basis = ltv.span_basis(full, order=order, columns=arnoldi_columns(A, v))
    elif name == "pod":
        rows = tuple(map(tuple, ids))
        shots = snapshots(tiny, rows, np.ascontiguousarray(v).tobytes(), v.shape[1])
        basis = ltv.pod_basis(full, order=order, snapshots=shots)
    elif name == "adjoint":
        basis = ltv.adjoint_basis(full, order=order, start=start)
    elif name == "random":
        basis = ltv.span_basis(full, order=order, columns=random_columns(v, order, 3))
    else:
        basis = {"balanced": ltv.balanced_basis, "two_sided": ltv.two_sided_basis}[name](
            full, order=order
        )
    return ltv.project(full, basis), basis


def method(name, **settings):
    extra = {"pod": {"eps": 1e-3, "relative": False}, "random": {"seed": 3}}.get(name, {})
    return methods.METHODS[name](**settings, **extra)


BASES = ["krylov", "arnoldi", "pod", "adjoint", "two_sided", "balanced", "random"]


@pytest.mark.parametrize("readout", [pytest.param("concept", marks=pytest.mark.slow), "profile"])
@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("several", [pytest.param(False, marks=pytest.mark.slow), True])
def test_task_level_bases_equal_the_toolbox_on_the_dense_system(
    tiny, tokens, concept, two_concepts, dense, name, readout, several
):
    chosen = two_concepts if several else concept
    v = directions(chosen)
    A = dense.mean(0)
    C = rows_of(readout, v)
    largest = 1 if readout == "concept" and name in ("balanced", "two_sided") else 2
    most = largest * v.shape[1]
    for order in sorted({1, min(2, most), most}):
        system = lm.identify(tiny, tokens, chosen, method(name, order=order), readout=readout)
        reference, basis = expected(name, order, tiny, A, v, C, tokens.ids)
        scale = abs(io(dense_system(A, v, C))).max()
        np.testing.assert_allclose(io(system), io(reference), atol=1e-5 * scale)
        # the stored bases are those of R^H: same spans, biorthogonal
        for depth in range(L + 1):
            V, W = system.V[depth].values, system.W[depth].values
            n = int(system.order[depth])
            np.testing.assert_allclose((W.T @ V)[:n, :n], np.eye(n), atol=1e-8)
            oblique = basis.V[depth].values @ basis.W[depth].values.T
            np.testing.assert_allclose(V @ W.T, oblique, atol=1e-5 * max(1, abs(oblique).max()))
        np.testing.assert_allclose(
            system.gain_full.values.ravel(),
            np.moveaxis(io(dense_system(A, v, C))[-1], 1, 0).ravel(),
            atol=1e-5 * scale,
        )


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in BASES[::2] else [pytest.mark.slow]) for n in BASES],
)
def test_per_prompt_bases_equal_the_toolbox_on_each_dense_system(
    tiny, tokens, concept, dense, name
):
    v = directions(concept)
    C = rows_of("profile", v)
    systems = lm.identify(
        tiny, tokens, concept, method(name, order=2), readout="profile", per_prompt=True
    )
    for prompt, A in enumerate(dense):
        reference, _ = expected(name, 2, tiny, A, v, C, [tokens.ids[prompt]])
        mine = systems.isel(prompt=prompt)
        scale = abs(io(dense_system(A, v, C))).max()
        np.testing.assert_allclose(io(mine), io(reference), atol=1e-5 * scale)


def stacked_ensemble(dense, v, C, free=False):
    """The mean response as one system: states of all prompts stacked, outputs averaged."""
    n = len(dense)
    A = np.zeros((L, n * H, n * H))
    for p, jacobians in enumerate(dense):
        A[:, p * H : (p + 1) * H, p * H : (p + 1) * H] = jacobians
    inputs = np.eye(H)[None].repeat(L, 0) if free else np.swapaxes(v[:-1], 1, 2)
    B = np.concatenate([jacobians @ inputs for jacobians in dense], axis=1)
    return ltv.system(A, B, np.tile(C, (1, 1, n)) / n)


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("several", [False, True])
def test_ensemble_is_balanced_truncation_of_the_stacked_prompts(
    tiny, tokens, concept, two_concepts, dense, several, free
):
    chosen = two_concepts if several else concept
    v = directions(chosen)
    C = rows_of("profile", v)
    whole = stacked_ensemble(dense, v, C, free)
    values = ltv.hankel_singular_values(whole)
    for order in (1, 2, 3) if several or free else (1, 2):
        system = lm.identify(
            tiny,
            tokens,
            chosen,
            lm.Ensemble(order=order),
            inputs="free" if free else "concept",
            readout="profile",
        )
        reference = ltv.project(whole, ltv.balanced_basis(whole, order=order))
        scale = abs(io(whole)).max()
        np.testing.assert_allclose(io(system), io(reference), atol=1e-6 * scale)
        error = np.linalg.norm((io(whole) - io(system)).reshape((L + 1) * v.shape[1], -1), 2)
        bounds = ltv.error_bounds(whole, order=order)
        noise = 1e-6 * scale
        assert float(bounds.lower) - noise <= error <= float(bounds.upper) + noise
    assert float(values.max()) > 0


@pytest.mark.parametrize("name", ["adjoint", "balanced", "random", "ensemble"])
def test_free_inputs_equal_dense_algebra(tiny, tokens, concept, dense, name):
    v = directions(concept)
    A = dense.mean(0)
    C = rows_of("profile", v)
    full = (
        stacked_ensemble(dense, v, C, True) if name == "ensemble" else dense_system(A, v, C, True)
    )
    basis = {
        "adjoint": lambda: ltv.adjoint_basis(full, order=2),
        "balanced": lambda: ltv.balanced_basis(full, order=2),
        "random": lambda: ltv.span_basis(full, order=2, columns=random_columns(v, 2, 3)),
        "ensemble": lambda: ltv.balanced_basis(full, order=2),
    }[name]()
    system = lm.identify(
        tiny, tokens, concept, method(name, order=2), inputs="free", readout="profile"
    )
    assert system.sizes["input"] == H
    assert "v" not in system
    reference = ltv.project(full, basis)
    np.testing.assert_allclose(io(system), io(reference), atol=1e-6 * abs(io(full)).max())


@pytest.mark.parametrize("name", ["krylov", "arnoldi", "pod", "two_sided"])
def test_free_inputs_are_refused_where_everything_is_reached(tiny, tokens, concept, name):
    with pytest.raises(ValueError, match="`inputs` must be 'concept' for"):
        lm.identify(tiny, tokens, concept, method(name), inputs="free")


def test_order_one_ensemble_has_the_mean_exact_gains(tiny, tokens, concept):
    system = lm.identify(tiny, tokens, concept, lm.Ensemble(order=1))
    exact = lm.linear_gains(tiny, tokens, concept).gain.mean("prompt")
    np.testing.assert_allclose(ltv.gains(system)[:, 0, 0], exact, rtol=1e-9)
    np.testing.assert_allclose(system.gain_full, exact, rtol=1e-12)
    assert system.order.values.tolist() == [0, 1, 1, 1]
    each = lm.identify(tiny, tokens, concept, lm.Ensemble(order=1), per_prompt=True)
    gains = lm.linear_gains(tiny, tokens, concept).gain
    found = ltv.gains(each)[..., 0, 0].transpose("prompt", "layer")
    np.testing.assert_allclose(found, gains, rtol=1e-9)


def test_tolerance_is_the_exact_relative_error(tiny, tokens, concept, dense):
    v = directions(concept)
    for name in ("balanced", "krylov", "ensemble"):
        C = rows_of("profile", v)
        full = (
            stacked_ensemble(dense, v, C)
            if name == "ensemble"
            else dense_system(dense.mean(0), v, C)
        )
        norm = float(ltv.induced_norm(full))

        def error(system, full=full, norm=norm):
            return np.linalg.norm((io(full) - io(system)).reshape(L + 1, -1), 2) / norm

        found = lm.identify(tiny, tokens, concept, method(name, tolerance=0.1), readout="profile")
        size = int(found.order.max())
        assert error(found) <= 0.1
        if size > 1:
            less = lm.identify(
                tiny, tokens, concept, method(name, order=size - 1), readout="profile"
            )
            assert error(less) > 0.1


@pytest.mark.parametrize("name", list(methods.METHODS))
def test_an_order_above_the_rank_is_said(tiny, tokens, concept, name):
    system = lm.identify(tiny, tokens, concept, method(name, order=16), readout="profile")
    full = lm.identify(tiny, tokens, concept, lm.Krylov(), readout="profile")
    if name == "random":  # sixteen random directions fill R^16
        assert "note" not in system.attrs
    elif name not in ("arnoldi", "pod"):
        assert "order 16 is above the rank: the states per depth are [" in system.attrs["note"]
    if name not in ("ensemble", "arnoldi", "pod", "adjoint"):
        np.testing.assert_allclose(io(system), io(full), atol=1e-6 * abs(io(full)).max())


def test_no_reachable_output_is_refused(tokens):
    """A readout that no push changes: rows orthogonal to everything that is reached."""
    hf = TINY["gpt2"]().double()
    model = lm.DepthModel(hf)
    for block in hf.transformer.h:
        for linear in (block.attn.c_proj, block.mlp.c_proj):
            linear.weight.data.zero_()
            linear.bias.data.zero_()
    model = lm.DepthModel(hf)
    v = np.zeros((4, 16))
    v[:, 0] = 1.0
    row = np.zeros((1, 16))
    row[0, 1] = 1.0
    concept = xr.Dataset({"direction": (("depth", "feature"), v)})
    with pytest.raises(ValueError, match="must reach the readout; got rank 0"):
        lm.identify(model, tokens, concept, lm.Ensemble(), readout=row)


def test_logit_difference_is_the_gradient_of_the_models_own_logits(tiny, tokens, concept, dense):
    pair = lm.LogitDifference(3, 7)

    def logits(push, ids):
        with whole_sequence.pushed(tiny.hf, {0: push}):
            out = tiny.hf(torch.tensor([ids]), use_cache=False).logits[0, -1]
        return out[3] - out[7]

    v = directions(concept)[:, 0]
    gains = []
    for ids in tokens.ids:
        zero = torch.zeros(H, dtype=torch.float64)
        slope = torch.autograd.functional.jacobian(partial(logits, ids=ids), zero)
        gains.append(float(slope.numpy() @ v[0]))
    found = lm.linear_gains(tiny, tokens, concept, readout=pair)
    np.testing.assert_allclose(found.gain.isel(layer=0), gains, rtol=1e-6)
    with torch.no_grad():
        value = [float(logits(torch.zeros(H, dtype=torch.float64), ids)) for ids in tokens.ids]
    np.testing.assert_allclose(found.readout, value, rtol=1e-6, atol=1e-9)
    measured = lm.measure_gains(tiny, tokens, concept, eps=1e-3, readout=pair)
    np.testing.assert_allclose(measured.gain, found.gain, rtol=3e-3, atol=3e-3)
    each = lm.identify(tiny, tokens, concept, lm.Ensemble(order=1), readout=pair, per_prompt=True)
    np.testing.assert_allclose(
        ltv.gains(each)[..., 0, 0].transpose("prompt", "layer"), found.gain, rtol=1e-9
    )
    shared = lm.identify(tiny, tokens, concept, lm.Ensemble(order=1), readout=pair)
    np.testing.assert_allclose(ltv.gains(shared)[:, 0, 0], found.gain.mean("prompt"), rtol=1e-9)
    np.testing.assert_allclose(shared.y_ref[-1, 0], np.mean(value), rtol=1e-6)
    # the mean system reads with the mean gradient
    mean = lm.identify(tiny, tokens, concept, lm.Krylov(), readout=pair)
    rows = []
    for ids in tokens.ids:
        x = torch.tensor(whole_sequence.states(tiny.hf, ids)[-1])
        head = tiny.hf.get_output_embeddings()
        norm = tiny.hf.transformer.ln_f if hasattr(tiny.hf, "transformer") else tiny.hf.model.norm
        difference = lambda x, head=head, norm=norm: head(norm(x))[3] - head(norm(x))[7]  # noqa: E731
        rows.append(torch.autograd.functional.jacobian(difference, x).numpy())
    chain = np.mean(rows, axis=0)
    expected_gains = []
    for a in dense.mean(0)[::-1]:
        chain = chain @ a
        expected_gains.insert(0, chain)
    np.testing.assert_allclose(
        ltv.gains(mean)[:, 0, 0],
        [g @ w for g, w in zip(expected_gains, v, strict=False)],
        rtol=1e-6,
    )


def test_a_given_matrix_is_read(tiny, tokens, concept, dense):
    rng = np.random.default_rng(8)
    everywhere = rng.standard_normal((L + 1, 3, H))
    given = xr.DataArray(everywhere, dims=("depth", "output", "feature")).transpose("feature", ...)
    v = directions(concept)
    system = lm.identify(tiny, tokens, concept, lm.Krylov(), readout=given)
    reference = dense_system(dense.mean(0), v, everywhere)
    np.testing.assert_allclose(io(system), io(reference), atol=1e-6 * abs(io(reference)).max())
    last = rng.standard_normal((2, H))
    gains = lm.linear_gains(tiny, tokens, concept, readout=last)
    assert gains.gain.dims == ("prompt", "layer", "output")
    chain = last
    for layer in reversed(range(L)):
        chain = chain @ dense[0][layer]
        np.testing.assert_allclose(gains.gain[0, layer], chain @ v[layer, 0], rtol=1e-5)
    measured = lm.measure_gains(tiny, tokens, concept, eps=1e-3, readout=last)
    np.testing.assert_allclose(measured.gain, gains.gain, rtol=3e-3, atol=3e-3)
    fit = lm.agreement(
        lm.identify(tiny, tokens, concept, lm.Ensemble(), readout=last), measured, n_bootstrap=20
    )
    assert float(fit.relative_l2.sel(layers="all", bound="estimate")) < 1e-4


def test_several_inputs_are_pushed_and_played_one_by_one(tiny, tokens, two_concepts):
    exact = lm.linear_gains(tiny, tokens, two_concepts)
    assert exact.gain.dims == ("prompt", "layer", "output", "input")
    measured = lm.measure_gains(tiny, tokens, two_concepts, eps=1e-3)
    np.testing.assert_allclose(measured.gain, exact.gain, rtol=3e-3, atol=3e-3)
    for i in (0, 1):
        alone = xr.Dataset({"direction": two_concepts.direction.isel(input=i)})
        same = lm.measure_gains(tiny, tokens, alone, eps=1e-3)
        np.testing.assert_allclose(measured.gain[:, :, i, i], same.gain, rtol=1e-6, atol=1e-9)
    system = lm.identify(tiny, tokens, two_concepts, lm.Ensemble(order=4))
    plan = ltv.minimum_energy(system, target=[0.05, -0.1])
    played = lm.play(tiny, tokens, two_concepts, plan, scale=[1.0, 0.5])
    assert played.response.dims == ("prompt", "scale", "output")
    v, u = directions(two_concepts), plan.u.transpose("layer", "input").values
    with torch.no_grad():
        for row, ids in enumerate(tokens.ids):
            pushes = {layer: torch.tensor(0.5 * u[layer] @ v[layer]) for layer in range(L)}
            ends = [whole_sequence.state_after(tiny.hf, ids, L - 1, p) for p in (pushes, {})]
            shift = v[-1] @ (ends[0] - ends[1]).numpy()
            np.testing.assert_allclose(played.response[row, 1], shift, rtol=1e-4, atol=1e-6)


def test_ensemble_costs_one_prefill_and_one_transposed_product_per_layer(
    tokens, concept, monkeypatch
):
    from depthsys.lm.linearize import Linearised

    model = lm.DepthModel(TINY["gpt2"](), left_padding=False)
    rows = counted_block_calls(model, monkeypatch)
    counts = {"vjp": 0, "jvp": 0}
    for name in counts:
        original = getattr(Linearised, name)

        def counted(linear, v, name=name, original=original):
            product = original(linear, v)
            counts[name] += product.shape[0] * product.shape[1]
            return product

        monkeypatch.setattr(Linearised, name, counted)
    lm.identify(model, tokens, concept, lm.Ensemble(order=1))
    prefill = sum(len(ids) for ids in tokens.ids)
    for layer in range(3):
        assert sum(n for at, n in rows if at == layer) == prefill + len(tokens)
    assert counts == {"vjp": len(tokens) * 3, "jvp": 0}
    lm.identify(model, tokens, concept, lm.Ensemble(order=1), readout="profile")
    assert counts == {"vjp": len(tokens) * (3 + 1 + 2 + 3), "jvp": 0}


def test_exact_system_holds_both_sides(tiny, tokens, concept, dense):
    v = directions(concept)
    full = dense_system(dense.mean(0), v, rows_of("profile", v))
    small = lm.exact_system(tiny, tokens, concept, readout="profile")
    np.testing.assert_allclose(io(small), io(full), atol=1e-6)
    assert small.attrs["readout"] == "profile"
    assert small.attrs["prompts_sha256"] == tokens.sha256
    count = L
    np.testing.assert_allclose(  # no closer than the maps are (Weyl)
        ltv.hankel_singular_values(small).values[:, :count],
        ltv.hankel_singular_values(full).values[:, :count],
        atol=1e-6,
    )
    E = small.V.values
    for name in ("observability_gramian", "reachability_gramian"):
        mine = getattr(ltv, name)(small).transpose("depth", ...).values
        reference = getattr(ltv, name)(full).transpose("depth", ...).values
        np.testing.assert_allclose(E @ mine @ np.swapaxes(E, 1, 2), reference, atol=1e-5)


def test_arnoldi_does_not_depend_on_what_is_held(tiny, tokens, concept, monkeypatch):
    runs = [tiny.run(tokens, budget=lm.Budget(linearised=n)) for n in (None, 0)]
    calls = counted_block_calls(tiny, monkeypatch)
    held = lm.identify(runs[0], concept, lm.Arnoldi(order=3))
    count = len(calls)
    again = lm.identify(runs[1], concept, lm.Arnoldi(order=3))
    assert len(calls) - count > 2 * count  # once for every product
    np.testing.assert_allclose(io(again), io(held), rtol=1e-9)


@pytest.fixture(scope="module")
def unlike():
    """Two prompts in one batch; for the first of them v_1 is parallel to A_0 v_0."""
    model = lm.DepthModel(TINY["gpt2"]().double())
    tokens = LabelledIds([[3, 41, 7, 19], [28, 5, 13, 2]], np.array([0, 1]), sha256="unlike")
    assert [batch.tolist() for batch in model.run(tokens.ids).numbers] == [[0, 1]]
    v = np.random.default_rng(2).standard_normal((L + 1, H))
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    v[1] = whole_sequence.jacobians(model.hf, tokens.ids[0])[0] @ v[0]
    v[1] /= np.linalg.norm(v[1])
    exact = [
        io(
            dense_system(
                whole_sequence.jacobians(model.hf, ids), v[:, None], rows_of("profile", v[:, None])
            )
        )
        for ids in tokens.ids
    ]
    return model, tokens, xr.Dataset({"direction": (("depth", "feature"), v)}), exact


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.slow if n in ("balanced", "adjoint", "random") else [])
        for n in methods.METHODS
    ],
)
def test_prompts_of_unlike_rank_do_not_disturb_each_other(unlike, name):
    model, tokens, concept, exact = unlike
    for order in (2, 16):
        chosen = method(name, order=order)
        if name == "pod":
            chosen = lm.Pod(order=order, eps=1e-3, rtol=1e-5)  # snapshots are differences

        def identify(texts, chosen=chosen):
            return lm.identify(model, texts, concept, chosen, readout="profile", per_prompt=True)

        both = identify(tokens)
        for prompt in (0, 1):
            alone = identify(LabelledIds(tokens.ids[prompt : prompt + 1], np.array([0])))
            scale = abs(io(alone)).max()
            mine = io(both.isel(prompt=prompt))
            np.testing.assert_allclose(mine, io(alone)[0], rtol=1e-6, atol=1e-6 * scale)
            if order == 16 and name in ("krylov", "ensemble", "balanced", "two_sided", "random"):
                np.testing.assert_allclose(mine, exact[prompt], atol=1e-6 * scale)


def test_krylov_states_and_note_of_prompts_of_unlike_rank(unlike):
    model, tokens, concept, _ = unlike
    shorter = LabelledIds([tokens.ids[0], [1, 4, 28, 5, 13, 2]], np.array([0, 1]))
    each = lm.identify(model, tokens, concept, lm.Krylov(order=16), per_prompt=True)
    # A_0 v_0 is no new direction for the first prompt, at no depth
    order = each.order.transpose("prompt", "depth").values.tolist()
    assert order == [[1, 1, 2, 3], [1, 2, 3, 4]]
    assert "order 16 is above the rank: the states per depth are [1, 2, 3, 4]" in each.attrs["note"]
    silent = lm.identify(model, tokens, concept, lm.Krylov(), per_prompt=True)
    assert "note" not in silent.attrs
    # two batches
    apart = lm.identify(model, shorter, concept, lm.Krylov(order=16), per_prompt=True)
    assert apart.order.max("prompt").values.tolist() == [1, 2, 3, 4]
    assert "order 16 is above the rank" in apart.attrs["note"]


@pytest.mark.parametrize("name", BASES)
def test_x_ref_is_the_mean_nominal_state_in_reduced_coordinates(tiny, tokens, concept, name):
    x = np.stack([whole_sequence.states(tiny.hf, ids) for ids in tokens.ids])
    system = lm.identify(tiny, tokens, concept, method(name, order=2), readout="profile")
    expected = np.einsum("kfs,kf->ks", system.W.values, x.mean(0))
    scale = abs(expected).max()
    np.testing.assert_allclose(system.x_ref, expected, rtol=1e-5, atol=1e-5 * scale)
    two = LabelledIds(tokens.ids[:2], np.array([0, 1]))
    each = lm.identify(
        tiny, two, concept, method(name, order=2), readout="profile", per_prompt=True
    )
    W = each.W.transpose("prompt", "depth", "feature", "state").values
    expected = np.einsum("pkfs,pkf->pks", W, x[:2])
    mine = each.x_ref.transpose("prompt", "depth", "state")
    np.testing.assert_allclose(mine, expected, rtol=1e-5, atol=1e-5 * abs(expected).max())


@pytest.mark.parametrize("name", ["ensemble", "balanced"])
def test_y_std_is_the_spread_of_the_readout_over_prompts(tiny, tokens, concept, name):
    x = np.stack([whole_sequence.states(tiny.hf, ids)[-1] for ids in tokens.ids])
    y = x @ concept.direction.values[-1]
    system = lm.identify(tiny, tokens, concept, method(name, order=1))
    np.testing.assert_allclose(system.y_std, y.std(), rtol=1e-5)
    np.testing.assert_allclose(system.y_ref[-1, 0], y.mean(), rtol=1e-5)
    each = lm.identify(tiny, tokens, concept, method(name, order=1), per_prompt=True)
    assert "y_std" not in each
    last = each.y_ref.isel(depth=-1, output=0)
    np.testing.assert_allclose(last, y, rtol=1e-5)


@pytest.mark.parametrize("name", ["krylov", "ensemble", "balanced"])
def test_no_note_where_no_order_was_asked_for(tiny, tokens, concept, name):
    assert "note" not in lm.identify(tiny, tokens, concept, method(name)).attrs


@pytest.mark.parametrize("name", ["balanced", "ensemble"])
def test_rtol_counts_with_a_tolerance_too(tiny, tokens, concept, name):
    """A tolerance that needs the second state cannot be met where rtol drops it."""
    whole = lm.identify(tiny, tokens, concept, method(name, tolerance=1e-6), readout="profile")
    assert int(whole.order.max()) == 2
    with pytest.raises(ValueError, match="`tolerance` must be reachable"):
        lm.identify(
            tiny, tokens, concept, method(name, tolerance=1e-6, rtol=0.8), readout="profile"
        )


def test_a_tolerance_may_need_many_states(tokens, concept):
    model = lm.DepthModel(TINY["gpt2"]().double())
    two = LabelledIds(tokens.ids[:2], np.array([0, 1]))
    found = lm.identify(model, two, concept, lm.Random(tolerance=1e-3), readout="profile")
    assert 8 < int(found.order.max()) <= 16
    assert found.attrs["order"] == int(found.order.max())
    every = methods.METHODS.values()
    assert {m(tolerance=0.1).size(1000) for m in every} == {64}
    assert {m(tolerance=0.1).size(16) for m in every} == {16}
    assert {m().size(1000) for m in every} == {32}


def test_bad_methods_and_readouts(tiny, tokens, concept):
    def identify(method=None, **options):
        return lm.identify(tiny, tokens, concept, method, **options)

    with pytest.raises(TypeError, match="`method` must be one of the methods of lm"):
        identify("krylov")
    with pytest.raises(ValueError, match="`order` and `tolerance` must not both be given"):
        identify(lm.Balanced(order=2, tolerance=0.1))
    with pytest.raises(ValueError, match="`tolerance` must be a number > 0"):
        identify(lm.Balanced(tolerance=-1.0))
    with pytest.raises(ValueError, match="`rtol` must be between 0 and 1"):
        identify(lm.Balanced(rtol=2.0))
    with pytest.raises(ValueError, match=r"`order` must be in 1..16, .* got 2.5"):
        identify(lm.Balanced(order=2.5))
    with pytest.raises(ValueError, match="`inputs` must be one of"):
        identify(inputs="all")
    with pytest.raises(ValueError, match="`readout` must compare two tokens; got 3 twice"):
        identify(readout=lm.LogitDifference(3, 3))
    with pytest.raises(ValueError, match="`readout` must name token ids in 0"):
        identify(readout=lm.LogitDifference(3, 10**6))
    with pytest.raises(ValueError, match="must name token ids where the model has no tokenizer"):
        identify(readout=lm.LogitDifference("good", "bad"))
    with pytest.raises(ValueError, match=r"`readout` must be a matrix .* got \{'output': 2"):
        identify(readout=np.ones((2, 5)))
    with pytest.raises(ValueError, match="`readout` must be finite and read something"):
        identify(readout=np.zeros((1, 16)))
    many = xr.Dataset({"direction": (("depth", "input", "feature"), np.ones((4, 17, 16)) / 4)})
    with pytest.raises(ValueError, match="`concept` must hold at most 16 directions per depth"):
        lm.identify(tiny, tokens, many)
    with pytest.raises(ValueError, match="a zero direction is none"):
        lm.identify(tiny, tokens, concept * 0)
    with pytest.raises(ValueError, match=r"at least one text"):
        lm.identify(tiny, labelled_ids(0, 0), concept, lm.Ensemble())


def test_inputs_and_outputs_have_names(tiny, tokens, concept, two_concepts):
    """For the engineer who gets the system: what is pushed, and what is read."""
    pair = two_concepts.assign_coords(input=["mood", "topic"])
    logits, rows = lm.LogitDifference(3, 7), np.eye(tiny.n_features)[:3]
    features = [f"feature{i}" for i in range(tiny.n_features)]
    for directions_, inputs, readout, wanted in (
        (concept, "concept", "concept", (["concept"], ["concept"])),
        (pair, "concept", "profile", (["mood", "topic"], ["mood", "topic"])),
        (two_concepts, "concept", "concept", (["concept0", "concept1"],) * 2),
        (concept, "concept", logits, (["concept"], ["logit_difference"])),
        (concept, "concept", rows, (["concept"], ["y0", "y1", "y2"])),
        (concept, "free", "concept", (features, ["concept"])),
    ):
        system = lm.identify(
            tiny, tokens, directions_, lm.Ensemble(order=1), inputs=inputs, readout=readout
        )
        found = tuple(system[name].values.tolist() for name in ("input_name", "output_name"))
        assert found == wanted
    each = lm.identify(tiny, tokens, pair, lm.Krylov(order=2), per_prompt=True)
    assert each["input_name"].values.tolist() == ["mood", "topic"]
    small = ltv.project(each, ltv.balanced_basis(each, order=1))
    assert small["input_name"].values.tolist() == ["mood", "topic"]
