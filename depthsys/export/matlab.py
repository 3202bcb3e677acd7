"""MATLAB and GNU Octave: a .mat with layer last, and functions that load, check and send back.

The .mat of an engineer comes back through `from_matlab`.
"""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from depthsys.export import mat_file
from depthsys.export.guard import guarded
from depthsys.export.plain import NO_GOLDEN, about_of, check_about, one_system, plain, restored
from depthsys.export.schema import migrated
from depthsys.files import whole_folder
from depthsys.ltv import system as ltv_system
from depthsys.ltv.matrices import DIMS

LIMIT = 2**31  # bytes: MATLAB reads no larger variable from a .mat of version 5
NAME_LENGTH = 54  # NAME_simulate has at most the 63 characters of a MATLAB name

# what the file holds beside the variables of the system
_OWN = ("about", "text_variables", "state_variables", "changed_by")
_TEXTS = (
    "texts are one row of ASCII, a line (char 10) per text, in the order of dims, the last dim "
    "fastest; characters outside ASCII as \\xXX, \\uXXXX, \\UXXXXXXXX"
)
_STATE = {"state", "state_next"}
_BASES = {name: ["depth", "feature", "state"] for name in "VW"}
_KEYWORDS = frozenset(
    "break case catch classdef continue else elseif end for function global if otherwise parfor "
    "persistent return spmd switch try while do until endfor endfunction endif endswitch endwhile "
    "end_try_catch endparfor endclassdef endenumeration endevents endmethods endproperties "
    "end_unwind_protect unwind_protect unwind_protect_cleanup".split()
)
# a backslash is escaped only where it would be read as the start of an escape: labels in TeX stay
_TO_ESCAPE = re.compile(r"[^ -~]|\\(?=[xuU])")
_ESCAPED = re.compile(r"\\(?:x[0-9a-f]{2}|u[0-9a-f]{4}|U00(?:0[0-9a-f]|10)[0-9a-f]{4})")
# what README.txt says first of where the system comes from
_FIRST = {
    "model": "model: {}",
    "n_prompts": "texts: {} prompts",
    "method": "method: {} (how the states were chosen)",
    "order": "order: {} (most states at a depth)",
    "readout": "readout: {} (what y is)",
    "concept": "concept: {} (how the direction was found)",
    "created": "created: {}",
    "changed_by": "changed by: {}",
    "note": "note: {}",
    "import_note": "note: {}",
    "concept_warning": "warning: {}",
}
_FILES = {
    "matlab_arrays.m": "{}_arrays.m",
    "matlab_data.m": "{}_data.m",
    "matlab_load.m": "{}_load.m",
    "matlab_simulate.m": "{}_simulate.m",
    "matlab_save.m": "{}_save.m",
    "matlab_selfcheck.m": "selfcheck.m",
    "matlab_readme.txt": "README.txt",
}


def to_matlab(
    system: xr.Dataset,
    path: str | os.PathLike,
    *,
    name: str = "depth_system",
    force: bool = False,
    version: str | None = None,
) -> None:
    """Write one system as a folder for MATLAB and GNU Octave.

    ``NAME.mat`` holds every variable with layer or depth last: ``A`` (n, n, L), ``B`` (n, m, L),
    ``C`` (p, n, L + 1), ``D`` (p, m, L + 1), ``order`` (1, L + 1); ``golden_x0`` (n, 1),
    ``golden_u`` (m, L), ``golden_x`` (n, L + 1), ``golden_y`` (p, L + 1), a run to replay; labels
    as one char row of lines; and ``about``, a JSON text with dims, units and provenance.

    Beside it lie ``NAME_arrays.m`` (the arrays as a struct), ``NAME_load.m`` (models),
    ``NAME_data.m`` (the data function of ``ltvss``), ``NAME_simulate.m``, ``NAME_save.m`` (the way
    back), ``selfcheck.m`` (replays the golden trajectory) and ``README.txt``.

    Parameters
    ----------
    system
        One system (no batch dims).
    path
        The folder. It appears whole or not at all.
    name
        What files and functions are named for: a MATLAB name of at most 54 characters. Two exports
        in one session of MATLAB or Octave need different names.
    force
        Replace an earlier export of that name.
    version
        Of the .mat: ``"5"``, or ``"7.3"`` (HDF5); by default 5, and 7.3 if a variable has 2 GB.

    Raises
    ------
    FileExistsError
        If the folder holds something and ``force`` is False, or holds other files.
    ValueError
        If there are batch dims, ``name`` or the name of a variable is none for MATLAB, something is
        neither numbers nor texts, or a variable is too large for the version.

    Notes
    -----
    The functions are run by the tests in GNU Octave 7.3; no MATLAB was at hand.
    """
    write_folder(system, path, name, force, version, _FILES)


def write_folder(
    system: xr.Dataset,
    path: str | os.PathLike,
    name: str,
    force: bool,
    version: str | None,
    files: Mapping[str, str],
) -> None:
    """The .mat and the receivers: ``files`` says which template becomes which file.

    Raises
    ------
    FileExistsError, ValueError
        See `to_matlab`.
    """
    _check_name(name)
    system = one_system(system, "matlab")
    variables, about = _variables(system)
    write = _writer(variables, version)
    facts = {"SIZES": _sizes_text(system), "VARIABLES": _table(system, about)}
    facts["PROVENANCE"] = _provenance(about["attrs"])
    with whole_folder(path, force) as folder:
        write(folder / f"{name}.mat", variables)
        for template, target in files.items():
            text = (
                resources.files("depthsys.export.receivers").joinpath(template).read_text("utf-8")
            )
            text = text.replace("DEPTH_SYSTEM", name)
            for key, value in facts.items():
                text = text.replace(f"@{key}@", value)
            (folder / target.format(name)).write_text(text, encoding="utf-8")


def _check_name(name: str) -> None:
    if _is_matlab_name(name) and len(name) <= NAME_LENGTH:
        return
    raise ValueError(
        f"`name` must be a MATLAB name (letter first, then letters, digits, _; no keyword) of at "
        f"most {NAME_LENGTH} characters; got {name!r}. For example 'depth_system'."
    )


def _is_matlab_name(name: str) -> bool:
    fits = re.fullmatch("[A-Za-z][A-Za-z0-9_]{0,62}", name)
    return fits is not None and name not in _KEYWORDS


def _variables(system: xr.Dataset) -> tuple[mat_file.Variables, dict[str, Any]]:
    """What the .mat holds, in the order of dims of MATLAB, and ``about``."""
    arrays, about = plain(system)
    for name in arrays:
        if not _is_matlab_name(name) or name in _OWN:
            raise ValueError(
                f"`{name}` must be a MATLAB name of at most 63 characters, no keyword and none of "
                f"{_OWN}; got a variable of this name. Rename it: `system.rename({{{name!r}: "
                "'other'})`."
            )
    dims = _all_dims(about)
    about["matlab_dims"] = {name: _matlab_order(d) for name, d in dims.items()}
    about["matlab_texts"] = _TEXTS
    about["sizes"] = {str(dim): size for dim, size in system.sizes.items()}
    about["dtypes"] = {n: "str" if v.dtype.kind == "U" else str(v.dtype) for n, v in arrays.items()}
    # first, so that a file that is cut short lacks arrays that `about` names
    described: mat_file.Variables = {
        "about": json.dumps(about),
        "text_variables": "\n".join(n for n, v in arrays.items() if v.dtype.kind == "U"),
        "state_variables": "\n".join(n for n, d in about["dims"].items() if _STATE & set(d)),
    }
    return described | {n: _for_matlab(v, dims[n]) for n, v in arrays.items()}, about


def _all_dims(about: Mapping[str, Any]) -> dict[str, list[str]]:
    golden = about.get("golden_dims", {})
    return about["dims"] | {f"golden_{name}": dims for name, dims in golden.items()}


def _matlab_order(dims: Sequence[str]) -> list[str]:
    last = [d for d in dims if d in ("layer", "depth")]
    return [d for d in dims if d not in last] + last


def _for_matlab(values: np.ndarray, dims: Sequence[str]) -> np.ndarray | str:
    if values.dtype.kind == "U":
        return "\n".join(_escaped(text) for text in values.ravel().tolist())
    if values.dtype.kind == "f" and values.dtype.itemsize not in (4, 8):  # half or extended
        values = values.astype(np.float32 if values.dtype.itemsize < 4 else np.float64)
    values = values.transpose([dims.index(d) for d in _matlab_order(dims)])
    return values.reshape(_shape(values.shape, dims))


def _shape(sizes: Sequence[int], dims: Sequence[str]) -> tuple[int, ...]:
    """MATLAB has no vectors: a run along depth is a row, any other one a column."""
    if len(sizes) > 1:
        return tuple(sizes)
    size = math.prod(sizes)
    return (1, size) if dims and dims[0] in ("layer", "depth") else (size, 1)


def _writer(variables: mat_file.Variables, version: str | None):
    # a character has two bytes in MATLAB
    sizes = {n: 2 * len(v) if isinstance(v, str) else v.nbytes for n, v in variables.items()}
    large = {name: size for name, size in sizes.items() if size >= LIMIT}
    if version not in (None, "5", "7.3"):
        raise ValueError(f"`version` must be '5', '7.3' or None; got {version!r}. Leave it out.")
    if version == "5" and large:
        raise ValueError(
            f"`version` must be '7.3' for variables of {LIMIT} bytes or more; got '5' for {large}. "
            "Leave it out."
        )
    return mat_file.write_v73 if version == "7.3" or large else mat_file.write_v5


def _sizes_text(system: xr.Dataset) -> str:
    letters = {"layer": "L", "state": "n", "input": "m", "output": "p"}
    sizes = {dim: system.sizes[dim] for dim in letters}
    parts = [f"{letters[d]} = {n} {d}" + ("" if n == 1 else "s") for d, n in sizes.items()]
    return f"SIZES: {', '.join(parts)}."


def _provenance(attrs: Mapping[str, Any]) -> str:
    """What a reader asks first in plain words, then every other attribute."""
    first = [words.format(attrs[key]) for key, words in _FIRST.items() if key in attrs]
    rest = [f"{key}: {value}" for key, value in attrs.items() if key not in _FIRST]
    lines = [*(first or ["not recorded"]), "", "DETAILS", *rest]
    return "\n".join(line.replace("\n", "\n    ") for line in lines)


def _table(system: xr.Dataset, about: Mapping[str, Any]) -> str:
    """Name, sizes and dims as in MATLAB, unit and meaning of every variable."""
    rows = []
    for name, dims in about["matlab_dims"].items():
        shape = " x ".join(map(str, _shape([about["sizes"][d] for d in dims], dims)))
        attrs = about["variable_attrs"].get(name, {})
        kind = " texts" if name in system.variables and system[name].dtype.kind in "OU" else ""
        unit = f" [{attrs['units']}]" if attrs.get("units") else ""
        meaning = " ".join(str(attrs.get("long_name", "")).split())
        rows.append((name, shape, f"({', '.join(dims)}){kind}{unit}", meaning))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = ([text.ljust(w) for text, w in zip(row, widths, strict=True)] for row in rows)
    return "\n".join(f"    {'  '.join(row)}".rstrip() for row in padded)


@guarded
def from_matlab(path: str | os.PathLike) -> xr.Dataset:
    """Read what `to_matlab` or ``NAME_save.m`` wrote, or a .mat with A, B, C and perhaps D.

    Parameters
    ----------
    path
        The .mat, of version 5, 7 or 7.3, or the exported folder. A .mat of your own holds ``A``
        (n, n, L), ``B`` (n, m, L), ``C`` (p, n, L + 1) and ``D`` (p, m, L + 1; zero by default).

    Returns
    -------
    xr.Dataset
        The system, after replaying its golden trajectory; without one ``import_note`` in attrs
        says so. What ``NAME_save.m`` wrote says who changed it in ``changed_by``.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is truncated or none of MATLAB, the folder holds several, an array is missing,
        not full, or has the wrong size, or the golden trajectory does not fit.
    """
    file = _mat_of(Path(path))
    where = str(file)
    content = mat_file.read(file)
    variables = content.variables
    _check_present(content, file)
    if "about" not in variables:
        if any(name.startswith("golden_") for name in content.kinds):
            raise ValueError(
                f"`path` must hold ['about'], too; got {where!r} with a golden trajectory and "
                "without its description. Export it again, or remove golden_x0, golden_u, golden_x "
                "and golden_y as well."
            )
        return _bare(variables, where)
    about = about_of(str(variables["about"]), where)
    check_about(about, where)
    sizes, dtypes = about.get("sizes"), about.get("dtypes")
    used = {dim for dims in _all_dims(about).values() for dim in dims}
    if not isinstance(sizes, dict) or not isinstance(dtypes, dict) or used - set(sizes):
        raise ValueError(
            f"`path` must be an export of `to_matlab`; got {where!r}, whose `about` is another. "
            "Remove that variable and the golden ones to import A, B, C and D alone."
        )
    if "changed_by" in variables:
        about = _as_changed(about, variables)
    return restored(_arrays(variables, about, where), about, where)


def _check_present(content: mat_file.Mat, file: Path) -> None:
    absent = [name for name in "ABCD" if name not in content.variables]
    others = content.others
    missing = [name for name in absent if name != "D" or name in others]
    if not missing:
        return
    cures = {"a sparse matrix": "save full({})", "no variable of MATLAB": "save it as an array"}
    told = [name for name in missing if name in others] or list(others)[:5]
    hints = [
        f" `{n}` is {others[n]}; {cures.get(others[n], 'save its arrays').format(n)}." for n in told
    ]
    raise ValueError(
        f"`path` must hold arrays A, B and C; got {str(file)!r} without {missing}, with "
        f"{content.kinds}.{''.join(hints)} Save arrays with layer last, A (n,n,L), B (n,m,L), "
        "C (p,n,L+1); in Octave with `save('-v7', ...)`."
    )


def _mat_of(path: Path) -> Path:
    if path.is_dir():
        found = sorted(p.name for p in path.glob("*.mat"))
        if len(found) != 1:
            raise ValueError(
                f"`path` must be a .mat file, or a folder with one; got {str(path)!r} with "
                f"{found or 'none'}. Name the file."
            )
        return path / found[0]
    if not path.is_file():
        raise FileNotFoundError(f"`path` must be an existing file; got {str(path)!r}. Look for it.")
    return path


def _bare(variables: mat_file.Variables, where: str) -> xr.Dataset:
    """A file of an engineer, without a description: nothing checks its axes but their sizes."""
    sizes = _core_sizes(variables, where)
    arrays = {
        name: _in_order(variables[name], dims, sizes, name, where)
        for name, dims in DIMS.items()
        if name in variables
    }
    attrs = {"import_note": NO_GOLDEN}
    try:
        return migrated(ltv_system(*(arrays.get(name) for name in "ABCD"), attrs=attrs))  # pyright: ignore[reportArgumentType]
    except ValueError as error:
        raise ValueError(f"`path` must hold a system; got {where!r}: {error}") from error


def _core_sizes(variables: mat_file.Variables, where: str) -> dict[str, int]:
    """Sizes from C, which never loses a dim since it has at least two depths, and B."""
    _check_layer_last(variables, where)
    B, C = variables["B"], variables["C"]
    if isinstance(B, str) or isinstance(C, str) or C.ndim != 3:
        raise ValueError(
            f"`C` of {where!r} must have dims (output, state, depth), with depths 0..L; got "
            f"{np.shape(C)}. Save it with depth last, p x n x (L+1)."
        )
    p, n, depths = C.shape
    sizes = {"state": n, "state_next": n, "output": p, "depth": depths, "layer": depths - 1}
    return sizes | {"input": B.shape[1]}


def _check_layer_last(variables: mat_file.Variables, where: str) -> None:
    """ValueError if all arrays fit with layer or depth first; then they never fit with it last."""
    shapes = {name: np.shape(variables[name]) for name in "ABCD" if name in variables}
    if any(len(shape) not in (2, 3) for shape in shapes.values()):
        return
    moved = {name: (*s[1:], *(3 - len(s)) * (1,), s[0]) for name, s in shapes.items()}
    (n, _, L), m, p = moved["A"], moved["B"][1], moved["C"][0]
    wanted = {"A": (n, n, L), "B": (n, m, L), "C": (p, n, L + 1), "D": (p, m, L + 1)}
    if all(moved[name] == wanted[name] for name in moved):
        raise ValueError(
            f"`path` must hold arrays with layer or depth last; got {where!r} with "
            f"{', '.join(f'{name} {shape}' for name, shape in shapes.items())}: layer comes first "
            "here. Save permute(A, [2 3 1]) (numpy: A.transpose(1, 2, 0)), and so B, C and D."
        )


def _as_changed(about: dict[str, Any], variables: mat_file.Variables) -> dict[str, Any]:
    """The description of a system with another state, whose old variables are gone.

    What does not depend on the state was not to be changed, and its digests stay.
    """
    dims = {
        name: dims
        for name, dims in about["dims"].items()
        if name in variables or not _STATE & set(dims)
    }
    dims |= {name: d for name, d in _BASES.items() if name in variables}
    attrs = {**about["attrs"], "changed_by": str(variables["changed_by"])}
    if "order" in attrs:
        attrs["order"] = np.shape(variables["C"])[1]
    coords = [name for name in about["coords"] if name in dims]
    old = {name for name, d in about["dims"].items() if _STATE & set(d)} | {*"ABCDVW", "order"}
    digests = {name: text for name, text in about.get("digests", {}).items() if name not in old}
    return {**about, "dims": dims, "coords": coords, "attrs": attrs, "digests": digests}


def _arrays(
    variables: mat_file.Variables, about: Mapping[str, Any], where: str
) -> dict[str, np.ndarray]:
    """The arrays in the order of dims of the Dataset, with all their dims."""
    sizes = {**about["sizes"], **_core_sizes(variables, where)}
    if "changed_by" in variables and "V" in variables:
        sizes["feature"] = np.shape(variables["V"])[0]
    arrays = {}
    for name, dims in _all_dims(about).items():
        if name not in variables:
            continue  # `restored` says which are missing
        # popped, so that a large array is not held in both orders for long
        values, dtype = variables.pop(name), about["dtypes"].get(name, "float64")
        if dtype == "str":
            arrays[name] = _texts(values, [sizes[d] for d in dims], name, where)
        else:
            arrays[name] = _typed(_in_order(values, dims, sizes, name, where), dtype)
    return arrays


def _texts(value: np.ndarray | str, shape: list[int], name: str, where: str) -> np.ndarray:
    lines = [_unescaped(line) for line in str(value).split("\n")]
    if not isinstance(value, str) or len(lines) != max(1, math.prod(shape)):
        raise ValueError(
            f"`{name}` of {where!r} must hold {math.prod(shape)} texts, a line each; got "
            f"{len(lines) if isinstance(value, str) else 'numbers'}. Export it again."
        )
    return np.array(lines[: math.prod(shape)], dtype=str).reshape(shape)


def _escaped(text: str) -> str:
    """ASCII without control characters: Octave garbles others, and a newline ends a label."""

    def escape(hit: re.Match) -> str:
        code = ord(hit[0])
        letter, digits = ("x", 2) if code < 2**8 else ("u", 4) if code < 2**16 else ("U", 8)
        return f"\\{letter}{code:0{digits}x}"

    return _TO_ESCAPE.sub(escape, text)


def _unescaped(line: str) -> str:
    return _ESCAPED.sub(lambda hit: chr(int(hit[0][2:], 16)), line)


def _in_order(
    value: np.ndarray | str,
    dims: Sequence[str],
    sizes: Mapping[str, int],
    name: str,
    where: str,
) -> np.ndarray:
    """An array of the file in the order of dims of the Dataset.

    Trailing dims of size 1, which MATLAB drops, come back, and a vector may be a row or a column.
    """
    order = _matlab_order(dims)
    wanted = tuple(sizes[d] for d in order)
    got = np.shape(value)
    vector = len(order) <= 1 and got in (wanted, (1, *wanted), (*wanted, 1), (1, 1, *wanted))
    if not (vector or _core(got) == _core(wanted)):
        raise ValueError(
            f"`{name}` of {where!r} must have shape {wanted} = {tuple(order)}, by the sizes of "
            f"B and C; got {got}. Keep layer or depth last; after a change of the number of states "
            "use NAME_save.m."
        )
    if isinstance(value, str) or value.dtype.kind not in "fiub":
        raise ValueError(
            f"`{name}` of {where!r} must hold real numbers; got "
            f"{'a text' if isinstance(value, str) else value.dtype}. Take the real form first."
        )
    return value.reshape(wanted).transpose([order.index(d) for d in dims])


def _core(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape without trailing dims of size 1."""
    size = max((i + 1 for i, n in enumerate(shape) if n != 1), default=0)
    return shape[:size]


def _typed(values: np.ndarray, dtype: str) -> np.ndarray:
    """The dtype that was exported, unless it cannot hold what was changed since; in C order."""
    with np.errstate(invalid="ignore", over="ignore"):
        typed = values.astype(dtype, order="C", copy=False)
    if typed.dtype == values.dtype:
        return typed
    return typed if np.array_equal(typed, values, equal_nan=typed.dtype.kind == "f") else values
