"""The comparison against the functions that it puts together, and against dense algebra."""

from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr

from depthsys import lm, ltv
from depthsys.lm import methods
from tests.conftest import TINY
from tests.lm import whole_sequence
from tests.lm.conftest import LabelledIds, labelled_ids
from tests.lm.test_methods import dense_system, directions, io, rows_of, stacked_ensemble

ORDERS = [1, 2, 3]


class Ids(LabelledIds):
    """With the `first` of `Texts`."""

    def first(self, count):
        return Ids(self.ids[:count], self.labels[:count], sha256=f"{self.sha256} :{count}")


def ids(count, seed):
    made = labelled_ids(count, seed)
    return Ids(made.ids, made.labels, sha256=made.sha256)


@pytest.fixture(scope="module")
def tiny() -> lm.DepthModel:
    """One family is enough here: the others are in test_methods.py."""
    return lm.DepthModel(TINY["gpt2"]().double(), name="gpt2")


@pytest.fixture(scope="module")
def splits():
    return SimpleNamespace(concept=ids(10, 1), operating=ids(6, 2), held_out=ids(7, 3))


@pytest.fixture(scope="module")
def table(tiny, splits, concept):
    return lm.compare(
        tiny, splits, list(methods.METHODS), ORDERS, concept=concept, eps=0.01, n_each=4,
        n_bootstrap=50,
    )  # fmt: skip


@pytest.fixture(scope="module")
def maps(tiny, splits, concept):
    """Dense input-output maps of the mean system and of the mean response."""
    A = np.stack([whole_sequence.jacobians(tiny.hf, row) for row in splits.operating.ids])
    v = directions(concept)
    C = rows_of("profile", v)
    return {
        "mean_system": dense_system(A.mean(0), v, C),
        "mean_response": stacked_ensemble(A, v, C),
    }


@pytest.fixture(scope="module")
def gains(tiny, splits, concept):
    """Measured ones of held-out and operating prompts, and linear ones of both."""
    texts = splits.held_out, splits.operating
    measured = [lm.measure_gains(tiny, each, concept, eps=0.01) for each in texts]
    return *measured, [lm.linear_gains(tiny, each, concept) for each in texts]


def matrix(system):
    values = io(system)
    return values.reshape(values.shape[0] * values.shape[1], -1)


FIRST = ("ensemble", "balanced", "krylov", "pod")  # .ci/run compares the others


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in FIRST else [pytest.mark.slow])
        for name in methods.METHODS
    ],
)
def test_rows_are_what_each_function_says_alone(tiny, splits, concept, table, maps, gains, name):
    measured, operating, linear = gains
    for order in ORDERS:
        row = table.sel(basis=name, order=order)
        method = methods.METHODS[name](order=order)
        system = lm.identify(tiny, splits.operating, concept, method, readout="profile")
        close = {"rtol": 1e-4, "atol": 1e-6}
        np.testing.assert_allclose(row.surrogate_gain, ltv.gains(system)[:, 0, 0], **close)
        for injection in ("absolute", "relative"):
            fit = lm.agreement(system, measured, injection=injection, n_bootstrap=50)
            for metric in ("spearman", "pearson", "relative_l2", "max_relative_error"):
                mine = row[metric].sel(injection=injection)
                np.testing.assert_allclose(mine, fit[metric], **close)
            np.testing.assert_allclose(row.noise_floor.sel(injection=injection), fit.noise_floor)
        fit = lm.agreement(system, operating, n_bootstrap=50)
        np.testing.assert_allclose(row.relative_l2_operating, fit.relative_l2, **close)
        budget = lm.error_budget(system, measured, *linear, n_bootstrap=50)
        np.testing.assert_allclose(row.error_budget, budget.error, **close)
        assert row.states == int(system.order.max())
        stored = [system[v].nbytes for v in "ABCDVW" if v in system]
        assert row.bytes == sum(stored)
        for reference, full in maps.items():
            off = matrix(full) - matrix(system)
            error = row.sel(reference=reference)
            np.testing.assert_allclose(error.error, np.linalg.norm(off, 2), rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(error.h2_error, np.linalg.norm(off), rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(
                error.terminal_error, np.linalg.norm(off[-1]), rtol=1e-4, atol=1e-5
            )


def test_certificates_hold_and_are_those_of_the_dense_systems(table, maps):
    for reference, full in maps.items():
        part = table.sel(reference=reference)
        np.testing.assert_allclose(part.norm, ltv.induced_norm(full), rtol=1e-5)
        np.testing.assert_allclose(part.h2_norm, ltv.h2_norm(full), rtol=1e-5)
        np.testing.assert_allclose(part.h2_norm, np.linalg.norm(io(full)), rtol=1e-5)
        np.testing.assert_allclose(part.terminal_norm, np.linalg.norm(io(full)[-1]), rtol=1e-5)
        np.testing.assert_allclose(
            part.lower, ltv.error_bounds(full, ORDERS).lower, atol=1e-5 * float(part.norm)
        )
        slack = 1e-5 * float(part.norm)
        assert bool((part.error >= part.lower - slack).all())
        known = part.upper.notnull()
        certified = {"mean_system": "balanced", "mean_response": "ensemble"}[reference]
        assert known.any("order").sel(basis=certified)
        assert int(known.any("order").sum()) == 1
        assert bool((part.error <= part.upper + slack).where(known, True).all())
        known = part.lower > part.resolution
        ratio = (part.error / part.lower).where(known)
        np.testing.assert_allclose(part.ratio, ratio.transpose(*part.ratio.dims))


def test_some_methods_lose_and_ensemble_does_not(table):
    """The table must tell methods apart, or it compares nothing."""
    error = table.error.sel(reference="mean_response", order=1)
    assert float(error.sel(basis="random")) > 2 * float(error.sel(basis="ensemble"))
    assert float(table.error_budget.sel(basis="ensemble", part="averaging").max()) < 1e-9
    assert (
        float(table.error_budget.sel(basis="krylov", part="averaging", bound="estimate").max())
        > 0.01
    )


@pytest.fixture(scope="module")
def of_each(tiny, splits, concept):
    """Dense systems of the first prompts, and the bounds on every order of them."""
    v = directions(concept)
    found = []
    for row in splits.held_out.first(4).ids:
        full = dense_system(whole_sequence.jacobians(tiny.hf, row), v, rows_of("profile", v))
        found.append((full, {order: ltv.error_bounds(full, order).lower for order in ORDERS}))
    return found


@pytest.mark.parametrize("name", ["ensemble", "krylov", "pod", "balanced"])
def test_prompts_have_their_own_systems(tiny, splits, concept, table, of_each, name):
    first = splits.held_out.first(4)
    measured = lm.measure_gains(tiny, first, concept, eps=0.01).gain.values
    for order in ORDERS:
        method = methods.METHODS[name](order=order)
        systems = lm.identify(tiny, first, concept, method, readout="profile", per_prompt=True)
        gains = ltv.gains(systems)[..., 0, 0].transpose("prompt", "layer").values
        row = table.sel(basis_each=name, order=order)
        np.testing.assert_allclose(row.prompt_gain, gains, rtol=1e-4, atol=1e-5)
        miss = np.linalg.norm(gains - measured, axis=1) / np.linalg.norm(measured, axis=1)
        np.testing.assert_allclose(row.prompt_relative_l2, miss, rtol=1e-2, atol=1e-5)
        for prompt, (full, lower) in enumerate(of_each):
            off = matrix(full) - matrix(systems.isel(prompt=prompt))
            one = row.isel(prompt_each=prompt)
            np.testing.assert_allclose(
                one.prompt_error, np.linalg.norm(off, 2), rtol=1e-3, atol=1e-5
            )
            np.testing.assert_allclose(one.prompt_lower, lower[order], rtol=1e-4, atol=1e-5)
            assert one.prompt_error >= one.prompt_lower - 1e-5
            if name in ("ensemble", "balanced"):
                assert one.prompt_error <= one.prompt_upper + 1e-5


def test_the_direction_is_the_mean_difference_unless_given(tiny, splits):
    table = lm.compare(tiny, splits, ["ensemble"], [1], n_each=0, n_bootstrap=10)
    v = lm.mean_difference(tiny, splits.concept, held_out=splits.held_out)
    system = lm.identify(tiny, splits.operating, v, lm.Ensemble(order=1), readout="profile")
    np.testing.assert_allclose(table.surrogate_gain[0, 0], ltv.gains(system)[:, 0, 0], rtol=1e-6)
    np.testing.assert_array_equal(table.auc, v.auc)
    assert "prompt_gain" not in table
    assert table.attrs["concept"] == "mean_difference"
    assert table.attrs.get("concept_warning") == v.attrs.get("warning")
    assert all(isinstance(value, (int, float, str)) for value in table.attrs.values())


def test_a_method_of_your_own_settings(tiny, splits, concept):
    mine = {"early": lm.Pod(eps=0.01), "late": lm.Pod(eps=1.0, relative=False)}
    table = lm.compare(tiny, splits, mine, [2], concept=concept, n_each=0, n_bootstrap=10)
    assert table.basis.values.tolist() == ["early", "late"]
    assert abs(table.surrogate_gain[0] - table.surrogate_gain[1]).max() > 1e-4


def test_the_step_where_linearity_ends(tiny, splits, concept):
    found = lm.linear_range(
        tiny, splits.held_out, concept, relative=False, limit=0.05, n_bootstrap=20
    )
    linear = lm.linear_gains(tiny, splits.held_out, concept).gain.values.mean(0)
    for step in found.step.values[[3, -1]]:
        truth = np.mean(
            [
                whole_sequence.measured_gains(tiny.hf, row, concept.direction.values, step)
                for row in splits.held_out.ids
            ],
            axis=0,
        )
        miss = np.linalg.norm(linear - truth) / np.linalg.norm(truth)
        mine = found.step_error.sel(step=step, layers="all", bound="estimate")
        np.testing.assert_allclose(mine, miss, rtol=1e-3, atol=1e-6)
    error = found.step_error.sel(bound="estimate")
    for layers in ("all", "without_layer_0"):
        limit = float(found.step_limit.sel(layers=layers))
        curve = error.sel(layers=layers)
        before = curve.sel(step=curve.step[curve.step < limit])
        after = curve.sel(step=curve.step[curve.step > limit])
        assert bool((before <= 0.05).all())
        assert float(after[0]) > 0.05


def test_bad_arguments(tiny, splits, concept):
    def compare(*arguments, **options):
        return lm.compare(tiny, splits, *arguments, concept=concept, **options)

    with pytest.raises(ValueError, match="`methods` must be different names among"):
        compare(["krylof"])
    with pytest.raises(ValueError, match="`methods` must be different names among"):
        compare(["krylov", "krylov"])
    with pytest.raises(TypeError, match="`methods` must be a list of names"):
        compare("krylov")
    with pytest.raises(TypeError, match="`methods` must hold at least one method"):
        compare([])
    with pytest.raises(TypeError, match="`methods` must hold at least one method"):
        compare({"mine": ltv.krylov_basis})
    for orders in ([], [2, 1], [0, 1], [1.5], [1, 17], "all"):
        with pytest.raises(ValueError, match=r"`orders` must be rising whole numbers in 1..16"):
            compare(["krylov"], orders)
    with pytest.raises(ValueError, match="`eps` must be positive"):
        compare(["krylov"], [1], eps=0.0)
    with pytest.raises(ValueError, match="`n_each` must be >= 0"):
        compare(["krylov"], [1], n_each=-1)
    with pytest.raises(ValueError, match="`n_bootstrap` must be >= 1; got -1"):
        compare(["krylov"], [1], n_bootstrap=-1)
    early = np.zeros((4, 1, 16))
    early[1] = 1.0
    with pytest.raises(ValueError, match="`readout` must read the last depth"):
        compare(["krylov"], [1], readout=early)
    with pytest.raises(ValueError, match="`methods` must have no `tolerance`"):
        compare({"mine": lm.Krylov(tolerance=0.1)}, [1])
    with pytest.raises(ValueError, match="`limit` must be a number > 0"):
        lm.linear_range(tiny, splits.held_out, concept, limit=0.0)
    zero = xr.Dataset({"direction": concept.direction * 0})
    with pytest.raises(ValueError, match="a zero direction is none"):
        lm.compare(tiny, splits, ["krylov"], [1], concept=zero)


def test_gaps_are_paired_differences_to_the_first_method(splits, tiny, concept, table):
    measured = lm.measure_gains(tiny, splits.held_out, concept, eps=0.01).gain.values
    rng = np.random.default_rng(0)
    n = len(measured)
    counts = rng.multinomial(n, np.full(n, 1 / n), size=50)
    means = np.vstack([measured.mean(0), counts @ measured / n])
    for skip, layers in enumerate(("all", "without_layer_0")):
        a, b = (
            np.linalg.norm(table.surrogate_gain.sel(basis=name, order=2).values[skip:]
                           - means[:, skip:], axis=1) / np.linalg.norm(means[:, skip:], axis=1)
            for name in ("krylov", "ensemble")
        )  # fmt: skip
        gap = table.relative_l2_gap.sel(basis="krylov", order=2, layers=layers)
        expected = [(a - b)[0], *np.quantile((a - b)[1:], [0.025, 0.975])]
        np.testing.assert_allclose(gap, expected, rtol=1e-3, atol=1e-5)
    assert bool((table.relative_l2_gap.sel(basis="ensemble") == 0).all())


@pytest.fixture(scope="module")
def logits(tiny, splits, concept):
    """A short comparison that reads something else than the concept."""
    return lm.compare(
        tiny, splits, ["ensemble"], [1], concept=concept, readout=lm.LogitDifference(3, 7),
        eps=0.02, n_each=None, n_bootstrap=20,
    )  # fmt: skip


def test_all_measured_and_exact_gains_are_stored(tiny, splits, concept, table, logits):
    for found, eps, readout in ((table, 0.01, "profile"), (logits, 0.02, lm.LogitDifference(3, 7))):
        known = {
            "measured_gain": (lm.measure_gains, splits.held_out, {"eps": eps}),
            "measured_gain_operating": (lm.measure_gains, splits.operating, {"eps": eps}),
            "linear_gain": (lm.linear_gains, splits.held_out, {}),
            "linear_gain_operating": (lm.linear_gains, splits.operating, {}),
        }  # fmt: skip
        for name, (function, texts, options) in known.items():
            gain = function(tiny, texts, concept, readout=readout, **options).gain
            prompts = "prompt_operating" if name.endswith("_operating") else "prompt"
            assert found[name].dims == (prompts, "layer")
            np.testing.assert_allclose(found[name], gain, rtol=1e-6, atol=1e-9)
        truth = lm.measure_gains(tiny, splits.held_out, concept, readout=readout, eps=eps)
        relative = truth.gain * truth.state_norm
        np.testing.assert_allclose(found.measured_gain_relative, relative, rtol=1e-6, atol=1e-9)
        assert (found.attrs["eps"], found.attrs["relative"]) == (eps, 1)


def test_mean_system_gain_is_that_of_the_product_of_the_mean_jacobians(
    tiny, splits, concept, table
):
    A = np.stack([whole_sequence.jacobians(tiny.hf, row) for row in splits.operating.ids])
    v = concept.direction.values
    dense = whole_sequence.chain_gains(A.mean(0), v)
    np.testing.assert_allclose(table.mean_system_gain, dense, rtol=1e-4, atol=1e-6)
    response = np.mean([whole_sequence.chain_gains(a, v) for a in A], axis=0)
    assert abs(dense - response).max() > 1e-3  # averaging does something here


def test_linearity_is_that_of_the_held_out_prompts_and_the_readout(
    tiny, splits, concept, table, logits
):
    for found, n_bootstrap, readout in (
        (table, 50, "profile"),
        (logits, 20, lm.LogitDifference(3, 7)),
    ):
        alone = lm.linear_range(
            tiny, splits.held_out, concept, readout=readout, n_bootstrap=n_bootstrap
        )
        close = {"rtol": 1e-5, "atol": 1e-7}
        np.testing.assert_array_equal(found.step, alone.step)
        np.testing.assert_allclose(found.step_error, alone.step_error, **close)
        np.testing.assert_allclose(found.step_limit, alone.step_limit, **close)
    few = slice(6)  # the steps of both
    ours, others = (t.step_error.isel(step=few).values for t in (table, logits))
    assert abs(ours - others).max() > 1e-4


def test_counts_of_prompts_are_not_mixed_up(table, splits):
    assert table.attrs["n_held_out"] == len(splits.held_out) == 7
    assert table.attrs["n_operating"] == len(splits.operating) == 6
    assert table.attrs["prompts_sha256"] == splits.held_out.sha256
    assert table.attrs["operating_prompts_sha256"] == splits.operating.sha256
    assert (table.sizes["prompt"], table.sizes["prompt_operating"]) == (7, 6)
    assert table.sizes["prompt_each"] == 4


def test_n_each_none_is_all_held_out_prompts(tiny, splits, concept, logits):
    assert logits.sizes["prompt_each"] == len(splits.held_out)
    exact = lm.linear_gains(tiny, splits.held_out, concept, readout=lm.LogitDifference(3, 7)).gain
    # order 1 has the exact gains of a prompt where only the last depth is read
    mine = logits.prompt_gain.sel(basis_each="ensemble", order=1)
    np.testing.assert_allclose(mine.transpose("prompt_each", "layer"), exact, rtol=1e-6)


def test_prompt_ratios_are_errors_over_lower_bounds(table):
    known = table.prompt_error_ratio.notnull()
    assert bool(known.any(["order", "prompt_each"]).all())
    ratio = (table.prompt_error / table.prompt_lower).where(known)
    dims = table.prompt_error_ratio.dims
    np.testing.assert_allclose(table.prompt_error_ratio, ratio.transpose(*dims))
    assert bool((table.prompt_error_ratio >= 1 - 1e-3).where(known, True).all())
    assert float(table.prompt_error_ratio.max()) > 1.5
    # and only what rounding explains is left out
    noise = 1e-4 * table.prompt_norm
    assert bool(known.where(table.prompt_lower > noise, True).all())


def test_times_are_taken(table):
    for name, dims in (("seconds", {"basis", "order"}), ("prompt_seconds", {"basis_each"})):
        assert set(table[name].dims) == dims
        assert bool((table[name] > 0).all())
        assert float(table[name].max()) < 600


def test_the_seed_moves_intervals_and_no_estimate(tiny, splits, concept):
    made = [
        lm.compare(
            tiny, splits, ["ensemble", "krylov"], [1], concept=concept, n_each=0,
            ablate_eps=False, n_bootstrap=20, seed=seed,
        )
        for seed in (0, 1)
    ]  # fmt: skip
    for name in ("relative_l2", "relative_l2_operating", "relative_l2_gap", "error_budget"):
        one, two = (table[name].transpose("bound", ...) for table in made)
        np.testing.assert_array_equal(one.sel(bound="estimate"), two.sel(bound="estimate"))
        assert bool((abs(one - two).sel(bound=["low", "high"]) > 1e-9).any()), name
    assert [table.attrs["seed"] for table in made] == [0, 1]
    assert "step_error" not in made[0]


@pytest.fixture(scope="module")
def pair():
    v = np.random.default_rng(11).standard_normal((4, 2, 16))
    v /= np.linalg.norm(v, axis=-1, keepdims=True)
    return xr.Dataset({"direction": (("depth", "input", "feature"), v)})


@pytest.mark.parametrize("name", ["balanced", "ensemble"])
def test_upper_bounds_count_the_states_that_each_depth_really_keeps(tiny, splits, pair, name):
    """A large rtol drops a state at one depth and none at another."""
    A = np.stack([whole_sequence.jacobians(tiny.hf, row) for row in splits.operating.ids])
    v = directions(pair)
    C = rows_of("profile", v)
    full = dense_system(A.mean(0), v, C) if name == "balanced" else stacked_ensemble(A, v, C)
    values = ltv.hankel_singular_values(full).values[1:]
    small, next_one = np.sort(values[:, 1] / values[:, 0])[:2]
    method = methods.METHODS[name](rtol=float(np.sqrt(small * next_one)))
    table = lm.compare(
        tiny, splits, {"loose": method}, [2], concept=pair, n_each=2, ablate_eps=False,
        n_bootstrap=2,
    )  # fmt: skip
    method = methods.METHODS[name](order=2, rtol=method.rtol)
    system = lm.identify(tiny, splits.operating, pair, method, readout="profile")
    kept = system.order.drop_vars("order", errors="ignore")
    assert kept.values[1:].min() < kept.values.max()
    upper = float(ltv.error_bounds(full, kept).upper)
    assert upper > 1.0001 * float(ltv.error_bounds(full, int(kept.max())).upper)
    proved = {"balanced": "mean_system", "ensemble": "mean_response"}[name]
    row = table.isel(basis=0, order=0)
    np.testing.assert_allclose(row.upper.sel(reference=proved), upper, rtol=1e-4)
    assert int(row.upper.notnull().sum()) == 1
    first = splits.held_out.first(2)
    each = lm.identify(tiny, first, pair, method, readout="profile", per_prompt=True)
    for prompt in range(2):
        own = dense_system(whole_sequence.jacobians(tiny.hf, first.ids[prompt]), v, C)
        kept = each.order.isel(prompt=prompt).drop_vars("order", errors="ignore")
        mine = table.prompt_upper[0, 0, prompt]
        np.testing.assert_allclose(mine, ltv.error_bounds(own, kept).upper, rtol=1e-4)


def test_a_method_that_finds_nothing_at_an_order_does_not_stop_the_others(splits):
    """Blocks that do nothing: what is reached first is not what is read first (two_sided)."""
    hf = TINY["gpt2"]().double()
    for block in hf.transformer.h:
        for linear in (block.attn.c_proj, block.mlp.c_proj):
            linear.weight.data.zero_()
            linear.bias.data.zero_()
    v = np.zeros((4, 16))
    v[[0, 1], 0] = v[[2, 3], 1] = 1.0
    concept = xr.Dataset({"direction": (("depth", "feature"), v)})
    table = lm.compare(
        lm.DepthModel(hf), splits, ["balanced", "two_sided"], [1, 2], concept=concept, eps=0.01,
        n_each=3, n_bootstrap=5, ablate_eps=False,
    )  # fmt: skip
    lost = table.sel(basis="two_sided").relative_l2.isnull().all(["injection", "layers", "bound"])
    known = table.sel(basis="balanced").error.notnull()
    assert bool(known.all())
    if bool(lost.any()):
        assert "order" in table.attrs["note_two_sided"]
        assert bool(table.sel(basis_each="two_sided").prompt_error.isnull().any())
    assert bool(lost.sel(order=1))
