"""Where results go: their names, and the folder of `depthsys.files` that can also take figures."""

from typing import Any

from depthsys import files


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


class OutputFolder(files.OutputFolder):
    """The output folder, see `depthsys.files.OutputFolder`."""

    def figure(self, name: str, fig: Any) -> None:
        """Write a figure as PNG and SVG."""
        from depthsys import plot

        for kind in ("png", "svg"):
            self.write(f"{name}.{kind}", lambda path, kind=kind: plot.save(fig, path, kind))
