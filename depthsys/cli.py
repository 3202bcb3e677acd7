"""The command line: `depthsys demo | identify | gains | control | compare | export | import`.

Heavy imports happen inside the commands, so that `--help` and bad input answer at once.
"""

import csv
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from depthsys import demo as demo_package
from depthsys._version import __version__
from depthsys.job import (
    ALL_FILES,
    BASES,
    COMPARISON_FILES,
    CONCEPTS,
    CONTROL_FILES,
    FORMATS,
    GAIN_FILES,
    Job,
    OutputFolder,
    Plan,
    Settings,
    check_eps,
    check_model,
    export_system,
    import_system,
    is_system,
)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="The depth of a language model as a low-order linear time-varying system.\n\n"
    "Example: `depthsys demo --out demo`, then `depthsys COMMAND --help`",
)

MODEL_HELP = (
    f"Folder of a Hugging Face causal model, its name, or one of {', '.join(demo_package.MODELS)}."
)
SOURCE_HELP = "A model as in `identify` (then give TEXTS too), or a system.nc written before."
STORED_HELP = "A stored system: .nc, .zarr, .mat, .npz or .json."
Model = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)]
Source = Annotated[str, typer.Argument(metavar="MODEL|SYSTEM.nc", help=SOURCE_HELP)]
TextsFile = Annotated[Path, typer.Argument(help="CSV, TSV or JSONL with columns text and label.")]
OptionalTexts = Annotated[
    Path | None,
    typer.Argument(help="Texts: needed with a model; with a system.nc only if they have moved."),
]
Out = Annotated[Path, typer.Option(help="Folder for the results; made if absent.")]
Order = Annotated[int | None, typer.Option(help="Largest reduced order.  [default: 32 or H]")]
Basis = Annotated[
    str | None,
    typer.Option(help=f"Reduction method: {', '.join(BASES)}.  [default: krylov]"),
]
Tolerance = Annotated[
    float | None,
    typer.Option(help="Instead of --order: the largest error, a fraction of the system's norm."),
]
Concept = Annotated[
    str | None,
    typer.Option(help=f"Direction: {', '.join(CONCEPTS)}.  [default: mean_difference]"),
]
ReadoutHelp = "concept, or profile: every depth (for ltv; terminal gains are the same).  "
Readout = Annotated[str | None, typer.Option(help=ReadoutHelp + "[default: concept]")]
Moved = Annotated[
    str | None, typer.Option("--model", help="Where the model of a system.nc has moved to.")
]
Split = Annotated[
    str | None,
    typer.Option(help="Texts PER CLASS: concept/operating/held-out.  [default: 400/200/200]"),
]
Seed = Annotated[int | None, typer.Option(help="Seed of the splits.  [default: 0]")]
MaxTokens = Annotated[
    int | None, typer.Option(help="Longer texts are cut on the right.  [default: 128]")
]
Eps = Annotated[float, typer.Option(help="Step of the measured gains.")]
Target = Annotated[
    float | None,
    typer.Option(help="Wanted shift of the readout.  [default: its standard deviation]"),
]
Energy = Annotated[str, typer.Option(help="absolute, or relative to the norm of the state.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
Dtype = Annotated[
    str | None,
    typer.Option(help="float32 or float64.  [default: float32, or that of the system.nc]"),
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite results of an earlier run.")]


def _version(value: bool) -> None:
    if value:
        print(f"depthsys {__version__}")  # noqa: T201
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point: expected errors are one clear line and exit status 2."""
    import numpy as np

    try:
        app()
    except (
        ValueError, TypeError, OSError, FloatingPointError, np.linalg.LinAlgError,
        ImportError,  # an optional package that a format needs
    ) as error:  # fmt: skip
        Console(stderr=True, soft_wrap=True).print("Error:", error, markup=False, highlight=False)
        sys.exit(2)


# ------------------------------------------------------------------------------- commands


@app.command()
def demo(
    out: Out = Path("depthsys-demo"),
    model: Annotated[
        str, typer.Option(help=f"One of {', '.join(demo_package.MODELS)}.")
    ] = "demo_128x12",
    concept: Annotated[str, typer.Option(help="sentiment or domain.")] = "sentiment",
    basis: Basis = None,
    order: Order = None,
    tolerance: Tolerance = None,
    split: Split = None,
    seed: Seed = None,
    eps: Eps = 0.1,
    device: Device = "auto",
    dtype: Dtype = None,
    force: Force = False,
) -> None:
    """The whole job on an embedded model: identify, predict and measure gains, steer.

    Synthetic labelled texts are written to OUT/texts.csv, so every later command can go on from
    OUT/system.nc.

    Example: `depthsys demo --out demo`
    """
    if model not in demo_package.MODELS:
        names = ", ".join(demo_package.MODELS)
        raise ValueError(f"`--model` must be one of {names}; got {model!r}. Pick one.")
    target = OutputFolder.checked(out, ["texts.csv", *ALL_FILES], force)
    settings = Settings.given(basis=basis, order=order, tolerance=tolerance, split=split, seed=seed)
    check_eps(eps)
    _, width = check_model(model, device, dtype)
    settings.method().size(width)
    target.write("texts.csv", lambda path: _write_demo_texts(path, concept, settings))
    job = Job.from_model(model, out / "texts.csv", settings, device, dtype)
    job.identify(target)
    job.gains(target, eps)
    job.control(target, None, "absolute")
    job.finish(target, "demo.txt")


@app.command()
def identify(
    model: Model,
    texts: TextsFile,
    out: Out,
    basis: Basis = None,
    order: Order = None,
    tolerance: Tolerance = None,
    concept: Concept = None,
    readout: Readout = None,
    per_prompt: Annotated[
        bool, typer.Option("--per-prompt", help="Also write one system per operating prompt.")
    ] = False,
    split: Split = None,
    seed: Seed = None,
    max_tokens: MaxTokens = None,
    device: Device = "auto",
    dtype: Dtype = None,
    force: Force = False,
) -> None:
    """Identify the reduced depth system of a model on labelled texts: OUT/system.nc.

    Example: `depthsys identify ./my-model reviews.csv --order 32 --out run`
    """
    target = OutputFolder.checked(out, ALL_FILES, force)
    settings = Settings.given(
        basis=basis,
        order=order,
        tolerance=tolerance,
        concept=concept,
        readout=readout,
        split=split,
        seed=seed,
        max_tokens=max_tokens,
    )
    job = Job.from_model(model, texts, settings, device, dtype)
    job.identify(target, per_prompt=per_prompt)
    job.finish(target, "identify.txt")


@app.command()
def gains(
    source: Source,
    out: Out,
    texts: OptionalTexts = None,
    eps: Eps = 0.1,
    model: Moved = None,
    basis: Basis = None,
    order: Order = None,
    tolerance: Tolerance = None,
    concept: Concept = None,
    readout: Readout = None,
    split: Split = None,
    seed: Seed = None,
    max_tokens: MaxTokens = None,
    device: Device = "auto",
    dtype: Dtype = None,
    force: Force = False,
) -> None:
    """Predicted against measured steering gain of every layer: OUT/gains.nc and figures.

    Example: `depthsys gains run/system.nc --eps 0.1 --out run`
    """
    check_eps(eps)
    target = OutputFolder.checked(out, _outputs(source, GAIN_FILES), force)
    settings = Settings.given(
        basis=basis,
        order=order,
        tolerance=tolerance,
        concept=concept,
        readout=readout,
        split=split,
        seed=seed,
        max_tokens=max_tokens,
    )
    job = Job.from_source(source, texts, settings, device, dtype, model)
    job.identify(target)
    job.gains(target, eps)
    job.finish(target, "gains.txt")


@app.command()
def control(
    source: Source,
    out: Out,
    texts: OptionalTexts = None,
    target: Target = None,
    energy: Energy = "absolute",
    model: Moved = None,
    basis: Basis = None,
    order: Order = None,
    tolerance: Tolerance = None,
    concept: Concept = None,
    readout: Readout = None,
    split: Split = None,
    seed: Seed = None,
    max_tokens: MaxTokens = None,
    device: Device = "auto",
    dtype: Dtype = None,
    force: Force = False,
) -> None:
    """Minimum-energy steering schedule, played on the full model: OUT/energy.csv and figures.

    Example: `depthsys control run/system.nc --target 5 --out run`
    """
    _check_control(target, energy)
    place = OutputFolder.checked(out, _outputs(source, CONTROL_FILES), force)
    settings = Settings.given(
        basis=basis,
        order=order,
        tolerance=tolerance,
        concept=concept,
        readout=readout,
        split=split,
        seed=seed,
        max_tokens=max_tokens,
    )
    job = Job.from_source(source, texts, settings, device, dtype, model)
    job.identify(place)
    job.control(place, target, energy)
    job.finish(place, "control.txt")


@app.command()
def compare(
    model: Model,
    texts: TextsFile,
    out: Out,
    methods: Annotated[
        str | None, typer.Option(help=f"Out of {', '.join(BASES)}.  [default: all]")
    ] = None,
    orders: Annotated[
        str | None, typer.Option(help="Rising numbers of states.  [default: 1,2,4,8,16,32 up to H]")
    ] = None,
    eps: Eps = 0.1,
    each: Annotated[
        int | None,
        typer.Option(
            help="So many held-out prompts also get a system of their own; 0: none.  [default: 64]"
        ),
    ] = None,
    concept: Concept = None,
    readout: Annotated[
        str | None,
        typer.Option(help="profile: every depth; or concept: the last.  [default: profile]"),
    ] = None,
    split: Split = None,
    seed: Seed = None,
    max_tokens: MaxTokens = None,
    device: Device = "auto",
    dtype: Dtype = None,
    force: Force = False,
) -> None:
    """Compare reduction methods by order, on the full model: OUT/comparison.nc and figures.

    Every method at every order, from the same texts: agreement with the gains measured on held-out
    prompts, where the error comes from, exact errors beside what is proved, and cost.

    Example: `depthsys compare ./my-model reviews.csv --methods ensemble,pod --orders 1,4 --out cmp`
    """
    settings = Settings.given(
        concept=concept,
        readout=readout or "profile",
        split=split,
        seed=seed,
        max_tokens=max_tokens,
    )
    plan = Plan.given(
        methods=methods, orders=orders, eps=eps, n_each=each, n_held_out=2 * settings.split[2]
    )
    target = OutputFolder.checked(out, COMPARISON_FILES, force)
    plan = plan.for_width(check_model(model, device, dtype)[1])
    job = Job.from_model(model, texts, settings, device, dtype)
    job.compare(target, plan)
    job.finish(target, "comparison.txt")


@app.command()
def export(
    system: Annotated[Path, typer.Argument(metavar="SYSTEM", help=STORED_HELP)],
    to: Annotated[str, typer.Option(help=f"Format: {', '.join(FORMATS)}.")],
    out: Annotated[Path, typer.Option(help="The file or folder to write.")],
    schedule: Annotated[
        Path | None,
        typer.Option(help="Steering plan, for safetensors and gguf.  [default: beside SYSTEM]"),
    ] = None,
    select: Annotated[
        str | None, typer.Option(help="One member of a batch, by position: prompt=3.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Prefix of the functions, for matlab, julia and fmu.")
    ] = None,
    model_hint: Annotated[
        str | None, typer.Option(help="Architecture in llama.cpp's words, for gguf: llama.")
    ] = None,
    drop: Annotated[
        bool, typer.Option("--drop", help="Leave out pushes that gguf cannot express.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
) -> None:
    """Write a system, or a steering plan, for another tool, with a check that runs there.

    Example: `depthsys export run/system.nc --to matlab --out run/matlab`
    """
    options = {"name": name, "model_hint": model_hint, "drop": drop}
    export_system(system, to, out, schedule=schedule, select=select, force=force, **options)


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help=STORED_HELP)],
    out: Annotated[Path, typer.Option(help="The system.nc to write.")],
    original: Annotated[
        Path | None, typer.Option(help="The system that was sent, to compare with.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Read a system that an engineer sends back, changed or reduced, and check that it is one.

    Example: `depthsys import reduced.mat --original run/system.nc --out reduced.nc`
    """
    import_system(file, out, original=original, force=force)


def _outputs(source: str, files: list[str]) -> list[str]:
    """What a step makes out of date: its own files, or everything if it identifies first."""
    return files if is_system(source) else ALL_FILES


def _check_control(target: float | None, energy: str) -> None:
    if target is not None and not 0 < abs(target) < float("inf"):
        raise ValueError(f"`--target` must be finite and not zero; got {target}. Give a shift.")
    if energy not in ("absolute", "relative"):
        raise ValueError(f"`--energy` must be absolute or relative; got {energy!r}. Pick one.")


def _write_demo_texts(path: Path, concept: str, settings: "Settings") -> None:
    from depthsys.demo import grammar

    count = max(1000, sum(settings.split))
    rows = grammar.labelled(count_per_class=count, concept=concept, seed=2603)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *rows])


if __name__ == "__main__":
    main()
