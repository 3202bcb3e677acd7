"""What a main job or a comparison is asked for, checked once, before any work."""

import csv
import re
from collections.abc import Collection
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from depthsys.prompting import CUTS, Prompting
from depthsys.shift import Shift
from depthsys.splits import split_sizes
from depthsys.study.devices import parsed_max_memory
from depthsys.study.names import (
    CONCEPTS,
    DTYPES,
    ENERGIES,
    METHODS,
    READOUTS,
    STEPS,
    TEXT_FORMATS,
)

if TYPE_CHECKING:
    from depthsys.lm import Method

DEFAULT_ORDERS = (1, 2, 4, 8, 16, 32)
DEFAULT_EACH = 64
DEFAULT_JACOBIANS = 20
DEFAULT_LINES = 1000
# what a stored system has been identified with already
IDENTIFICATION = (
    "basis", "order", "tolerance", "concept", "readout", "split", "seed", "max_tokens", "cut",
    "template", "chat", "system_message", "answer", "read_at", "positive", "text_column",
    "label_column", "pairs", "classes", "against_rest", "subset", "format",
)  # fmt: skip
# how texts are read, see `depthsys.lm.read_texts` and `read_pairs`
LAYOUT = (
    "text_column", "label_column", "pairs", "classes", "against_rest", "subset", "format",
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """All that is asked for; make it with `Settings.checked`.

    Attributes
    ----------
    basis, order, tolerance
        The reduction method and its size.
    concept, readout
        The direction, and what is read.
    split, seed, max_tokens, cut
        Texts per class (concept, operating, held out), seed of the splits, length of texts, and
        where longer ones are cut.
    template, chat, system_message, answer, read_at
        What is put around texts, and which token is the state; see `prompting`.
    positive
        The label that the readout grows towards; None for the one that sorts last.
    text_column, label_column, pairs, classes, against_rest, subset, format
        How the texts are read: see `lm.read_texts`; ``pairs`` are the columns of `lm.read_pairs`.
    device, device_map, max_memory, dtype, tf32
        Where and in what the model runs; device_map "auto" for a model larger than the device's
        memory, and how much of which memory its weights may take; whether float32 products are made
        in TF32. dtype and tf32 None: float32 and not, or as for what is gone on from.
    step, eps
        Step of measured gains: relative to the norm of the state or absolute, and its size; None
        for 0.01 or 0.1.
    target, energy
        Wanted shift of the readout, None for its standard deviation, and how energy is counted.
    layers, skip_layers, max_relative_push, max_layers, linear
        Which layers may push, how hard, relative to the norm of the state, and at how many of them
        at most; and whether the plan of the linear system is enough.
    methods, orders, n_each
        What a comparison compares, and how many held-out prompts get a system of their own.
    n_jacobians
        Of how many operating prompts measures of depth take whole Jacobians.
    n_lines
        Of a .txt, whose lines are texts without labels: so many at most, drawn by the seed.
    asked
        Names of those that were given.
    """

    basis: str = "ensemble"
    order: int | None = None
    tolerance: float | None = None
    concept: str = "mean_difference"
    readout: str = "concept"
    split: tuple[int, int, int] = (400, 200, 200)
    seed: int = 0
    max_tokens: int = 128
    cut: str = "right"
    template: str | None = None
    chat: bool = False
    system_message: str | None = None
    answer: str | None = None
    read_at: str | int = "last"
    positive: str | None = None
    text_column: str | None = None
    label_column: str | None = None
    pairs: tuple[str, str] | None = None
    classes: tuple[str, str] | None = None
    against_rest: bool = False
    subset: str | None = None
    format: str | None = None
    device: str = "auto"
    device_map: str | None = None
    max_memory: tuple[tuple[int | str, int | str], ...] | None = None
    dtype: str | None = None
    tf32: bool | None = None
    step: str = "relative"
    eps: float | None = None
    target: Shift | None = None
    energy: str = "relative"
    layers: tuple[int, ...] | None = None
    skip_layers: tuple[int, ...] = ()
    max_relative_push: float | None = None
    max_layers: int | None = None
    linear: bool = False
    methods: tuple[str, ...] = METHODS
    orders: tuple[int, ...] = DEFAULT_ORDERS
    n_each: int = DEFAULT_EACH
    n_jacobians: int = DEFAULT_JACOBIANS
    n_lines: int = DEFAULT_LINES
    asked: frozenset[str] = frozenset()

    @classmethod
    def checked(cls, **options: Any) -> "Settings":
        """Settings from options of the command line.

        Parameters
        ----------
        **options
            The attributes by name; None means not given. ``split`` "400/200/200", ``methods``
            "ensemble,pod" and ``orders`` "1,2,4" are texts.

        Raises
        ------
        ValueError
            If an option is not one that may be asked for; it is named as on the command line.
        """
        given = {name: value for name, value in options.items() if value is not None}
        if "dtype" in given:  # torch's own is as good as its name
            given["dtype"] = str(given["dtype"]).removeprefix("torch.")
        unknown = given.keys() - {field.name for field in fields(cls)}
        if unknown:
            raise TypeError(f"`options` must be attributes of Settings; got {sorted(unknown)}.")
        for name, allowed in _CHOICES.items():
            if name in given:
                _check_choice(name, given[name], allowed)
        for name, (rule, is_met) in _RULES.items():
            if name in given and not is_met(given[name]):
                raise ValueError(f"`{typed(name)}` must be {rule.format(got=given[name])}")
        if "order" in given and "tolerance" in given:
            raise ValueError(
                f"`--order` and `--tolerance` must not both be given; got {given['order']} and "
                f"{given['tolerance']}. Leave one out."
            )
        if given.get("step", cls.step) == "relative" and given.get("eps", 0.0) >= 1:
            raise ValueError(
                f"`--eps` must be below 1, the whole norm of the state; got {given['eps']:g}. Add "
                "`--step absolute` for a step in the unit of the state."
            )
        parsed = {name: parse(given[name]) for name, parse in _PARSERS.items() if name in given}
        made = cls(**given | parsed, asked=frozenset(given))
        _ = made.prompting  # checks what goes with what
        return replace(made, n_each=_checked_each(given.get("n_each"), 2 * made.split[2]))

    def for_width(self, n_features: int) -> "Settings":
        """Without default orders above the width; ValueError if such an order was asked for."""
        if "orders" not in self.asked:
            return replace(self, orders=tuple(r for r in self.orders if r <= n_features))
        if self.orders[-1] > n_features:
            raise ValueError(
                f"`--orders` must be at most {n_features}, the width of the model; got "
                f"{self.orders[-1]}. Leave out those above it."
            )
        return self

    @property
    def prompting(self) -> Prompting:
        """How texts become prompts."""
        return Prompting(**{each.name: getattr(self, each.name) for each in fields(Prompting)})

    @property
    def layout(self) -> dict[str, Any]:
        """How texts are read, as far as it was said."""
        said = {name: getattr(self, name) for name in LAYOUT}
        return {name: value for name, value in said.items() if value not in (None, False)}

    def pushed_layers(self, n_layers: int) -> list[int] | None:
        """The layers that may push, out of so many; None for all.

        ValueError if one is none of the model's, or if none is left.
        """
        if self.layers is None and not self.skip_layers:
            return None
        for name in ("layers", "skip_layers"):
            wrong = [layer for layer in getattr(self, name) or () if layer >= n_layers]
            if wrong:
                raise ValueError(
                    f"`{typed(name)}` must be layers of the model, 0 to {n_layers - 1}; got "
                    f"{wrong[0]}. Leave it out."
                )
        asked = range(n_layers) if self.layers is None else self.layers
        left = [layer for layer in asked if layer not in self.skip_layers]
        if not left:
            raise ValueError(
                "`--skip-layers` must leave a layer that may push; got all of them. Name fewer."
            )
        return left

    def method(self) -> "Method":
        """The reduction method with its settings."""
        from depthsys.lm.methods import METHODS as made

        return made[self.basis](order=self.order, tolerance=self.tolerance)


# name -> what it may be
_CHOICES: dict[str, tuple[str, ...]] = {
    "basis": METHODS,
    "concept": CONCEPTS,
    "readout": READOUTS,
    "energy": ENERGIES,
    "step": STEPS,
    "dtype": DTYPES,
    "device_map": ("auto",),
    "cut": CUTS,
    "format": TEXT_FORMATS,
}
# name -> rule with the cure, and whether a value meets it; nan meets none
_RULES = {
    "order": (">= 1; got {got}. The default is 32.", lambda x: x >= 1),
    "tolerance": ("a fraction between 0 and 1; got {got}. Try 0.01.", lambda x: 0 < x < 1),
    "max_tokens": (">= 1; got {got}. The default is 128.", lambda x: x >= 1),
    "seed": (">= 0; got {got}. The default is 0.", lambda x: x >= 0),
    "eps": (
        "positive and finite; got {got}. The default is 0.01 of the state's norm.",
        lambda x: 0 < x < float("inf"),
    ),
    "max_relative_push": (
        "a positive fraction of the state's norm; got {got}. Try 0.3.",
        lambda x: 0 < x < float("inf"),
    ),
    "n_jacobians": (">= 1; got {got}. The default is 20.", lambda x: x >= 1),
    "n_lines": (f">= 1; got {{got}}. The default is {DEFAULT_LINES}.", lambda x: x >= 1),
    "max_layers": (">= 1; got {got}. Leave it out for all layers.", lambda x: x >= 1),
}  # fmt: skip


def typed(name: str) -> str:
    """An attribute of `Settings` as it is typed.

    Examples
    --------
    >>> typed("max_tokens"), typed("system_message")
    ('--max-tokens', '--system')
    """
    return "--" + _TYPED.get(name, name).replace("_", "-")


_TYPED = {
    "system_message": "system",
    "n_each": "each",
    "n_jacobians": "jacobians",
    "n_lines": "lines",
}


def _check_choice(name: str, value: object, allowed: Collection[str]) -> None:
    if value not in allowed:
        *some, last = allowed
        rule = f"one of {', '.join(allowed)}" if len(some) > 3 else f"{', '.join(some)} or {last}"
        rule = rule if some else last
        raise ValueError(f"`{typed(name)}` must be {rule}; got {value!r}. Pick one.")


def _split(text: str) -> tuple[int, int, int]:
    sizes = split_sizes(text, "--split")
    return sizes["concept"], sizes["operating"], sizes["held_out"]


def _methods(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in METHODS:
            raise ValueError(
                f"`--methods` must be names out of {', '.join(METHODS)}; got {name!r}. Write them "
                "as in ensemble,krylov,pod."
            )
        if names.count(name) > 1:
            raise ValueError(
                f"`--methods` must name a method once; got {name!r} {names.count(name)} times. "
                "Leave it out elsewhere."
            )
    return names


def _orders(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    # more digits than any width has: int() of thousands of them would raise an error of its own
    orders = [int(p) for p in parts if p.isascii() and p.isdecimal() and len(p) < 10]
    rising = all(a < b for a, b in pairwise(orders))
    if len(orders) < len(parts) or not rising or orders[0] < 1:
        raise ValueError(
            f"`--orders` must be rising whole numbers >= 1; got {text!r}. Write them as in 1,2,4,8."
        )
    return tuple(orders)


def _layers(name: str, text: str) -> tuple[int, ...]:
    """Layers as in 0,4-12: rising, each once."""
    found: set[int] = set()
    for part in text.split(","):
        ends = [end.strip() for end in part.split("-")]
        whole = all(end.isascii() and end.isdecimal() and len(end) < 6 for end in ends)
        if not whole or len(ends) > 2 or int(ends[0]) > int(ends[-1]):
            raise ValueError(
                f"`{name}` must be layers; got {text!r}. Write them as in 0,4-12: layer 0, and "
                "layers 4 to 12."
            )
        found |= set(range(int(ends[0]), int(ends[-1]) + 1))
    return tuple(sorted(found))


def _target(given: "str | float | Shift") -> Shift:
    try:
        return Shift.read(given)
    except ValueError as error:  # the argument as it is typed
        raise ValueError(str(error).replace("`target`", "`--target`")) from None


def _read_at(given: str | int) -> str | int:
    """A whole number, however it was written, is an index."""
    is_index = isinstance(given, str) and re.fullmatch(r"[+-]?[0-9]{1,9}", given.strip())
    return int(given) if is_index else given


def _two(name: str, text: str | Collection[str]) -> tuple[str, str]:
    """Two names with a comma between them; one that holds a comma is in quotes."""
    try:
        given = next(csv.reader([text], skipinitialspace=True)) if isinstance(text, str) else text
    except (csv.Error, StopIteration):  # lines in it, or more than a column holds
        given = []
    names = [str(each).strip() for each in given]
    if len(names) != 2 or not all(names) or names[0] == names[1]:
        shown = text if isinstance(text, str) and len(text) <= 60 else names[:4]
        raise ValueError(
            f"`--{name}` must be two names; got {shown!r}. Write them as in {_TWO[name]}."
        )
    return names[0], names[1]


_TWO = {"pairs": "positive,negative", "classes": "anger,joy, the second for the larger readout"}
_PARSERS = {
    "split": _split,
    "methods": _methods,
    "orders": _orders,
    "read_at": _read_at,
    "pairs": partial(_two, "pairs"),
    "classes": partial(_two, "classes"),
    "layers": partial(_layers, "--layers"),
    "max_memory": parsed_max_memory,
    "skip_layers": partial(_layers, "--skip-layers"),
    "target": _target,
}


def _checked_each(n_each: int | None, n_held_out: int) -> int:
    if n_each is None:
        return min(DEFAULT_EACH, n_held_out)
    if not 0 <= n_each <= n_held_out:
        raise ValueError(
            f"`--each` must be in 0..{n_held_out}, the number of held-out prompts; got "
            f"{n_each}. With 0 no prompt gets a system of its own."
        )
    return n_each
