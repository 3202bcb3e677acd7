"""Options are declared once, and shown by every command that takes them."""

import inspect
import re
from dataclasses import dataclass, fields
from typing import Annotated

import pytest
import typer

from depthsys import plot
from depthsys.cli import options, results
from depthsys.cli.app import COMMANDS
from depthsys.plot import sheets
from depthsys.study import Settings
from depthsys.study.settings import typed

MODEL_COMMANDS = ("demo", "identify", "gains", "control", "compare", "real", "verify")


@dataclass(frozen=True)
class Colours:
    red: Annotated[int, typer.Option(help="How red.")] = 1
    blue: Annotated[str | None, typer.Option(help="How blue.")] = None


def test_a_group_is_spread_into_its_fields_and_made_again():
    seen = []

    @options.spread
    def paint(colours: Colours, wall: Annotated[str, typer.Argument()], thick: int = 2) -> None:
        seen.append((colours, wall, thick))

    signature = inspect.signature(paint)
    assert list(signature.parameters) == ["wall", "red", "blue", "thick"]
    assert signature.parameters["red"].default == 1
    assert typer.main.get_params_from_function(paint)["red"].annotation is int
    paint(wall="left", red=5, blue="sky", thick=3)
    assert seen == [(Colours(5, "sky"), "left", 3)]


@pytest.mark.parametrize("command", MODEL_COMMANDS)
def test_every_command_shows_what_all_share(run, command):
    code, shown, _ = run(command, "--help")
    assert code == 0
    asked = {name for group in (options.Shared,) for name in (f.name for f in fields(group))}
    for name in asked | {"out", "force"}:
        assert re.search(rf"{typed(name)}\b", shown), name


def test_every_field_of_a_group_is_a_setting():
    known = {each.name for each in fields(Settings)}
    for group in (options.Shared, options.Reduction, options.Meaning):
        assert {each.name for each in fields(group)} <= known


def test_groups_are_checked_together():
    reduction, shared = options.Reduction(order=3), options.Shared(split="8/4/4", seed=2)
    settings = options.settings(reduction, shared, eps=0.5)
    assert (settings.order, settings.split, settings.seed, settings.eps) == (3, (8, 4, 4), 2, 0.5)
    with pytest.raises(ValueError, match="must not both be given"):
        options.settings(options.Reduction(order=3, tolerance=0.1), shared)


def test_every_command_has_an_example():
    for name, command in COMMANDS.items():
        assert f"Example: `depthsys {name}" in (command.__doc__ or "")


def test_every_figure_of_a_result_is_a_sheet():
    kept = [value for value in vars(results).values() if isinstance(value, results.Result)]
    names = [name for result in kept for name in result.figures]
    assert len(names) == 15
    for name in names:
        assert getattr(sheets, name).__module__ == sheets.__name__
    assert callable(plot.save)


def test_a_new_identification_makes_all_but_a_comparison_out_of_date():
    assert set(results.GAIN_FILES + results.CONTROL_FILES) < set(results.ALL_FILES)
    assert not set(results.COMPARISON_FILES) & set(results.ALL_FILES)
    assert results.outputs("run/system.nc", ["x"]) == ["x"]
    assert results.outputs("gpt2", ["x"]) == results.ALL_FILES
