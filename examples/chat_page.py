"""Put what the study of chat prompts found on its page, docs/chat_prompts.md.

    depthsys real --chat --template 'Is this movie review positive or negative?\\n\\n{text}' \\
        --texts movies --split 200/100/100 --out out/chat
    python examples/chat_page.py out/chat

The numbers that the page speaks of go to docs/chat_prompts.nc, the figures to docs/figures, and the
end of the summary between the markers of the page.
"""

import argparse
import re
import shutil
from pathlib import Path

import xarray as xr

from depthsys.report.page import update

DOCS = Path(__file__).parents[1] / "docs"
MARKERS = "<!-- summary: examples/chat_page.py -->", "<!-- end of summary -->"
FIGURES = ("separation", "gain_curves", "energy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="folder that `depthsys real` wrote")
    run = parser.parse_args().run
    numbers(run).to_netcdf(DOCS / "chat_prompts.nc", engine="h5netcdf")
    for name in FIGURES:
        shutil.copyfile(run / f"{name}.png", DOCS / "figures" / f"chat_{name}.png")
    update(DOCS / "chat_prompts.md", {MARKERS: summary(run)})


def numbers(run: Path) -> xr.Dataset:
    """Gains (layer), AUC (depth) and the error of the surrogate."""
    gains, system = (
        xr.load_dataset(run / f"{name}.nc", engine="h5netcdf") for name in ("gains", "system")
    )
    absolute = gains.sel(injection="absolute")
    made = {
        "measured_gain": gains["measured_gain"].mean("prompt"),
        "surrogate_gain": gains["surrogate_gain"],
        "relative_l2": absolute["relative_l2"].sel(layers="all"),
        "noise_floor": absolute["noise_floor"].sel(layers="all"),
        **{name: system[name] for name in ("auc", "auc_low", "auc_high")},
    }
    kept = ("split", "template", "chat", "model_fingerprint", "depthsys_version", "created")
    found = xr.Dataset({name: value.reset_coords(drop=True) for name, value in made.items()})
    return found.assign_attrs({name: gains.attrs[name] for name in kept if name in gains.attrs})


def summary(run: Path) -> str:
    """What the command said at its end, without where things lie on this machine."""
    lines = (run / "real.txt").read_text(encoding="utf-8").splitlines()
    (first,) = (i for i, line in enumerate(lines) if ": L = " in line)
    said = [
        re.sub(r"(^|^texts )/\S*/", r"\1", line)
        for line in lines[first:]
        if line and not line.startswith(("Results after", "Figures"))
    ]
    return "\n".join(["```text", *said, "```"])


if __name__ == "__main__":
    main()
