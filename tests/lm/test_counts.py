"""What work costs, as counts: whole-sequence passes, rows of the last token, dry runs.

A *row* is one state of the last token of one prompt through one block. How many there must be is
derived beside every test, for L layers and one input, per prompt:

* linearising a block at the nominal state: one row, so L for a system, gains or a response;
* a push at the input of block l joins there: L - l rows, so L (L + 1) / 2 for one at every layer,
  and L (L + 1) for a central difference at every layer.
"""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from depthsys import lm
from depthsys.lm.hf.attention import RecordingCache
from depthsys.lm.hf.blocks import Blocks
from depthsys.lm.prompts import SPLITS
from tests.conftest import TINY
from tests.lm.conftest import labelled_ids

L = 3
PUSHES = L * (L + 1) // 2
SIZES = {"concept": 10, "operating": 9, "held_out": 8}


class Counts:
    """Prompts that passed each layer as whole sequences, rows of their last token, dry runs."""

    def __init__(self, model, monkeypatch):
        self.passes: Counter[int] = Counter()
        self.rows: Counter[int] = Counter()
        self.calls = 0
        self.dry_runs = 0
        call, dry_run = model.blocks.call, Blocks.dry_run

        def counting(layer, arguments, hidden, cache):
            if isinstance(cache, RecordingCache):
                self.passes[layer] += hidden.shape[0]
            else:
                self.rows[layer] += hidden.shape[0] * hidden.shape[1]
                self.calls += 1
            return call(layer, arguments, hidden, cache)

        def counted_dry_run(*args):
            self.dry_runs += 1
            return dry_run(*args)

        monkeypatch.setattr(model.blocks, "call", counting)
        monkeypatch.setattr(Blocks, "dry_run", counted_dry_run)

    @property
    def all_rows(self) -> int:
        return sum(self.rows.values())

    def assert_one_pass(self, n_prompts: int) -> None:
        assert self.passes == dict.fromkeys(range(L), n_prompts)


@pytest.fixture
def model():
    return lm.DepthModel(TINY["gpt2"]().double(), name="gpt2")


@pytest.fixture
def counts(model, monkeypatch):
    return Counts(model, monkeypatch)


@pytest.fixture(scope="module")
def texts():
    return SimpleNamespace(**{n: labelled_ids(SIZES[n], s) for s, n in enumerate(SPLITS)})


@pytest.mark.parametrize(
    ("method", "of_method"),
    [
        (lm.Krylov(), L),
        pytest.param(lm.Ensemble(), L, marks=pytest.mark.slow),
        (lm.Balanced(), 2 * L),  # forwards and back
        (lm.Arnoldi(order=2), 2 * L),  # its powers; and the system
        (lm.Pod(order=2), 2 * PUSHES + L),  # its pushes of both signs; and the system
        pytest.param(lm.Random(order=2), L, marks=pytest.mark.slow),
    ],
    ids=lambda m: m.name if isinstance(m, lm.Method) else "",
)
def test_a_main_job_passes_every_prompt_through_every_layer_once(
    model, counts, texts, method, of_method
):
    runs = {name: model.run(getattr(texts, name)) for name in SPLITS}
    concept = lm.mean_difference(runs["concept"], held_out=runs["held_out"])
    system = lm.identify(runs["operating"], concept, method)
    linear = lm.linear_gains(runs["held_out"], concept)
    lm.linear_gains(runs["operating"], concept)
    calls = counts.calls
    measured = lm.measure_gains(runs["held_out"], concept)
    # signs of all layers together: every block once per batch
    assert counts.calls - calls == L * len(runs["held_out"].numbers)
    found = lm.linear_range(runs["held_out"], concept, linear=linear, measured=[measured])
    before = counts.all_rows
    # linear gains of both kinds of prompts, a central difference at every layer and step
    of_steps = found.sizes["step"] * 2 * PUSHES
    derived = SIZES["operating"] * (of_method + L) + SIZES["held_out"] * (L + of_steps)
    assert before == derived
    target = 0.5 * float(abs(linear.gain.mean("prompt")).max())
    lm.compare_energies(runs["held_out"], concept, system, target)
    # the plan, the uniform schedule and every single layer, 6 evaluations of each, and in each of
    # the 4 passes (one look around the prediction, three refinements) a copy that is not pushed
    derived = SIZES["held_out"] * (6 * (2 * L + PUSHES) + 4 * L)
    assert counts.all_rows - before <= 1.3 * derived
    counts.assert_one_pass(sum(SIZES.values()))
    assert counts.dry_runs == sum(len(run.numbers) for run in runs.values()) + (
        # Arnoldi joins all batches of its prompts
        1 if isinstance(method, lm.Arnoldi) else 0
    )


def test_a_comparison_passes_every_prompt_through_every_layer_once(model, counts, texts):
    n_each = 4
    table = lm.compare(model, texts, orders=[1, 2], n_each=n_each, n_bootstrap=5)
    counts.assert_one_pass(sum(SIZES.values()))
    # Operating prompts: measured gains (two signs), linear gains, the mean system (forwards and
    # back) with the powers of Arnoldi and the pushes of POD, the mean response. Held-out prompts:
    # measured gains, linear gains, every step of the linear range but the
    # one that is known. With a system each: that system, its response, powers at L + 1 depths, and
    # pushes.
    operating = 2 * PUSHES + L + 2 * L + L + 2 * PUSHES + L
    held_out = 2 * PUSHES + L + (table.sizes["step"] - 1) * 2 * PUSHES
    each = L + L + (L + 1) + 2 * PUSHES
    derived = SIZES["operating"] * operating + SIZES["held_out"] * held_out + n_each * each
    assert derived / 1.3 <= counts.all_rows <= 1.3 * derived


def test_a_comparison_of_runs_does_not_prefill_them_again(model, counts, texts, concept):
    runs = SimpleNamespace(**{name: model.run(getattr(texts, name)) for name in SPLITS})
    counts.assert_one_pass(sum(SIZES.values()))
    counts.passes.clear()
    lm.compare(model, runs, ["ensemble", "krylov"], [1, 2], n_each=2, n_bootstrap=5)
    assert counts.passes == {}


def test_a_linear_range_passes_every_prompt_through_every_layer_once(model, counts, texts, concept):
    table = lm.linear_range(model, texts.held_out, concept, n_bootstrap=5)
    counts.assert_one_pass(SIZES["held_out"])
    # linear gains, and a central difference at every step
    assert counts.all_rows == SIZES["held_out"] * (L + table.sizes["step"] * 2 * PUSHES)


@pytest.mark.parametrize("work", ["identify", "measure_gains", "exact_system", "measure_gains_at"])
def test_texts_given_to_one_function_pass_once(model, counts, texts, concept, work):
    more = ([lm.Step(0.1), lm.Step(0.2)],) if work == "measure_gains_at" else ()
    getattr(lm, work)(model, texts.held_out, concept, *more)
    counts.assert_one_pass(SIZES["held_out"])


def test_a_run_is_all_the_passes_there_are(model, counts, texts, concept):
    run = model.run(texts.operating)
    counts.assert_one_pass(SIZES["operating"])
    assert counts.all_rows == 0
    assert counts.dry_runs == len(run.numbers)
    counts.passes.clear()
    for _ in range(2):
        lm.linear_gains(run, concept)
        lm.identify(run, concept)
        run.jacobian(1)
        lm.mean_difference(run)
    assert counts.passes == {}
    assert counts.dry_runs == len(run.numbers)


@pytest.mark.parametrize("count", [1, 4, SIZES["operating"]])
def test_the_first_prompts_without_contexts_pass_alone(model, counts, texts, count):
    """Not the others of their batches."""
    run = model.run(texts.operating, budget=lm.Budget(device=0, host=0, file=0))
    assert len(run.numbers) < SIZES["operating"]  # some share a batch
    found = list(run.first(count))
    assert counts.passes == dict.fromkeys(range(L), count)
    kept = list(model.run(texts.operating).first(count))
    for batch, other in zip(found, kept, strict=True):
        np.testing.assert_array_equal(batch.prompts, other.prompts)
        np.testing.assert_allclose(batch.x, other.x, rtol=1e-12)
        for block, same in zip(batch.blocks, other.blocks, strict=True):
            np.testing.assert_allclose(block.jacobian(), same.jacobian(), atol=1e-12)
    # and what is asked for afterwards is of all prompts
    np.testing.assert_array_equal(run.states, model.run(texts.operating).states)


@pytest.mark.parametrize("keep", [False, True])
def test_a_sweep_without_contexts_dry_runs_once_per_batch(model, counts, texts, keep):
    run = model.run(texts.operating, contexts=False)
    assert len(run.numbers) > 1
    with run.sweep(keep=keep) as sweep:
        for layer in sweep.forward():
            assert sum(len(block.prompts) for block in layer) == SIZES["operating"]
        for layer in sweep.backward() if keep else ():
            assert sum(len(block.prompts) for block in layer) == SIZES["operating"]
    assert counts.dry_runs == len(run.numbers)
    # forwards once; back again from the states that were kept
    assert counts.passes == dict.fromkeys(range(L), SIZES["operating"] * (1 + keep))


def test_measured_gains_of_several_steps_go_through_one_replay(model, counts, texts, concept):
    run = model.run(texts.operating)
    steps = [lm.Step(e, relative=r) for e in (0.05, 0.1, 0.2) for r in (False, True)]
    lm.measure_gains_at(run, concept, steps)
    assert counts.calls == L * len(run.numbers)  # every block once per batch
    assert counts.all_rows == SIZES["operating"] * len(steps) * 2 * PUSHES
    one = counts.calls
    for step in steps:
        lm.measure_gains(run, concept, eps=step.eps, relative=step.relative)
    assert counts.calls - one == len(steps) * one


def test_steps_of_a_linear_range_share_replays(model, counts, texts, concept):
    run = model.run(texts.operating)
    linear = lm.linear_gains(run, concept)
    counts.calls = 0
    table = lm.linear_range(run, concept, linear=linear, n_bootstrap=5)
    replays, rest = divmod(counts.calls, L * len(run.numbers))
    assert rest == 0
    decades = np.ceil((table.sizes["step"] - 6) / 3)
    assert replays == 1 + decades
