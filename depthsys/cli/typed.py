"""Options and arguments as they are typed: what is said of them when something is wrong.

Below the command line the same things are arguments of functions, and are named so in errors.
"""

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from functools import partial
from typing import Annotated, Any, get_args

from typer.models import ArgumentInfo, OptionInfo

# the cures that functions name, and what is typed instead
_CURES = {
    "with `force=True` (`--force`)": "with --force",
    "with `drop=True` (`--drop`)": "with --drop",
    "ask for that part or pass `allow_residual=True`": "or ask for that part",
    " or pass `allow_residual=True`": "",
}
# what is typed for a number: the rule, and the cure
_NUMBERS = {
    int: ("a whole number", "Write it as in 4."),
    float: ("a number", "Write it as in 0.1."),
}


@contextmanager
def named(names: Mapping[str, str]) -> Iterator[None]:
    """Errors that name arguments of functions name instead what was typed.

    Parameters
    ----------
    names
        Arguments, and how they are typed: ``{"path": "--out"}``.
    """
    try:
        yield
    except (ValueError, TypeError, OSError, ArithmeticError, ImportError) as error:
        if len(error.args) == 1 and isinstance(error.args[0], str):
            error.args = (_renamed(error.args[0], names),)
        raise


def _renamed(said: str, names: Mapping[str, str]) -> str:
    for name, typed in names.items():
        said = said.replace(f"`{name}`", f"`{typed}`")
    for cure, typed in _CURES.items():
        said = said.replace(cure, typed)
    return said


def names_of(parameters: Iterable[inspect.Parameter]) -> dict[str, str]:
    """How the parameters of a command are typed."""
    found = {}
    for each in parameters:
        about = _about(each)
        if isinstance(about, OptionInfo):
            # inside Annotated the first name stands where the default would
            given = [about.default, *(about.param_decls or ()), f"--{each.name.replace('_', '-')}"]
            found[each.name] = next(n for n in given if isinstance(n, str) and n.startswith("--"))
        else:
            found[each.name] = about.metavar or each.name.upper()
    return found


def unescaped(text: str) -> str:
    r"""What was typed, with the line breaks, tabs and backslashes that \n, \t and \\ stand for.

    Examples
    --------
    >>> unescaped(r"Review: {text}\nSentiment:")
    'Review: {text}\nSentiment:'
    """
    meant = {"n": "\n", "t": "\t", "\\": "\\"}
    return re.sub(r"\\([nt\\])", lambda found: meant[found[1]], text)


def numeric(parameter: inspect.Parameter) -> inspect.Parameter:
    """The parameter of a command; what is no number is told as all other errors are."""
    kind = next(iter(get_args(parameter.annotation)), parameter.annotation)
    number = next((n for n in _NUMBERS if n in (kind, *get_args(kind))), None)
    if number is None:
        return parameter
    (typed,) = names_of([parameter]).values()
    about = copy(_about(parameter))  # one option is used by several commands
    about.metavar = about.metavar or f"<{number.__name__}>"
    about.parser = partial(_parsed, number, typed)
    return parameter.replace(annotation=Annotated[kind, about])


def _parsed(number: type, typed: str, given: object) -> object:
    try:
        return number(given)
    except ValueError:
        # a ValueError would become an error of the library that parses the command line
        rule, cure = _NUMBERS[number]
        raise TypeError(f"`{typed}` must be {rule}; got {given!r}. {cure}") from None


def _about(parameter: inspect.Parameter) -> OptionInfo | ArgumentInfo:
    """What is said of it, or what Typer takes it for where nothing is."""
    kinds = (OptionInfo, ArgumentInfo)
    for each in get_args(parameter.annotation):
        if isinstance(each, kinds):
            return each
    return kinds[parameter.default is inspect.Parameter.empty]()


def usage(error: Any, command: str) -> str:
    """What was typed wrongly after that command, as all other errors are told."""
    cure = f"`{command} --help` shows what there is."
    if hasattr(error, "param_type"):  # a parameter is missing
        param = error.param
        typed = param.opts[0] if param.opts[0].startswith("-") else param.metavar or param.name
        return f"`{typed}` must be given; got none. {cure}"
    if hasattr(error, "possibilities"):  # no such option
        like = ", ".join(error.possibilities or ())
        cure = f"Did you mean {like}? {cure}" if like else cure
        return f"`{error.option_name}` must be an option of `{command}`; it has none. {cure}"
    said = error.format_message()
    return f"{said if said.endswith(('.', '?')) else said + '.'} {cure}"
