"""The files that results become: their names, and how they are written from Datasets alone."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import xarray as xr

    from depthsys.files import OutputFolder


_COLUMNS = [
    "energy", "energy_low", "energy_high", "multiple", "multiple_low", "multiple_high",
    "energy_relative", "energy_absolute", "largest_push", "reached", "monotone", "saturates",
    "layer_pushed",
]  # fmt: skip


def _energies(energies: "xr.Dataset", path: Path) -> None:
    table = energies[_COLUMNS]
    frame = table.to_dataframe()
    frame["target"], frame["energy_kind"] = energies.attrs["target"], energies.attrs["energy"]
    frame["predicted_energy"] = energies.attrs.get(
        "plan_energy", float(energies["predicted_energy"])
    )
    frame.to_csv(path)


@dataclass(frozen=True)
class Result:
    """What the Dataset of a step becomes.

    Attributes
    ----------
    data
        Name of the netCDF file.
    figures
        Functions of the module ``sheets`` of `depthsys.plot`, by name: a PNG and an SVG each.
    others
        Further files by name, and how they are written from the Dataset.
    sheets
        Where the figures are.
    without
        Variables that the netCDF file is without: others hold them.
    """

    data: str
    figures: tuple[str, ...] = ()
    others: tuple[tuple[str, Callable[["xr.Dataset", Path], None]], ...] = ()
    sheets: str = "sheets"
    without: tuple[str, ...] = ()

    @property
    def files(self) -> list[str]:
        """Names of all its files."""
        drawn = [f"{name}.{kind}" for name in self.figures for kind in ("png", "svg")]
        return [self.data, *drawn, *(name for name, _ in self.others)]


SYSTEM = Result("system.nc", ("separation",))
EACH = Result("systems_per_prompt.nc")
GAINS = Result("gains.nc", ("gain_curves", "error_budget"))
CONTROL = Result(
    "schedule.nc", ("schedule", "energy", "single_layers"), (("energy.csv", _energies),)
)
VERIFIED = Result("verified.nc", ("energy", "achieved"), (("energy.csv", _energies),))
PLAN = Result("plan.nc", ("pushes", "push_energy"))
COMPARISON = Result(
    "comparison.nc",
    ("agreement_by_order", "certified_errors", "budget_bars", "linear_range", "prompt_spread"),
)
EFFECT = Result("effect.nc")
TEXTS = "texts.csv"
# what a command makes out of date, with its summary
GAIN_FILES = [*GAINS.files, "gains.txt"]
CONTROL_FILES = [*CONTROL.files, "control.txt"]
PLAN_FILES = [*PLAN.files, "plan.txt"]
VERIFIED_FILES = [*VERIFIED.files, "verify.txt"]
COMPARISON_FILES = [*COMPARISON.files, "comparison.txt"]
EFFECT_FILES = [*EFFECT.files, "verify.txt"]
# a new identification makes all but a comparison out of date
ALL_FILES = [
    *SYSTEM.files, *EACH.files, "identify.txt", *GAIN_FILES, *CONTROL_FILES,
    *PLAN_FILES, "demo.txt", "real.txt",
]  # fmt: skip


def write_data(folder: "OutputFolder", result: Result, dataset: "xr.Dataset") -> None:
    """Write the Dataset; a system with the golden trajectory that every reader replays."""
    from depthsys import export

    if "A" in dataset:
        folder.write(result.data, lambda path: export.to_netcdf(dataset, path))
    else:
        folder.netcdf(result.data, dataset.drop_vars(result.without))


def write_shown(folder: "OutputFolder", result: Result, dataset: "xr.Dataset") -> None:
    """Write what is made of the Dataset for people: figures and tables."""
    for name, write in result.others:
        folder.write(name, lambda path, write=write: write(dataset, path))
    if result.figures:
        from depthsys import plot

        sheets = import_module(f"depthsys.plot.{result.sheets}")
        for name in result.figures:
            fig = getattr(sheets, name)(dataset)
            for kind in ("png", "svg") if fig is not None else ():
                folder.write(f"{name}.{kind}", _saved(plot.save, fig, kind))


def _saved(save: Callable[..., Any], fig: Any, kind: str) -> Callable[[Path], None]:
    return lambda path: save(fig, path, kind)


def is_system(source: str) -> bool:
    """Whether a command's first argument is a stored system rather than a model."""
    return source.endswith(".nc")


def outputs(source: str, files: list[str]) -> list[str]:
    """What a step makes out of date: its own files, or everything if it identifies first."""
    return files if is_system(source) else ALL_FILES
