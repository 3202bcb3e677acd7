"""Arguments exchanged, of the wrong kind, or by an unknown name: the message says what is meant."""

import inspect
import itertools
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr

from depthsys import lm, ltv
from depthsys.lm.kinds import LONGEST, short
from tests.conftest import tiny_gpt2
from tests.lm import every_function
from tests.lm.conftest import labelled_ids, no_block_runs

THINGS = (
    "run model texts ids concept system measured linear linear_operating plan schedules "
    "directions method steps splits"
).split()


@pytest.fixture(scope="module")
def things():
    """One thing of every kind that functions of `lm` take."""
    model = lm.DepthModel(tiny_gpt2().double(), name="gpt2")
    texts = labelled_ids(6, 2)
    run = model.run(texts)
    v = np.random.default_rng(0).standard_normal((4, 16))
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    concept = xr.Dataset({"direction": (("depth", "feature"), v)})
    system = lm.identify(run, concept)
    works = every_function.works(concept, system)
    return SimpleNamespace(
        run=run,
        model=model,
        texts=texts,
        ids=texts.ids,
        concept=concept,
        system=system,
        measured=lm.measure_gains(run, concept),
        linear=lm.linear_gains(run, concept),
        linear_operating=lm.linear_gains(run, concept),
        plan=ltv.minimum_energy(system, target=0.3),
        schedules=works["required_energy"].after["schedules"],
        directions=works["mean_jvp"].after["directions"],
        method=lm.Krylov(),
        steps=[lm.Step()],
        splits=lm.Splits(texts, texts, texts),
        works=works,
    )


# ------------------------------------------------------------------------------- exchanged

# function -> what its positional arguments are, the run first where there is one
CALLS = {
    lm.compare_energies: ["run", "concept", "system"],
    lm.play: ["run", "concept", "plan"],
    lm.required_energy: ["run", "concept", "schedules"],
    lm.corrected: ["system", "run", "concept"],
    lm.agreement: ["system", "measured"],
    lm.error_gap: ["system", "system", "measured"],
    lm.error_budget: ["system", "measured", "linear", "linear_operating"],
    lm.gain_report: ["system", "measured", "linear", "linear_operating"],
    lm.expected_error: ["system", "linear_operating"],
}
TARGET = {lm.compare_energies: (0.3,), lm.required_energy: (0.3,)}
OPTIONS = {lm.required_energy: {"amplitude": 1.0}}
exchanges = [
    (function, i, j)
    for function, names in CALLS.items()
    for i, j in itertools.combinations(range(len(names)), 2)
    # linear gains of two kinds of prompts are told apart by their fingerprints, not by their kind
    if names[i].removesuffix("_operating") != names[j].removesuffix("_operating")
]


@pytest.mark.parametrize(
    ("function", "i", "j"), exchanges, ids=lambda x: x if isinstance(x, int) else x.__name__
)
def test_two_arguments_exchanged(things, monkeypatch, function, i, j):
    names = list(CALLS[function])
    given = [getattr(things, name) for name in names]
    given[i], given[j] = given[j], given[i]
    no_block_runs(monkeypatch)
    with pytest.raises(TypeError) as caught:
        function(*given, *TARGET.get(function, ()), **OPTIONS.get(function, {}))
    message = str(caught.value)
    assert len(message) < 400, message
    if "run" in (names[i], names[j]):
        assert "must get a run, or a model and texts; got a Data" in message
        return
    parameters = list(inspect.signature(function).parameters)
    one, other = parameters[i], parameters[j]
    assert re.search(rf"^`{one}` must be .*; got a Data.*, and a Data.* for `{other}` in ", message)
    assert f"Exchange the two in {function.__name__}({parameters[0]}, " in message


def test_the_right_order_is_not_refused(things):
    for function, names in CALLS.items():
        given = [getattr(things, name) for name in names]
        function(*given, *TARGET.get(function, ()), **OPTIONS.get(function, {}))


def test_three_arguments_in_another_order(things):
    wrong = (things.measured, things.linear, things.system, things.linear)
    with pytest.raises(
        TypeError, match=r"^`system` must .*Call error_budget\(system, measured, li"
    ):
        lm.error_budget(*wrong)


def test_a_message_in_full(things):
    with pytest.raises(TypeError) as caught:
        lm.compare_energies(things.run, things.system, things.concept, 0.3)
    assert str(caught.value) == (
        "`concept` must be concept directions; got a Dataset of a system, and a Dataset of concept "
        "directions for `system` in compare_energies. Exchange the two in "
        "compare_energies(run, concept, system, target)."
    )
    with pytest.raises(TypeError) as caught:
        lm.gain_report(things.system, things.linear, *[things.linear] * 2)
    assert str(caught.value) == (
        "`measured` must be measured gains; got a Dataset of linear gains in gain_report. "
        "`lm.measure_gains` gives them."
    )


# ------------------------------------------------------------------- wrong kinds, everywhere


@pytest.mark.parametrize("thing", THINGS)
@pytest.mark.parametrize("name", every_function.NAMES)
def test_no_argument_shows_a_whole_repr(things, monkeypatch, name, thing):
    """Every argument of every function replaced by everything else: accepted, or one short line."""
    work, wrong = things.works[name], getattr(things, thing)
    no_block_runs(monkeypatch)
    for place in work.after:
        given = {**work.after, place: wrong}
        fits = {("target", "steps"), ("plan", "schedules")}  # several schedules are played, too
        if thing == place or (place, thing) in fits:
            continue
        with pytest.raises((TypeError, ValueError)) as caught:
            work.function(*work.before.values(), things.run, *given.values(), **work.options)
        message = str(caught.value)
        assert message.startswith(f"`{place}` must be "), message
        assert short(wrong) in message
        assert len(message) < 300, message
        assert "\n" not in message


@pytest.mark.parametrize("thing", THINGS)
@pytest.mark.parametrize("name", ["inputs", "part", "difference", "energy", "readout"])
def test_no_option_shows_a_whole_repr(things, monkeypatch, name, thing):
    """An array or a Dataset equals every name: it must not count as one of them."""
    wrong, tried = getattr(things, thing), 0
    no_block_runs(monkeypatch)
    for work in things.works.values():
        if name not in inspect.signature(work.function).parameters:
            continue
        tried += 1
        with pytest.raises((TypeError, ValueError)) as caught:
            work.function(
                *work.before.values(),
                things.run,
                *work.after.values(),
                **{**work.options, name: wrong},
            )
        assert str(caught.value).startswith(f"`{name}` must be "), caught.value
        assert len(str(caught.value)) < 300
    assert tried


def test_curves_are_no_runs(things):
    for wrong, kind in ((things.run, "a Run of 6 prompts"), (things.model, "a DepthModel")):
        with pytest.raises(TypeError, match=f"`predicted` must be a system or a curve.*got {kind}"):
            lm.agreement(wrong, things.measured)


def test_texts_after_a_run_are_left_out(things):
    for texts in (things.texts, things.ids, ["a", "b"]):
        for function, more in ((lm.identify, ()), (lm.compare_energies, (things.system, 1.0))):
            with pytest.raises(
                TypeError, match=r"`concept` must be concept .* A run has its texts"
            ):
                function(things.run, texts, things.concept, *more[:1])
    for function in (lm.jacobians, lm.mean_difference):
        shape = r"must be called as \w+\(run, \.\.\.\); got a call with too many positional"
        with pytest.raises(TypeError, match=shape):
            function(things.run, things.texts)
    with pytest.raises(TypeError, match=r"not both; got a Run of 6 prompts and more. A run has"):
        lm.identify(things.run, things.concept, texts=things.texts)


def test_what_is_no_texts_after_a_model(things):
    match = r"`texts` must be texts, token ids or a run; got {}\. Write linear_gains\(model, texts"
    for wrong, kind in (
        (things.concept, "a Dataset of concept directions"),
        (things.model, r"a DepthModel \('gpt2'\)"),
    ):
        with pytest.raises(TypeError, match=match.format(kind)):
            lm.linear_gains(things.model, wrong, things.concept)


def test_what_is_no_prompts(things):
    for wrong, kind in (
        ({"text": ["a"]}, r"{'text': \['a'\]}"),
        (things.concept, "a Dataset of concept directions"),
        (5, "5"),
    ):
        with pytest.raises(TypeError, match=f"`prompts` must be a list of texts.*; got {kind}"):
            things.model.run(wrong)
    with pytest.raises(TypeError, match=r"`prompts` must be texts; got a Run of 6 prompts. Use it"):
        things.model.run(things.run)


def test_comparisons_check_what_they_get(things, monkeypatch):
    model, splits = things.model, things.splits
    no_block_runs(monkeypatch)
    for function in (lm.compare, lm.comparison_cost):
        name = function.__name__
        with pytest.raises(TypeError, match=r"`model` must be a DepthModel; got .*, and .*`texts`"):
            function(splits, model)
        with pytest.raises(
            TypeError, match=rf"`texts` must be Splits.*a LabelledIds of 6 in {name}"
        ):
            function(model, things.texts)
    with pytest.raises(TypeError, match="`concept` must be concept directions; got a Dataset of a"):
        lm.compare(model, splits, concept=things.system)
    with pytest.raises(TypeError, match=r"`methods` must be names, or a mapping .*; got Krylov"):
        lm.compare(model, splits, lm.Krylov())
    with pytest.raises(ValueError, match=r"rising whole numbers in 1..16.*; got an array of shape"):
        lm.compare(model, splits, orders=np.arange(50))
    with pytest.raises(TypeError, match="Is `methods` meant"):
        lm.compare(model, splits, method=["krylov"])
    with pytest.raises(
        TypeError, match=r"must be called as compare\(model, texts, \.\.\.\); got a"
    ):
        lm.compare(model)


def test_systems_without_what_is_needed(things):
    bare = things.system.drop_vars(["y_ref", "gain_full", "state_norm"])
    each = lm.identify(things.run, things.concept, per_prompt=True)
    for system in (bare, each):
        with pytest.raises(
            TypeError, match="`system` must be one system with y_ref and y_std and state_norm; got"
        ):
            lm.compare_energies(things.run, things.concept, system, 0.3)
    with pytest.raises(TypeError, match="`system` must be one system with gain_full; got a Datas"):
        lm.error_budget(bare, things.measured, things.linear, things.linear)
    with pytest.raises(ValueError, match="`predicted` must know `state_norm`"):
        lm.agreement(bare, things.measured, injection="relative")
    lm.agreement(bare, things.measured)


def test_gains_without_attrs_are_taken_as_they_are_called(things):
    plain = things.measured.drop_attrs()
    found = lm.agreement(things.system, plain)
    np.testing.assert_array_equal(
        found.relative_l2, lm.agreement(things.system, things.measured).relative_l2
    )


def test_a_list_of_steps(things, monkeypatch):
    no_block_runs(monkeypatch)
    for wrong, kind in ((lm.Step(), r"Step\(eps=0.01"), ([0.1], r"\[0.1\]"), (0.1, "0.1")):
        with pytest.raises(TypeError, match=f"`steps` must be a list of lm.Step; got {kind}"):
            lm.measure_gains_at(things.run, things.concept, wrong)


# --------------------------------------------------------------------------- unknown names


@pytest.mark.parametrize("name", every_function.NAMES)
def test_unknown_keywords_are_told_apart(things, monkeypatch, name):
    work = things.works[name]
    called = work.function.__name__
    no_block_runs(monkeypatch)
    match = (
        rf"^`prompts` must be an argument of {called}, but is none\. Is `texts` meant\? It takes"
    )
    with pytest.raises(TypeError, match=match):
        work.by_name(model=things.model, prompts=things.texts)
    with pytest.raises(
        TypeError, match=rf"`zzz` must be an argument of {called}.* none\. It takes"
    ):
        work.function(*work.before.values(), things.run, *work.after.values(), zzz=1)


def test_unknown_keywords_that_are_nearly_right(things):
    for wrong, right in (("epsilon", "eps"), ("relativ", "relative"), ("read_out", "readout")):
        with pytest.raises(TypeError, match=f"`{wrong}` must be .* Is `{right}` meant"):
            lm.measure_gains(things.run, things.concept, **{wrong: 0.1})
    with pytest.raises(TypeError, match=r"It takes run, concept, eps, relative, .*, model, texts"):
        lm.measure_gains(things.run, things.concept, zzz=1)


def test_calls_with_too_little_or_too_much(things):
    form = r"must be called as play\(run, concept, plan, \.\.\.\); got a call with "
    with pytest.raises(TypeError, match=form + "missing a required argument: 'plan'"):
        lm.play(things.run, things.concept)
    with pytest.raises(TypeError, match=form + "multiple values for argument 'concept'"):
        lm.play(things.run, things.concept, things.plan, concept=things.concept)


# ------------------------------------------------------------------------------ short words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (xr.Dataset(), "an empty Dataset"),
        (xr.Dataset({"auc": 0.5, "low": 0.4}), "a Dataset of auc, low"),
        (xr.DataArray(np.eye(2), dims=("layer", "input")), "a DataArray (layer, input)"),
        (np.zeros((3, 4)), "an array of shape (3, 4)"),
        (torch.zeros(3, 4), "a Tensor of shape (3, 4)"),
        (["a" * 900] * 900, "a list of 900"),
        ([1, 2], "[1, 2]"),
        ("gpt2", "'gpt2'"),
        (None, "None"),
        (np.float64(0.5), "np.float64(0.5)"),
        (lm.Krylov(order=4), "Krylov(order=4, tolerance=None, rtol=None)"),
        (object(), "an object"),
        (lm.read_texts([("a", 0), ("b", 1)]), "Texts, 2 of them"),
        (lm.read_texts([("a", 0), ("b", 1)] * 1).split, "a method"),
    ],
    ids=lambda x: x if isinstance(x, str) and len(x) < 30 else type(x).__name__,
)
def test_values_in_a_few_words(value, words):
    assert short(value) == words


def test_things_in_a_few_words(things):
    expected = {
        "run": "a Run of 6 prompts",
        "model": "a DepthModel ('gpt2')",
        "concept": "a Dataset of concept directions",
        "system": "a Dataset of a system",
        "measured": "a Dataset of measured gains",
        "linear": "a Dataset of linear gains",
        "plan": "a Dataset of a schedule",
        "splits": "Splits",
    }
    for name, words in expected.items():
        assert short(getattr(things, name)) == words


@pytest.mark.parametrize("size", [1, 30, 1000])
def test_nothing_is_longer(size):
    names = {f"variable{i}": 0 for i in range(size)}
    values = [xr.Dataset(names), names, "x" * size, ["y" * size] * size, xr.DataArray(np.eye(2))]
    values += [b"x" * size, tuple(range(size)), {*range(size)}, "\n" * size, [[["z" * size]]]]
    for value in values:
        assert len(short(value)) <= LONGEST
        assert short(value).isprintable()
