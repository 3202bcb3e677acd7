"""Laws against hooks on the model itself, dense least squares and the linear closed loop."""

import sys

import numpy as np
import pytest
import torch
import xarray as xr

from depthsys import lm, ltv
from depthsys.files import write_netcdf
from tests.conftest import TINY, tiny_gpt2
from tests.lm import whole_sequence
from tests.lm.conftest import LabelledIds, counted_block_calls, labelled_ids


@pytest.fixture(scope="module")
def system(gpt2, tokens, concept):
    return lm.identify(gpt2, tokens, concept, lm.Krylov(order=3))


@pytest.fixture(scope="module")
def profile(gpt2, tokens, concept):
    return lm.identify(gpt2, tokens, concept, lm.Krylov(order=4), readout="profile")


@pytest.fixture(scope="module")
def two(concept):
    v = np.random.default_rng(4).standard_normal((4, 2, 16))
    v /= np.linalg.norm(v, axis=-1, keepdims=True)
    return xr.Dataset({"direction": (("depth", "input", "feature"), v)})


# ----------------------------------------------------------------------- the law, by hooks


def by_hooks(hf, ids, concept, law):
    """Pushes (layer, input), states after each push (layer, feature) and the last state."""
    v = concept.direction.values
    v = v[:, None] if v.ndim == 2 else v
    nominal = whole_sequence.states(hf, ids)
    pushes, pushed, handles = [], [], []
    for layer, block in enumerate(whole_sequence.blocks(hf)):

        def hook(module, args, layer=layer):
            hidden = args[0].clone()
            x = hidden[0, -1].numpy()
            own = law.attrs["reference"] == "own"
            reference = nominal[layer] if own else law.x_ref.values[layer]
            read = nominal[layer] if law.attrs["reads"] == "clean" else x
            r = law.W.values[layer].T @ (read - reference) - law.r_ref.values[layer]
            pushes.append(law.u.values[layer] - law.K.values[layer] @ r)
            hidden[0, -1] += torch.tensor(pushes[-1] @ v[layer])
            pushed.append(hidden[0, -1].numpy())
            return (hidden, *args[1:])

        handles.append(block.register_forward_pre_hook(hook))
    try:
        with torch.no_grad():
            last = len(handles) - 1
            end = whole_sequence.state_after(hf, ids, last, {}).numpy()
    finally:
        for handle in handles:
            handle.remove()
    return np.array(pushes), np.array(pushed), end


def law_of(name, system, profile, concept):
    target = float(system.y_std)
    if name == "own":
        return lm.feedback(system, target, effort=0.1)
    if name == "mean":
        return lm.feedback(profile, -target, effort=0.1, reference="mean", energy="absolute")
    value = np.array([0.5, -1.0, 2.0, 0.0])
    if name == "clamp":
        return lm.clamp(concept, value, layers=[0, 2])
    return lm.reflect(concept, 0.3, reads="clean")


@pytest.mark.parametrize("name", ["own", "mean", "clamp", "reflect"])
@pytest.mark.parametrize("several", [False, True])
def test_a_law_in_the_forward_pass_is_what_hooks_do(
    gpt2, tokens, held_out, concept, two, system, profile, name, several
):
    if several:
        concept = two
        made = [
            lm.identify(gpt2, tokens, two, lm.Krylov(order=6), readout=readout)
            for readout in (xr.DataArray(two.direction.values[-1:, 0], dims=("output", "feature")),)
            * 2
        ]
        system, profile = (each.assign(y_std=each.y_std.squeeze()) for each in made)
    law = law_of(name, system, profile, concept)
    rows = np.atleast_2d(concept.direction.values[-1])
    readout = xr.DataArray(rows, dims=("output", "feature"))
    found = lm.play_law(held_out, concept, law, readout=readout)
    weights = law.weights.values
    assert np.abs(law.K).max() > 1e-3
    for prompt, ids in enumerate(held_out.texts.ids):
        u, pushed, end = by_hooks(gpt2.hf, ids, concept, law)
        states = whole_sequence.states(gpt2.hf, ids)
        one = found.isel(prompt=prompt)
        np.testing.assert_allclose(one.u, u, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(one.response, (rows @ (end - states[-1])).squeeze(), atol=1e-5)
        np.testing.assert_allclose(one["readout"], (rows @ end).squeeze(), atol=1e-5)
        np.testing.assert_allclose(one.energy, (u**2).sum(1) @ weights, rtol=1e-4)
        v = concept.direction.values if several else concept.direction.values[:, None]
        before = pushed - np.einsum("li,lif->lf", u, v[:-1])
        way = np.concatenate([before, end[None]]) - states
        np.testing.assert_allclose(
            one.trajectory, np.einsum("kf,kif->ki", way, v).squeeze(), atol=1e-5
        )


def test_a_law_without_gains_is_a_plan(held_out, concept, system):
    law = lm.feedback(system, 0.3)
    found = lm.play_law(held_out, concept, law.assign(K=0 * law.K))
    expected = lm.play(held_out, concept, law[["u"]]).response.isel(scale=0)
    np.testing.assert_array_equal(found.response, expected)
    assert (found.u == law.u).all()
    np.testing.assert_allclose(found.energy, law.energy)
    plan = ltv.minimum_energy(system, 0.3, weights=1 / system.state_norm.values[:-1] ** 2)
    np.testing.assert_allclose(law.u, plan.u)
    np.testing.assert_allclose(law.predicted, 0.3)
    np.testing.assert_allclose(law.energy, plan.energy)


def test_small_pushes_follow_the_linear_closed_loop(gpt2, concept):
    """One prompt and a basis of all that is reached: the system is exact where pushes are small."""
    texts = LabelledIds(labelled_ids(3, 2).ids[:1], np.array([0]))
    system = lm.identify(gpt2, texts, concept, lm.Krylov(order=4))
    law = lm.feedback(system, 1e-6, effort=0.05)
    law = law.assign(r_ref=0 * law.r_ref)  # nothing is expected: the pushes themselves are resisted
    found = lm.play_law(gpt2, texts, concept, law)
    linear = ltv.simulate(ltv.closed_loop(system, law.K), law.u)
    np.testing.assert_allclose(found.response[0], linear.y[-1, 0], rtol=1e-3)
    assert abs(found.response[0]) < 0.7e-6
    x = linear.x.isel(depth=slice(-1)).values
    u = law.u.values[:, 0] - np.einsum("lis,ls->l", law.K.values, x)
    np.testing.assert_allclose(found.u[0, :, 0], u, rtol=1e-3, atol=1e-11)


# -------------------------------------------------------------- gains, by dense least squares


def dense(system):
    """y (depth) of unit pushes at every layer (column), and of unit initial states."""
    A, B, C = (system[name].values for name in "ABC")
    L, n = len(A), A.shape[-1]
    from_u, from_x = np.zeros((L + 1, L)), np.zeros((L + 1, n))
    for column in range(L + n):
        x = np.zeros(n) if column < L else np.eye(n)[column - L]
        for k in range(L + 1):
            (from_u if column < L else from_x)[k, column if column < L else column - L] = (
                C[k] @ x
            ).item()
            if k < L:
                x = A[k] @ x + (B[k][:, 0] if column == k else 0)
    return from_u, from_x


@pytest.mark.parametrize("stage", [0.0, 2.0])
@pytest.mark.parametrize("energy", ["relative", "absolute"])
def test_gains_are_those_of_the_least_cost(profile, stage, energy):
    target, effort = 0.4, 0.3
    law = lm.feedback(profile, target, effort=effort, stage=stage, energy=energy)
    from_u, from_x = dense(profile)
    L = 3
    w = profile.state_norm.values[:-1] ** -2.0 if energy == "relative" else np.ones(L)
    spent = float((law.u.values[:, 0] ** 2 * w).sum())
    rows = np.sqrt(np.append(np.full(L, stage / L), 1.0)) / target
    costs = np.vstack([rows[:, None] * from_u, np.diag(np.sqrt(effort * w / spent))])
    for r0 in np.eye(profile.sizes["state"]):
        free = np.append(rows * (from_x @ r0), np.zeros(L))
        best = np.linalg.lstsq(costs, -free, rcond=None)[0]
        np.testing.assert_allclose(-law.K.values[0, 0] @ r0, best[0], atol=1e-9 * abs(best).max())


def test_a_wanted_trajectory_is_tracked(profile):
    target, effort = 0.4, 0.02
    path = np.array([0.0, 0.3, 0.1, target])
    law = lm.feedback(profile, target, effort=effort, trajectory=path)
    w = profile.state_norm.values[:-1] ** -2.0
    plan = ltv.minimum_energy(profile, target, weights=w)
    from_u, _ = dense(profile)
    rows = np.sqrt(np.append(np.full(3, 1 / 3), 1.0)) / target
    scale = np.diag(np.sqrt(effort * w / float(plan.energy)))
    costs, wanted = np.vstack([rows[:, None] * from_u, scale]), np.append(rows * path, np.zeros(3))
    best = np.linalg.lstsq(costs, wanted, rcond=None)[0]
    np.testing.assert_allclose(law.u[:, 0], best, rtol=1e-7)
    np.testing.assert_allclose(law.predicted, from_u[-1] @ best)
    np.testing.assert_allclose(law.energy, (best**2) @ w)
    same = lm.feedback(profile, target, effort=effort, trajectory=xr.DataArray(path, dims="depth"))
    xr.testing.assert_identical(same, law)


def test_a_law_says_what_it_is(system):
    law = lm.feedback(system, 40 * float(system.y_std), reference="mean")
    assert law.attrs["operation"] == "feedback"
    assert law.attrs["hook"] == "input of block l, the state at depth l"
    assert (law.attrs["reference"], law.attrs["reads"]) == ("mean", "live")
    assert law.attrs["warning"].startswith("pushes of more than 0.3 of the state's norm at layer")
    np.testing.assert_allclose(law.level, system.y_ref.values[-1] + law.target)
    V, W, x = system.V.values, system.W.values, system.x_ref.values
    np.testing.assert_allclose(np.einsum("kfs,kf->ks", W, law.x_ref), x, atol=1e-9)
    np.testing.assert_allclose(law.x_ref, np.einsum("kfs,ks->kf", V, x))
    norm = system.state_norm.values[:-1]
    np.testing.assert_allclose(law.push, abs(law.u[:, 0]) / norm)


def identity(n_layers):
    """A model whose blocks write nothing, and the fourth feature as its concept."""
    hf = tiny_gpt2(n_layer=n_layers).double()
    for name, parameter in hf.named_parameters():
        if "c_proj" in name:
            parameter.data.zero_()
    v = np.tile(np.eye(16)[3], (n_layers + 1, 1))
    concept = xr.Dataset({"direction": (("depth", "feature"), v)})
    return lm.DepthModel(hf, name="identity"), concept


# ---------------------------------------------------------- what is compared, and what is said


def test_errors_under_a_thermostat_are_those_of_plays(gpt2, tokens, held_out, concept, system):
    law = lm.feedback(system, float(system.y_std), effort=0.01, reference="mean")
    found = lm.compare_feedback(held_out, concept, law, off=labelled_ids(5, 77), n_bootstrap=200)
    assert found.texts.values.tolist() == ["held_out", "off"]
    for name, run in {"held_out": held_out, "off": gpt2.run(labelled_ids(5, 77))}.items():
        closed = lm.play_law(run, concept, law)
        factor = np.sqrt(float(closed.energy.mean() / law.energy))
        opened = lm.play(run, concept, law[["u"]], scale=[1.0, factor]).response.values
        alone = run.states.values[-1] @ concept.direction.values[-1]
        level = float(system.y_ref[-1, 0] + law.target[0])
        shift = np.column_stack([opened, closed.response])
        one = found.sel(texts=name, bound="estimate")
        np.testing.assert_allclose(
            one.error, abs(shift + alone[:, None] - level).mean(0), rtol=1e-5
        )
        np.testing.assert_allclose(
            one.shift_error, abs(shift - float(law.target[0])).mean(0), rtol=1e-5
        )
        np.testing.assert_allclose(one.bias, (shift - float(law.target[0])).mean(0), rtol=1e-4)
        spent = [float(law.energy), float(closed.energy.mean()), float(closed.energy.mean())]
        np.testing.assert_allclose(one.energy, spent)
        error = found.error.sel(texts=name, bound="estimate").values
        np.testing.assert_allclose(one.ratio, error[2] / error[:2])
        each = abs(shift + alone[:, None] - level)
        n = len(run)
        counts = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=200)
        means = counts @ each
        ends = np.quantile(means[:, 2:] / means[:, :2], [0.025, 0.975], axis=0)
        ratio = found["ratio"].sel(texts=name)
        np.testing.assert_allclose(ratio.sel(bound="low"), ends[0], rtol=1e-4)
        np.testing.assert_allclose(ratio.sel(bound="high"), ends[1], rtol=1e-4)


def test_a_thermostat_where_blocks_write_nothing():
    """There every prompt keeps its level, and a law that pays little for pushes takes it to one."""
    model, concept = identity(3)
    run = model.run(labelled_ids(8, 4))
    system = lm.identify(run, concept, lm.Krylov(order=1))
    law = lm.feedback(system, float(system.y_std), effort=1e-4, reference="mean")
    found = lm.compare_feedback(model.run(labelled_ids(6, 5)), concept, law)
    assert (found["ratio"].sel(bound="high") < 0.01).all()
    assert found.attrs["verdict"].startswith("on held-out prompts feedback pays")


def known_errors(monkeypatch, factor):
    """A comparison in which the error of the feedback is known, prompt by prompt."""

    def errors(run, concept, law, u, readout):
        base = np.linspace(1, 2, len(run))
        values = np.stack([1.1 * base, base, factor(base)], axis=1)
        dims, policy = ("prompt", "policy"), ["open_loop", "open_loop_same_energy", "feedback"]
        names = ("error", "shift_error", "bias", "energy")
        return xr.Dataset({name: (dims, values) for name in names}, {"policy": policy})

    monkeypatch.setattr(sys.modules["depthsys.lm.play_law"], "_errors", errors)


@pytest.mark.parametrize(
    ("factor", "said"),
    [
        (lambda base: 0.5 * base, "on held-out prompts feedback pays: its error is 0.5 times that"),
        (lambda base: 1.5 * base, "on held-out prompts feedback harms: its error is 1.5 times"),
        (
            lambda base: base[::-1],
            "on held-out prompts feedback does not pay: its error is 1 times",
        ),
    ],
)
def test_the_verdict_is_that_of_the_interval(monkeypatch, held_out, concept, system, factor, said):
    known_errors(monkeypatch, factor)
    found = lm.compare_feedback(held_out, concept, lm.feedback(system, 0.3))
    assert found.attrs["verdict"].startswith(said)
    assert "that of the plan at the same mean energy [" in found.attrs["verdict"]


def test_another_plan_may_be_the_open_loop(held_out, concept, system):
    law = lm.feedback(system, 0.3)
    plan = xr.Dataset({"u": ("layer", [0.0, 0.0, 0.2])})
    found = lm.compare_feedback(held_out, concept, law, plan=plan, n_bootstrap=3)
    played = lm.play(held_out, concept, plan).response[:, 0]
    one = found.sel(texts="held_out", bound="estimate", policy="open_loop")
    np.testing.assert_allclose(one.error, abs(played - 0.3).mean())
    np.testing.assert_allclose(one.energy, 0.04 * float(law.weights[2]))


# ------------------------------------------------------------------------- laws made by hand


def test_clamped_and_mirrored_coordinates(gpt2, held_out, concept, two):
    """What is left in the state after the push is the value, or its mirror image."""
    for directions in (concept, two):
        v = directions.direction.values.reshape(4, -1, 16)[:-1]
        for prompt in (0, 3):
            ids = held_out.texts.ids[prompt]
            for law, left in (
                (lm.clamp(directions, 0.7), lambda c: np.full_like(c, 0.7)),
                (lm.reflect(directions, 0.2), lambda c: 0.4 - c),
            ):
                found = lm.play_law(held_out, directions, law, readout=lm.LogitDifference(1, 2))
                u, pushed, _ = by_hooks(gpt2.hf, ids, directions, law)
                np.testing.assert_allclose(found.u[prompt], u, rtol=1e-5, atol=1e-8)
                before = pushed - np.einsum("li,lif->lf", u, v)
                inside, after = (np.einsum("lif,lf->li", v, x) for x in (before, pushed))
                np.testing.assert_allclose(after, left(inside), atol=1e-9)


@pytest.mark.parametrize("width", range(1, 7))
def test_a_band_of_mirrors_that_reads_the_live_coordinate_undoes_itself(width):
    """Blocks that write nothing: every second width of a live band is no intervention at all."""
    model, concept = identity(6)
    run = model.run(labelled_ids(5, 3))
    v = concept.direction.values
    coordinate = run.states.values[0] @ v[0]
    assert abs(coordinate).min() > 1e-3
    live, clean = (
        lm.play_law(run, concept, lm.reflect(concept, layers=range(width), reads=reads)).response
        for reads in ("live", "clean")
    )
    np.testing.assert_allclose(live, -2 * (width % 2) * coordinate, atol=1e-12)
    np.testing.assert_allclose(clean, -2 * width * coordinate, atol=1e-12)


def test_layers_left_out_and_depths_without_a_direction_are_not_pushed(held_out, concept):
    partly = concept.copy(deep=True)
    partly.direction[1] = np.nan
    found = lm.play_law(held_out, partly, lm.clamp(partly, 3.0, layers=[1, 2])).u[:, :, 0]
    assert not found[:, :2].any()
    assert found[:, 2].all()


def test_a_law_is_plain_data(held_out, concept, system, tmp_path):
    """It goes through a file, as the comparison does, and plays the same."""
    law = lm.feedback(system, 0.3, reference="mean")
    compared = lm.compare_feedback(held_out, concept, law, n_bootstrap=3)
    for name, data in {"law": law, "compared": compared}.items():
        write_netcdf(tmp_path / f"{name}.nc", {None: data})
    read = xr.load_dataset(tmp_path / "law.nc")
    found, expected = (lm.play_law(held_out, concept, each) for each in (read, law))
    xr.testing.assert_identical(found.drop_attrs(), expected.drop_attrs())
    assert xr.load_dataset(tmp_path / "compared.nc").attrs["verdict"] == compared.attrs["verdict"]


# ------------------------------------------------------------------------- dtypes and cost


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes_push_as_plays_do(tokens, concept, system, dtype):
    model = lm.DepthModel(TINY["llama"]().to(dtype), name="llama")
    law = lm.feedback(system, 0.5)
    found = lm.play_law(model, tokens, concept, law.assign(K=0 * law.K))
    expected = lm.play(model, tokens, concept, law[["u"]]).response.isel(scale=0)
    np.testing.assert_array_equal(found.response, expected)
    assert found.response.all()
    assert np.isfinite(lm.play_law(model, tokens, concept, law).response).all()


def test_a_law_takes_one_pass_with_two_rows_for_each_prompt(gpt2, concept, system, monkeypatch):
    run = gpt2.run(labelled_ids(6, 9))
    calls = counted_block_calls(gpt2, monkeypatch)
    lm.play_law(run, concept, lm.feedback(system, 0.3))
    rows = [sum(rows for layer, rows in calls if layer == number) for number in range(3)]
    assert rows == [12, 12, 12]
    assert len(calls) == 3 * len(run.numbers)


# ---------------------------------------------------------------------------------- refusals


def test_systems_without_a_shared_basis_are_refused(gpt2, tokens, concept, system):
    each = lm.identify(gpt2, tokens, concept, lm.Krylov(order=2), per_prompt=True)
    with pytest.raises(ValueError, match="must be one system for all prompts; got one for each"):
        lm.feedback(each, 0.1)
    ensemble = lm.identify(gpt2, tokens, concept)
    with pytest.raises(ValueError, match="got one by Ensemble without W"):
        lm.feedback(ensemble, 0.1)
    with pytest.raises(ValueError, match="got one by Krylov without V"):
        lm.feedback(system.drop_vars("V"), 0.1, reference="mean")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"effort": 0.0}, "`effort` must be positive and finite; got 0.0"),
        ({"stage": -1.0}, "`stage` must be >= 0 and finite; got -1.0"),
        ({"reference": "none"}, "`reference` must be one of .*; got 'none'"),
        ({"energy": "x"}, "`energy` must be one of"),
        ({"stage": 1.0}, "`system` must read the depths before the last .* readout 'concept'"),
        ({"trajectory": np.zeros(3)}, "`trajectory` must be finite numbers with"),
        ({"trajectory": [0, 0, 0, 0.2]}, r"`trajectory` must end at the target; got \[0.2\]"),
    ],
)
def test_arguments_of_feedback(system, options, message):
    with pytest.raises(ValueError, match=message):
        lm.feedback(system, 0.1, **options)


def test_a_target_of_zero(system):
    with pytest.raises(ValueError, match="`target` must be finite and not zero"):
        lm.feedback(system, 0.0)


@pytest.mark.parametrize(
    ("value", "options", "message"),
    [
        (np.zeros(3), {}, "`value` must be a finite number, or one for each of the 4 depths"),
        (np.nan, {}, "`value` must be a finite number"),
        (0.0, {"layers": [3]}, r"`layers` must be numbers of layers in 0..2; got \[3\]"),
        (0.0, {"layers": []}, "`layers` must be numbers of layers"),
        (0.0, {"reads": "x"}, "`reads` must be one of .*; got 'x'"),
    ],
)
def test_arguments_of_laws_by_hand(concept, value, options, message):
    for law in (lm.clamp, lm.reflect):
        with pytest.raises(ValueError, match=message):
            law(concept, value, **options)


def test_one_prompt_has_no_interval(gpt2, system, concept):
    law = lm.feedback(system, 0.3)
    found = lm.compare_feedback(gpt2.run([[3, 1, 4, 1]]), concept, law, n_bootstrap=3)
    for name in ("error", "shift_error", "bias", "energy", "ratio"):
        low, high = (found[name].sel(bound=bound) for bound in ("low", "high"))
        assert bool(np.isnan(low).all() & np.isnan(high).all()), name
        assert bool(np.isfinite(found[name].sel(bound="estimate")).all()), name
    assert "nothing can be said of one prompt" in found.attrs["verdict"]


def test_inputs_go_by_their_labels(gpt2, tokens, held_out, two):
    """Plans and laws in any order of their inputs, and of the concept's, do the same."""
    named = two.assign_coords(input=["love", "hate"])
    system = lm.identify(gpt2, tokens, named, lm.Krylov(order=3))
    law = lm.feedback(system, [0.2, -0.1], reference="mean")
    law = law.assign_coords(input=["love", "hate"])
    counted = two.assign_coords(input=[0, 1])  # no names, but numbers
    for concept, labels in (
        (named, ["love", "hate"]),
        (counted, ["0", "1"]),
        (two, ["concept0", "concept1"]),
        (two, [0, 1]),
    ):
        plan = law.drop_vars("input").assign_coords(input_name=("input", labels))
        turned = plan.isel(input=[1, 0])
        assert not np.allclose(plan["u"], turned["u"])
        for play in (
            lambda concept, plan: lm.play(held_out, concept, plan["u"])["response"],
            lambda concept, plan: lm.play(held_out, concept, plan[["u"]])["response"],
            lambda concept, plan: lm.play_law(held_out, concept, plan)["response"],
            lambda concept, plan: lm.compare_feedback(held_out, concept, plan, plan=plan)["error"],
            lambda concept, plan: steered(held_out.model, concept, plan),
        ):
            expected = play(two, plan.drop_vars("input_name"))
            np.testing.assert_allclose(play(concept, turned), expected, atol=1e-12)
    one_way = lm.play(held_out, named, law[["u"]])["response"]
    other_way = lm.play(held_out, named.isel(input=[1, 0]), law[["u"]])["response"]
    np.testing.assert_allclose(other_way, one_way.isel(output=[1, 0]), atol=1e-12)
    # a number is no name, and names beside numbers count
    both = named.assign_coords(input=[0, 1])
    np.testing.assert_allclose(lm.play(held_out, both, law[["u"]])["response"], one_way, atol=1e-12)
    beside = both.assign_coords(input_name=("input", ["love", "hate"])).isel(input=[1, 0])
    np.testing.assert_allclose(
        lm.play(held_out, beside, law[["u"]])["response"], other_way, atol=1e-12
    )
    # the names of a stranger go by position, where the concept has none
    strange = law.assign_coords(input=["a", "b"])
    np.testing.assert_allclose(
        lm.play(held_out, two, strange[["u"]])["response"], one_way, atol=1e-12
    )
    with pytest.raises(
        ValueError, match=r"`plan` must have the inputs of the concept.*'love'.*'a'"
    ):
        lm.play(held_out, named, strange[["u"]])


def steered(model, concept, plan):
    plan = plan.assign_attrs(operation="feedback")
    with lm.steering(model, concept, plan) as here, torch.no_grad():
        return here.hf(torch.tensor([[3, 1, 4]])).logits


def test_a_law_is_steered_in_any_order_of_its_layers_and_depths(gpt2, tokens, concept, system):
    law = lm.feedback(system, 0.2, reference="mean")
    expected = steered(gpt2, concept, law)
    for turned in (law.isel(depth=[2, 0, 1, 3]), law.isel(layer=[2, 1, 0])):
        np.testing.assert_allclose(steered(gpt2, concept, turned), expected, atol=1e-12)


def test_laws_that_do_not_fit(held_out, concept, two, system):
    law = lm.feedback(system, 0.1)
    for wrong, message in [
        (law.assign_attrs(reference="x"), "`law` must say its reference, .* got 'x' and 'live'"),
        (law.assign_attrs(reads="x"), "got 'own' and 'x'"),
        (law.assign_attrs(reference="mean"), "must hold x_ref where .* got 'mean' without it"),
        (lm.clamp(two, 0.0), "`law` must hold u .*'input': 1.*; got"),
        (
            law.assign(K=law.K * np.nan),
            "`law` must be finite real numbers; got .* in K, of float64",
        ),
        (law.assign(K=law.K * 1j), "`law` must be finite real numbers; got .* in K, of complex128"),
    ]:
        with pytest.raises(ValueError, match=message):
            lm.play_law(held_out, concept, wrong)
    with pytest.raises(TypeError, match="`law` must be a law with `u`, `K`"):
        lm.play_law(held_out, concept, law.drop_vars("K"))
    with pytest.raises(ValueError, match="`law` must know its target; got one without"):
        lm.compare_feedback(held_out, concept, lm.clamp(concept, 0.0))


def test_a_law_that_overflows(tokens, concept):
    model = lm.DepthModel(TINY["gpt2"]())
    with pytest.raises(FloatingPointError, match="a push of the law overflows"):
        lm.play_law(model, tokens, concept, lm.clamp(concept, 1e38))


def test_a_law_is_no_schedule(held_out, concept):
    law = lm.clamp(concept, 1.0)
    with pytest.raises(ValueError, match="`plan` must be a schedule here; got a feedback law"):
        lm.play(held_out, concept, law)
