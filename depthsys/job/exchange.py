"""`depthsys export` and `depthsys import`: systems to other tools, and back."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True)
class Format:
    """How a format is written, and how its receiver checks it.

    ``writer`` is the name of a function of `depthsys.export`, ``suffix`` what its files end in (""
    for folders), ``options`` are those it takes, ``plan`` says that it also takes a schedule.
    """

    writer: str
    suffix: str
    check: str
    options: tuple[str, ...] = ()
    plan: bool = False


_READ = "It was read back and replayed its golden trajectory."
FORMATS = {
    "netcdf": Format("to_netcdf", ".nc", _READ),
    "zarr": Format("to_zarr", ".zarr", _READ),
    "matlab": Format("to_matlab", "", "Check it there: run `selfcheck` in the folder.", ("name",)),
    "julia": Format("to_julia", "", "Check it there: include the .jl file.", ("name",)),
    "python-control": Format("to_control_files", "", "Check it there: `python load_control.py`."),
    "pymor": Format("to_pymor_files", "", "Check it there: `python load_pymor.py`."),
    "fmu": Format("to_fmu", ".fmu", "Check it: `depthsys.export.replay_fmu(path)`.", ("name",)),
    "npz": Format("to_npz", ".npz", _READ),
    "json": Format("to_json", ".json", _READ),
    "csv": Format("to_csv", "", "Check it there: replay the tables golden_*.csv."),
    "safetensors": Format(
        "to_safetensors", ".safetensors", "Its metadata say where the vectors go.", (), True
    ),
    "gguf": Format(
        "to_gguf", ".gguf", "llama.cpp pushes all tokens, this plan was made for the last.",
        ("drop", "model_hint"), True,
    ),
}  # fmt: skip
SCHEDULE = "schedule.nc"


def check_format(name: str, given: dict[str, Any]) -> Format:
    """The format of that name; ValueError if there is none, or it takes no such option."""
    if name not in FORMATS:
        raise ValueError(f"`--to` must be one of {', '.join(FORMATS)}; got {name!r}. Pick one.")
    kind = FORMATS[name]
    allowed = {*kind.options, *(["schedule"] if kind.plan else [])}
    for option, value in given.items():
        if value and option not in allowed:
            takers = [n for n, f in FORMATS.items() if option in f.options]
            takers = takers or [n for n, f in FORMATS.items() if f.plan]
            raise ValueError(
                f"`--{option.replace('_', '-')}` must be left out for {name}; got {value!r}. It is "
                f"for {', '.join(takers)}."
            )
    return kind


def check_place(out: Path, to: str) -> None:
    """ValueError unless the file ends as its format does: then every reader knows it."""
    suffix = FORMATS[to].suffix
    if suffix and out.suffix != suffix:
        raise ValueError(
            f"`--out` must end in {suffix} for {to}; got {str(out)!r}. Write "
            f"{out.with_suffix(suffix)}."
        )


def parse_select(text: str | None) -> dict[str, int]:
    """Positions along batch dims from ``prompt=3,task=0``."""
    chosen = {}
    for part in (text or "").split(",") if text else []:
        dim, _, place = part.partition("=")
        if not dim.strip() or not place.strip().isdecimal():
            raise ValueError(
                f"`--select` must be positions along batch dims; got {text!r}. Write it as in "
                "prompt=3."
            )
        chosen[dim.strip()] = int(place)
    return chosen


def export_system(
    source: Path, to: str, out: Path, *, schedule: Path | None, select: str | None, force: bool,
    **options: Any,
) -> None:  # fmt: skip
    """Write a stored system, or a steering plan along its directions, in another format."""
    from depthsys import export

    chosen = parse_select(select)
    kind = check_format(to, {"schedule": schedule, **options})
    check_place(out, to)
    console = _console()
    system = _selected(export.read(source), chosen)
    write: Callable[..., None] = getattr(export, kind.writer)
    given = {name: options[name] for name in kind.options if options[name]}
    if kind.plan:
        plan = _plan(schedule or source.parent / SCHEDULE)
        write(system, plan, out, force=force, **given)
    else:
        write(system, out, force=force, **given)
        if kind.check is _READ:
            export.read(out)
    _say(console, f"{source}: {_described(system)}")
    if "import_note" in system.attrs:
        _say(console, f"- {system.attrs['import_note']}")
    _say(console, f"Written as {to}: {out}. {kind.check}")


def import_system(source: Path, out: Path, *, original: Path | None, force: bool) -> None:
    """Read a system from another tool, compare it with the one that was sent, and store it."""
    from depthsys import export

    console = _console()
    system = export.read(source)
    system.attrs["history"] = "\n".join(
        [*filter(None, [system.attrs.get("history")]), f"imported from {source.name}"]
    )
    check_place(out, "netcdf")
    _say(console, f"{source}: {_described(system)}")
    _say(
        console,
        f"- {system.attrs['import_note']}"
        if "import_note" in system.attrs
        else "- it replayed the golden trajectory that came with it",
    )
    if original is not None:
        _say(console, _difference(export.read(original), system, original))
    export.to_netcdf(system, out, force=force)
    check = f"depthsys gains {out} --out ..."
    _say(console, f"Written: {out}. Check it on the language model: `{check}`.")


def _console() -> Console:
    return Console(highlight=False, soft_wrap=True)


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False)


def _selected(system: "xr.Dataset", chosen: dict[str, int]) -> "xr.Dataset":
    from depthsys.ltv.system import DIMS

    own = {d for dims in DIMS.values() for d in dims}
    batch = {str(d): n for d, n in system["A"].sizes.items() if d not in own}
    for dim, place in chosen.items():
        if dim not in batch or place >= batch[dim]:
            raise ValueError(
                f"`--select` must name a position along a batch dim of the system, {batch}; got "
                f"{dim}={place}. Leave it out if there is none."
            )
    return system.isel(chosen)


def _plan(path: Path) -> "xr.Dataset":
    import xarray as xr

    if not path.is_file():
        raise FileNotFoundError(
            f"`--schedule` must be an existing file; got {str(path)!r}. Make one with `depthsys "
            "control`."
        )
    try:
        return xr.load_dataset(path, engine="h5netcdf")
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ValueError(
            f"`--schedule` must be a schedule.nc; got {str(path)!r}: {error}. Make one with "
            "`depthsys control`."
        ) from error


def _described(system: "xr.Dataset") -> str:
    """Sizes, names and origin of a system in one line."""
    sizes = system.sizes
    names = {
        dim: ", ".join(map(str, system[f"{dim}_name"].values[:4])) for dim in ("input", "output")
    }
    more = {dim: ", ..." if sizes[dim] > 4 else "" for dim in names}
    parts = [f"{sizes['layer']} layers", f"up to {int(system['order'].max())} states"]
    parts += [
        f"{sizes[dim]} {dim}{'s' if sizes[dim] > 1 else ''} ({names[dim]}{more[dim]})"
        for dim in names
    ]
    batch = {
        d: n for d, n in system["A"].sizes.items() if d not in ("layer", "state_next", "state")
    }
    parts += [f"{n} x {d}" for d, n in batch.items()]
    origin = [str(system.attrs[k]) for k in ("model", "method") if k in system.attrs]
    return ", ".join(parts) + (f"; {', '.join(origin)}" if origin else "")


def _difference(original: "xr.Dataset", system: "xr.Dataset", path: Path) -> str:
    """How far two systems are apart as maps from inputs to outputs."""
    import numpy as np

    from depthsys import ltv
    from depthsys.ltv.norms import spectral_norm

    sizes = [{d: s.sizes[d] for d in ("layer", "input", "output")} for s in (original, system)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"`--original` must have the layers, inputs and outputs of the file, {sizes[1]}; got "
            f"{sizes[0]} in {str(path)!r}. Give the system that was sent."
        )
    maps = [ltv.io_matrix(s).drop_vars(["layer", "depth"]) for s in (original, system)]
    gap = maps[1] - maps[0]
    induced = float((spectral_norm(gap) / spectral_norm(maps[0])).max())
    h2 = float(np.linalg.norm(gap) / np.linalg.norm(maps[0]))
    return (
        f"- against {path} its input-output map differs by {induced:.3g} (induced norm) and "
        f"{h2:.3g} (H2), relative; states: {int(original['order'].max())} -> "
        f"{int(system['order'].max())}"
    )
