"""A system goes to GNU Octave, is truncated there, comes back, and is checked on the model.

    python examples/octave_round_trip.py --out out/octave [--update]

Needs Octave; the figure (--update) also needs gnuplot, ghostscript and a font:

    apt-get install --no-install-recommends octave octave-control
    apt-get install --no-install-recommends gnuplot-nox ghostscript fonts-freefont-otf fontconfig

The model is the embedded demo_96x8 on synthetic sentiment texts. ``--update`` draws
docs/figures/octave.png and writes what is printed into docs/export.md.
"""

import argparse
import os
import re
import shutil
import subprocess
from pathlib import Path

import xarray as xr

from depthsys import demo, export, lm, ltv
from depthsys.demo import grammar

ROOT = Path(__file__).resolve().parents[1]
FIGURE = ROOT / "docs" / "figures" / "octave.png"
PAGE = ROOT / "docs" / "export.md"
BLOCK = re.compile(r"(<!-- round trip: .* -->\n```text\n)(.*?)(\n```)", re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    parser.add_argument("--order", type=int, default=2, help="states that Octave keeps")
    parser.add_argument("--per-class", type=int, default=200, help="texts per class and split")
    parser.add_argument("--update", action="store_true", help="draw the figure of docs/export.md")
    options = parser.parse_args()

    model = lm.DepthModel.load(demo.model_path("demo_96x8"), device="cpu")
    n = options.per_class
    texts = lm.read_texts(grammar.labelled(max(1000, 4 * n), seed=7))
    texts = texts.split(concept=n, operating=n, held_out=n)
    concept = lm.mean_difference(model, texts.concept)
    system = lm.identify(model, texts.operating, concept, lm.Krylov(order=8), readout="profile")
    folder = options.out / "matlab"
    export.to_matlab(system, folder, force=True)

    lines = [in_octave(folder.resolve(), options.order, FIGURE if options.update else None)]
    reduced = export.from_matlab(options.out / "reduced.mat")
    lines += against_the_original(system, reduced, options.order)
    truth = lm.measure_gains(model, texts.held_out, concept, eps=0.1, relative=False)
    lines += [on_the_model("as identified", system, truth)]
    lines += [on_the_model("truncated in Octave", reduced, truth)]
    text = "\n".join(lines)
    print(text)
    if options.update:
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(BLOCK.sub(lambda m: m[1] + text + m[3], page), encoding="utf-8")


def in_octave(folder: Path, order: int, figure: Path | None) -> str:
    """Run the engineer's script in the exported folder; its output."""
    shutil.copy(Path(__file__).with_suffix(".m"), folder)
    call = f"octave_round_trip({order}, '{figure or ''}')"
    command = ["octave", "--no-gui", "--quiet", "--norc", "--eval", call]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    if done.returncode != 0 or (figure is not None and not figure.is_file()):
        raise SystemExit(f"Octave failed:\n{done.stdout}{done.stderr}")
    (folder / Path(__file__).with_suffix(".m").name).unlink()
    # without the second line of the self-check, the place of the file
    return "\n".join(line for line in done.stdout.splitlines() if "checked:" not in line)


def against_the_original(system: xr.Dataset, reduced: xr.Dataset, order: int) -> list[str]:
    """The error of what came back, beside what is proved for every model of that order."""
    error = ltv.parallel(system, reduced.assign(C=-reduced.C, D=-reduced.D))
    norm, bounds = ltv.induced_norm(system), ltv.error_bounds(system, order=order)
    return [
        f"{'error of what came back':36} {float(ltv.induced_norm(error) / norm):.4f} of the norm",
        f"{f'least possible at order {order}':36} {float(bounds.lower / norm):.4f}",
        f"{'proved for balancing':36} {float(bounds.upper / norm):.4f}",
    ]


def on_the_model(name: str, system: xr.Dataset, truth: xr.Dataset) -> str:
    """Agreement with the gains measured on the full nonlinear model."""
    fit = lm.agreement(system, truth).sel(layers="all")
    estimate, low, high = (float(v) for v in fit["relative_l2"])
    return f"{name + ', on the model':36} relative L2 {estimate:.3f} [{low:.3f}, {high:.3f}]"


if __name__ == "__main__":
    main()
