"""Functions of a run that also take a model and texts: one decorator, checks and types of both."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import (
    Annotated,
    Any,
    Concatenate,
    Literal,
    ParamSpec,
    Protocol,
    TypeVar,
    cast,
    overload,
)

import xarray as xr

from depthsys.lm.hf.tokens import Prompts
from depthsys.lm.kinds import MODEL, Kind, bound, check_keywords, check_kinds, shape_of, short
from depthsys.lm.run import Run
from depthsys.lm.run_model import Model
from depthsys.lm.shards import ShardedRun
from depthsys.lm.switch import products_in

P = ParamSpec("P")
R = TypeVar("R", covariant=True)
First = TypeVar("First", contravariant=True)

# One run, or one in shards.
AnyRun = Run | ShardedRun
# What `inspect.signature` shows of the run.
RunOrModel = Annotated[Run | Model, "a model is followed by texts"]


class OfRun(Protocol[P, R]):
    """A function of a run, or of a model and texts, which make a run for that call.

    The forms by keyword are typed loosely: a type checker sees that the run, or the model and the
    texts, are given, and nothing of the other arguments.
    """

    @overload
    def __call__(self, run: AnyRun, /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    def __call__(
        self, model: Model, texts: Prompts | AnyRun, /, *args: P.args, **kwargs: P.kwargs
    ) -> R: ...
    @overload
    def __call__(self, model: Model, /, *, texts: Prompts | AnyRun, **others: Any) -> R: ...
    @overload
    def __call__(self, *, run: AnyRun, **others: Any) -> R: ...
    @overload
    def __call__(self, *, model: Model, texts: Prompts | AnyRun, **others: Any) -> R: ...


class OfSecondRun(Protocol[First, P, R]):
    """The same with the run, or the model and texts, after another argument."""

    @overload
    def __call__(self, first: First, run: AnyRun, /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    def __call__(
        self,
        first: First,
        model: Model,
        texts: Prompts | AnyRun,
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R: ...
    @overload
    def __call__(self, first: First, /, *, run: AnyRun, **others: Any) -> R: ...
    @overload
    def __call__(self, *, run: AnyRun, **others: Any) -> R: ...
    @overload
    def __call__(self, *, model: Model, texts: Prompts | AnyRun, **others: Any) -> R: ...


@overload
def of_run(
    *, once: bool, shards: bool = False, kinds: Mapping[str, Kind] | None = None
) -> Callable[[Callable[Concatenate[Run, P], R]], OfRun[P, R]]: ...
@overload
def of_run(
    *, once: bool, at: Literal[1], shards: bool = False, kinds: Mapping[str, Kind] | None = None
) -> Callable[[Callable[Concatenate[First, Run, P], R]], OfSecondRun[First, P, R]]: ...
def of_run(
    *, once: bool, at: int = 0, shards: bool = False, kinds: Mapping[str, Kind] | None = None
) -> Any:
    """Let a function of a run also take a model and texts, and check what its arguments are.

    Parameters
    ----------
    once
        It looks at every batch, or every layer, a single time: then no context of a run that is
        made for it needs to be kept.
    at
        The position of the run.
    shards
        It also takes a `ShardedRun`: all that it does with prompts is done in leaves that are
        `in_shards`, or in functions that take one.
    kinds
        What names of arguments mean in this function alone, see `kinds.KINDS`.
    """

    def decorated(function):
        name, signature = function.__name__, inspect.signature(function)
        forms = _Forms(name, signature)

        @functools.wraps(function)
        def call(*args, **kwargs):
            check_keywords(name, kwargs, forms.keywords)
            before, rest = args[:at], list(args[at:])
            first, by_name = (rest.pop(0), False) if rest else (forms.popped(kwargs), True)
            texts = None
            if isinstance(first, ShardedRun) and not shards:
                raise TypeError(in_one_place(name, first))
            if not isinstance(first, (Run, ShardedRun)):
                texts = rest.pop(0) if rest else kwargs.pop("texts", None)
                forms.check(first, texts)
                if isinstance(texts, ShardedRun) and not shards:
                    raise TypeError(in_one_place(name, texts))
            elif {"model", "texts"} & kwargs.keys():
                raise TypeError(
                    f"`{name}` must get a run, or a model and texts, not both; got {short(first)} "
                    "and more. A run has its model and texts already: leave them out."
                )
            named = {**kwargs, "run": first} if by_name else kwargs
            given = bound(name, signature, [*before, *([] if by_name else [first]), *rest], named)
            check_kinds(name, given.arguments, kinds or {}, has_run=texts is None)
            if texts is not None:
                given.arguments["run"] = _run_of(first, texts, later=not once)
            # what is multiplied beside the blocks is float32, whatever the process has chosen
            with products_in("float32"):
                return function(*given.args, **given.kwargs)

        vars(call)["__signature__"] = forms.shown
        call.__doc__ = forms.told(function.__doc__)
        return call

    return decorated


class _Forms:
    """The two ways to call a function of a run."""

    def __init__(self, name: str, signature: inspect.Signature):
        parameters = signature.parameters
        self.name = name
        self.keywords = [*parameters, "model", "texts"]
        shape = shape_of(signature)
        of_run, of_model = f"{name}{shape}", f"{name}{shape.replace('run', 'model, texts', 1)}"
        self.of_run, self.of_model = of_run, of_model
        run = parameters["run"].replace(annotation=RunOrModel)
        self.shown = signature.replace(parameters=[*(parameters | {"run": run}).values()])

    def told(self, doc: str | None) -> str | None:
        """The docstring with both forms after its first paragraph."""
        if doc is None:  # python -OO
            return None
        summary, _, rest = inspect.cleandoc(doc).partition("\n\n")
        both = f"Call it as\n``{self.of_run}`` or\n``{self.of_model}``."
        return "\n\n".join([summary, both, rest])

    def popped(self, kwargs: dict[str, Any]) -> Any:
        """The run or the model, taken out of the keywords."""
        if "run" in kwargs:
            return kwargs.pop("run")
        return kwargs.pop("model", None)

    def check(self, model: Any, texts: Any) -> None:
        """TypeError unless these are a model and texts."""
        if not MODEL.fits(model):
            raise TypeError(
                f"`{self.name}` must get a run, or a model and texts; got {short(model)}. "
                f"Write {self.of_run} or {self.of_model}."
            )
        if texts is None:
            raise TypeError(
                f"`{self.name}` must get texts with a model; got none. Give texts, or a run in "
                "place of both."
            )
        if isinstance(texts, (Mapping, xr.DataArray)) or MODEL.fits(texts):
            raise TypeError(
                f"`texts` must be texts, token ids or a run; got {short(texts)}. Write "
                f"{self.of_model}."
            )


def as_run(model: Model, texts: Any, *, contexts: bool = True) -> Run:
    """A run as it is, or one of these texts, which is prefilled when a block is asked for.

    ValueError for a run of another model.
    """
    if not isinstance(texts, (Run, ShardedRun)):
        return Run.later(model, texts) if contexts else Run(model, texts, contexts=False)
    if texts.model is not model:
        raise ValueError(
            f"`texts` must be a run of `model`; got one of another, {short(texts)}. Make it with "
            "`model.run`."
        )
    return cast(Run, texts)  # a ShardedRun stands for one, where it is taken


def in_one_place(name: str, run: ShardedRun) -> str:
    """What to say where a run in shards is not taken."""
    return (
        f"`{name}` must get a run with all prompts in one place; got {short(run)}. Make one: "
        f"model.run(texts)."
    )


def _run_of(model: Any, texts: Any, *, later: bool) -> Run:
    """The run of a model and texts that a function got in place of a run."""
    if later and not isinstance(texts, (Run, ShardedRun)):
        return Run.later(model, texts)
    return as_run(model, texts, contexts=False)
