"""The application: all commands, and what errors look like."""

import sys
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from depthsys._version import __version__
from depthsys.cli import typed
from depthsys.cli.clock import CLOCK
from depthsys.cli.compare import compare
from depthsys.cli.doctor import doctor
from depthsys.cli.dynamics import dynamics
from depthsys.cli.exchange import export, import_
from depthsys.cli.generate import generate
from depthsys.cli.main_job import control, demo, gains, identify
from depthsys.cli.plan import plan
from depthsys.cli.real import fetch, real
from depthsys.cli.report import report
from depthsys.cli.study import app as study_app
from depthsys.cli.verify import verify

# whatever was typed wrongly: Typer has a copy of click of its own, earlier versions had not
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]  # pyright: ignore

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="The depth of a language model as a low-order linear time-varying system.\n\n"
    "Example: `depthsys demo --out demo`, then `depthsys COMMAND --help`",
)
COMMANDS = {
    "demo": demo,
    "identify": identify,
    "gains": gains,
    "control": control,
    "plan": plan,
    "compare": compare,
    "dynamics": dynamics,
    "export": export,
    "import": import_,
    "fetch": fetch,
    "real": real,
    "verify": verify,
    "generate": generate,
    "doctor": doctor,
    "report": report,
}
for _name, _command in COMMANDS.items():
    app.command(_name)(_command)
app.add_typer(study_app, name="study")


def _version(value: bool) -> None:
    if value:
        print(f"depthsys {__version__}")  # noqa: T201
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point: expected errors are one clear line and exit status 2."""
    CLOCK.start()
    try:
        # without its own mode for errors, which tells them in several styles
        code = app(standalone_mode=False)
    except (
        ValueError, TypeError, OSError, FloatingPointError,  # LinAlgError is a ValueError
        ImportError,  # an optional package that a format needs
    ) as error:  # fmt: skip
        _fail(error)
    except _UsageError as error:
        words = [word for word in sys.argv[1:] if word in (*COMMANDS, "study")]
        if not sys.argv[1:] or sys.argv[1:] == ["study"]:  # the help
            error.show()  # pyright: ignore[reportAttributeAccessIssue]
            sys.exit(2)
        _fail(typed.usage(error, " ".join(["depthsys", *_subcommand(words)])))
    except typer.Abort:
        sys.exit(1)
    sys.exit(code or 0)


def _subcommand(words: list[str]) -> list[str]:
    """The command that was typed, with that of a group behind it."""
    if words[:1] != ["study"]:
        return words[:1]
    named = [command.name or "" for command in study_app.registered_commands]
    return ["study", *[word for word in sys.argv[1:] if word in named][:1]]


def _fail(error: object) -> NoReturn:
    screen = Console(stderr=True, soft_wrap=True)
    screen.print("Error:", error, markup=False, highlight=False)
    for note in getattr(error, "__notes__", ()):
        screen.print(note, markup=False, highlight=False)
    sys.exit(2)
