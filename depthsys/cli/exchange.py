"""`depthsys export` and `depthsys import`: systems to other tools, and back."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from depthsys.cli.options import STORED_HELP, spread
from depthsys.cli.typed import named
from depthsys.study.names import FORMATS as NAMES

if TYPE_CHECKING:
    from depthsys.export.formats import Format

SCHEDULE = "schedule.nc"
_VECTOR = ".gguf"
# how the arguments of `depthsys.export` are typed: those of readers and those of writers
_READ, _ORIGINAL = {"path": "SYSTEM"}, {"path": "--original"}
_VECTOR_OPTIONS = {
    "path": "FILE",
    "vector": "FILE",
    "n_layers": "--model",
    "layer_range": "--layer-range",
    "strength": "--strength",
}
_WRITTEN = {
    "path": "--out",
    "system": "SYSTEM",
    "plan": "--schedule",
    "plan.u": "u of --schedule",
    "name": "--name",
    "model_hint": "--model-hint",
}


def export(
    system: Annotated[Path, typer.Argument(metavar="SYSTEM", help=STORED_HELP)],
    to: Annotated[str, typer.Option(help=f"Format: {', '.join(NAMES)}.")],
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
    chosen = _parse_select(select)
    form = _checked_format(to, {"schedule": schedule, **options})
    _check_place(out, to)

    from depthsys import export as formats
    from depthsys.export.formats import READ_BACK
    from depthsys.report import Screen
    from depthsys.report.exchange import plan_line, system_line, unexpressed_line
    from depthsys.study.exchange import holds_vector, read_plan, selected

    if to == "gguf" and schedule is None and holds_vector(system):
        for option, value in (("drop", drop), ("select", select)):
            if value:
                raise ValueError(
                    f"`--{option}` must be left out for a control vector; got {value!r}. It is "
                    "written as it is."
                )
        _export_vector(system, out, model_hint, force)
        return
    with named(_READ):
        read = selected(formats.read(system), chosen)
    write: Callable[..., None] = getattr(formats, form.writer)
    given = {name: options[name] for name in form.options if options[name]}
    notes = [read.attrs["import_note"]] if "import_note" in read.attrs else []
    with named(_WRITTEN):
        if form.plan:
            plan = read_plan(schedule or system.parent / SCHEDULE)
            write(read, plan, out, force=force, **given)
            notes.append(f"the plan: {plan_line(plan)}")
            lost = float(formats.unexpressed(read, plan).sum()) if "drop" in given else 0.0
            notes += [unexpressed_line(lost)] if lost > 0 else []
        else:
            write(read, out, force=force, **given)
            if form.check is READ_BACK:
                formats.read(out)
    screen = Screen()
    screen.say(f"{system}: {system_line(read)}")
    for note in notes:
        screen.say(f"- {note}")
    screen.say(f"Written as {to}: {out}. {form.check}")


@spread
def import_(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help=f"{STORED_HELP} Or a control vector, .gguf.")
    ],
    out: Annotated[Path, typer.Option(help="The .nc to write.")],
    original: Annotated[
        Path | None, typer.Option(help="The system that was sent, to compare with.")
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(help="Of a control vector.gguf: factor on it, may be negative.  [default: 1]"),
    ] = None,
    layer_range: Annotated[
        str | None,
        typer.Option(help="Of a .gguf: its layers to push, as llama.cpp counts them: 10:20."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Of a .gguf: the model that it is for, to check its sizes.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Read a system that an engineer sends back, or a control vector (.gguf), and check it.

    Example: `depthsys import reduced.mat --original run/system.nc --out reduced.nc`
    """
    given = {"strength": strength, "layer_range": layer_range, "model": model}
    _check_import(file, original, given)
    _check_place(out, "netcdf")
    if out.exists() and not force:
        raise FileExistsError(
            f"`--out` must not exist yet; got {str(out)!r}, which does. Choose another, or add "
            "--force."
        )
    if file.suffix == _VECTOR:
        _import_vector(file, out, 1.0 if strength is None else strength, layer_range, model, force)
        return

    from depthsys import export as formats
    from depthsys.report import Screen
    from depthsys.report.exchange import difference_line, next_step_line, system_line
    from depthsys.study.exchange import difference, knows_its_origin, with_origin_of
    from depthsys.study.stored import lacks

    with named(_ORIGINAL):
        sent = None if original is None else formats.read(original)
    with named({"path": "FILE"}):
        system = formats.read(file)
    screen = Screen()
    screen.say(f"{file}: {system_line(system)}")
    told = system.attrs.get("import_note", "it replayed the golden trajectory that came with it")
    screen.say(f"- {told}")
    if sent is not None and original is not None:
        screen.say(difference_line(difference(sent, system, original), original))
        if not knows_its_origin(system) and not lacks(sent):
            system = with_origin_of(sent, system)
            screen.say(f"- it came without provenance, which is taken from {original}")
    system.attrs["history"] = "\n".join(filter(None, [system.attrs.get("history"), _entry(file)]))
    with named(_WRITTEN | {"system": "FILE"}):
        formats.to_netcdf(system, out, force=force)
    then = next_step_line(
        out,
        single="prompt" in system.dims,
        known=knows_its_origin(system),
        lacking=lacks(system),
        compared=sent is not None,
    )
    screen.say(f"Written: {out}. {then}")


def _entry(file: Path) -> str:
    """A line of the history."""
    return f"{datetime.now(UTC).isoformat(timespec='seconds')} depthsys import {file.name}"


def _import_vector(
    file: Path, out: Path, strength: float, layer_range: str | None, model: str | None, force: bool
) -> None:
    """`depthsys import` of a control vector."""
    chosen = None if layer_range is None else _parse_range(layer_range)
    from depthsys.export import read_control_vector
    from depthsys.report import Screen
    from depthsys.report.exchange import first_block_line, vector_line
    from depthsys.study.exchange import model_sizes, write_vector

    with named(_VECTOR_OPTIONS):
        sizes = {} if model is None else model_sizes(model)
        vector = read_control_vector(file, strength=strength, layer_range=chosen, **sizes)
    with named(_WRITTEN):
        write_vector(vector, out, _entry(file), force=force)
    screen = Screen()
    screen.say(f"{file}: {vector_line(vector)}")
    screen.say(
        "- a concept (direction) and a plan (u): direction.N is the push at the input of block N + "
        "1. llama.cpp, repeng and steering-vectors push every token, plans the last one"
    )
    if refused := first_block_line(vector, file):
        screen.say(f"- {refused}")
    screen.say(f"Written: {out}. See what it does: `depthsys verify {out} MODEL TEXTS --out ...`.")


def _export_vector(file: Path, out: Path, model_hint: str | None, force: bool) -> None:
    """`depthsys export` of a control vector that was imported."""
    from depthsys.export import write_control_vector
    from depthsys.report import Screen
    from depthsys.report.exchange import first_block_line, vector_line
    from depthsys.study.exchange import read_vector

    with named(_READ):
        vector = read_vector(file)
    with named(_WRITTEN | {"vector": "SYSTEM"}):
        write_control_vector(vector, out, model_hint=model_hint, force=force)
    screen = Screen()
    screen.say(f"{file}: {vector_line(vector)}")
    use = first_block_line(vector, out) or "llama.cpp pushes all tokens with it"
    screen.say(f"Written as gguf: {out}. {use}.")


def _check_import(file: Path, original: Path | None, given: dict[str, Any]) -> None:
    """ValueError for options that are not for this kind of file."""
    if file.suffix == _VECTOR and original is not None:
        raise ValueError(
            f"`--original` must be left out for a control vector; got {str(original)!r}. "
            "`depthsys verify` checks what it does."
        )
    for option, value in given.items():
        if value is not None and file.suffix != _VECTOR:
            raise ValueError(
                f"`--{option.replace('_', '-')}` must be left out for systems; got {value!r}. It "
                f"is for control vectors, files that end in {_VECTOR}."
            )


def _parse_range(text: str) -> tuple[int, int]:
    """First and last layer from ``10:20``."""
    first, _, last = (part.strip() for part in text.partition(":"))
    if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
        raise ValueError(
            "`--layer-range` must be the first and the last layer of the control vector that are "
            f"pushed; got {text!r}. Write it as in 10:20."
        )
    return int(first), int(last)


def _checked_format(name: str, given: dict[str, Any]) -> "Format":
    """The format of that name; ValueError if there is none, or it takes no such option."""
    if name not in NAMES:
        raise ValueError(f"`--to` must be one of {', '.join(NAMES)}; got {name!r}. Pick one.")
    from depthsys.export.formats import FORMATS

    form = FORMATS[name]
    allowed = {*form.options, *(["schedule"] if form.plan else [])}
    for option, value in given.items():
        if value and option not in allowed:
            takers = [n for n, f in FORMATS.items() if option in f.options]
            takers = takers or [n for n, f in FORMATS.items() if f.plan]
            raise ValueError(
                f"`--{option.replace('_', '-')}` must be left out for {name}; got {value!r}. It is "
                f"for {', '.join(takers)}."
            )
    return form


def _check_place(out: Path, to: str) -> None:
    """ValueError unless the file ends as its format does: then every reader knows it."""
    from depthsys.export.formats import FORMATS, IN_FOLDERS

    suffix = FORMATS[to].suffix
    if not suffix and out.suffix in {*IN_FOLDERS, *(f.suffix for f in FORMATS.values())} - {""}:
        raise ValueError(
            f"`--out` must name a folder for {to}; got {str(out)!r}. Write {out.with_suffix('')}."
        )
    if suffix and out.suffix != suffix:
        raise ValueError(
            f"`--out` must end in {suffix} for {to}; got {str(out)!r}. Write "
            f"{out.with_suffix(suffix)}."
        )


def _parse_select(text: str | None) -> dict[str, int]:
    """Positions along batch dims from ``prompt=3,task=0``."""
    chosen = {}
    for part in (text or "").split(",") if text else []:
        dim, _, place = part.partition("=")
        if not dim.strip() or not place.strip().isdecimal():
            raise ValueError(
                f"`--select` must be positions along batch dims; got {text!r}. Write it as in "
                "prompt=3."
            )
        if dim.strip() in chosen:
            raise ValueError(
                f"`--select` must name each dim once; got {text!r}. Leave one of them out."
            )
        chosen[dim.strip()] = int(place)
    return chosen
