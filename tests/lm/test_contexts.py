"""Where frozen context lies changes no result; what each place may take; memory is flat."""

import gc
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr

from depthsys import lm
from depthsys.lm import contexts, prompts
from depthsys.lm.hf.attention import FrozenCache, RecordingCache
from depthsys.lm.hf.weights import Weights
from tests.conftest import TINY
from tests.lm import every_function, families
from tests.lm.conftest import LabelledIds, batches_of_32, labelled_ids

NOWHERE = lm.Budget(device=0, host=0, file=0)
PLACES = {"host": lm.Budget(), "file": lm.Budget(device=0, host=0), "again": NOWHERE}
L, H = 3, 16


@pytest.fixture(
    scope="module", params=["gpt2", pytest.param("llama", marks=pytest.mark.slow)], ids=str
)
def runs(request):
    """The same prompts with their context in every place, and a call of every function."""
    model = lm.DepthModel(TINY[request.param]().double(), name=request.param)
    texts = labelled_ids(4, 2)
    v = np.random.default_rng(0).standard_normal((L + 1, H))
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    concept = xr.Dataset({"direction": (("depth", "feature"), v)})
    found = {place: model.run(texts, budget=budget) for place, budget in PLACES.items()}
    assert {place: run.place for place, run in found.items()} == {p: p for p in PLACES}
    return found, every_function.works(concept, lm.identify(found["host"], concept))


@pytest.mark.parametrize("name", every_function.EACH_ONCE)
def test_results_do_not_depend_on_the_place(runs, name):
    """To the bit: the same operations on the same numbers."""
    found, works = runs
    expected = works[name](found["host"])
    for place in ("file", "again"):
        every_function.assert_same(works[name](found[place]), expected)


def test_maps_and_states_do_not_depend_on_the_place(runs):
    found, _ = runs
    V = np.random.default_rng(1).standard_normal((4, 2, H))
    for run_ in found.values():
        np.testing.assert_array_equal(run_.states, found["host"].states)
        np.testing.assert_array_equal(run_.jvp(1, V), found["host"].jvp(1, V))
        np.testing.assert_array_equal(run_.transition(0, 3, V), found["host"].transition(0, 3, V))
        np.testing.assert_array_equal(run_.jacobian(2), found["host"].jacobian(2))
        operators = [r.linear_operator(1) @ V[0].T for r in (run_, found["host"])]
        np.testing.assert_array_equal(*operators)


def test_margins_of_experts_do_not_depend_on_the_place():
    model = lm.DepthModel(families.make("mixtral"))
    ids = labelled_ids(6, 2).ids
    margins = [model.run(ids, budget=budget).router_margin for budget in PLACES.values()]
    for margin in margins[1:]:
        xr.testing.assert_identical(margin, margins[0])


@pytest.mark.slow  # their parts do not: above
def test_comparisons_do_not_depend_on_the_place(concept):
    model = lm.DepthModel(TINY["gpt2"]().double())
    parts = {name: labelled_ids(4, seed) for seed, name in enumerate(prompts.SPLITS)}
    tables = []
    for budget in PLACES.values():
        splits = SimpleNamespace(**{n: model.run(t, budget=budget) for n, t in parts.items()})
        table = lm.compare(model, splits, ["ensemble", "pod"], [1], n_each=2, n_bootstrap=5)
        tables.append(table.drop_vars(["seconds", "prompt_seconds"]))
    # without contexts the first prompts of a batch are prefilled without the others, in matrices of
    # another size: there the same means to rounding
    each = [name for name in tables[0] if str(name).startswith("prompt_")]
    assert len(each) == 7
    for table, rtol in zip(tables[1:], (0.0, 1e-8), strict=True):
        every_function.assert_same(table.drop_vars(each), tables[0].drop_vars(each))
        every_function.assert_same(table[each], tables[0][each], rtol)


# ------------------------------------------------------------------------------- budgets


def needed(model, ids):
    """Bytes of keys and values of all tokens but the last, and of the states, by hand.

    Prompts run in batches of exactly one length here, so that nothing is padding.
    """
    caches = sum(len(row) - 1 for row in ids) * L * 2 * H * 8  # GPT-2: H keys and values a token
    return caches, len(ids) * (L + 1) * H * 8


def test_a_place_is_taken_that_fits_to_the_byte():
    model = lm.DepthModel(TINY["gpt2"]().double(), left_padding=False)
    ids = labelled_ids(8, 0).ids
    caches, states = needed(model, ids)
    size = caches + states
    for budget, place in (
        (lm.Budget(host=size), "host"),
        (lm.Budget(host=size - 1), "file"),
        (lm.Budget(host=size - 1, file=size), "file"),
        (lm.Budget(host=size - 1, file=size - 1), "again"),
        (lm.Budget(host=0, file=size), "file"),
        (lm.Budget(device=10**12, host=0, file=0), "again"),  # the CPU is the host
    ):
        found = model.run(ids, budget=budget)
        assert found.place == place, budget
        assert found.nbytes == (0 if place == "again" else caches)
    # states alone fit where contexts do not
    assert model.run(ids, budget=lm.Budget(0, states, 0))._states._spool is None
    assert model.run(ids, budget=lm.Budget(0, states - 1, 0))._states._spool is not None


def test_a_window_needs_no_more_than_it_is_given():
    """A sliding window keeps less than all tokens: the estimate may be above, never below."""
    model = lm.DepthModel(families.make("mistral", window=4), left_padding=False)
    ids = [[*range(1, 13)]] * 3 + [[1, 2, 3]] * 2
    size = model.run(ids).nbytes + 5 * (model.n_layers + 1) * model.n_features * 8
    assert model.run(ids, budget=lm.Budget(0, size - 1, 0)).place == "again"


def test_device_comes_before_host(monkeypatch):
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    monkeypatch.setattr(contexts, "free_on", lambda device: 400 if device.type == "cuda" else 0)
    monkeypatch.setattr(contexts, "available_memory", lambda: 4000)
    assert lm.Budget().place(100, cuda) == "device"  # a quarter of what is free
    assert lm.Budget().place(101, cuda) == "host"
    assert lm.Budget().place(100, cpu) == "host"
    assert lm.Budget(device=0).place(100, cuda) == "host"
    assert lm.Budget(device=500).place(500, cuda) == "device"
    assert lm.Budget(device=0, host=0, file=10**6).place(10**6, cuda) == "file"
    assert lm.Budget(device=0, host=0, file=0).place(1, cuda) == "again"
    monkeypatch.setattr(contexts, "available_memory", lambda: None)  # unknown: not used
    assert lm.Budget(file=0).place(1, cpu) == "again"
    assert lm.Budget(host=1, file=0).place(1, cpu) == "host"


@pytest.mark.parametrize("name", ["device", "host", "file", "linearised"])
@pytest.mark.parametrize("value", [-1, float("nan")])
def test_a_negative_budget_is_refused(name, value):
    message = f"`budget` must hold bytes >= 0; got {value} for {name}. None means a quarter"
    with pytest.raises(ValueError, match=message):
        lm.Budget(**{name: value})


def test_contexts_are_kept_only_where_they_are_asked_for():
    model = lm.DepthModel(TINY["gpt2"]().double())
    found = model.run(labelled_ids(6, 2), contexts=False)
    assert found.place == "again"
    assert found.nbytes == 0
    lm.mean_difference(found)
    assert found.nbytes == 0
    found.prefill()
    assert found.place == "host"
    assert found.nbytes > 0


# ------------------------------------------------------------------------------- keeping


@pytest.mark.parametrize("place", ["device", "host", "file"])
def test_contexts_come_back_as_they_were(place):
    kept = contexts.Contexts(place)
    generator = torch.Generator().manual_seed(0)
    caches = {}
    for batch, layer, n in ((0, 0, 3), (1, 0, 0), (0, 1, 5), (1, 1, 1)):
        shape = (2, 4, n, 6)  # keys and values of unlike width, and no context at all
        key, value = torch.randn(shape, generator=generator), torch.randn(2, 4, n, 5)
        caches[batch, layer] = key.clone(), value.clone()
        kept.put(batch, layer, FrozenCache(key, value))
    for (batch, layer), (key, value) in caches.items():
        found = kept.get(batch, layer)
        assert torch.equal(found.key, key)
        assert torch.equal(found.value, value)


def test_files_of_a_run_are_closed_when_it_goes():
    model = lm.DepthModel(TINY["gpt2"]().double())
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        found = model.run([[1, 2, 3], [4]], budget=lm.Budget(device=0, host=0))
        file = found._contexts._store._spool._file
        sweep = model.run([[1, 2, 3], [4]], budget=NOWHERE).sweep()
        next(sweep.forward())
        spool = sweep._again.waiting._spool._file
        del found, sweep
        gc.collect()
        assert file.closed
        assert spool.closed


# ------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("place", list(PLACES))
def test_weights_changed_after_the_run_are_noticed(concept, place):
    model = lm.DepthModel(TINY["gpt2"]().double())
    found = model.run(labelled_ids(6, 2), budget=PLACES[place])
    works = every_function.works(concept, lm.identify(found, concept))
    with torch.no_grad():
        model.hf.transformer.h[1].mlp.c_fc.weight.mul_(1.5)
    for act in (
        *(lambda work=work: work(found) for work in works.values()),
        lambda: found.jvp(1, np.eye(H)),
        lambda: found.linear_operator(1),
        lambda: found.states,
        lambda: found.router_margin,
        lambda: found.sweep(),
    ):
        with pytest.raises(ValueError, match="`model` must keep the weights it was wrapped with"):
            act()


@pytest.mark.parametrize("place", list(PLACES))
def test_blocks_taken_before_the_weights_changed_are_refused(place):
    """A frozen block outlives the call that gave it: it is checked when it is used."""
    model = lm.DepthModel(TINY["gpt2"]().double())
    found = model.run(labelled_ids(6, 2), budget=PLACES[place])
    batch, operator = found.batches[0], found.linear_operator(1)
    block, x = batch.blocks[1], batch.blocks[1].x[:, None]
    some = batch.only(batch.prompts == batch.prompts[0]).blocks[1]
    before = block(x).clone()
    with torch.no_grad():
        model.hf.transformer.h[0].mlp.c_fc.weight.mul_(1.5)  # not even of this block
    eye = torch.eye(H, dtype=torch.float64)
    for act in (
        lambda: block(x),
        lambda: block.linearised("mlp"),
        lambda: block.jvp(eye),
        lambda: block.vjp(eye),
        lambda: block.jacobian(),
        lambda: block.only(int(batch.prompts[0])).jacobian(),
        lambda: some.jacobian(),
        lambda: operator @ np.eye(H),
        lambda: operator.T @ np.eye(H)[0],
    ):
        with pytest.raises(ValueError, match="`model` must keep the weights it was wrapped with"):
            act()
    again = lm.DepthModel(model.hf).run(labelled_ids(6, 2)).batches[0].blocks[1]
    assert not torch.allclose(again(again.x[:, None]), before)  # it would have been wrong


def test_what_counts_as_a_change_of_weights():
    def changed(change) -> bool:
        hf = TINY["gpt2"]()
        weights = Weights(hf)
        weights.check()
        change(hf)
        return weights.have_changed

    mlp = lambda hf: hf.transformer.h[1].mlp  # noqa: E731
    parameter = torch.nn.Parameter(torch.zeros(64))

    def write(hf):
        with torch.no_grad():
            mlp(hf).c_fc.bias.add_(1)

    def point_elsewhere(hf):
        mlp(hf).c_fc.bias.data = torch.zeros(64)

    for change in (
        write,
        point_elsewhere,
        lambda hf: setattr(mlp(hf).c_fc, "bias", parameter),
        lambda hf: mlp(hf).c_fc.register_parameter("more", parameter),
        lambda hf: setattr(mlp(hf).c_fc, "bias", None),
        lambda hf: setattr(mlp(hf), "act", torch.nn.ReLU()),
        lambda hf: hf.transformer.h.__delitem__(2),
        lambda hf: hf.double(),
    ):
        assert changed(change)
    for nothing in (
        lambda hf: hf.eval(),
        lambda hf: hf.requires_grad_(False),
        lambda hf: hf(torch.tensor([[1, 2]])),
        lambda hf: mlp(hf).register_forward_hook(lambda *_: None),  # seen elsewhere
    ):
        assert not changed(nothing)


# ------------------------------------------------------------------------------- memory

FLAT = (
    *("linear_gains", "measure_gains", "mean_jvp", "mean_difference"),
    *(pytest.param(n, marks=pytest.mark.slow) for n in ("play", "required_energy", "exact_system")),
)


def peaks_of(name, budget, concept, monkeypatch, live_bytes) -> list[int]:
    """Most bytes of all tensors alive when the last block passes a batch of whole sequences.

    Of 128 and of 256 prompts: four and eight batches of one length.
    """
    model = lm.DepthModel(TINY["gpt2"]())
    work = every_function.works(concept, lm.identify(model, [[1, 2, 3], [4]], concept))[name]
    batches_of_32(monkeypatch)
    monkeypatch.setattr("depthsys.lm.sweep.CALLS_HELD", 2)  # a number that does not grow either
    original, peaks = model.blocks.call, []

    def weighing(layer, call, hidden, cache):
        if layer == L - 1 and isinstance(cache, RecordingCache):
            peaks[-1] = max(peaks[-1], live_bytes())
        return original(layer, call, hidden, cache)

    monkeypatch.setattr(model.blocks, "call", weighing)
    for count in (128, 256):
        # two tokens at the end: the class means differ
        ids = [[i % 50, 7, 3, 4, 5, 6 + i % 2] for i in range(count)]
        peaks.append(0)
        work(model.run(LabelledIds(ids, np.arange(count) % 2), budget=budget))
    assert peaks[0] > 32 * 6 * H * 4  # it sees a batch of hidden states
    return peaks


@pytest.mark.parametrize("name", FLAT)
def test_memory_is_flat_in_the_number_of_prompts(concept, monkeypatch, name, live_bytes):
    peaks = peaks_of(name, NOWHERE, concept, monkeypatch, live_bytes)
    assert peaks[1] - peaks[0] < 32 * 6 * H * 4


@pytest.mark.parametrize("linearised", [0, None])
def test_memory_of_a_held_layer_is_what_the_budget_says(
    concept, monkeypatch, live_bytes, linearised
):
    """Without it all is flat; with it the contexts of one layer of all prompts are there."""
    budget = replace(NOWHERE, linearised=linearised)
    peaks = peaks_of("identify, arnoldi", budget, concept, monkeypatch, live_bytes)
    grown = peaks[1] - peaks[0]
    if linearised == 0:
        assert grown < 32 * 6 * H * 4
    else:
        assert grown > 128 * 5 * 2 * H * 4


def test_memory_of_contexts_is_not_flat_and_this_test_would_see_it(monkeypatch, live_bytes):
    model = lm.DepthModel(TINY["gpt2"]())
    batches_of_32(monkeypatch)
    sizes = []
    for count in (128, 256):
        found = model.run([[i % 50, 7, 3, 4, 5, 6] for i in range(count)])
        sizes.append(live_bytes())
        assert found.nbytes < sizes[-1]
        del found
    assert sizes[1] - sizes[0] > 128 * 5 * L * 2 * H * 4


def test_the_share_of_what_is_free(monkeypatch):
    """Without a budget a quarter of the memory, and of the disk after it."""
    model = lm.DepthModel(TINY["gpt2"]().double(), left_padding=False)
    ids = labelled_ids(8, 0).ids
    size = sum(needed(model, ids))
    free = {"memory": 4 * size, "disk": 4 * size}
    monkeypatch.setattr(contexts, "available_memory", lambda: free["memory"])
    monkeypatch.setattr(contexts.shutil, "disk_usage", lambda _: SimpleNamespace(free=free["disk"]))
    assert model.run(ids).place == "host"
    free["memory"] -= 4
    assert model.run(ids).place == "file"
    free["disk"] -= 4
    assert model.run(ids).place == "again"
