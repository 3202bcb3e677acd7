"""What an argument is, in a few words, and what it must be where it was given.

`short` is how messages show values: never a whole repr. `KINDS` says once what the names of
arguments mean throughout `depthsys.lm`; `check_kinds` compares, and names what was exchanged.
"""

import difflib
import functools
import inspect
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any, TypeVar

import numpy as np
import torch
import xarray as xr

from depthsys import ltv

# Characters of a value in a message.
LONGEST = 80

_SHOWN = reprlib.Repr()
_SHOWN.maxlist = _SHOWN.maxtuple = _SHOWN.maxdict = 4
_SHOWN.maxstring, _SHOWN.maxother, _SHOWN.maxlevel = 40, LONGEST, 3


@functools.singledispatch
def short(value: object) -> str:
    """A value in at most `LONGEST` characters: itself if it is short, or what kind it is.

    Examples
    --------
    >>> short("gpt2"), short([0.5] * 999), short(np.eye(3))
    ("'gpt2'", '[0.5, 0.5, 0.5, 0.5, ...]', 'an array of shape (3, 3)')
    """
    shown = _SHOWN.repr(value)
    if len(shown) < LONGEST and shown.isprintable() and " object at 0x" not in shown:
        return shown
    try:
        count = f" of {len(value)}"  # pyright: ignore[reportArgumentType]
    except TypeError:
        count = ""
    return _with_article(type(value).__name__) + count


@short.register(np.ndarray)
@short.register(torch.Tensor)
def _(value) -> str:
    kind = "an array" if isinstance(value, np.ndarray) else _with_article(type(value).__name__)
    return f"{kind} of shape {tuple(value.shape)}"


@short.register
def _(value: MethodType) -> str:
    return "a method"  # of whatever it is, which may show itself in many words


@short.register
def _(value: xr.DataArray) -> str:
    return f"a DataArray ({', '.join(map(str, value.dims))})"[:LONGEST]


@short.register
def _(value: xr.Dataset) -> str:
    for what, holds in _DATASETS:
        if holds(value):
            return f"a Dataset of {what}"
    names = ", ".join(map(str, value.data_vars))
    if not names:
        return "an empty Dataset"
    return f"a Dataset of {names if len(names) < 60 else names[:57] + '...'}"


def _with_article(name: str) -> str:
    return f"{'an' if name[:1].lower() in 'aeio' else 'a'} {name}"


def _holds(*names: str) -> Callable[[Any], bool]:
    return lambda given: isinstance(given, xr.Dataset) and all(name in given for name in names)


def _gains(*kinds: str) -> Callable[[Any], bool]:
    """Gains of one of these kinds, as far as their attrs say it."""

    def fits(given: Any) -> bool:
        return _holds("gain")(given) and given.attrs.get("kind", kinds[0]) in kinds

    return fits


_is_concept, _is_system = _holds("direction"), _holds("A", "B", "C")


def _may_be_concept(given: Any) -> bool:
    alone = isinstance(given, xr.DataArray) and {"depth", "feature"} <= {*given.dims}
    return alone or _is_concept(given)


def _is_lens(given: Any) -> bool:
    return _holds("J")(given) and {*given["J"].dims} == {"depth", "feature_out", "feature"}


_MEASURED, _LINEAR = "measured", "exact linear"
_DATASETS: list[tuple[str, Callable[[Any], bool]]] = [
    ("concept directions", _is_concept),
    ("a system", _is_system),
    ("measured gains", lambda d: "kind" in d.attrs and _gains(_MEASURED)(d)),
    ("linear gains", lambda d: "kind" in d.attrs and _gains(_LINEAR)(d)),
    ("a schedule", _holds("u")),
    ("a lens", _is_lens),
]  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """What an argument must be.

    Attributes
    ----------
    words
        What is wanted, after "must be".
    fits
        Whether a value is of this kind.
    source
        Where such a value comes from: a whole sentence.
    """

    words: str
    fits: Callable[[Any], bool]
    source: str


def _is_curve(given: Any) -> bool:
    return isinstance(given, (xr.DataArray, ltv.MatrixFree)) or _is_system(given)


def _is_numeric(given: Any) -> bool:
    if isinstance(given, (str, bytes, Mapping)) or given is None:
        return False
    try:
        return np.asarray(given, dtype=np.float64).ndim <= 1
    except (TypeError, ValueError, RuntimeError):
        return False


def _may_be_plan(given: Any) -> bool:
    # `ltv.plan.schedule` says what is missing in a Dataset of no known kind
    known = isinstance(given, xr.Dataset) and any(holds(given) for _, holds in _DATASETS)
    alone = isinstance(given, xr.DataArray) and "layer" in given.dims
    alone = alone and "feature" not in given.dims
    return alone or _holds("u")(given) or (isinstance(given, xr.Dataset) and not known)


def _optional(kind: Kind) -> Kind:
    return Kind(kind.words, lambda given: given is None or kind.fits(given), kind.source)


def _is_model(given: Any) -> bool:
    return hasattr(given, "run") and hasattr(given, "tokenize")


def _is_list_of_datasets(given: Any) -> bool:
    listed = isinstance(given, Sequence) and not isinstance(given, str)
    return listed and all(GAINS.fits(one) for one in given)


GAINS = Kind("gains (prompt, layer)", _gains(_MEASURED, _LINEAR), "`lm.measure_gains` gives them.")
MEASURED = Kind("measured gains", _gains(_MEASURED), "`lm.measure_gains` gives them.")
LINEAR = Kind("exact linear gains", _gains(_LINEAR), "`lm.linear_gains` gives them.")
_PREDICTED = Kind("a system or a curve (layer)", _is_curve, "`lm.identify` gives a system.")
PREDICTED_OR_GAINS = Kind(
    "a system or a curve (layer), or linear gains (prompt, layer) with paired=True",
    lambda given: (
        _is_curve(given) or (_holds("gain")(given) and given.attrs.get("kind") != _MEASURED)
    ),
    _PREDICTED.source,
)
_CONCEPT = Kind("concept directions", _may_be_concept, "`lm.mean_difference` gives them.")
MODEL = Kind("a DepthModel", _is_model, "`lm.DepthModel.load` gives one.")
THREE_SPLITS = Kind(
    "Splits, of texts or of runs",
    lambda given: all(hasattr(given, name) for name in ("concept", "operating", "held_out")),
    'Make them: `texts.split("400/200/200")`.',
)


def identified(*names: str) -> Kind:
    """A system that knows what `identify` adds to its matrices."""
    words = f"one system with {' and '.join(names)}"
    return Kind(words, _holds("A", "B", "C", *names), "`lm.identify` gives one.")


CONCEPT_OR_NONE = _optional(_CONCEPT)
LENS = Kind("a lens with `J` (depth, feature_out, feature)", _is_lens, "`lm.lens` gives one.")
LENS_OR_NONE = _optional(LENS)
GAINS_LIST = Kind("a list of measured gains", _is_list_of_datasets, "Write [measured].")
LINEAR_OR_NONE = _optional(LINEAR)

_NAME = Kind(
    "a name (text)",
    # what is neither has an error of its own where names are looked up; arrays would equal them all
    lambda given: not isinstance(given, (xr.Dataset, xr.DataArray, np.ndarray, torch.Tensor)),
    "The names are in the help of the function.",
)

# What the names of arguments mean, in every function that says nothing else.
KINDS: dict[str, Kind] = {
    "concept": _CONCEPT,
    "system": Kind("a system", _is_system, "`lm.identify` gives one."),
    "plan": Kind(
        "a schedule with `u` (layer, input)", _may_be_plan, "`ltv.minimum_energy` gives one."
    ),
    "schedules": Kind(
        "a DataArray (schedule, layer, input)",
        lambda given: isinstance(given, xr.DataArray) and {"schedule", "layer"} <= {*given.dims},
        "Write plan['u'].expand_dims('schedule').",
    ),
    "directions": Kind(
        "a DataArray (layer, direction, feature)",
        lambda given: (
            isinstance(given, xr.DataArray) and {*given.dims} == {"layer", "direction", "feature"}
        ),
        "Name its dims so.",
    ),
    "inputs": _NAME,
    "part": _NAME,
    "difference": _NAME,
    "energy": Kind(_NAME.words, lambda given: isinstance(given, str), _NAME.source),
    "target": Kind("a number, or one for each output", _is_numeric, "Give the wanted shift."),
    "predicted": _PREDICTED,
    "first": _PREDICTED,
    "second": _PREDICTED,
    "measured": GAINS,
    "linear_held_out": LINEAR,
    "linear_operating": LINEAR,
}


def check_kinds(
    function: str, given: Mapping[str, Any], others: Mapping[str, Kind], *, has_run: bool = False
) -> None:
    """TypeError unless every argument is what its name means.

    Parameters
    ----------
    function
        Its name.
    given
        Arguments by name.
    others
        What names mean in this function alone.
    has_run
        Whether a run was given, so that texts must not be.
    """
    kinds = {name: kind for name, kind in {**KINDS, **others}.items() if name in given}
    wrong = [name for name, kind in kinds.items() if not kind.fits(given[name])]
    wrong = [name for name in given if name in wrong]  # in the order of the call
    if not wrong:
        return
    name, *more = wrong
    value = given[name]
    got = f"got {short(value)}"
    cure = kinds[name].source
    home = next((other for other in more if kinds[other].fits(value)), None)
    if has_run and _is_texts(value):
        cure = f"A run has its texts already: leave them out, {function}(run, ...)."
    elif home is not None:
        got += f", and {short(given[home])} for `{home}`"
        two = kinds[name].fits(given[home])
        cure = f"{'Exchange the two in' if two else 'Call'} {function}({', '.join(given)})."
    raise TypeError(f"`{name}` must be {kinds[name].words}; {got} in {function}. {cure}")


def _is_texts(given: Any) -> bool:
    """Whether this could be prompts."""
    if hasattr(given, "labels"):
        return True
    return isinstance(given, (list, tuple)) and all(isinstance(p, (str, list)) for p in given)


# What others call it -> what it is called here.
_ELSEWHERE = {
    "prompts": "texts",
    "prompt": "texts",
    "text": "texts",
    "direction": "concept",
    "directions": "concept",
    "step": "eps",
    "epsilon": "eps",
    "basis": "method",
    "schedule": "plan",
}


def check_keywords(function: str, given: Mapping[str, Any], known: Sequence[str]) -> None:
    """TypeError for a keyword that the function does not know; says what it may be called."""
    for name in given:
        if name in known:
            continue
        likely = _ELSEWHERE.get(name)
        if likely not in known:
            likely = next(iter(difflib.get_close_matches(name, known, 1)), None)
        cure = f"It takes {', '.join(known)}."
        if likely is not None:
            cure = f"Is `{likely}` meant? {cure}"
        raise TypeError(f"`{name}` must be an argument of {function}, but is none. {cure}")


def bound(
    function: str, signature: inspect.Signature, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> inspect.BoundArguments:
    """Arguments by name; TypeError that shows how to call the function."""
    try:
        return signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(
            f"`{function}` must be called as {function}{shape_of(signature)}; got a call with "
            f"{error}."
        ) from None


def shape_of(signature: inspect.Signature) -> str:
    """The names in brackets, with an ellipsis for what may be left out."""
    needed = [n for n, p in signature.parameters.items() if p.default is p.empty]
    more = ["..."] if len(needed) < len(signature.parameters) else []
    return f"({', '.join(needed + more)})"


F = TypeVar("F", bound=Callable[..., Any])


def kinds_checked(**others: Kind) -> Callable[[F], F]:
    """Check the kinds of all arguments of a function before it is called.

    ``others`` are kinds of arguments whose names mean something else in this function.
    """

    def decorated(function: F) -> F:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def call(*args, **kwargs):
            name = function.__name__
            check_keywords(name, kwargs, list(signature.parameters))
            check_kinds(name, bound(name, signature, args, kwargs).arguments, others)
            return function(*args, **kwargs)

        return call  # pyright: ignore[reportReturnType]

    return decorated
