"""`depthsys verify`: what a plan, or a control vector of others, does to the model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from depthsys.cli import results
from depthsys.cli.kept import GoingOn, inside
from depthsys.cli.options import MODEL_HELP, Force, Moved, Out, Shared, settings, spread
from depthsys.cli.typed import named
from depthsys.files import OutputFolder
from depthsys.study.names import CONCEPTS

if TYPE_CHECKING:
    import xarray as xr

    from depthsys.study import Settings

_TYPED = {"path": "PLAN.nc", "vector": "PLAN.nc", "strength": "--strength", "n_layers": "MODEL"}


@spread
def verify(
    plan: Annotated[
        Path,
        typer.Argument(
            metavar="PLAN.nc", help="What `plan` or `import` wrote, or a control vector.gguf."
        ),
    ],
    shared: Shared,
    out: Out,
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help=f"For a control vector: {MODEL_HELP}")
    ] = None,
    texts: Annotated[
        Path | None,
        typer.Argument(
            metavar="TEXTS", help="For a control vector: labelled texts, as in `identify`."
        ),
    ] = None,
    strength: Annotated[float, typer.Option(help="Factor on the vector; may be negative.")] = 1.0,
    concept: Annotated[
        str | None,
        typer.Option(help=f"What is read: {', '.join(CONCEPTS)}.  [default: mean_difference]"),
    ] = None,
    moved: Moved = None,
    force: Force = False,
) -> None:
    """What a plan or a control vector really does on held-out prompts, in numbers.

    A plan of `depthsys plan` knows its model and texts: the energy it needs beside simple schedules
    and its shift over amplitude, OUT/verified.nc and figures. With MODEL and TEXTS any control
    vector: its effect at the last token, as plans are played, and at every token, as llama.cpp and
    repeng do it, beside linear prediction, OUT/effect.nc.

    Example: `depthsys verify run/plan.nc --out check`, or
    `depthsys verify vec.nc ./my-model reviews.csv --out check`
    """
    asked = settings(shared, concept=concept)
    if (model is None) != (texts is None):
        raise ValueError(
            "`MODEL` and `TEXTS` must be given together; got one of them. Add the other, or leave "
            "both out for a plan of `depthsys plan`, which knows them."
        )
    if model is None or texts is None:
        _verify_plan(plan, asked, moved, strength, out, force)
        return
    if moved is not None:
        raise ValueError(
            f"`--model` must be left out where MODEL is given; got {moved!r}. It says where the "
            "model of a plan has moved to."
        )
    folder = OutputFolder.checked(out, results.EFFECT_FILES, force)
    vector = _fitting(plan, model, strength)
    from depthsys import report
    from depthsys.cli.session import open_model
    from depthsys.study import steps

    session = open_model(model, texts, asked, folder)
    found = session.step("concept direction", steps.find_concept)
    effect = session.step("push at the last and at every token", steps.verify, found, vector)
    session.keep(results.EFFECT, effect, report.effect(effect))
    session.finish(effect, "verify.txt")


def _verify_plan(
    path: Path, asked: "Settings", moved: str | None, strength: float, out: Path, force: bool
) -> None:
    """Play a plan on the held-out prompts of its system."""
    if strength != 1.0 or "concept" in asked.asked:
        raise ValueError(
            "`--strength` and `--concept` must be left out for a plan, whose energy is searched "
            f"for along its readout; got {strength:g} and {asked.concept}. Give MODEL and TEXTS to "
            "play it as a control vector."
        )
    files = results.VERIFIED_FILES
    folder = OutputFolder.checked(out, files, force, partial=inside(out, "verify"))
    from depthsys import report
    from depthsys.cli.session import open_source
    from depthsys.study import steps
    from depthsys.study.exchange import read_own_plan, system_of

    with named(_TYPED):
        plan = read_own_plan(path)
        source = system_of(plan, path)
    going_on = GoingOn("verify", force)
    session = open_source(str(source), None, moved, asked, folder, going_on=going_on)
    system = session.latest
    with session.keeping("verify", force, plan=path):
        found = session.step("search energies on the full model", steps.verify_plan, system, plan)
        session.keep(results.VERIFIED, found, report.control(found))
        session.finish(system, "verify.txt")


def _fitting(plan: Path, model: str, strength: float) -> "xr.Dataset":
    """The control vector, checked against the configuration of the model before it is loaded."""
    from depthsys.export import with_layers
    from depthsys.study.exchange import model_sizes, read_vector

    with named(_TYPED):
        vector = read_vector(plan, strength)
        sizes = model_sizes(model)
        if vector.sizes["feature"] != sizes["n_features"]:
            raise ValueError(
                f"`vector` must be as wide as the states of the model, {sizes['n_features']}; got "
                f"{vector.sizes['feature']} in {str(plan)!r}. Give the model that it is of."
            )
        return with_layers(vector, sizes["n_layers"])
