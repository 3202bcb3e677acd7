"""`depthsys export` and `depthsys import`: systems to other tools, and back."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from depthsys.files.strangers.limits import one_line
from depthsys.job.settings import NEEDED_ATTRS, NEEDED_VARIABLES

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


_FMU = "Check it there: unzip it, `python documentation/check_fmu.py`."
_READ = "It was read back and replayed its golden trajectory."
FORMATS = {
    "netcdf": Format("to_netcdf", ".nc", _READ),
    "zarr": Format("to_zarr", ".zarr", _READ),
    "matlab": Format("to_matlab", "", "Check it there: run `selfcheck` in the folder.", ("name",)),
    "julia": Format("to_julia", "", "Check it there: include the .jl file.", ("name",)),
    "python-control": Format("to_control_files", "", "Check it there: `python load_control.py`."),
    "pymor": Format("to_pymor_files", "", "Check it there: `python load_pymor.py`."),
    "fmu": Format("to_fmu", ".fmu", _FMU, ("name",)),
    "npz": Format("to_npz", ".npz", _READ),
    "json": Format("to_json", ".json", _READ),
    "csv": Format("to_csv", "", "Check it there: `python load_csv.py`."),
    "safetensors": Format(
        "to_safetensors", ".safetensors", "Its metadata say where the vectors go.", (), True
    ),
    "gguf": Format(
        "to_gguf", ".gguf", "llama.cpp pushes all tokens, this plan was made for the last.",
        ("drop", "model_hint"), True,
    ),
}  # fmt: skip
SCHEDULE = "schedule.nc"
_OF_FILES = {".mat", ".m", ".jl", ".py", ".csv", *(f.suffix for f in FORMATS.values())} - {""}


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
    if not suffix and out.suffix in _OF_FILES:
        raise ValueError(
            f"`--out` must name a folder for {to}; got {str(out)!r}. Write {out.with_suffix('')}."
        )
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
        if dim.strip() in chosen:
            raise ValueError(
                f"`--select` must name each dim once; got {text!r}. Leave one of them out."
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
    notes = [system.attrs["import_note"]] if "import_note" in system.attrs else []
    if kind.plan:
        plan = _plan(schedule or source.parent / SCHEDULE)
        write(system, plan, out, force=force, **given)
        notes.append(f"the plan: {_plan_described(plan)}")
        lost = float(export.unexpressed(system, plan).sum()) if "drop" in given else 0.0
        if lost > 0:
            notes.append(f"LEFT OUT: {lost:.1%} of its energy, the pushes at layers 0 and 1")
    else:
        write(system, out, force=force, **given)
        if kind.check is _READ:
            export.read(out)
    _say(console, f"{source}: {_described(system)}")
    for note in notes:
        _say(console, f"- {note}")
    _say(console, f"Written as {to}: {out}. {kind.check}")


def import_system(source: Path, out: Path, *, original: Path | None, force: bool) -> None:
    """Read a system from another tool, compare it with the one that was sent, and store it."""
    from depthsys import export

    check_place(out, "netcdf")
    if out.exists() and not force:
        raise FileExistsError(
            f"`--out` must not exist yet; got {str(out)!r}, which does. Choose another, or add "
            "--force."
        )
    sent = None if original is None else export.read(original)
    console = _console()
    system = export.read(source)
    _say(console, f"{source}: {_described(system)}")
    told = system.attrs.get("import_note", "it replayed the golden trajectory that came with it")
    _say(console, f"- {told}")
    if sent is not None and original is not None:
        _say(console, _difference(sent, system, original))
        if _LACKING & _lacks(system) and not _lacks(sent):
            system = _with_origin_of(sent, system)
            _say(console, f"- it came without provenance, which is taken from {original}")
    now = datetime.now(UTC).isoformat(timespec="seconds")
    entry = f"{now} depthsys import {source.name}"
    system.attrs["history"] = "\n".join(filter(None, [system.attrs.get("history"), entry]))
    export.to_netcdf(system, out, force=force)
    _say(console, f"Written: {out}. {_next_step(system, out, sent is not None)}")


# without these nobody knows of which model and texts a system is
_LACKING = {"model_fingerprint", "prompts_sha256", "v"}


def _lacks(system: "xr.Dataset") -> set[str]:
    """What `depthsys gains` needs and the system has not."""
    return NEEDED_ATTRS - system.attrs.keys() | NEEDED_VARIABLES - set(map(str, system.variables))


def _with_origin_of(sent: "xr.Dataset", system: "xr.Dataset") -> "xr.Dataset":
    """The matrices of one system with what is known of the model of another."""
    state = {"state", "state_next"}
    known = sent.drop_vars([n for n, v in sent.variables.items() if state & set(map(str, v.dims))])
    known = known.drop_vars([name for name in (*"ABCD", "order") if name in known.variables])
    mine = system[[*"ABCD", "order"]].drop_vars(["input_name", "output_name"], errors="ignore")
    joined = known.assign(mine.data_vars).assign_coords(order=mine["order"])
    note = {key: system.attrs[key] for key in ("import_note",) if key in system.attrs}
    changed = {"changed_by": "an engineer", "order": int(system["order"].max())}
    return joined.assign_attrs(sent.attrs | changed | note)


def _next_step(system: "xr.Dataset", out: Path, compared: bool) -> str:
    """How to check the system on the language model, or why that cannot be done."""
    lacking = _lacks(system)
    if "prompt" in system.dims:
        return (
            "It is of single prompts: `depthsys gains` takes systems of a task; in Python use "
            "`lm.agreement`."
        )
    if not lacking:
        return f"Check it on the language model: `depthsys gains {out} --out ...`."
    hint = "" if compared else " Give the system that was sent: --original SYSTEM.nc."
    if _LACKING & lacking:
        return f"It does not say of which model and texts it is.{hint}"
    return f"It lacks what `depthsys gains` needs: {', '.join(sorted(lacking))}.{hint}"


def _console() -> Console:
    return Console(highlight=False, soft_wrap=True)


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False)


def _selected(system: "xr.Dataset", chosen: dict[str, int]) -> "xr.Dataset":
    from depthsys.ltv.system import batch_sizes

    batch = batch_sizes(system)
    for dim, place in chosen.items():
        if dim not in batch or place >= batch[dim]:
            raise ValueError(
                f"`--select` must name a position along a batch dim of the system, {batch}; got "
                f"{dim}={place}. Leave it out if there is none."
            )
    return system.isel(chosen)


def _plan(path: Path) -> "xr.Dataset":
    from depthsys.export.netcdf import read_variables

    if not path.is_file():
        raise FileNotFoundError(
            f"`--schedule` must be an existing file; got {str(path)!r}. Make one with `depthsys "
            "control`."
        )
    try:
        return read_variables(path, ["u", "energy", "predicted_energy"])
    except (OSError, ValueError) as error:
        raise ValueError(
            f"`--schedule` must be a schedule.nc; got {str(path)!r}: {error}. Make one with "
            "`depthsys control`."
        ) from error


def _described(system: "xr.Dataset") -> str:
    """Sizes, names and origin of a system in one line."""
    from depthsys.ltv.system import batch_sizes

    parts = [_counted(system.sizes["layer"], "layer")]
    parts += [f"up to {_counted(int(system['order'].max()), 'state')}"]
    for dim in ("input", "output"):
        names = [one_line(name, 40) for name in system[f"{dim}_name"].values]
        shown = ", ".join(names[:4] + ["..."] * (len(names) > 4))
        parts.append(f"{_counted(len(names), dim)} ({shown})")
    parts += [_counted(n, dim) for dim, n in batch_sizes(system).items()]
    origin = [one_line(system.attrs[k], 200) for k in ("model", "method") if k in system.attrs]
    return ", ".join(parts) + (f"; {', '.join(origin)}" if origin else "")


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _plan_described(plan: "xr.Dataset") -> str:
    """Target and energy of a steering plan, as far as it says."""
    told = [f"target {float(plan.attrs['target']):.4g}"] if "target" in plan.attrs else []
    told += [f"sum of u^2 {float((plan['u'] ** 2).sum()):.4g}"]
    if {"energy", "predicted_energy"} <= set(plan) and "schedule" in plan["energy"].dims:
        needed = float(plan["energy"].sel(schedule="minimum_energy") / plan["predicted_energy"])
        if np.isfinite(needed):
            told += [f"the full model needs {needed**0.5:.3g} times these vectors for its target"]
    return ", ".join(told)


def _difference(original: "xr.Dataset", system: "xr.Dataset", path: Path) -> str:
    """How far two systems are apart as maps from inputs to outputs."""
    from depthsys import ltv
    from depthsys.ltv.norms import spectral_norm
    from depthsys.ltv.system import batch_sizes

    own = ("layer", "input", "output")
    sizes = [{d: s.sizes[d] for d in own} | batch_sizes(s) for s in (original, system)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"`--original` must have the layers, inputs, outputs and batch dims of the file, "
            f"{sizes[1]}; got {sizes[0]} in {str(path)!r}. Give the system that was sent."
        )
    starts = [int(s["layer"].values[0]) for s in (original, system)]
    if starts[0] != starts[1]:
        raise ValueError(
            f"`--original` must start at layer {starts[1]} like the file; got {starts[0]} in "
            f"{str(path)!r}. Give the system that was sent."
        )
    maps = [ltv.io_matrix(s).drop_vars(["layer", "depth"]) for s in (original, system)]
    maps = [m.drop_vars(m.coords).transpose(*maps[0].dims) for m in maps]
    gap, axes = maps[1] - maps[0], tuple(range(maps[0].ndim - 4, maps[0].ndim))
    norms = spectral_norm(maps[0])
    if not bool((norms > 0).all()):
        return f"- against {path}: its input-output map is zero, there is nothing to compare with"
    induced = float((spectral_norm(gap) / norms).max())
    h2 = float(np.sqrt(((gap.values**2).sum(axes) / (maps[0].values ** 2).sum(axes)).max()))
    renamed = [d for d in ("input", "output") if not _same_names(original, system, d)]
    note = f"; the names of its {' and '.join(d + 's' for d in renamed)} differ" if renamed else ""
    return (
        f"- against {path} its input-output map differs by {induced:.3g} (induced norm) and "
        f"{h2:.3g} (H2), relative; states: {int(original['order'].max())} -> "
        f"{int(system['order'].max())}{note}"
    )


def _same_names(one: "xr.Dataset", other: "xr.Dataset", dim: str) -> bool:
    return bool(np.array_equal(one[f"{dim}_name"].values, other[f"{dim}_name"].values))
