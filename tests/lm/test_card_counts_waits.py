"""Where the host waits for an accelerator: per run or per batch, never per layer.

Counted on a pretend card, see tests/card.py.
"""

from functools import cache

import numpy as np
import pytest
import torch
import xarray as xr

from depthsys import lm, ltv
from depthsys.lm import exact, orthonormal
from depthsys.lm.finite import NAMED
from depthsys.ltv.basis import extended
from tests import card
from tests.conftest import TINY
from tests.lm.conftest import labelled_ids, spoil_states
from tests.lm.every_function import assert_same

card.setup()

H = 16
BATCHES = 3
IDS = [[1 + t % 49 for t in row] for row in labelled_ids(40, 0).ids]
NOWHERE = lm.Budget(device=0, host=0, file=0)


@pytest.fixture(autouse=True, scope="module")
def batches_as_on_a_cpu():
    """Several of them: the card has room for all prompts in one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("depthsys.lm.at_once._share", lambda _: None)
        yield


@cache
def model_of(n_layers: int, device: str = card.NAME, dtype: str = "float32") -> lm.DepthModel:
    hf = TINY["llama"](num_hidden_layers=n_layers)
    return lm.DepthModel((hf.double() if dtype == "float64" else hf).to(device))


@cache
def run_of(n_layers: int, device: str = card.NAME, dtype: str = "float32") -> lm.Run:
    run = model_of(n_layers, device, dtype).run(IDS)
    assert len(run.numbers) == BATCHES
    lm.linear_gains(run, concept_of(n_layers))  # what is made once and kept
    return run


def concept_of(n_layers: int, n_inputs: int = 1) -> xr.Dataset:
    v = np.random.default_rng(0).standard_normal((n_layers + 1, n_inputs, H))
    v /= np.linalg.norm(v, axis=-1, keepdims=True)
    return xr.Dataset({"direction": (("depth", "input", "feature"), v)}).squeeze()


def plan_of(run: lm.Run) -> xr.DataArray:
    return xr.DataArray(np.ones((2, run.n_layers)), dims=("schedule", "layer"))


def rows_of(concept: xr.Dataset) -> xr.DataArray:
    return concept.direction[:-1].rename(depth="layer").expand_dims("direction")


def energies_of(run: lm.Run, concept: xr.Dataset) -> xr.Dataset:
    return lm.required_energy(run, concept, plan_of(run), 0.5, amplitude=0.05, n_bootstrap=2)


# What a function asks of the card: most waits (copies to the host included), copies to the card,
# each in all and not per layer, and launches per layer and batch. Those are what they were when the
# host waited, and 5 % more; where the recursion over depth was numpy's, its launches are added.
WORKS = {
    "prefill": (lambda run, _: run.model.run(IDS), 7, 4, 65.0),
    "states": (lambda run, _: run.states, 3, 0, 0.3),
    "measured gains": (lm.measure_gains, 14, 4, 63.0),
    "linear gains": (lm.linear_gains, 11, 6, 132.0),
    "ensemble": (lm.identify, 5, 6, 138.0),
    "krylov": (lambda run, c: lm.identify(run, c, lm.Krylov(4)), 6, 4, 203.0),
    "balanced": (lambda run, c: lm.identify(run, c, lm.Balanced(4)), 7, 4, 345.0),
    "profile": (lambda run, c: lm.exact_system(run, c, readout="profile"), 7, 4, 355.0),
    "arnoldi": (lambda run, c: lm.identify(run, c, lm.Arnoldi(4)), 10, 7, 370.0),
    "pod": (lambda run, c: lm.identify(run, c, lm.Pod(4)), 15, 8, 270.0),
    "a system each": (
        lambda run, c: lm.identify(run, c, lm.Krylov(4), per_prompt=True), 16, 14, 290.0,
    ),
    "play": (lambda run, c: lm.play(run, c, plan_of(run)), 11, 5, 55.0),
    "play at every token": (
        lambda run, c: lm.play(run, c, plan_of(run), tokens="every"), 11, 8, 162.0,
    ),
    "free directions": (lambda run, c: lm.free_directions(run, c), 7, 3, 127.0),
    "mean products": (lambda run, c: lm.mean_jvp(run, rows_of(c)), 3, 2, 195.0),
}  # fmt: skip


def counted(work, run, concept) -> card.Counts:
    with card.counted() as counts:
        work(run, concept)
    return counts


@pytest.mark.parametrize("name", WORKS)
def test_the_host_waits_per_run_and_not_per_layer(name):
    work, waits, copies, launches = WORKS[name]
    found = [counted(work, run_of(n), concept_of(n)) for n in (3, 6)]
    for counts in found:
        assert counts.waits <= waits, counts.places
        assert counts.to_device <= copies, counts.places
    assert found[0].places.total() == found[1].places.total(), found[1].places - found[0].places
    assert found[1].n_launches / (6 * BATCHES) <= launches


@pytest.mark.parametrize("name", ["krylov", "ensemble"])
def test_without_contexts_hidden_states_stay_on_the_device(name):
    """The dry runs of the batches come to it, and the check of the states."""
    work = WORKS[name][0]
    found = []
    for n in (3, 6):
        run = model_of(n).run(IDS, contexts=False)
        assert run.place_of(10**6) == "device"
        found.append(counted(work, run, concept_of(n)))
        assert found[-1].waits <= 8 * BATCHES
    assert found[0].places.total() == found[1].places.total(), found[1].places - found[0].places


def test_jacobians_wait_for_their_result_and_nothing_else():
    """It is written layer by layer: the mean Jacobian, and the mean states."""
    for n in (3, 6):
        assert counted(lambda run, _: lm.jacobians(run), run_of(n), None).waits <= 2 * n


def test_a_search_of_energies_waits_per_evaluation_and_batch():
    found = []
    for n in (3, 6):
        search = energies_of(run_of(n), concept_of(n))
        with card.counted() as counts:
            energies_of(run_of(n), concept_of(n))
        found.append(counts.waits)
        evaluations = int(search.evaluations.max())
        assert counts.waits <= (evaluations + 2) * (2 * 2 * BATCHES + 3)


# ------------------------------------------------------------------------------- finite states


@pytest.fixture
def overflowing(monkeypatch):
    """Overflow behind layer 1, in the state of prompts 3 and 7."""

    def make(device: str):
        model = model_of(3, device)
        spoil_states(monkeypatch, 1, (3, 7))
        return model

    return make


MESSAGE = "finite states; got a non-finite one after layer 1, of the prompts number {}. Use float32"


@pytest.mark.parametrize("device", ["cpu", card.NAME])
@pytest.mark.parametrize(
    "budget", [lm.Budget(), lm.Budget(device=0), lm.Budget(device=0, host=0)], ids=str
)
def test_states_that_are_not_finite_are_refused_at_prefill(overflowing, device, budget):
    # the card looks at all prompts, the CPU at the batch that comes first
    which = "3, 7" if device == card.NAME else r"(3, 7|3|7)"
    with pytest.raises(FloatingPointError, match=MESSAGE.format(which)):
        overflowing(device).run(IDS, budget=budget)


@pytest.mark.parametrize("device", ["cpu", card.NAME])
@pytest.mark.parametrize(
    "work",
    [
        lambda run, _: run.states,
        lambda run, _: lm.jacobians(run),
        lambda run, _: list(run.first(len(IDS))),
        lm.linear_gains,
        lm.identify,
        lambda run, c: lm.identify(run, c, lm.Krylov(4)),
        lambda run, c: lm.identify(run, c, lm.Balanced(4)),
        lambda run, c: lm.identify(run, c, lm.Arnoldi(4)),
    ],
    ids=["states", "jacobians", "first", "gains", "ensemble", "krylov", "balanced", "arnoldi"],
)
def test_states_that_are_not_finite_are_refused_without_contexts(overflowing, device, work):
    run = overflowing(device).run(IDS, budget=NOWHERE)
    for _ in range(2):  # it is not forgotten
        with pytest.raises(FloatingPointError, match=MESSAGE.format(r"(3, 7|3|7)")):
            work(run, concept_of(3))


def test_a_prompt_is_named_once_however_often_it_was_tried(overflowing):
    run = overflowing(card.NAME).run(IDS, budget=NOWHERE)
    (number,) = (n for n, prompts in enumerate(run.numbers) if 3 in prompts)
    named: list[str] = []
    for _ in range(3):
        with pytest.raises(FloatingPointError) as caught:
            run.batch(number)
        named.append(str(caught.value))
    assert named[1:] == named[:1] * 2


@pytest.mark.parametrize("per_prompt", [False, True])
def test_a_jacobian_that_is_not_finite_is_put_down_to_its_state(per_prompt, monkeypatch):
    model = model_of(3)
    spoil_states(monkeypatch, 0, (3,), np.nan)
    run = model.run(IDS, budget=NOWHERE)
    with pytest.raises(FloatingPointError, match=r"finite states.*after layer 0.*number 3\."):
        lm.jacobians(run, per_prompt=per_prompt)


def test_a_run_that_failed_gives_no_states_afterwards(overflowing):
    run = lm.Run.later(overflowing(card.NAME), IDS)
    for _ in range(2):
        with pytest.raises(FloatingPointError, match=MESSAGE.format("3, 7")):
            assert run.states.size


def test_a_message_does_not_name_all_prompts(overflowing, monkeypatch):
    monkeypatch.setattr("depthsys.lm.finite.NAMED", 1)
    assert NAMED > 1
    with pytest.raises(FloatingPointError, match=r"of the prompts number 3 and 1 more\. Use"):
        overflowing(card.NAME).run(IDS)


# ------------------------------------------------------------------------------- places


@pytest.mark.slow  # those of the host do not: test_contexts
def test_results_on_the_card_do_not_depend_on_the_place():
    model, concept = model_of(3), concept_of(3)
    budgets = {
        "device": lm.Budget(),
        "host": lm.Budget(device=0),
        "file": lm.Budget(device=0, host=0),
        "again": NOWHERE,
    }
    runs = {place: model.run(IDS, budget=budget) for place, budget in budgets.items()}
    assert {place: run.place for place, run in runs.items()} == {p: p for p in budgets}
    for name in ("states", "krylov"):
        found = {place: WORKS[name][0](run, concept) for place, run in runs.items()}
        for place in budgets:
            assert_same(found[place], found["device"])


def test_memory_of_the_card_is_asked_for(monkeypatch):
    module = card._Module
    run = run_of(3)
    assert run.place == "device"
    monkeypatch.setattr(module, "free", 4 * run.nbytes)
    monkeypatch.setattr(module, "memory_reserved", lambda *_: 100)
    assert lm.Budget().place(run.nbytes + 25, run.model.device) == "device"
    assert lm.Budget().place(run.nbytes + 26, run.model.device) == "host"


# ------------------------------------------------------------------------------- identification


@pytest.fixture
def on_host(monkeypatch):
    """A list that fills where identification falls back to the host."""
    made = []
    original = orthonormal.OnHost.__init__

    def init(self, *args):
        made.append(self)
        original(self, *args)

    monkeypatch.setattr(orthonormal.OnHost, "__init__", init)
    return made


METHODS = [
    lm.Krylov(3), lm.Balanced(3), lm.TwoSided(3), lm.Arnoldi(3), lm.Pod(3), lm.Adjoint(3),
    lm.Random(3), lm.Ensemble(3),
]  # fmt: skip


def same_system(ours: xr.Dataset, expected: xr.Dataset, tolerance: float) -> None:
    """The same input-output map and order; coordinates of the state may differ."""
    xr.testing.assert_equal(ours.order, expected.order)
    for name in ("gain_full", "y_ref", "state_norm"):
        limit = tolerance * float(abs(expected[name]).max())
        np.testing.assert_allclose(ours[name], expected[name], rtol=0, atol=limit, err_msg=name)
    maps = [ltv.io_matrix(system) for system in (ours, expected)]
    limit = tolerance * float(abs(maps[1]).max())
    np.testing.assert_allclose(*maps, rtol=0, atol=limit)


# of every prompt and of every depth it is the same sweep with more outputs: by default for one
# method of each kind
QUICK = {"mean": tuple(m.name for m in METHODS), "each": ("ensemble", "krylov"),
         "profile": ("balanced",)}  # fmt: skip
SYSTEMS = [
    pytest.param(kind, method, marks=[] if method.name in names else [pytest.mark.slow])
    for kind, names in QUICK.items()
    for method in METHODS
]


@pytest.mark.parametrize(("kind", "method"), SYSTEMS, ids=lambda p: getattr(p, "name", p))
def test_the_card_finds_the_systems_of_the_host(method, kind, on_host):
    per_prompt, readout = kind == "each", "profile" if kind == "profile" else "concept"
    found = []
    for device in (card.NAME, "cpu"):
        on_host.clear()
        run = run_of(4, device, "float64")
        options = {"per_prompt": per_prompt, "readout": readout}
        found.append(lm.identify(run, concept_of(4), method, **options))
        assert (device == "cpu") or not on_host
    # rotary tables and norms are float32, see test_gpu
    same_system(*found, tolerance=1e-5)


def test_the_card_finds_what_the_jacobians_say(on_host):
    """The oracle is `ltv` on all of the mean Jacobians."""
    run, concept = run_of(4, dtype="float64"), concept_of(4)
    J = lm.jacobians(run)["A"].values
    v = concept.direction.values
    expected, carried = [], None
    for layer in range(4):
        carried = J[layer] @ v[layer]
        for later in range(layer + 1, 4):
            carried = J[later] @ carried
        expected.append(v[4] @ carried)
    for observable in (False, True):
        small = lm.exact_system(run, concept, observable=observable)
        assert not on_host
        np.testing.assert_allclose(ltv.gains(small).values.ravel(), expected, atol=1e-6)
        V = small.V.transpose("depth", "feature", "state").values
        for k, n in enumerate(small.order.values):
            np.testing.assert_allclose(V[k, :, :n].T @ V[k, :, :n], np.eye(n), atol=1e-13)
            inside = V[k] @ (V[k].T @ v[k])
            np.testing.assert_allclose(inside, v[k], atol=1e-12)
            assert not V[k, :, n:].any()
        for layer in range(4):
            A = small.A.isel(layer=layer).values
            np.testing.assert_allclose(A, V[layer + 1].T @ J[layer] @ V[layer], atol=1e-6)


# of three inputs one is missing and one is there twice; with one alone that one is missing
DIRECTIONS = [
    pytest.param(
        method, n, marks=[] if n == 3 and method.name == "balanced" else [pytest.mark.slow]
    )
    for method in METHODS[:5]
    for n in (1, 3)
]


@pytest.mark.parametrize(("method", "n_inputs"), DIRECTIONS, ids=lambda p: getattr(p, "name", p))
def test_missing_and_dependent_directions_are_known_beforehand(method, n_inputs, on_host):
    concept = concept_of(4, n_inputs)
    v = concept.direction.values.reshape(5, n_inputs, H)
    v[0, 0] = np.nan  # a missing one
    if n_inputs == 3:
        v[2, 2] = v[2, 0]  # and one twice
    found = []
    for device in (card.NAME, "cpu"):
        on_host.clear()
        found.append(lm.identify(run_of(4, device, "float64"), concept, method))
        if device == card.NAME:
            assert not on_host
    same_system(*found, tolerance=1e-5)


@pytest.mark.slow  # a corner of the one above
def test_a_dependent_image_before_an_independent_one_is_left_to_the_host(on_host):
    """Three inputs whose images at depth 1 are dependent through the directions there."""
    concept = concept_of(4, 3)
    v = concept.direction.values
    image = lm.jacobians(run_of(4, "cpu", "float64"))["A"].values[0] @ v[0].T
    v[1, 0] = image[:, 0] - image[:, 1]
    v[1, 0] /= np.linalg.norm(v[1, 0])
    systems = []
    for device in (card.NAME, "cpu"):
        on_host.clear()
        systems.append(
            lm.exact_system(run_of(4, device, "float64"), concept, observable=False, rtol=1e-6)
        )
        assert len(on_host) == 1
    same_system(*systems, tolerance=1e-5)
    assert systems[0].order.values[1] == 5


def test_the_sweep_of_the_card_is_one_sweep(monkeypatch):
    """Not a second one where nothing went wrong."""
    sweeps = []
    original = lm.Run.sweep
    monkeypatch.setattr(lm.Run, "sweep", lambda *a, **k: sweeps.append(1) or original(*a, **k))
    lm.exact_system(run_of(3), concept_of(3))
    assert sweeps == [1]
    assert exact.found_with is orthonormal.found_with


@pytest.mark.parametrize("is_whole", [False, True])
@pytest.mark.parametrize("held", [0, 3])
@pytest.mark.parametrize("shape", ["independent", "held", "short", "many"])
def test_new_columns_are_those_of_the_host(is_whole, held, shape):
    """Against column after column, as the host does it."""
    rng = np.random.default_rng(3)
    Q = np.linalg.qr(rng.standard_normal((2, 12, held)))[0]
    columns = rng.standard_normal((2, 12, 14 - held if shape == "many" else 5))
    columns = columns[..., :12]
    if shape == "held":  # in the span of what is held, or missing
        columns[..., 1] = Q @ rng.standard_normal(held) if held else 0.0
        columns[0, :, 3] = 0.0
    if shape == "short":
        columns[..., 2] *= 1e-30
        columns[..., 4] *= 1e30
    new, trouble = orthonormal.new_columns(
        torch.as_tensor(Q), torch.as_tensor(columns), 1e-9, is_whole=is_whole
    )
    assert not trouble
    expected = extended(Q, columns, 1e-9)[..., held:]
    found = torch.cat([torch.as_tensor(Q), new], dim=-1).numpy()
    for mine, theirs in zip(new.numpy(), expected, strict=True):
        mine, theirs = (c[:, (c != 0).any(0)] for c in (mine, theirs))
        np.testing.assert_allclose(mine, theirs, atol=1e-12)
        assert not (mine == theirs).all()  # by another way
    exists = (found != 0).any(-2)
    gram = found.swapaxes(-1, -2) @ found
    np.testing.assert_allclose(gram, np.eye(found.shape[-1]) * exists[:, None], atol=1e-13)


def test_nearly_dependent_columns_are_orthonormal_to_rounding():
    rng = np.random.default_rng(4)
    Q = np.linalg.qr(rng.standard_normal((1, 40, 6)))[0]
    near = Q @ rng.standard_normal((1, 6, 4)) + 1e-7 * rng.standard_normal((1, 40, 4))
    near[..., 3] = near[..., 2] + 1e-8 * rng.standard_normal(40)
    for is_whole in (False, True):
        given = torch.as_tensor(Q), torch.as_tensor(near)
        new, trouble = orthonormal.new_columns(*given, 1e-12, is_whole=is_whole)
        assert not trouble
        whole = torch.cat([given[0], new], dim=-1)[0].numpy()
        np.testing.assert_allclose(whole.T @ whole, np.eye(10), atol=1e-13)


def test_a_dependent_column_before_an_independent_one_is_trouble():
    rng = np.random.default_rng(5)
    columns = torch.as_tensor(rng.standard_normal((1, 12, 4)))
    columns[..., 2] = columns[..., 0] + columns[..., 1]
    for Q in (
        columns[..., :0],
        torch.linalg.qr(torch.as_tensor(rng.standard_normal((1, 12, 2))))[0],
    ):
        assert orthonormal.new_columns(Q, columns, 1e-9)[1]
        assert not orthonormal.new_columns(Q, columns[..., :3], 1e-9)[1]
