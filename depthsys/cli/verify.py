"""`depthsys verify`: what a control vector of others does to this model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from depthsys.cli import results
from depthsys.cli.options import Force, Model, Out, Shared, TextsFile, settings, spread
from depthsys.cli.typed import named
from depthsys.files import OutputFolder
from depthsys.study.names import CONCEPTS

if TYPE_CHECKING:
    import xarray as xr

_TYPED = {"path": "PLAN.nc", "vector": "PLAN.nc", "strength": "--strength", "n_layers": "MODEL"}


@spread
def verify(
    plan: Annotated[
        Path,
        typer.Argument(metavar="PLAN.nc", help="What `import` wrote, or a control vector.gguf."),
    ],
    model: Model,
    texts: TextsFile,
    shared: Shared,
    out: Out,
    strength: Annotated[float, typer.Option(help="Factor on the vector; may be negative.")] = 1.0,
    concept: Annotated[
        str | None,
        typer.Option(help=f"What is read: {', '.join(CONCEPTS)}.  [default: mean_difference]"),
    ] = None,
    force: Force = False,
) -> None:
    """What a control vector does on held-out prompts, beside linear prediction: OUT/effect.nc.

    Pushed at the last token, as plans are, and at every token, as llama.cpp and repeng do it.

    Example: `depthsys verify vec.nc ./my-model reviews.csv --out check`
    """
    asked = settings(shared, concept=concept)
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
