"""Both ways to call a function of a run are seen by people, by `inspect` and by type checkers."""

import inspect
import pydoc
import tomllib
from pathlib import Path
from typing import get_args

import pytest

from depthsys import lm, ltv
from depthsys.demo import grammar
from depthsys.lm.of_run import of_run
from depthsys.lm.run import Run
from depthsys.lm.run_model import Model
from tests.lm import every_function, typed_calls

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", sorted(every_function.functions_of_a_run()))
def test_both_forms_are_in_the_help_and_in_the_signature(name):
    function = getattr(lm, name)
    text = " ".join(pydoc.plain(pydoc.render_doc(function)).split())
    parameters = inspect.signature(function).parameters
    needed = [n for n, p in parameters.items() if p.default is p.empty]
    more = ", ..." if len(needed) < len(parameters) else ""
    of_run = f"{name}({', '.join(needed)}{more})"
    of_model = of_run.replace("run", "model, texts", 1)
    assert f"Call it as ``{of_run}`` or ``{of_model}``." in text
    assert text.index("Call it as") < text.find("Parameters ---------- ") % len(text)
    kinds, words = get_args(parameters["run"].annotation)
    assert get_args(kinds) == (Run, Model)
    assert words == "a model is followed by texts"
    assert "'a model is followed by texts'" in str(inspect.signature(function))


def test_the_rest_of_the_signature_is_that_of_the_function():
    def function(run: lm.Run, concept: int, *, eps: float = 0.5) -> str:
        return f"{len(run)} {concept} {eps}"

    shown = inspect.signature(of_run(once=True)(function)).parameters
    assert list(shown) == ["run", "concept", "eps"]
    assert (shown["concept"].annotation, shown["eps"].default) == (int, 0.5)
    assert of_run(once=True)(function).__doc__ is None  # as under python -OO


@pytest.mark.slow  # that their types are right is part of `make lint`
def test_typed_calls_are_checked_and_run(demo_model):
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    path = Path(typed_calls.__file__).relative_to(ROOT).as_posix()
    assert path in settings["tool"]["pyright"]["include"]
    texts = lm.read_texts(grammar.labelled(count_per_class=8, seed=1))
    run = demo_model.run(texts.first(4))
    system = lm.identify(run, lm.mean_difference(run))
    plan = ltv.minimum_energy(system, target=0.3)
    mine = typed_calls.of_a_run(run, system, plan)
    theirs = typed_calls.of_a_model_and_texts(demo_model, texts.first(4), system, plan)
    assert len(mine) == len(theirs) - 1 == 6
    every_function.assert_same(theirs[-1], theirs[-3])
    for one, other in zip(mine, theirs, strict=False):
        every_function.assert_same(one, other)
    typed_calls.of_splits(demo_model, texts)
