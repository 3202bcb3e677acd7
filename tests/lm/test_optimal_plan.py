"""Plans of the full model: derivatives of the replay, SLSQP on the replay, and what is said."""

import gc
import json
import weakref

import numpy as np
import pytest
import xarray as xr
from scipy.optimize import minimize

from depthsys import lm, ltv
from depthsys.demo import model_path
from depthsys.demo.real import MODEL
from depthsys.lm import push_gradients as gradients
from depthsys.lm.directions import directions
from depthsys.lm.linearize import Linearised
from depthsys.lm.push_gradients import push_gradients
from depthsys.lm.readouts import LogitDifference, checked_readout
from depthsys.lm.step import state_norms
from tests.conftest import TINY
from tests.lm import whole_sequence
from tests.lm.conftest import batches_of_32, labelled_ids
from tests.lm.test_counts import Counts


@pytest.fixture(scope="module")
def two(concept):
    """Two concepts of the tiny models, by name."""
    rng = np.random.default_rng(5)
    other = rng.standard_normal((4, 16))
    other /= np.linalg.norm(other, axis=1, keepdims=True)
    return lm.several(
        {"love": concept, "hate": xr.Dataset({"direction": concept.direction * 0 + other})}
    )


# ------------------------------------------------------------------ derivatives

READOUTS = {
    "one": "concept",
    "both": "concept",
    "tokens": LogitDifference(3, 7),
    "matrix": xr.DataArray(np.eye(3, 16), dims=("output", "feature")),
}


@pytest.mark.parametrize("name", READOUTS)
def test_gradients_are_central_differences_of_what_is_played(tiny, tokens, concept, two, name):
    given = two if name == "both" else concept
    run, v = tiny.run(tokens), directions(tiny, given)
    reader = checked_readout(tiny, READOUTS[name], given)
    u = 0.3 * np.random.default_rng(1).standard_normal((3, v.shape[1]))
    found = push_gradients(run, v, u, reader)
    step = 1e-3 if tiny.name == "llama" else 1e-5  # Llama's norms are float32
    unit = np.eye(u.size).reshape(-1, *u.shape)
    ends = xr.DataArray(
        np.concatenate([u + step * unit, u - step * unit, u[None]]), dims=("copy", "layer", "input")
    )
    played = lm.play(run, given, ends, readout=READOUTS[name]).response.isel(scale=0)
    played = played.values.reshape(len(run), len(ends), -1)
    slope = (played[:, : u.size] - played[:, u.size : -1]) / (2 * step)
    expected = slope.transpose(0, 2, 1).reshape(found.gradient.shape)
    size = abs(expected).max()
    np.testing.assert_allclose(found.gradient, expected, atol=1e-3 * size)
    nominal = push_gradients(run, v, 0 * u, reader)
    np.testing.assert_allclose(found.y - nominal.y, played[:, -1], atol=1e-5 * size)


def test_gradients_where_nothing_is_pushed_are_linear_gains(tiny, tokens, two):
    run, reader = tiny.run(tokens), checked_readout(tiny, "concept", two)
    found = push_gradients(run, directions(tiny, two), np.zeros((3, 2)), reader)
    expected = lm.linear_gains(run, two)
    gain = expected.gain.transpose("prompt", "output", "layer", "input")
    np.testing.assert_allclose(found.gradient, gain, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.y, expected.readout, rtol=1e-5, atol=1e-6)


def test_every_prompt_may_have_its_own_pushes(tiny, concept, monkeypatch):
    batches_of_32(monkeypatch)
    run = tiny.run(labelled_ids(40, 3))
    v, reader = directions(tiny, concept), checked_readout(tiny, "concept", concept)
    each = np.random.default_rng(2).standard_normal((40, 3, 1))
    whole = push_gradients(run, v, each, reader)
    nominal = push_gradients(run, v, 0 * each, reader).y
    for prompt in (0, 17, 39):
        ids = run.texts.ids[prompt]
        expected = whole_sequence.played(tiny.hf, ids, concept.direction.values, each[prompt, :, 0])
        shift = whole.y[prompt, 0] - nominal[prompt, 0]
        np.testing.assert_allclose(shift, expected, rtol=1e-4, atol=1e-5)
    some = np.array([3, 17, 31])
    part = push_gradients(run, v, each[some], reader, some)
    np.testing.assert_allclose(part.y, whole.y[some], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(part.gradient, whole.gradient[some], rtol=1e-4, atol=1e-5)


def test_one_batch_is_held_linearised_at_a_time(tiny, concept, monkeypatch):
    batches_of_32(monkeypatch)
    living, most = weakref.WeakSet(), []

    class Watched(Linearised):
        def __init__(self, *given):
            super().__init__(*given)
            living.add(self)
            gc.collect(0)
            most.append(len(living))

    monkeypatch.setattr(gradients, "Linearised", Watched)
    run = tiny.run(labelled_ids(90, 3))
    assert len(run.numbers) > 2
    v, reader = directions(tiny, concept), checked_readout(tiny, "concept", concept)
    push_gradients(run, v, np.zeros((3, 1)), reader)
    assert (max(most), len(most)) == (3, 3 * len(run.numbers))


# ------------------------------------------------------------------ optima


@pytest.fixture(scope="module")
def demo(demo_texts):
    """The demo model in float64, a concept of it, runs, and one standard deviation."""
    model = lm.DepthModel.load(model_path("demo_48x4"), device="cpu", dtype="float64")
    concept = lm.mean_difference(model, demo_texts.concept)
    run = model.run(demo_texts.operating.first(5))
    std = float(lm.linear_gains(model, demo_texts.operating, concept).readout.std())
    return model, concept, run, std


def replayed(run, concept, readout="concept"):
    """u (layer x input) -> mean shift and its derivative, without anything of the plan."""
    v, reader = directions(run.model, concept), checked_readout(run.model, readout, concept)
    shape = (run.n_layers, v.shape[1])
    nominal = push_gradients(run, v, np.zeros(shape), reader).y.mean(0)
    known = {}

    def evaluate(u):
        key = u.tobytes()
        if key not in known:
            y, gradient = push_gradients(run, v, u.reshape(shape), reader)
            known[key] = y.mean(0) - nominal, gradient.mean(0).reshape(len(nominal), -1)
        return known[key]

    return evaluate


def slsqp(evaluate, cost, target, bound=None):
    """The general-purpose optimiser, in units of about one; energy and pushes."""
    root = np.sqrt(cost)
    size = np.linalg.norm(evaluate(0 * root)[1][0] / root)
    unit = abs(target).max() / size
    found = minimize(
        lambda z: z @ z,
        np.full(len(root), 0.1),
        jac=lambda z: 2 * z,
        bounds=None if bound is None else [(-b, b) for b in bound * root / unit],
        constraints={
            "type": "eq",
            "fun": lambda z: (evaluate(z * unit / root)[0] - target) / abs(target).max(),
            "jac": lambda z: evaluate(z * unit / root)[1] * unit / root / abs(target).max(),
        },
        method="SLSQP",
        options={"maxiter": 200, "ftol": 1e-8},
    )
    assert found.success, found.message
    return found.fun * unit**2, found.x * unit / root


@pytest.mark.parametrize(
    ("stds", "bound", "energy"),
    [
        *(
            (1, 0.12, "relative"),
            (3, None, "relative"),
            (1, None, "absolute"),
            (3, 0.37, "absolute"),
        ),
        pytest.param(1, None, "relative", marks=pytest.mark.slow),
        pytest.param(3, 0.37, "relative", marks=pytest.mark.slow),
        pytest.param(1, 0.12, "absolute", marks=pytest.mark.slow),
        pytest.param(3, None, "absolute", marks=pytest.mark.slow),
    ],
)
def test_plans_agree_with_a_general_purpose_optimiser_on_the_replay(demo, stds, energy, bound):
    _, concept, run, std = demo
    target = stds * std
    options = {"energy": energy, "max_relative_push": bound, "target_rtol": 1e-5}
    plan = lm.optimal_plan(run, concept, target, **options)
    assert bool(plan.met)
    assert plan.attrs["ended"] == "met"
    assert "not_met" not in plan.attrs
    assert float(plan.kkt_residual) < 1e-2
    np.testing.assert_allclose(plan.predicted, target, rtol=1e-2)
    norm = state_norms(run).mean(axis=0)[:-1]
    cost = np.ones(4) if energy == "absolute" else 1 / norm**2
    limit = None if bound is None else bound * norm
    expected, u = slsqp(replayed(run, concept), cost, np.array([target]), limit)
    np.testing.assert_allclose(plan.energy, expected, rtol=1e-3)
    np.testing.assert_allclose(
        plan.u[:, 0] * np.sqrt(cost), u * np.sqrt(cost), atol=1e-2 * expected**0.5
    )
    np.testing.assert_allclose(plan.energy, cost @ plan.u[:, 0].values ** 2)
    # it does what it says, and each step is a pass forward and backward
    played = lm.play(run, concept, plan).response.isel(scale=0)
    np.testing.assert_allclose(played.mean(), plan.predicted[0], rtol=1e-6)
    np.testing.assert_allclose(played, plan.response[:, 0], rtol=1e-6, atol=1e-9)
    assert plan.evaluations == plan.steps + 1 <= 8
    np.testing.assert_allclose(plan.push, abs(plan.u[:, 0]) / norm)
    if bound is not None:
        assert float(plan.push.max()) <= bound * (1 + 1e-9)
        free = lm.optimal_plan(run, concept, target, energy=energy)
        assert float(free.push.max()) > bound
        assert float(free.energy) < float(plan.energy)


def test_energy_is_saved_against_the_linear_plan(demo):
    _, concept, run, std = demo
    plan = lm.optimal_plan(run, concept, 3 * std, energy="absolute")
    gain = lm.linear_gains(run, concept).gain.mean("prompt").values
    linear = 3 * std * gain / (gain @ gain)
    np.testing.assert_allclose(plan.linear_u[:, 0], linear, rtol=1e-5)
    np.testing.assert_allclose(plan.linear_energy, linear @ linear, rtol=1e-5)
    shape = xr.DataArray(linear, dims="layer")
    scales = np.linspace(0, 3, 301)
    reach = lm.play(run, concept, shape, scale=scales).response.mean("prompt").values
    np.testing.assert_allclose(plan.linear_shift[0], np.interp(1, scales, reach), rtol=1e-3)
    needed = scales[np.argmax(reach >= 3 * std)] ** 2 * (linear @ linear)
    np.testing.assert_allclose(plan.linear_energy_needed, needed, rtol=2e-2)
    np.testing.assert_allclose(plan.saved, 1 - plan.energy / plan.linear_energy_needed)
    assert float(plan.saved) > 0.2


def test_a_plan_of_a_system_may_be_the_start(demo):
    _, concept, run, std = demo
    given = ltv.minimum_energy(lm.identify(run, concept), target=2 * std, energy="absolute")
    plan = lm.optimal_plan(run, concept, 2 * std, start=given, energy="absolute")
    expected = lm.optimal_plan(run, concept, 2 * std, energy="absolute")
    assert bool(plan.met)
    np.testing.assert_allclose(plan.energy, expected.energy, rtol=3e-3)
    np.testing.assert_array_equal(plan.linear_u, given.u)
    np.testing.assert_allclose(plan.linear_energy, given.energy)
    played = lm.play(run, concept, given).response.mean()
    np.testing.assert_allclose(plan.linear_shift, played, rtol=1e-6)
    assert plan.evaluations == plan.steps + 2  # nothing pushed, and the start
    again = lm.optimal_plan(run, concept, 2 * std, start=plan.u, energy="absolute")
    assert (int(again.steps), again.attrs["ended"]) == (0, "met")


def test_what_a_plan_costs_as_counts(concept, monkeypatch):
    model = lm.DepthModel(TINY["gpt2"]().double(), name="gpt2")
    tokens = labelled_ids(8, 0)
    run = model.run(tokens)
    counts = Counts(model, monkeypatch)
    plan = lm.optimal_plan(run, concept, 0.3)
    assert not counts.passes
    # three layers of eight prompts an evaluation; the two plans and the nominal run once, two or
    # three copies of each prompt at most; the search for the energy of the linear plan, which plays
    # up to 14 amplitudes
    searched = int(plan.evaluations) * 3 * 8
    rest = counts.all_rows - searched
    assert 0 <= rest - 3 * 3 * 8 <= 14 * 3 * 8
    assert int(plan.evaluations) <= 5


# ------------------------------------------------------------------ holding


@pytest.fixture(scope="module")
def pair(demo, demo_texts):
    """The demo's concept beside another that it is mixed up with."""
    model, concept, *_ = demo
    other = lm.pca(model, demo_texts.concept).direction
    mixed = (other + 0.8 * concept.direction).transpose("depth", "feature")
    mixed = mixed / np.sqrt((mixed**2).sum("feature"))
    same = {"model_fingerprint": concept.attrs["model_fingerprint"]}
    return lm.several(
        {"label": concept, "other": xr.Dataset({"direction": mixed}).assign_attrs(same)}
    )


@pytest.mark.parametrize("energy", ["relative", pytest.param("absolute", marks=pytest.mark.slow)])
def test_a_concept_is_steered_while_another_is_held(demo, pair, energy):
    model, _, run, std = demo
    plan = lm.optimal_plan(run, pair, 2 * std, hold="other", energy=energy)
    assert bool(plan.met)
    played = lm.play(run, pair, plan).response.isel(scale=0).mean("prompt")
    np.testing.assert_allclose(played[0], 2 * std, rtol=0.05)
    assert abs(float(played[1])) < 0.05 * 2 * std
    np.testing.assert_array_equal(plan.target, [2 * std, 0])
    assert json.loads(plan.attrs["hold"]) == ["other"]
    assert plan.output.values.tolist() == plan.input.values.tolist() == ["label", "other"]
    # steering it alone moves the other one, and costs less
    rows = directions(model, pair)[-1, 0][None].numpy()
    alone = lm.optimal_plan(
        run, pair, 2 * std, energy=energy, readout=xr.DataArray(rows, dims=("output", "feature"))
    )
    moved = lm.play(run, pair, alone).response.isel(scale=0).mean("prompt")
    assert abs(float(moved[1])) > 0.3 * 2 * std
    assert float(alone.energy) < float(plan.energy)
    norm = state_norms(run).mean(axis=0)[:-1].repeat(2)
    cost = np.ones(8) if energy == "absolute" else 1 / norm**2
    expected, _ = slsqp(replayed(run, pair), cost, np.array([2 * std, 0.0]))
    np.testing.assert_allclose(plan.energy, expected, rtol=2e-3)
    by_place = lm.optimal_plan(run, pair, [2 * std], hold=[-1], energy=energy)
    np.testing.assert_array_equal(by_place.u, plan.u)


def test_several_inputs_are_bounded_by_the_vector_that_they_make(demo, pair):
    _, _, run, std = demo
    free = lm.optimal_plan(run, pair, [std, -0.5 * std])
    bound = 0.95 * float(free.push.max())
    plan = lm.optimal_plan(run, pair, [std, -0.5 * std], max_relative_push=bound)
    assert bool(plan.met)
    v = pair.direction.transpose("depth", "input", "feature").values[:-1]
    vector = np.einsum("li,lif->lf", plan.u, v)
    size = np.linalg.norm(vector, axis=1) / state_norms(run).mean(axis=0)[:-1]
    np.testing.assert_allclose(plan.push, size)
    np.testing.assert_allclose(size.max(), bound, rtol=1e-4)
    assert float(plan.energy) > float(free.energy)


def test_multipliers_are_the_price_of_a_target(demo, pair):
    _, _, run, std = demo
    tight = {"target_rtol": 1e-6, "kkt": 1e-5, "hold": "other"}
    plan = lm.optimal_plan(run, pair, std, **tight)
    ends = [float(lm.optimal_plan(run, pair, f * std, **tight).energy) for f in (1.01, 0.99)]
    slope = (ends[0] - ends[1]) / (0.02 * std)
    np.testing.assert_allclose(plan.multipliers[0], slope, rtol=1e-3)


# ------------------------------------------------------------------ where nothing pushes


def test_layers_that_are_left_out_do_not_push(demo):
    _, concept, run, std = demo
    whole = lm.optimal_plan(run, concept, std)
    plan = lm.optimal_plan(run, concept, std, layers=[1, 3])
    assert plan.u[:, 0].astype(bool).values.tolist() == [False, True, False, True]
    assert json.loads(plan.attrs["layers"]) == [1, 3]
    assert bool(plan.met)
    assert float(plan.energy) > float(whole.energy)
    nothing = concept.assign(direction=concept.direction.where(concept.depth != 0))
    without = lm.optimal_plan(run, nothing, std)
    assert without.u.values[0] == 0
    np.testing.assert_array_equal(without.u, lm.optimal_plan(run, concept, std, layers=[1, 2, 3]).u)
    assert bool(np.isfinite(without.push).all())


def test_a_target_that_is_not_reached_is_said(demo):
    _, concept, run, std = demo
    plan = lm.optimal_plan(run, concept, 3 * std, max_relative_push=0.1)
    assert not bool(plan.met)
    assert not bool(plan.reached)
    assert plan.attrs["ended"] == "no way on"
    cure = "Ask for less, allow more `layers`, a larger `max_relative_push` or begin from another"
    assert cure in plan.attrs["not_met"]
    np.testing.assert_allclose(plan.push, 0.1, rtol=1e-3)  # as far as it goes
    np.testing.assert_allclose(plan.residual, 1 - plan.predicted[0] / (3 * std))
    assert f"missed by {float(plan.residual):.1%}" in plan.attrs["not_met"]
    assert np.isnan(plan.saved)
    short = lm.optimal_plan(run, concept, 3 * std, energy="absolute", max_steps=1)
    assert (short.attrs["ended"], int(short.steps)) == ("steps", 1)
    assert "Allow more `max_steps`" in short.attrs["not_met"]


def test_far_targets_are_reached_or_come_as_near_as_bounds_allow(demo):
    """A thousand standard deviations: the first region moves a small part of it."""
    _, concept, run, std = demo
    gain = lm.linear_gains(run, concept).gain.mean("prompt").values
    target = 1e6 * std
    free = lm.optimal_plan(run, concept, target, energy="absolute", max_steps=1)
    assert (free.attrs["ended"], int(free.steps)) == ("steps", 1)
    assert bool(free.reached)  # it began again where the linear plan arrives
    # without bounds it is the linear plan, whatever the target
    np.testing.assert_allclose(free.linear_u[:, 0], target * gain / (gain @ gain), rtol=1e-6)
    norm = state_norms(run).mean(axis=0)[:-1]
    plan = lm.optimal_plan(run, concept, target, max_relative_push=1e-3)
    assert plan.attrs["ended"] == "no way on"
    for name in ("u", "linear_u"):
        np.testing.assert_allclose(plan[name][:, 0], np.sign(gain) * 1e-3 * norm, rtol=1e-5)
    assert float(plan.kkt_residual) < 1e-6
    assert float(plan.predicted[0]) > 0
    assert np.isnan(plan.linear_energy_needed)


def test_a_search_that_found_no_way_on_begins_again_where_the_linear_plan_arrives(demo):
    """Of one layer the plan of least energy is the first that arrives."""
    model, _, run, _ = demo
    rng = np.random.default_rng(0)
    direction = rng.standard_normal((5, 48))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    concept = xr.Dataset({"direction": (("depth", "feature"), direction)})
    run = model.run([list(range(3 + i, 9 + i)) for i in range(6)])
    plan = lm.optimal_plan(run, concept, 1.0, layers=[0])
    assert bool(plan.met)
    assert "not_met" not in plan.attrs
    scales = np.linspace(0, 6, 121)
    shape = xr.DataArray(plan.linear_u.values[:, 0], dims="layer")
    reach = lm.play(run, concept, shape, scale=scales).response.mean("prompt").values
    # on the way there it turns back, and no way goes on from there
    top = int(np.argmax(reach[:61] - np.r_[reach[1:61], reach[60]] > 0))
    assert 0 < top < 60
    assert reach[top] < 0.5
    first = scales[np.argmax(reach >= 1)] * abs(shape.values).sum()
    np.testing.assert_allclose(abs(plan.u.values).sum(), first, rtol=2e-2)
    np.testing.assert_allclose(plan.energy, plan.linear_energy_needed, rtol=1e-2)
    assert plan.evaluations > plan.steps + 3  # those of both searches
    assert len(plan.history) == plan.steps + 1
    # where a bound is on the way, it does not
    bound = 0.5 * float(plan.push.max())
    short = lm.optimal_plan(run, concept, 1.0, layers=[0], max_relative_push=bound)
    assert short.attrs["ended"] == "no way on"
    assert float(short.push.max()) < bound
    np.testing.assert_allclose(short.linear_energy_needed, plan.linear_energy_needed, rtol=1e-3)


@pytest.mark.parametrize("of", ["plan", "system"])
def test_several_concepts_say_the_sign_of_each_whose_classes_are_known(demo, pair, of):
    _, concept, run, std = demo
    say = {
        "plan": lambda c: lm.optimal_plan(run, c, std, hold=1, max_steps=1),
        "system": lambda c: ltv.minimum_energy(lm.identify(run, c), [std, 0.0]),
    }[of]
    one = "u > 0 of 'label' pushes towards '1', u < 0 towards '0'"
    assert say(pair).attrs["sign"] == one
    rest = pair.direction.sel(input="other", drop=True)
    other = xr.Dataset({"direction": rest}, attrs={**concept.attrs, "classes": '["x", "y"]'})
    both = lm.several({"label": concept, "other": other})
    two = "; u > 0 of 'other' pushes towards 'y', u < 0 towards 'x'"
    assert say(both).attrs["sign"] == one + two
    bare = {"label": concept.assign_attrs(classes="[]"), "other": other.assign_attrs(classes="?")}
    assert "sign" not in say(lm.several(bare)).attrs


def test_large_pushes_are_warned_of_and_a_plan_says_what_it_does(demo):
    _, concept, run, std = demo
    plan = lm.optimal_plan(run, concept, 3 * std, energy="absolute")
    assert "pushes of more than 0.3 of the state's norm at layer" in plan.attrs["warning"]
    assert ltv.plan.WHAT_IT_DOES.items() <= plan.attrs.items()
    assert plan.attrs["energy"] == "absolute"
    assert plan.attrs["sign"] == "u > 0 pushes towards '1', u < 0 towards '0'"
    assert plan.attrs["model_fingerprint"] == run.model.fingerprint
    assert plan.history.sel(quantity="energy")[-1] == plan.energy
    assert len(plan.history) == plan.steps + 1
    assert "warning" not in lm.optimal_plan(run, concept, std / 10).attrs


# ------------------------------------------------------------------ other prompts


def test_held_out_prompts_come_with_an_interval(demo, demo_texts):
    model, concept, run, std = demo
    texts = demo_texts.held_out.first(5)
    plan = lm.optimal_plan(run, concept, std, held_out=texts)
    played = lm.play(model, texts, concept, plan).response.isel(scale=0)
    np.testing.assert_allclose(plan.held_out_response[:, 0], played, rtol=1e-6)
    low, estimate, high = plan.held_out_shift[0].sel(bound=["low", "estimate", "high"]).values
    np.testing.assert_allclose(estimate, played.mean(), rtol=1e-6)
    assert float(played.min()) < low < estimate < high < float(played.max())
    again = lm.optimal_plan(run, concept, std, held_out=model.run(texts))
    np.testing.assert_allclose(again.held_out_shift, plan.held_out_shift)


def test_a_plan_for_every_prompt(demo):
    model, concept, run, std = demo
    each = lm.optimal_plan(run, concept, 2 * std, energy="absolute", per_prompt=True)
    assert dict(each.u.sizes) == {"prompt": len(run), "layer": 4, "input": 1}
    assert bool(each.met.all())
    assert bool(each.reached.all())
    for prompt in (0, 3):
        alone = model.run([run.texts.texts[prompt]])
        expected = lm.optimal_plan(alone, concept, 2 * std, energy="absolute")
        np.testing.assert_allclose(each.energy[prompt], expected.energy, rtol=3e-3)
        np.testing.assert_allclose(each.linear_shift[prompt], expected.linear_shift, rtol=1e-3)
        played = lm.play(alone, concept, each.isel(prompt=prompt)).response
        np.testing.assert_allclose(played, 2 * std, rtol=2e-3)
    assert int(each.evaluations.max()) <= 20
    some = lm.optimal_plan(run, concept, 2 * std, max_relative_push=0.2, per_prompt=True)
    n = int((~some.reached).sum())
    assert 0 < n < len(run)
    assert f"{n} of {len(run)} prompts miss theirs, the worst ended" in some.attrs["not_met"]
    assert set(json.loads(some.attrs["ended"])) == {"met", "no way on"}


def test_the_price_of_sharing(demo):
    _, concept, run, std = demo
    shared = lm.optimal_plan(run, concept, std)
    own = lm.optimal_plan(run, concept, std, per_prompt=True)
    price = lm.price_of_sharing(shared, own)
    ratio = float(shared.energy) / float(own.energy.mean())
    np.testing.assert_allclose(price.price.sel(bound="estimate"), ratio)
    low, high = (float(price.price.sel(bound=b)) for b in ("low", "high"))
    assert low < ratio < high
    np.testing.assert_allclose(price.spread, float(shared.response.std()) / std)
    assert (int(price.n_reached), int(price.n_prompts)) == (len(run), len(run))
    with pytest.raises(ValueError, match="`shared` must be one plan and `own` one per prompt; got"):
        lm.price_of_sharing(own, shared)
    other = lm.optimal_plan(run, concept, std, energy="absolute", per_prompt=True)
    with pytest.raises(ValueError, match="`own` must be made as `shared` was; got another energy"):
        lm.price_of_sharing(shared, other)
    less = lm.optimal_plan(run, concept, std / 2)
    with pytest.raises(ValueError, match="`own` must be made as `shared` was; got another target"):
        lm.price_of_sharing(less, own)
    with pytest.raises(ValueError, match="`own` must reach the target for some prompt; got none"):
        lm.price_of_sharing(shared, own.assign(reached=own.reached & False))


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"energy": "free"}, "`energy` must be one of"),
        ({"max_relative_push": 0.0}, "`max_relative_push` must be positive and finite"),
        ({"max_relative_push": np.inf}, "`max_relative_push` must be positive and finite"),
        ({"target_rtol": 0.0}, "`target_rtol` must be between 0 and 1"),
        ({"kkt": 1.0}, "`kkt` must be between 0 and 1"),
        ({"max_relative_push": "a"}, "`max_relative_push` must be .* one number .*; got 'a'"),
        ({"max_relative_push": np.ones(3)}, "`max_relative_push` must be .* one number"),
        ({"max_relative_push": True}, "`max_relative_push` must be .* one number .*; got True"),
        ({"kkt": "a"}, "`kkt` must be between 0 and 1; got 'a'"),
        ({"max_steps": 0}, "`max_steps` must be a whole number >= 1; got 0"),
        ({"max_steps": 1.5}, "`max_steps` must be a whole number >= 1; got 1.5"),
        ({"max_steps": np.nan}, "`max_steps` must be a whole number >= 1; got nan"),
        ({"max_steps": True}, "`max_steps` must be a whole number >= 1; got True"),
        ({"layers": [True, False, True]}, r"`layers` must be whole numbers.* got \[True, False"),
        ({"layers": np.array([True, False, True])}, "`layers` must be whole numbers"),
        ({"layers": [1.7]}, r"`layers` must be whole numbers, the labels .* got \[1.7\]"),
        ({"layers": "2"}, "`layers` must be whole numbers, the labels .* got '2'"),
        ({"hold": 1.0}, "`hold` must name outputs, or their positions; got 1.0"),
        ({"hold": True}, "`hold` must name outputs, or their positions; got True"),
        ({"layers": [3]}, r"`layers` must be some of 0\.\.2; got \[3\]"),
        ({"layers": []}, r"`layers` must be some of 0\.\.2; got \[\]"),
        ({"hold": "anger"}, "`hold` must name outputs, or their positions; got 'anger', and the"),
        ({"hold": 2}, "`hold` must name outputs, or their positions; got 2"),
        ({"hold": ["love", 1]}, "`hold` must leave an output to steer; got all of"),
        ({"target": [1.0]}, "`target` must have one value for each of the 2 outputs that are ste"),
        ({"target": [1.0, 2.0], "hold": 0}, "`target` must have one value for each of the 1 outp"),
        ({"target": [0.0, 0.0]}, "`target` must be finite and not zero"),
        ({"target": [np.nan, 1.0]}, "`target` must be finite and not zero"),
        ({"target": [1e-14, 1.0]}, "`target` must be well above the rounding of the readout; got"),
        ({"start": xr.DataArray(np.ones((2, 2)), dims=("layer", "input"))}, "`start` must hold u"),
        (
            {"start": xr.DataArray(np.full((3, 2), np.nan), dims=("layer", "input"))},
            "`start.u` mus",
        ),
        ({"held_out": [[1, 2]], "per_prompt": True}, "`held_out` must be left out where every pro"),
    ],
)
def test_what_is_refused(tiny, tokens, two, options, message):
    given = {"target": [0.3, 0.1], **options}
    with pytest.raises(ValueError, match=message):
        lm.optimal_plan(tiny, tokens, two, **given)


def test_layers_without_a_direction_cannot_push_alone(tiny, tokens, concept):
    nothing = concept.copy()
    nothing["direction"] = concept.direction.where(xr.DataArray(np.arange(4), dims="depth") > 0)
    with pytest.raises(ValueError, match="`layers` must have a direction somewhere; got"):
        lm.optimal_plan(tiny, tokens, nothing, 0.3, layers=[0])


@pytest.mark.real
@pytest.mark.slow
def test_smollm2_meets_its_targets(real_folder):
    """One and three standard deviations, both energies, with and without bounds.

    With absolute energy the first layer is cheapest, and pushed by more than the state is long.
    """
    model = lm.DepthModel.load(str((real_folder / MODEL).resolve()), device="cpu")
    texts = lm.read_texts(real_folder / "tweets.csv").split(concept=20, operating=2, held_out=2)
    concept = lm.mean_difference(model, texts.concept)
    run = model.run(texts.operating)
    std = float(lm.linear_gains(run, concept).readout.std())
    for stds in (1, 3):
        for energy in ("relative", "absolute"):
            for bound in (None, 0.3):
                plan = lm.optimal_plan(
                    run, concept, stds * std, energy=energy, max_relative_push=bound
                )
                asked = (stds, energy, bound)
                assert bool(plan.met), (asked, plan.attrs["not_met"])
                assert float(plan.residual) < 1e-2, asked
                assert float(plan.kkt_residual) < 1e-2, asked
                assert int(plan.steps) <= (45 if energy == "absolute" else 10), asked
