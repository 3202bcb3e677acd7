"""Models larger than the card: every layer is brought in once per sweep, whatever the batches.

On a machine without a GPU the weights wait in files (accelerate's dispatch reads them from there),
and in the memory of the host for the pretend card of `tests.card`. A *move* is counted where
accelerate hands a weight out, not by the package.
"""

import weakref
from collections import Counter
from functools import cache

import numpy as np
import pytest
import torch
import xarray as xr

from depthsys import lm
from depthsys.lm.directions import directions
from depthsys.lm.hf import residence
from depthsys.lm.push_gradients import push_gradients
from depthsys.lm.readouts import checked_readout
from tests import card
from tests.conftest import TINY
from tests.lm.conftest import labelled_ids, spoil_states
from tests.lm.every_function import NAMES, SEARCHES, Work, assert_same, works

accelerate = pytest.importorskip("accelerate")
DEVICE = card.setup()
L = 3
BLOCKS = {"gpt2": "transformer.h", "llama": "model.layers"}
AROUND = {
    "gpt2": ["transformer.wte", "transformer.wpe", "transformer.drop", "transformer.ln_f"],
    "llama": ["model.embed_tokens", "model.norm", "model.rotary_emb"],
}
NO_CONTEXT = lm.Budget(device=0, host=0, file=0)


def offloaded(family: str, place: str, folder=None):
    """A tiny model whose blocks 1 and 2 wait in a file, or in the host's memory."""
    main = {"disk": "cpu", "cpu": DEVICE}[place]
    blocks = BLOCKS[family]
    places = dict.fromkeys([*AROUND[family], "lm_head", f"{blocks}.0"], main)
    places |= {f"{blocks}.1": place, f"{blocks}.2": place}
    return accelerate.dispatch_model(
        TINY[family]().double(), places, main_device=main, offload_dir=folder
    )


PAIRS = ["gpt2-disk", "llama-cpu"]
# what of the many functions is tried on the card, too
ON_THE_CARD = (
    "measure_gains",
    "linear_gains",
    "optimal_plan",
    "play, every token",
    "play_law",
    "jacobians, each",
    "identify, krylov",
    "identify, pod, each",
    "identify, arnoldi",
)


def on_both(names):
    """Cases of a pair and a name: all names with files, some on the card."""
    cases = [pytest.param(PAIRS[0], name, marks=_marks(name)) for name in names]
    return cases + [
        pytest.param(PAIRS[1], name, marks=[pytest.mark.slow] if name in SEARCHES else [])
        for name in names
        if name in ON_THE_CARD
    ]


def _marks(name):
    """Of methods some are enough by default; searches ask the same sweeps many times."""
    few = ("identify, balanced, each", "identify, ensemble", "identify, krylov")
    is_method = name.startswith("identify") and name not in few
    return [pytest.mark.slow] if is_method or name in SEARCHES else []


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Pairs by name, each made once: pytest asks for one more often than tests of it begin."""

    @cache
    def made(name: str) -> tuple[lm.DepthModel, lm.DepthModel]:
        family, place = name.split("-")
        folder = tmp_path_factory.mktemp("weights")
        return (
            lm.DepthModel(offloaded(family, place, folder), name="m"),
            lm.DepthModel(TINY[family]().double(), name="m"),
        )

    return made


@pytest.fixture(params=PAIRS)
def pair(request, pairs):
    """The same model, with layers that move and without."""
    return pairs(request.param)


@pytest.fixture
def moves(monkeypatch):
    """How often the weights of each layer were handed out by accelerate."""
    counts: Counter[int] = Counter()
    original = accelerate.utils.OffloadedWeightsLoader.__getitem__

    def counting(self, key):
        if key.endswith(("mlp.c_fc.weight", "mlp.up_proj.weight")):
            counts[int(key.split(".")[2])] += 1
        return original(self, key)

    monkeypatch.setattr(accelerate.utils.OffloadedWeightsLoader, "__getitem__", counting)
    return counts


def once(times: int = 1) -> dict[int, int]:
    return dict.fromkeys((1, 2), times)


@pytest.fixture(scope="module")
def many():
    """Prompts of several batches."""
    return labelled_ids(9, 3)


def run_of(model, texts, **options):
    model.left_padding = False  # so that there are many batches
    run = model.run(texts, **options)
    assert len(run.numbers) > 3
    return run


# ------------------------------------------------------------------------------- same numbers


@pytest.fixture(scope="module")
def works_of(concept):
    """The functions by name, each with arguments that are made once for a whole model."""

    @cache
    def made(whole: lm.DepthModel) -> dict[str, Work]:
        system = lm.identify(whole, labelled_ids(8, 0), concept, lm.Ensemble(order=2))
        return works(concept, system)

    return made


@pytest.mark.parametrize(("pair", "name"), on_both(NAMES), indirect=["pair"])
def test_every_function_gives_the_numbers_of_the_whole_model(pair, name, works_of, many):
    work = works_of(pair[1])[name]
    found, expected = (work(run_of(model, many)) for model in pair)
    _assert_near(found, expected)


@pytest.mark.parametrize("options", [{"budget": NO_CONTEXT}, {"contexts": False}], ids=str)
@pytest.mark.parametrize(
    "name",
    [
        "measure_gains",
        "identify, krylov",
        pytest.param("identify, pod, each", marks=pytest.mark.slow),
    ],
)
def test_so_it_does_where_no_context_is_kept(pair, name, options, works_of, many):
    work = works_of(pair[1])[name]
    _assert_near(work(run_of(pair[0], many, **options)), work(run_of(pair[1], many)))


def _assert_near(found, expected):
    if isinstance(found, list):
        for one, other in zip(found, expected, strict=True):
            _assert_near(one, other)
        return
    # the card is another device, and rounding shows in what the contract measured
    own = ("device", "contract")
    found, expected = (_without(one, own) for one in (found, expected))
    for key, value in expected.attrs.items():
        if isinstance(value, float):
            assert found.attrs[key] == pytest.approx(value, rel=1e-6)
    floats = [key for key, value in expected.attrs.items() if isinstance(value, float)]
    assert_same(_without(found, floats), _without(expected, floats), rtol=1e-6)


def _without(one, names):
    return one.drop_attrs(deep=False).assign_attrs(
        {key: value for key, value in one.attrs.items() if key not in names}
    )


@pytest.mark.parametrize(
    "work",
    [
        lambda run, c: lm.linear_gains(run, c),
        lambda run, _: lm.mean_jvp(run, v_of(run)),
        lambda run, _: run.jvp(1, np.eye(run.model.n_features)[:2]),
    ],
    ids=["linear gains", "mean products", "maps"],
)
def test_states_that_are_not_finite_are_refused_where_batches_go_in_step(
    work, many, concept, monkeypatch
):
    """Also on an accelerator, where nobody sees a number until it is asked for."""
    model = lm.DepthModel(offloaded("llama", "cpu"))
    spoil_states(monkeypatch, 1, (3,), np.nan)
    run = run_of(model, many, budget=NO_CONTEXT)
    with pytest.raises(FloatingPointError, match=r"finite states.*after layer 1.*number 3\."):
        work(run, concept)


def v_of(run):
    rows = np.ones((run.n_layers, 1, run.model.n_features))
    return xr.DataArray(rows, dims=("layer", "direction", "feature"))


def test_states_and_maps_of_a_run_are_those_of_the_whole_model(pair, many):
    a, b = (run_of(model, many) for model in pair)
    np.testing.assert_allclose(a.states, b.states, rtol=1e-6, atol=1e-8)
    V = np.random.default_rng(0).standard_normal((3, 16))
    near = {"rtol": 1e-6, "atol": 1e-8}
    for layer in range(L):
        torch.testing.assert_close(a.jvp(layer, V).cpu(), b.jvp(layer, V), **near)
        torch.testing.assert_close(a.jacobian(layer).cpu(), b.jacobian(layer), **near)
        for prompt in (None, 2):
            ours, expected = (run.linear_operator(layer, prompt) for run in (a, b))
            np.testing.assert_allclose(ours.rmatmat(V.T), expected.rmatmat(V.T), **near)
    for adjoint in (False, True):
        carried = [run.transition(0, L, V, adjoint=adjoint).cpu() for run in (a, b)]
        torch.testing.assert_close(*carried, **near)


def test_states_of_all_tokens_come_with_the_prefill(pair, many, moves, concept):
    whole = run_of(pair[1], many, tokens="all")
    moves.clear()
    for budget in (None, lm.Budget(device=0, host=0)):
        run = run_of(pair[0], many, tokens="all", budget=budget)
        assert moves == once()
        moves.clear()
        assert "again" not in (run.place, run.tokens_place)
        found, expected = (r.token_states(2) for r in (run, whole))
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)
        assert not moves
        lm.token_gains(run, concept)
        assert moves == once()
        moves.clear()
    # where contexts have no room, states of all tokens may have some
    room = lm.Budget(device=0, host=0, file=whole.tokens_nbytes, linearised=10**9)
    run = run_of(pair[0], many, tokens="all", budget=room)
    assert (run.tokens_place, run.place) == ("file", "again")
    assert moves == once()
    moves.clear()
    np.testing.assert_allclose(run.token_states(2), whole.token_states(2), rtol=1e-6, atol=1e-8)
    assert not moves
    nowhere = lm.Budget(device=0, host=0, file=0, linearised=10**9)
    run = run_of(pair[0], many, tokens="all", budget=nowhere)
    np.testing.assert_allclose(run.token_states(2), whole.token_states(2), rtol=1e-6, atol=1e-8)
    assert moves == once()


# --------------------------------------------------------------------------------- counts


def test_fingerprint_and_contract_are_those_of_the_whole_model(pair):
    spread, whole = pair
    assert spread.fingerprint == whole.fingerprint
    assert spread.contract.keys() == whole.contract.keys()
    assert spread.blocks.residence.moves
    assert not whole.blocks.residence.moves


MOVES = {
    "measure_gains": 1,
    "measure_gains_at": 1,
    "linear_gains": 1,
    "token_gains": 2,  # forwards, for the states of all tokens, and back
    "measure_token_gains": 3,  # the states, and whole sequences for either lag
    "free_directions": 1,
    "mean_jvp": 1,
    "play": 1,
    "play, every token": 1,
    "play_law": 1,
    "jacobians": 1,
    "jacobians, each": 1,
    "identify, ensemble": 1,
    "identify, krylov": 1,
    "identify, balanced": 2,
    "identify, balanced, each": 2,
    "identify, krylov, each": 1,
    "identify, pod": 2,  # its pushes, and the system
    "identify, arnoldi": 2,
    "identify, arnoldi, each": 2,
    "mean_difference": 0,
}


@pytest.mark.parametrize(("pair", "name"), on_both(MOVES), indirect=["pair"])
def test_every_layer_moves_once_per_sweep_whatever_the_batches(pair, name, works_of, many, moves):
    run = run_of(pair[0], many)
    assert moves == once()  # the prefill
    moves.clear()
    works_of(pair[1])[name](run)
    # the last layer of a way forwards and back may stay for both
    assert moves[1] == MOVES[name]
    assert moves[1] - (MOVES[name] == 2) <= moves[2] <= moves[1]


@pytest.mark.parametrize(
    ("name", "times"), [("identify, krylov", 1), ("identify, balanced", 2), ("jacobians", 1)]
)
def test_a_sweep_that_computes_contexts_again_moves_a_layer_once(
    pair, name, times, works_of, many, moves
):
    run = run_of(pair[0], many, budget=NO_CONTEXT)
    assert moves == {}
    works_of(pair[1])[name](run)
    assert moves == once(times)


def test_replays_without_contexts_move_a_layer_for_them_and_for_the_replay(
    pair, concept, many, moves
):
    run = run_of(pair[0], many, contexts=False)
    run.states_by_batch()
    lm.linear_gains(run, concept)
    assert moves[1] == 2
    moves.clear()
    assert run.states is not None
    assert moves == {}  # they are known


def test_maps_of_a_layer_move_that_layer_alone(pair, many, moves):
    run = run_of(pair[0], many)
    moves.clear()
    run.jacobian(1)
    run.jvp(1, np.eye(16)[:2])
    assert moves == {1: 2}
    run.transition(1, L, np.eye(16)[:2])
    assert moves == {1: 3, 2: 1}


def test_push_gradients_move_a_layer_once_forwards_and_once_back(pair, concept, many, moves):
    run = run_of(pair[0], many)
    v = directions(run.model, concept)
    reader = checked_readout(run.model, "concept", concept)
    moves.clear()
    pushes = np.full((L, 1), 0.1)
    found = push_gradients(run, v, pushes, reader)
    assert moves == {1: 2, 2: 1}  # the last one stays where the way turns back
    other = run_of(pair[1], many)
    expected = push_gradients(other, v.cpu(), pushes, checked_readout(pair[1], "concept", concept))
    np.testing.assert_allclose(found.gradient, expected.gradient, rtol=1e-6)
    moves.clear()
    wanted = run.numbers[0]
    some = push_gradients(run, v, pushes, reader, np.sort(wanted))
    np.testing.assert_allclose(some.y, found.y[np.sort(wanted)])
    assert moves == {1: 2, 2: 1}


def test_batches_beyond_the_budget_go_in_a_second_turn(pair, concept, many, moves):
    """Memory over moves: with nothing to be held every batch goes alone."""
    budget = lm.Budget(linearised=0)
    run = run_of(pair[0], many, budget=budget)
    assert moves == once(len(run.numbers))
    moves.clear()
    _assert_near(lm.measure_gains(run, concept), lm.measure_gains(run_of(pair[1], many), concept))
    assert moves == once(len(run.numbers))


# -------------------------------------------------------------------------------- residence


def test_weights_are_there_within_and_gone_behind_it(pair):
    model = pair[0]
    weight = next(model.hf.base_model.get_submodule(_block(model, 1)).parameters())
    assert weight.is_meta
    at = lambda: next(iter(_parameters(model, 1)))  # noqa: E731
    with model.blocks.resident(1):
        with model.blocks.resident(1):
            assert at().device.type == model.device.type
        assert at().device.type == model.device.type
    assert at() is weight


def test_weights_go_after_an_error_too(pair):
    model = pair[0]
    with pytest.raises(KeyError), model.blocks.resident(1):
        raise KeyError
    assert all(p.is_meta for p in _parameters(model, 1))
    run = model.run([[1, 2, 3]])

    def interrupted():
        with run.sweep() as sweep:
            for layer in sweep.forward():
                if layer.layer == 2:
                    raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert all(p.is_meta for p in _parameters(model, 2))


def test_a_weight_that_cannot_be_read_leaves_nothing_behind(pair, monkeypatch):
    model = pair[0]
    original = accelerate.utils.OffloadedWeightsLoader.__getitem__

    def failing(self, key):
        if "mlp" in key:
            raise OSError("the disk is gone")
        return original(self, key)

    monkeypatch.setattr(accelerate.utils.OffloadedWeightsLoader, "__getitem__", failing)
    with pytest.raises(OSError, match="gone"), model.blocks.resident(1):
        pass
    assert all(p.is_meta for p in _parameters(model, 1))
    monkeypatch.undo()
    with model.blocks.resident(1):
        assert not any(p.is_meta for p in _parameters(model, 1))


def _block(model, layer):
    name = "h" if hasattr(model.hf.base_model, "h") else "layers"
    return f"{name}.{layer}"


def _parameters(model, layer):
    return list(model.hf.base_model.get_submodule(_block(model, layer)).parameters())


# ------------------------------------------------------------------------- changed weights


def test_weights_that_are_changed_where_they_wait_are_refused():
    hf = offloaded("gpt2", "cpu")
    model = lm.DepthModel(hf)
    run = model.run([[1, 2, 3]])
    run.jacobian(1)
    with model.blocks.resident(1):
        model.check_weights()
    waiting = hf.transformer.h[1].mlp.c_fc._hf_hook.weights_map
    waiting["weight"][0, 0] += 1
    with pytest.raises(ValueError, match="must keep the weights"):
        run.jacobian(1)
    assert lm.DepthModel(hf).fingerprint != model.fingerprint


def test_weights_that_are_replaced_where_they_wait_are_refused():
    hf = offloaded("gpt2", "cpu")
    model = lm.DepthModel(hf)
    waiting = hf.transformer.h[1].mlp.c_fc._hf_hook.weights_map
    waiting.dataset.state_dict[f"{waiting.prefix}weight"] = 2 * waiting["weight"]
    with pytest.raises(ValueError, match="must keep the weights"):
        model.run([[1, 2, 3]])


def test_a_file_of_weights_that_is_written_is_refused(tmp_path):
    hf = offloaded("gpt2", "disk", tmp_path)
    model = lm.DepthModel(hf)
    model.check_weights()
    file = tmp_path / "transformer.h.1.mlp.c_fc.weight.dat"
    file.write_bytes(bytes(file.stat().st_size))
    with pytest.raises(ValueError, match="must keep the weights"):
        model.run([[1, 2, 3]])
    file.unlink()
    with pytest.raises(ValueError, match="must keep the weights"):
        model.check_weights()


def test_weights_beside_those_that_wait_are_watched_too():
    hf = offloaded("gpt2", "cpu")
    model = lm.DepthModel(hf)
    beside = hf.transformer.h[0].mlp.c_fc
    beside.weight = torch.nn.Parameter(2 * beside.weight.detach(), requires_grad=False)
    with pytest.raises(ValueError, match="must keep the weights"):
        model.check_weights()


# ------------------------------------------------------------------------------- hooks


def test_hooks_that_place_what_is_below_them_are_followed():
    """accelerate's hooks of classes that use weights of modules they do not call."""
    hf = TINY["llama"]().double()
    places = dict.fromkeys([*AROUND["llama"], "lm_head", "model.layers.0"], DEVICE)
    places |= {"model.layers.1": "cpu", "model.layers.2": "cpu"}
    hf = accelerate.dispatch_model(
        hf, places, main_device=DEVICE, preload_module_classes=["LlamaMLP"]
    )
    model, whole = lm.DepthModel(hf), lm.DepthModel(TINY["llama"]().double())
    assert model.fingerprint == whole.fingerprint
    with model.blocks.resident(1):
        assert not any(p.is_meta for p in _parameters(model, 1))
    ids = [[1, 2, 3], [4, 5]]
    torch.testing.assert_close(
        model.run(ids).jacobian(1).cpu(), whole.run(ids).jacobian(1), rtol=1e-6, atol=1e-8
    )
    hf.model.layers[1].mlp._hf_hook.weights_map["up_proj.weight"][0, 0] += 1
    with pytest.raises(ValueError, match="must keep the weights"):
        model.check_weights()


# ------------------------------------------------------------------------------- memory


@pytest.fixture(scope="module")
def five_layers(many, tmp_path_factory):
    """A run of a model that waits in files, and the functions by name."""
    n_layers = 5
    hf = TINY["gpt2"](n_layer=n_layers).double()
    places = dict.fromkeys([*AROUND["gpt2"], "lm_head"], "cpu")
    places |= {f"transformer.h.{layer}": "disk" for layer in range(n_layers)}
    folder = tmp_path_factory.mktemp("weights")
    model = lm.DepthModel(accelerate.dispatch_model(hf, places, offload_dir=folder))
    v = np.random.default_rng(0).standard_normal((n_layers + 1, 16))
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    concept = xr.Dataset({"direction": (("depth", "feature"), v)})
    run = run_of(model, many)
    system = lm.identify(run, concept, lm.Ensemble(order=2))
    return run, works(concept, system)


@pytest.mark.parametrize(
    "name",
    [
        "optimal_plan",
        "linear_gains",
        "measure_gains",
        "jacobians, each",
        "identify, balanced, each",
        "identify, arnoldi, each",
        pytest.param("identify, arnoldi", marks=pytest.mark.slow),
        "play, every token",
    ],
)
def test_no_more_than_two_layers_are_ever_there(name, five_layers, monkeypatch):
    """What is linearised holds the weights of its layer: it must go with them."""
    run, work_of = five_layers
    work = work_of[name]
    there: list[tuple[str, weakref.ref]] = []
    most = 0
    original = residence._on_its_device

    def watched(one):
        nonlocal most
        tensor = original(one)
        there.append((one.place[1].split(".")[2], weakref.ref(tensor)))
        most = max(most, len({layer for layer, ref in there if ref() is not None}))
        return tensor

    monkeypatch.setattr(residence, "_on_its_device", watched)
    work(run)
    assert 0 < most <= 2
    del work
    assert not [layer for layer, ref in there if ref() is not None]
