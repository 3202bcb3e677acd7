"""Where results go: their names, and a folder in which they appear whole or not at all."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import xarray as xr


def _figures(*names: str) -> list[str]:
    return [f"{name}.{kind}" for name in names for kind in ("png", "svg")]


SYSTEM, EACH, COMPARISON = "system.nc", "systems_per_prompt.nc", "comparison.nc"
GAIN_FILES = ["gains.nc", *_figures("gain_curves", "error_budget"), "gains.txt"]
CONTROL_FILES = ["energy.csv", "schedule.nc", *_figures("schedule", "energy"), "control.txt"]
# whatever a new identification makes out of date
ALL_FILES = [SYSTEM, EACH, "identify.txt", *GAIN_FILES, *CONTROL_FILES, "demo.txt"]
COMPARISON_FILES = [
    COMPARISON,
    *_figures(
        "agreement_by_order", "certified_errors", "budget_bars", "linear_range", "prompt_spread"
    ),
    "comparison.txt",
]


@dataclass(frozen=True)
class OutputFolder:
    """The output folder. Files appear whole or not at all.

    ``stale`` are results of an earlier run; they go just before the first new one comes, so that
    an old and a new run are never mixed, and nothing is lost to a run that fails before that.
    A file that another run wrote in the meantime is not overwritten.
    """

    folder: Path
    stale: list[str]

    @classmethod
    def checked(cls, folder: Path, files: list[str], force: bool) -> "OutputFolder":
        """Make the folder; ValueError if it is not writable or holds one of the files."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f".probe-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise ValueError(
                f"`--out` must be a writable folder; got {str(folder)!r}: {error.strerror}. "
                "Choose another."
            ) from error
        present = [name for name in files if (folder / name).exists()]
        if present and not force:
            raise ValueError(
                f"`--out` must not hold earlier results; found {present} in {str(folder)!r}. "
                "Choose another folder or add --force."
            )
        return cls(folder, present)

    def write(self, name: str, writer: Callable[[Path], Any]) -> None:
        """Write to a hidden file and rename it when it is whole."""
        partial = self.folder / f".{name}.part-{os.getpid()}"
        try:
            writer(partial)
            while self.stale:
                (self.folder / self.stale.pop()).unlink(missing_ok=True)
            try:
                os.link(partial, self.folder / name)  # unlike a rename, never overwrites
            except FileExistsError as error:
                raise ValueError(
                    f"`--out` must belong to one run at a time; another one wrote {name!r} into "
                    f"{str(self.folder)!r} meanwhile. Choose another folder."
                ) from error
        finally:
            partial.unlink(missing_ok=True)

    def netcdf(self, name: str, dataset: "xr.Dataset") -> None:
        """Write a Dataset as netCDF4."""
        self.write(name, lambda path: dataset.to_netcdf(path, engine="h5netcdf"))

    def figure(self, name: str, fig: Any) -> None:
        """Write a figure as PNG and SVG."""
        from depthsys import plot

        for kind in ("png", "svg"):
            self.write(f"{name}.{kind}", lambda path, kind=kind: plot.save(fig, path, kind))
