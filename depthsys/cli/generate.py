"""`depthsys generate`: what a model writes under a plan, by strength."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from depthsys.cli.options import Force, Model, Prompted, settings, spread
from depthsys.cli.typed import named, unescaped

if TYPE_CHECKING:
    import xarray as xr

_TYPED = {
    "plan": "--plan", "path": "--plan", "vector": "--plan", "concept": "--plan",
    "strength": "--strength", "positions": "--positions", "prompts": "--prompt",
    "max_new_tokens": "--max-new-tokens",
}  # fmt: skip


@spread
def generate(
    model: Model,
    prompted: Prompted,
    plan: Annotated[
        Path,
        typer.Option(help="A plan.nc with its directions, or a control vector (.gguf, .nc)."),
    ],
    prompt: Annotated[
        list[str], typer.Option(help=r"What is gone on from; \n is a line break. Several times.")
    ],
    strength: Annotated[str, typer.Option(help="Factors on the plan.")] = "0,0.5,1,2",
    positions: Annotated[
        str | None,
        typer.Option(
            help="Which tokens are pushed: last, of the prompt; generated, that one and all new "
            "ones; every.  [default: as the plan says; every for control vectors]"
        ),
    ] = None,
    after: Annotated[
        str | None,
        typer.Option(metavar="MARKER", help="Instead: the tokens behind the last MARKER."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="The longest new text.")] = 40,
    sample: Annotated[
        bool, typer.Option("--sample", help="Draw tokens instead of taking the likeliest.")
    ] = False,
    seed: Annotated[int | None, typer.Option(help="With --sample.  [default: 0]")] = None,
    out: Annotated[Path | None, typer.Option(help="Also a CSV: prompt, strength, text.")] = None,
    force: Force = False,
) -> None:
    """What the model writes under a plan or a control vector, by strength, side by side.

    Example: `depthsys generate ./my-model --plan vec.gguf --prompt "The movie was" --strength 0,1`
    """
    from depthsys import report
    from depthsys.files import whole_file
    from depthsys.lm.hf.messages import silence
    from depthsys.study import find_model
    from depthsys.study.generation import (
        found_for,
        parsed_strengths,
        read_steering_plan,
        steered_texts,
    )

    asked = settings(prompted, seed=seed)
    strengths = parsed_strengths(strength)
    if seed is not None and not sample:
        raise ValueError(f"`--seed` must come with --sample; got {seed} without. Leave it out.")
    if out is not None and out.exists() and not force:
        raise FileExistsError(
            f"`--out` must not exist yet; got {str(out)!r}. Overwrite it with --force."
        )
    silence()
    with named(_TYPED if after is None else _TYPED | {"positions": "--after"}):
        found = find_model(model, asked)
        read = read_steering_plan(plan, found.source)
        where = _positions(positions, after)
        written = steered_texts(
            found_for(found, read).load_model(),
            read,
            [unescaped(each) for each in prompt],
            strengths,
            positions=where,
            max_new_tokens=max_new_tokens,
            seed=asked.seed,
            options={"do_sample": True} if sample else {},
        )
    if out is not None:
        with whole_file(out, force) as partial:
            _write(written, partial)
    shown = report.texts(written)
    screen = report.Screen()
    screen.show(shown)
    for line in shown.verdicts:
        screen.say(line)


def _positions(positions: str | None, after: str | None):
    from depthsys.lm.positions import After, checked

    if positions is not None and after is not None:
        raise ValueError(
            f"`--positions` and `--after` must not both be given; got {positions!r} and {after!r}. "
            "Leave one out."
        )
    if after is not None:
        return After(unescaped(after))
    return None if positions is None else checked(positions)


def _write(texts: "xr.Dataset", path: Path) -> None:
    texts["text"].to_dataframe().reset_index()[["prompt", "strength", "text"]].to_csv(
        path, index=False
    )
