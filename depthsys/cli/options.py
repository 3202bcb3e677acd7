"""The options of the commands, each declared once.

A command takes a group of options as one parameter, annotated with a dataclass of this module;
`spread` shows its fields to Typer as options of the command.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from depthsys import demo
from depthsys.cli import typed
from depthsys.prompting import CUTS
from depthsys.study.names import CONCEPTS, METHODS, READABLE, READOUTS, TEXT_FORMATS
from depthsys.study.settings import Settings

MODEL_HELP = (
    "Folder of a Hugging Face causal model, a .gguf file, a name of the hub (NAME or "
    f"NAME@REVISION), or one of {', '.join(demo.MODELS)}."
)
SOURCE_HELP = "A model as in `identify` (then give TEXTS too), or a system.nc written before."
READOUT_HELP = (
    f"{' or '.join(READOUTS)}: the last depth, or every one (for ltv; terminal gains are the same)."
)
STORED_HELP = f"A stored system: {', '.join(READABLE[:-1])} or {READABLE[-1]}."

Model = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)]
Source = Annotated[str, typer.Argument(metavar="MODEL|SYSTEM.nc", help=SOURCE_HELP)]
TextsFile = Annotated[
    Path,
    typer.Argument(
        metavar="TEXTS",
        help="CSV, TSV, JSON, JSONL or Parquet with columns text (or input_ids) and label, or "
        "positive and negative; a folder of `datasets`; or -, standard input.",
    ),
]
OptionalTexts = Annotated[
    Path | None,
    typer.Argument(
        metavar="TEXTS",
        help="Texts: needed with a model; with a system.nc only if they have moved.",
    ),
]
Moved = Annotated[
    str | None, typer.Option("--model", help="Where the model of a system.nc has moved to.")
]
Out = Annotated[Path, typer.Option(help="Folder for the results; made if absent.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite results of an earlier run.")]


@dataclass(frozen=True)
class Prompted:
    """What all commands take that feed texts to a model."""

    max_tokens: Annotated[
        int | None, typer.Option(help="Longer texts are cut.  [default: 128]")
    ] = None
    cut: Annotated[
        str | None,
        typer.Option(
            help=f"Where: {', '.join(CUTS)} (which keeps the header of a chat template and the "
            "beginning of the answer).  [default: right]"
        ),
    ] = None
    template: Annotated[
        str | None,
        typer.Option(
            help=r"What stands around every text, as in 'Review: {text}\nSentiment:'; with --chat, "
            "in the user's message."
        ),
    ] = None
    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat",
            help="Put every text into the tokenizer's chat template: the user's message, followed "
            "by the header of the answer.",
        ),
    ] = None
    system_message: Annotated[
        str | None, typer.Option("--system", help="With --chat: what the system says before.")
    ] = None
    answer: Annotated[str | None, typer.Option(help="With --chat: how the answer begins.")] = None
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto"
    device_map: Annotated[
        str | None,
        typer.Option(
            help="auto: for a model larger than the device's memory, whose other layers wait in "
            "that of the machine and in the model's files."
        ),
    ] = None
    max_memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZES",
            help="With --device-map: the most that weights may take of the card and of the "
            "machine's memory, as in 0=20GiB,cpu=100GiB.  [default: 70 % of what is free]",
        ),
    ] = None
    dtype: Annotated[
        str | None,
        typer.Option(
            help="float32, float64, or bfloat16 and float16, which keep the model in 16 bits.  "
            "[default: float32, or that of the system.nc or plan]"
        ),
    ] = None
    tf32: Annotated[
        bool | None,
        typer.Option(
            "--tf32/--no-tf32",
            help="On a GPU, round the factors of float32 products to 11 bits.  [default: no, or as "
            "for the system.nc or plan]",
        ),
    ] = None


@dataclass(frozen=True)
class Shared(Prompted):
    """What all commands that run a model on labelled texts take."""

    split: Annotated[
        str | None,
        typer.Option(help="Texts PER CLASS: concept/operating/held-out.  [default: 400/200/200]"),
    ] = None
    seed: Annotated[int | None, typer.Option(help="Seed of the splits.  [default: 0]")] = None
    read_at: Annotated[
        str | None,
        typer.Option(
            help="The token whose state is meant: last; text, the last one of the text; its number "
            "(-1 is the last one); or a marker, the token where these words end.  [default: last]"
        ),
    ] = None
    positive: Annotated[
        str | None,
        typer.Option(
            help="The label that the readout grows towards.  [default: the larger number, or the "
            "later word]"
        ),
    ] = None


@dataclass(frozen=True)
class Layout:
    """Which columns and classes of the texts are meant."""

    text_column: Annotated[
        str | None,
        typer.Option(help="Column of the texts; of pairs, of what stands before both.  [text]"),
    ] = None
    label_column: Annotated[str | None, typer.Option(help="Column of the labels.  [label]")] = None
    pairs: Annotated[
        str | None,
        typer.Option(
            help="Columns of contrast pairs, as in chosen,rejected.  [default: positive,negative "
            "where there are such columns and no labels]"
        ),
    ] = None
    classes: Annotated[
        str | None,
        typer.Option(help="The two labels that are meant, as in anger,joy, where there are more."),
    ] = None
    against_rest: Annotated[
        bool | None,
        typer.Option("--against-rest", help="The label of --positive against all others."),
    ] = None
    subset: Annotated[
        str | None, typer.Option(help="Which data set of a folder of several, as in train.")
    ] = None
    format: Annotated[
        str | None,
        typer.Option(help=f"Of TEXTS: {', '.join(TEXT_FORMATS)}.  [default: as its name ends]"),
    ] = None


@dataclass(frozen=True)
class Reduction:
    """The reduction method and its size."""

    basis: Annotated[
        str | None,
        typer.Option(
            help=f"Reduction method: {', '.join(METHODS)}; krylov is the paper's.  "
            "[default: ensemble]"
        ),
    ] = None
    order: Annotated[
        int | None, typer.Option(help="Largest reduced order.  [default: 32 or H]")
    ] = None
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="Instead of --order: the largest error, a fraction of the system's norm."
        ),
    ] = None


@dataclass(frozen=True)
class Meaning:
    """The concept direction and what is read."""

    concept: Annotated[
        str | None,
        typer.Option(help=f"Direction: {', '.join(CONCEPTS)}.  [default: mean_difference]"),
    ] = None
    readout: Annotated[str | None, typer.Option(help=f"{READOUT_HELP}  [default: concept]")] = None


@dataclass(frozen=True)
class Compared(Meaning):
    """The same, where reduction methods are compared."""

    readout: Annotated[str, typer.Option(help=READOUT_HELP)] = "profile"  # pyright: ignore


@dataclass(frozen=True)
class Measured:
    """How gains are measured."""

    eps: Annotated[
        float | None,
        typer.Option(
            help="Step of the measured gains.  [default: 0.01 of the state's norm; 0.1 if absolute]"
        ),
    ] = None
    step: Annotated[
        str | None,
        typer.Option(
            help="relative: a fraction of the norm of each state; absolute: the same for all.  "
            "[default: relative]"
        ),
    ] = None


@dataclass(frozen=True)
class Wanted:
    """How far the readout is to move, and how the energy of that is counted."""

    target: Annotated[
        str | None,
        typer.Option(
            help="Wanted shift of the mean readout: a number in its unit, or as in 1std (its "
            "standard deviation over the operating texts) or 2log-odds (of the class, by a linear "
            "discriminant on held-out texts).  "
            "[default: 1std]"
        ),
    ] = None
    energy: Annotated[
        str,
        typer.Option(help="relative to the norm of the state that is pushed, or absolute."),
    ] = "relative"


@dataclass(frozen=True)
class Planned(Wanted):
    """The same with what a plan may do."""

    layers: Annotated[
        str | None,
        typer.Option(help="Layers that may push, as in 4-12,20.  [default: all]"),
    ] = None
    skip_layers: Annotated[str | None, typer.Option(help="Layers that may not push, as in 0.")] = (
        None
    )
    max_relative_push: Annotated[
        float | None,
        typer.Option(help="Largest push, a fraction of the norm of the state, as in 0.3."),
    ] = None
    max_layers: Annotated[int | None, typer.Option(help="Push at so many layers at most.")] = None
    linear: Annotated[
        bool | None,
        typer.Option(
            "--linear",
            help="The plan of the linear system as it is, without going on to the optimum of the "
            "full model.",
        ),
    ] = None


# words of a prompt, which may have line breaks
_WRITTEN = ("template", "system_message", "answer", "read_at")


def settings(*groups: Any, **others: Any) -> Settings:
    """The options of some groups, and others, checked together."""
    given = {name: value for group in groups for name, value in vars(group).items()}
    given |= {name: typed.unescaped(given[name]) for name in _WRITTEN if given.get(name)}
    return Settings.checked(**given | others)


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the fields of its groups in place of them, and errors as typed."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {n: hint for n, hint in hints.items() if is_dataclass(hint)}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name in groups:
            parameters += _fields_of(groups[name])
        else:
            parameters.append(parameter.replace(annotation=hints[name]))
    parameters = [typed.numeric(each) for each in parameters]
    names = typed.names_of(parameters) | {"path": "--out", "n_each": "--each", "address": "--index"}
    # as every signature must: what has no default comes first
    parameters.sort(key=lambda each: each.default is not inspect.Parameter.empty)

    @functools.wraps(command)
    def spread_command(**options: Any) -> None:
        made = {
            name: group(**{each.name: options.pop(each.name) for each in fields(group)})
            for name, group in groups.items()
        }
        with typed.named(names):
            command(**options, **made)

    spread_command.__annotations__ = {each.name: each.annotation for each in parameters}
    vars(spread_command)["__signature__"] = inspect.Signature(
        [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in parameters]
    )
    return spread_command


def _fields_of(group: type) -> list[inspect.Parameter]:
    types = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            each.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=each.default,
            annotation=types[each.name],
        )
        for each in fields(group)
    ]
