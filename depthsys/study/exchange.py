"""Systems that go to other tools and come back: what is kept, what is compared."""

from pathlib import Path

import numpy as np
import xarray as xr

from depthsys import demo, ltv
from depthsys.export.control_vectors import parts_of, read_control_vector
from depthsys.export.netcdf import read_variables
from depthsys.files import file_hash, whole_file, write_netcdf
from depthsys.ltv.norms import spectral_norm
from depthsys.ltv.system import batch_sizes
from depthsys.study.stored import lacks

VECTOR_SUFFIX = ".gguf"
_VECTOR_CURE = (
    "Give a control vector: `depthsys import vec.gguf --out vec.nc` writes one; or a plan of a "
    "system: `depthsys export SYSTEM.nc --to gguf --out plan.gguf`."
)
# without these nobody knows of which model and texts a system is
_ORIGIN = {"model_fingerprint", "prompts_sha256", "v"}


def selected(system: xr.Dataset, chosen: dict[str, int]) -> xr.Dataset:
    """Members of a batch, by position along its dims."""
    batch = batch_sizes(system)
    for dim, place in chosen.items():
        if dim not in batch or place >= batch[dim]:
            raise ValueError(
                f"`--select` must name a position along a batch dim of the system, {batch}; got "
                f"{dim}={place}. Leave it out if there is none."
            )
    return system.isel(chosen)


def read_plan(path: Path) -> xr.Dataset:
    """A schedule that `depthsys control` wrote."""
    if not path.is_file():
        raise FileNotFoundError(
            f"`--schedule` must be an existing file; got {str(path)!r}. Make one with `depthsys "
            "control`."
        )
    try:
        return read_variables(path, ["u", "energy", "predicted_energy"], needed="u")
    except (OSError, ValueError) as error:
        why = str(error).partition(repr(str(path)))[2].removesuffix(" Write it again.")
        raise ValueError(
            f"`--schedule` must be a schedule.nc; got {str(path)!r}{why} Make one with `depthsys "
            "control`."
        ) from error


# what `depthsys plan` writes and others go on from
_PLAN = (
    "u", "direction", "energy", "target", "push", "u_end", "K", "W", "x_ref", "r_ref", "input",
)  # fmt: skip
_PLAN_CURE = "Make one with `depthsys plan`."


def read_own_plan(path: Path) -> xr.Dataset:
    """A plan that `depthsys plan` wrote, with its concept directions and the place of its system.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it holds no plan that says of which system it is.
    """
    plan = read_variables(path, _PLAN, needed="u", cure=_PLAN_CURE)
    lacking = [name for name in ("direction", "energy", "target") if name not in plan]
    lacking += [name for name in ("system", "system_sha256", "energy") if name not in plan.attrs]
    if lacking:
        raise ValueError(
            f"`path` must hold a plan with its target and system; got {str(path)!r} without "
            f"{', '.join(lacking)}. {_PLAN_CURE}"
        )
    return plan


def system_of(plan: xr.Dataset, path: Path) -> Path:
    """The file of the system that a plan was made of, checked.

    Raises
    ------
    ValueError
        If it is not there, or another one by now.
    """
    place = path.parent / str(plan.attrs["system"])
    if not place.is_file() or file_hash(place) != plan.attrs["system_sha256"]:
        found = "another file by now" if place.is_file() else "none there"
        raise ValueError(
            f"`path` must be beside the system that it was made of, {plan.attrs['system']}; got "
            f"{found}, seen from {str(path)!r}. Plan again."
        )
    return place


def model_sizes(name: str) -> dict[str, int]:
    """Blocks and width of a model, from its configuration alone."""
    from depthsys.lm.hf.checkpoint import read_config
    from depthsys.lm.hf.messages import silence

    silence()
    path = demo.model_path(name) if name in demo.MODELS else Path(name)
    source = str(path.resolve()) if path.exists() else name
    config = read_config(source).get_text_config(decoder=True)
    return {"n_layers": config.num_hidden_layers, "n_features": config.hidden_size}


def holds_vector(path: Path) -> bool:
    """Whether this is a netCDF4 file with a control vector, and no system."""
    if path.suffix != ".nc" or not path.is_file():
        return False
    try:
        return "A" not in read_variables(path, ["A", "direction", "u"], needed="direction")
    except (OSError, ValueError):
        return False  # whoever reads it as a system says what is wrong


def read_vector(path: Path, strength: float = 1.0) -> xr.Dataset:
    """A control vector, imported or as others write it, times ``strength``.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError, TypeError
        If it is none.
    """
    if path.suffix == VECTOR_SUFFIX:
        return read_control_vector(path, strength=strength)
    vector = read_variables(path, ["u", "u_end", "direction"], needed="u", cure=_VECTOR_CURE)
    if "direction" not in vector:
        raise ValueError(
            f"`path` must hold a control vector, `u` and `direction`; got {str(path)!r} without "
            "`direction`. `depthsys import FILE.gguf` writes one; a schedule.nc was played by "
            "`depthsys control`."
        )
    parts_of(vector)
    if not np.isfinite(strength):
        raise ValueError(f"`strength` must be a finite number; got {strength}. The default is 1.")
    scaled = {name: strength * vector[name] for name in ("u", "u_end") if name in vector}
    before = float(vector.attrs.get("strength", 1.0))
    return vector.assign(scaled).assign_attrs(strength=before * strength)


def write_vector(vector: xr.Dataset, path: Path, history: str, *, force: bool = False) -> None:
    """Write a control vector as netCDF4, whole or not at all."""
    with whole_file(path, force) as partial:
        write_netcdf(partial, {None: vector.assign_attrs(history=history)})


def knows_its_origin(system: xr.Dataset) -> bool:
    """Whether a system says of which model and texts it is."""
    return not _ORIGIN & lacks(system)


def with_origin_of(sent: xr.Dataset, system: xr.Dataset) -> xr.Dataset:
    """The matrices of one system with what is known of the model of another."""
    state = {"state", "state_next"}
    known = sent.drop_vars([n for n, v in sent.variables.items() if state & set(map(str, v.dims))])
    known = known.drop_vars([name for name in (*"ABCD", "order") if name in known.variables])
    mine = system[[*"ABCD", "order"]].drop_vars(["input_name", "output_name"], errors="ignore")
    joined = known.assign(mine.data_vars).assign_coords(order=mine["order"])
    note = {key: system.attrs[key] for key in ("import_note",) if key in system.attrs}
    changed = {"changed_by": "an engineer", "order": int(system["order"].max())}
    return joined.assign_attrs(sent.attrs | changed | note)


def difference(sent: xr.Dataset, system: xr.Dataset, path: Path) -> xr.Dataset:
    """How far two systems are apart as maps from inputs to outputs.

    Parameters
    ----------
    sent, system
        The system that was sent, and the one that came back.
    path
        Where the first one is, for errors.

    Returns
    -------
    xr.Dataset
        ``induced`` and ``h2``, relative to the norms of the first map (the largest of a batch; NaN
        where that map is zero); ``states`` (which: sent, back); attrs ``renamed``, the dims whose
        names differ.

    Raises
    ------
    ValueError
        If their sizes or first layers differ.
    """
    own = ("layer", "input", "output")
    sizes = [{d: s.sizes[d] for d in own} | batch_sizes(s) for s in (sent, system)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"`--original` must have the layers, inputs, outputs and batch dims of the file, "
            f"{sizes[1]}; got {sizes[0]} in {str(path)!r}. Give the system that was sent."
        )
    starts = [int(s["layer"].values[0]) for s in (sent, system)]
    if starts[0] != starts[1]:
        raise ValueError(
            f"`--original` must start at layer {starts[1]} like the file; got {starts[0]} in "
            f"{str(path)!r}. Give the system that was sent."
        )
    maps = [ltv.io_matrix(s).drop_vars(["layer", "depth"]) for s in (sent, system)]
    maps = [m.drop_vars(m.coords).transpose(*maps[0].dims) for m in maps]
    gap, axes = maps[1] - maps[0], tuple(range(maps[0].ndim - 4, maps[0].ndim))
    norms = spectral_norm(maps[0])
    induced = h2 = np.nan
    if bool((norms > 0).all()):
        induced = float((spectral_norm(gap) / norms).max())
        h2 = float(np.sqrt(((gap.values**2).sum(axes) / (maps[0].values ** 2).sum(axes)).max()))
    names = [(s["input_name"].values, s["output_name"].values) for s in (sent, system)]
    renamed = [
        dim
        for dim, one, other in zip(("input", "output"), *names, strict=True)
        if not np.array_equal(one, other)
    ]
    return xr.Dataset(
        {
            "induced": induced,
            "h2": h2,
            "states": ("which", [int(s["order"].max()) for s in (sent, system)]),
        },
        attrs={"renamed": " ".join(renamed)},
    )
