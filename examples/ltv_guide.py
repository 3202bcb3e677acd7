"""Run docs/ltv.md and draw its figures from what it computed.

    python examples/ltv_guide.py --out docs/figures

The page is the one source of the examples: its code blocks are run here, and by the tests, which
also compare the printed numbers.
"""

import argparse
import doctest
from pathlib import Path

import matplotlib as mpl

from depthsys import ltv, plot

GUIDE = Path(__file__).parents[1] / "docs/ltv.md"


def names_of(page: Path) -> dict:
    """Everything the page's examples define."""
    test = doctest.DocTestParser().get_doctest(page.read_text("utf-8"), {}, page.name, None, 0)
    namespace: dict = {"__name__": "guide"}
    for example in test.examples:
        if example.exc_msg is None:
            exec(compile(example.source, str(page), "single"), namespace)
    return namespace


def draw(names: dict, out: Path) -> None:
    """The figures of the page, as PNG."""
    rod, values = names["rod"], names["values"]

    fig, (left, right) = plot.figure(11, 4, columns=2)
    plot.hankel_map(left, values)
    plot.hankel_lines(right, values.isel(index=slice(12)))
    left.set_title("Hankel singular values of the rod", pad=24)  # above the key
    right.set_title("the first twelve")
    plot.save(fig, out / "ltv_hankel.png", "png")

    fig, (ax,) = plot.figure(7, 4.5)
    plot.error_curves(ax, names["rod_table"])
    ax.set_title("reduced models of the rod")
    plot.save(fig, out / "ltv_errors.png", "png")

    fig, axes = plot.figure(10, 7.5, columns=2, rows=2)
    plot.io_image(axes[0], ltv.io_matrix(rod).isel(output=[1]))
    axes[0].set_title("heating to the middle thermometer")
    plot.gramian_eigenvalues(axes[1], ltv.reachability_factors(rod))
    axes[1].set_title("eigenvalues of the reachability Gramian")
    P = ltv.reachability_gramian(rod).isel(depth=-1)
    plot.energy_ellipsoid(axes[2], P, states=(20, 25))
    axes[2].set_title("cells reached with energy 1")
    three_cells(axes[3], names)
    plot.save(fig, out / "ltv_control.png", "png")

    fig, (left, right) = plot.figure(11, 4, columns=2)
    plot.hankel_lines(left, ltv.hankel_singular_values(names["system"]))
    left.set_title("depth of demo_96x8, profile readout")
    plot.error_curves(right, names["table"])
    right.set_title("reduced models of it")
    plot.save(fig, out / "ltv_language_model.png", "png")

    fig, axes = plot.figure(12, 7.5, columns=2, rows=2)
    plot.controllability(axes[:2], ltv.controllability(rod))
    plot.actuator_layers(axes[2], names["three"], n_layers=rod.sizes["layer"])
    plot.layer_energies(axes[3], ltv.minimum_energy(rod, target=[10.0, 20.0, 10.0]))
    plot.save(fig, out / "ltv_layers.png", "png")

    fig, (left, right) = plot.figure(11, 3.6, columns=2)
    spring = names["spring"]
    plot.responses(left, ltv.impulse_response(spring))
    plot.responses(right, ltv.step_response(spring, at=10))
    for ax in (left, right):
        ax.axvline(10, color="k", lw=0.8, ls="--")
        ax.annotate(
            "damper lost", (10.3, 0.93), xycoords=ax.get_xaxis_transform(), fontsize="small"
        )
    plot.save(fig, out / "ltv_responses.png", "png")


def three_cells(ax, names: dict) -> None:
    """The least-energy heating and the temperatures it gives."""
    rod = names["rod"]
    plan = ltv.minimum_energy(rod, target=[10.0, 20.0, 10.0])  # the page goes on to other plans
    y = ltv.simulate(rod, plan.u).y
    for i, style in enumerate(("-", "--", ":")):
        place = (0.2, 0.5, 0.75)[i]
        ax.plot(y.depth, y.isel(output=i), style, color="k", label=f"thermometer at {place} m")
    ax.bar(plan.layer, plan.u.isel(input=0), color="#56B4E9", label="heating rate (K/s)")
    ax.set_xlabel("depth (steps of 2 s)")
    ax.set_ylabel("temperature (K), heating rate (K/s)")
    ax.set_title("10, 20 and 10 K with the least energy")
    ax.legend(frameon=False, fontsize="small")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the figures")
    arguments = parser.parse_args()
    mpl.use("agg")
    arguments.out.mkdir(parents=True, exist_ok=True)
    draw(names_of(GUIDE), arguments.out)
    print("drawn:", *sorted(str(p) for p in arguments.out.glob("ltv_*.png")))
