"""A system that depthsys exported, for python-control. Needs numpy and control, not depthsys.

    x[k+1] = A[k] x[k] + B[k] u[k]      k = 0..L-1
    y[k]   = C[k] x[k] + D[k] u[k]      k = 0..L, no input at depth L

In Python:

    import load_control
    arrays = load_control.load()            # system.npz beside this file, as numpy arrays
    system = load_control.nlsys(arrays)     # time-varying; also layers(arrays), embedding(arrays)

`python load_control.py` replays the run that came with the system, step by step in numpy and as a
whole in python-control, and says PASS or FAIL. A changed or reduced system goes back by `save`.
"""

import json
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Arrays = Mapping[str, np.ndarray]
Run = Callable[[Arrays, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]

RTOL = 1e-9
LIMIT = 10**8  # numbers in one matrix: 0.8 GB
TINY = np.finfo(float).tiny  # below, numbers have fewer digits
GOLDEN = ("x0", "u", "x", "y")
UNREADABLE = (
    ValueError, OSError, EOFError, KeyError, AttributeError, RuntimeError, zlib.error,
    zipfile.BadZipFile,
)  # fmt: skip


def load(path: Any = None) -> dict[str, np.ndarray]:
    """The arrays of a system, checked for their shapes.

    Parameters
    ----------
    path
        The .npz; by default ``system.npz`` beside this file.

    Returns
    -------
    dict
        ``A`` (layer, state_next, state), ``B`` (layer, state_next, input), ``C`` (depth, output,
        state), ``D`` (depth, output, input), all indices from 0; ``golden_x0``, ``golden_u``,
        ``golden_x``, ``golden_y``; names and whatever else was exported.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is truncated or no .npz, or holds pickles; if an array is missing, holds no numbers,
        or its shape is not that of such a system.
    """
    path = Path(__file__).with_name("system.npz") if path is None else Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"`path` must be an existing file; got {str(path)!r}. Look for it.")
    try:
        with path.open("rb") as file:  # numpy leaves a broken one open
            stored = np.load(file, allow_pickle=False)
            arrays = {name: stored[name] for name in stored.files}
    except UNREADABLE as error:
        # numpy goes on with how to load pickles all the same
        why = str(error).split(" If you trust")[0].rstrip(".")
        raise ValueError(
            f"`{path.name}` must be a whole .npz of plain arrays, without pickles; got "
            f"{str(path)!r}: {why}. Export again."
        ) from error
    return checked(arrays, path.name)


def checked(arrays: dict[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
    """The same arrays; ValueError if one is missing or is not that of a system."""
    wanted = {*"ABCD", *(f"golden_{name}" for name in GOLDEN)}
    if missing := sorted(wanted - arrays.keys()):
        raise ValueError(f"`{where}` must hold {missing}, too; got {sorted(arrays)}. Export again.")
    for name in sorted(wanted):
        if arrays[name].dtype.kind not in "fiu":
            raise ValueError(
                f"`{name}` of `{where}` must hold real numbers; got dtype {arrays[name].dtype}. "
                "Export again."
            )
    for name in "ABCD":
        if arrays[name].ndim != 3:
            raise ValueError(
                f"`{name}` of `{where}` must have three axes, layers or depths first; got "
                f"shape {arrays[name].shape}. Keep axes of size 1."
            )
    L, n, m, p = sizes(arrays)
    shapes = {"A": (L, n, n), "B": (L, n, m), "C": (L + 1, p, n), "D": (L + 1, p, m)}
    shapes |= {"golden_x0": (n,), "golden_u": (L, m)}
    shapes |= {"golden_x": (L + 1, n), "golden_y": (L + 1, p)}
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            raise ValueError(
                f"`{name}` of `{where}` must have shape {shape}; got {arrays[name].shape}. "
                "A and B have one matrix per layer 0..L-1, C and D one per depth 0..L, first axis."
            )
    return arrays


def sizes(arrays: Arrays) -> tuple[int, int, int, int]:
    """L layers, n states, m inputs, p outputs."""
    return arrays["A"].shape[0], arrays["A"].shape[-1], arrays["B"].shape[-1], arrays["C"].shape[1]


def simulate(arrays: Arrays, x0: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Run the recursion in numpy.

    Parameters
    ----------
    arrays
        See `load`.
    x0
        (state).
    u
        (layer, input).

    Returns
    -------
    tuple
        States ``x`` (depth, state) and outputs ``y`` (depth, output).
    """
    A, B, C, D = (arrays[name] for name in "ABCD")
    x, y = [np.asarray(x0, float)], []
    for k in range(len(A)):
        y.append(C[k] @ x[k] + D[k] @ u[k])
        x.append(A[k] @ x[k] + B[k] @ u[k])
    y.append(C[-1] @ x[-1])
    return np.stack(x), np.stack(y)


def response(arrays: Arrays, x0: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same as `simulate` by `control.input_output_response` of `nlsys`."""
    import control

    steps = np.arange(len(u) + 1)
    U: Any = np.vstack([u, np.zeros_like(u[:1])]).T  # python-control puts time last
    X0: Any = x0
    found = control.input_output_response(nlsys(arrays), steps, U, X0, squeeze=False)
    return found.states.T, found.outputs.T


def check(arrays: Arrays, where: str = "system.npz") -> float:
    """The largest relative error of the golden trajectory, step by step.

    From each stored state the next one and the output are computed. The error of an element is
    relative to the size of the terms of its sum, |A_k||x_k| + |B_k||u_k| or |C_k||x_k| +
    |D_k||u_k|: no error hides behind a large depth or a large output, and what rounding leaves
    where terms cancel is none.

    Parameters
    ----------
    arrays
        See `load`.
    where
        What to call it in the message.

    Raises
    ------
    ValueError
        If it is above 1e-9; the message says where first, and whether every A is transposed.
    """
    error, place = _worst(_steps(arrays))
    if error <= RTOL:
        return error
    turned = {**arrays, "A": arrays["A"].swapaxes(1, 2)}
    hint = "It was changed after its export, or its layers or axes were shuffled"
    if _worst(_steps(turned))[0] <= RTOL:
        hint = "It does with every A transposed: a reader has reversed the axes"
    raise ValueError(_told(where, error, place, hint))


def check_run(arrays: Arrays, x: np.ndarray, y: np.ndarray, where: str = "system.npz") -> float:
    """The largest relative error of a run from ``golden_x0`` with ``golden_u``.

    A run propagates its rounding. The error of ``x`` at a depth is relative to the largest element
    of the golden one up to there, that of ``y`` to the largest of |C_k||x_k| + |D_k||u_k|.

    Parameters
    ----------
    arrays
        See `load`; those that `check` passes.
    x, y
        (depth, state) and (depth, output).
    where
        What to call it in the message.

    Raises
    ------
    ValueError
        If it is above 1e-9, or ``x`` or ``y`` has another shape; the message says where first.
    """
    terms = np.stack([size for size, _ in _outputs(arrays)])
    found = []
    for name, got, size in (("x", x, arrays["golden_x"]), ("y", y, terms)):
        wanted = arrays[f"golden_{name}"]
        if np.shape(got) != wanted.shape:
            found.append((0, name, np.inf))
            continue
        scale = np.maximum.accumulate(abs(size).max(axis=1, initial=0))
        with np.errstate(over="ignore", invalid="ignore"):
            error = got - wanted
        found += [(k, name, _relative(error[k], scale[k])) for k in range(len(wanted))]
    error, place = _worst(found)
    if error <= RTOL:
        return error
    hint = "Its arrays do step by step: what ran them is wrong, or another system"
    raise ValueError(_told(where, error, place, hint))


def _told(where: str, error: float, place: str, hint: str) -> str:
    return (
        f"`{where}` must replay its golden trajectory; got a relative error of {error:.1e} in "
        f"{place} (allowed: {RTOL:.0e}). {hint}; export it again."
    )


def _steps(arrays: Arrays) -> list[tuple[int, str, float]]:
    """Depth, x or y, and the largest relative error of each step of the golden trajectory."""
    A, B = arrays["A"], arrays["B"]
    x0, u, x, y = (arrays[f"golden_{name}"] for name in GOLDEN)
    found = [(0, "x", _relative(x[0] - x0, abs(x0)))]
    with np.errstate(over="ignore", invalid="ignore"):
        for k in range(len(A)):
            size = abs(A[k]) @ abs(x[k]) + abs(B[k]) @ abs(u[k])
            error = A[k] @ x[k] + B[k] @ u[k] - x[k + 1]
            found.append((k + 1, "x", _relative(error, size)))
        for k, (size, got) in enumerate(_outputs(arrays)):
            found.append((k, "y", _relative(got - y[k], size)))
    return found


def _outputs(arrays: Arrays) -> list[tuple[np.ndarray, np.ndarray]]:
    """At each depth the size of the terms of the output, and the output, of the stored states."""
    C, D, x, u = (arrays[name] for name in ("C", "D", "golden_x", "golden_u"))
    found = []
    with np.errstate(over="ignore", invalid="ignore"):
        for k in range(len(C)):
            v = u[k] if k < len(u) else np.zeros(u.shape[1])
            size = abs(C[k]) @ abs(x[k]) + abs(D[k]) @ abs(v)
            found.append((size, C[k] @ x[k] + D[k] @ v))
    return found


def _relative(error: Any, size: Any) -> float:
    """The largest of error / size; 0 / 0 is none, anything else by 0 or infinity is, and nan is."""
    size = np.where((size == 0) | np.isinf(size), 0, np.maximum(size, TINY))
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.where(np.equal(error, 0), 0.0, abs(error) / size)
    return float(np.where(np.isnan(found), np.inf, found).max(initial=0.0))


def _worst(found: list[tuple[int, str, float]]) -> tuple[float, str]:
    """The relative error where it first is too large, or the largest one; and where."""
    wrong = [place for place in found if place[2] > RTOL]
    depth, name, error = min(wrong) if wrong else max(found, key=lambda place: place[2])
    return error, f"{name} at depth {depth}"


def selfcheck(arrays: Arrays, runs: Sequence[Run] = (), where: str = "system.npz") -> float:
    """Check the golden trajectory, print one line, and return the largest relative error.

    Parameters
    ----------
    arrays
        See `load`; they have to pass `check`.
    runs
        What has to replay the trajectory, too: functions like `simulate`; see `check_run`.
    where
        What to call it in the message.

    Raises
    ------
    ValueError
        If the arrays or one of the runs do not.
    """
    worst = check(arrays, where)
    for run in runs:
        with np.errstate(over="ignore", invalid="ignore"):
            x, y = run(arrays, arrays["golden_x0"], arrays["golden_u"])
        worst = max(worst, check_run(arrays, x, y, where))
    tell(arrays, worst)
    return worst


def tell(arrays: Arrays, error: float) -> None:
    """Print the line of a system that has replayed its golden trajectory with that error."""
    L, n, m, p = sizes(arrays)
    found = f"L = {L} layers, n = {n} states, m = {m} inputs, p = {p} outputs"
    print(f"depthsys selfcheck: PASS - {found}; largest relative error {error:.1e}")  # noqa: T201


def report(check: Callable[[], object]) -> None:
    """Call a check; where it fails, say FAIL and why, and end with exit status 1."""
    try:
        check()
    except (ValueError, OSError) as error:
        raise SystemExit(f"depthsys selfcheck: FAIL - {error}") from error


def save(path: Any, arrays: Arrays, A: Any, B: Any, C: Any, D: Any = None) -> None:
    """Save a changed or reduced system for depthsys: `depthsys import` reads it.

    Provenance, names and what does not depend on the state are carried over, with the digests by
    which depthsys checks them; what has a dim of the old state is left out. A new golden
    trajectory is stored.

    Parameters
    ----------
    path
        The .npz to write; it must not exist.
    arrays
        The system that was changed, see `load`.
    A, B, C, D
        (layer, state_next, state), (layer, state_next, input), (depth, output, state) and (depth,
        output, input), zero by default. The number of states may differ from that of ``arrays``,
        that of layers, inputs and outputs stays.

    Raises
    ------
    FileExistsError
        If the file exists.
    ValueError
        If a shape does not fit, a value is not finite, or D is not zero at the last depth.
    """
    L, _, m, p = sizes(arrays)
    r = np.shape(A)[-1] if np.ndim(A) == 3 else -1
    matrices = {"A": A, "B": B, "C": C, "D": np.zeros((L + 1, p, m)) if D is None else D}
    shapes = {"A": (L, r, r), "B": (L, r, m), "C": (L + 1, p, r), "D": (L + 1, p, m)}
    for name, shape in shapes.items():
        matrices[name] = np.asarray(matrices[name], float)
        if matrices[name].shape != shape or not np.isfinite(matrices[name]).all():
            raise ValueError(
                f"`{name}` must hold finite numbers in the shape {shape}; got "
                f"{matrices[name].shape}. Layers or depths come first; their number, inputs and "
                "outputs stay."
            )
    if matrices["D"][-1].any():
        raise ValueError("`D` must be zero at the last depth: there is no input. Set it to zero.")
    about = json.loads(str(arrays["about"]))
    gone = {name for name, dims in about["dims"].items() if {"state", "state_next"} & set(dims)}
    kept = {name: v for name, v in arrays.items() if name not in gone | {"about"}}
    kept |= matrices | {"order": np.full(L + 1, r)}
    about["dims"] = {n: d for n, d in about["dims"].items() if n not in gone or n in shapes}
    if "digests" in about:
        new = gone | {*"ABCD", "order"}
        about["digests"] = {n: d for n, d in about["digests"].items() if n not in new}
    about["coords"] = [name for name in about["coords"] if name in about["dims"]]
    about["attrs"] |= {"changed_by": f"numpy {np.__version__}"}
    about["attrs"] |= {"order": r} if "order" in about["attrs"] else {}
    kept["golden_x0"] = np.sin(0.3 + 1.7 * np.arange(1, r + 1))
    kept["golden_x"], kept["golden_y"] = simulate(kept, kept["golden_x0"], kept["golden_u"])
    with Path(path).open("xb") as file:
        np.savez_compressed(file, about=np.array(json.dumps(about)), **kept)  # pyright: ignore


def names(arrays: Arrays) -> dict[str, list[str]]:
    """Names of ``inputs``, ``outputs`` and ``states`` that python-control accepts.

    It refuses dots and drops the second of two equal names: dots become underscores, and where
    names repeat all get their index.
    """
    _, n, m, p = sizes(arrays)
    found = {}
    for kind, letter, size in (("state", "x", n), ("input", "u", m), ("output", "y", p)):
        default = np.array([f"{letter}{i}" for i in range(size)])
        plain = [str(s).replace(".", "_") for s in arrays.get(f"{kind}_name", default)]
        if len(set(plain)) < size:
            plain = [f"{name}[{i}]" for i, name in enumerate(plain)]
        found[f"{kind}s"] = plain
    return found


def nlsys(arrays: Arrays) -> Any:
    """The time-varying system, as a python-control ``NonlinearIOSystem`` with ``dt=1``.

    Time t is the depth k = 0..L. ``control.input_output_response(system, np.arange(L + 1), U,
    x0)`` takes and returns time last: U is (input, L + 1), its last column is not used.
    ``control.linearize(system, 0, 0, t=3)`` returns A[3], B[3], C[3], D[3]. There is no layer L:
    the state "after" depth L is nan.

    Raises
    ------
    ValueError
        When it is evaluated at a time that is not a depth of the system.
    """
    import control

    A, B, C, D = (arrays[name] for name in "ABCD")
    last = len(A)

    def depth(t: float) -> int:
        k = round(t)
        if not 0 <= k <= last or abs(t - k) > 1e-6:
            raise ValueError(
                f"`t` must be a whole number in 0..{last}, a depth of the system; got {t}. Use "
                f"time points up to {last}."
            )
        return k

    def update(t, x, u, params):
        if (k := depth(t)) == last:  # input_output_response asks, and throws the answer away
            return np.full(len(x), np.nan)
        return A[k] @ x + B[k] @ u

    def output(t, x, u, params):
        k = depth(t)
        return C[k] @ x + D[k] @ u

    return control.nlsys(update, output, dt=1, name="depthsys", **names(arrays))


def layers(arrays: Arrays) -> list[Any]:
    """Layers 0..L-1, frozen: ``control.ss(A[k], B[k], C[k], D[k], dt=1)``, C read before the layer.

    Each is named after its label in the model, ``layer0`` and so on.
    """
    import control

    L = len(arrays["A"])
    return [
        control.ss(
            *(arrays[name][k] for name in "ABCD"),
            dt=1,
            name=f"layer{label}",
            remove_useless_states=False,
            **names(arrays),
        )
        for k, label in zip(range(L), arrays.get("layer", np.arange(L)), strict=True)
    ]


def io_matrix(arrays: Arrays) -> np.ndarray:
    """All outputs per unit of all inputs, with x0 = 0.

    Returns
    -------
    np.ndarray
        ((L + 1) p, L m): row ``k p + i`` is output i at depth k, column ``l m + j`` is input j of
        layer l. Zero above the block diagonal.

    Raises
    ------
    ValueError
        If it were larger than 10^8 numbers.
    """
    L, n, m, p = sizes(arrays)
    _check_size("io_matrix", (L + 1) * p, L * m)
    A, B, C, D = (arrays[name] for name in "ABCD")
    G = np.zeros((L + 1, p, L * m))
    state = np.zeros((n, L * m))  # the state at depth k per unit of every input
    for k in range(L + 1):
        G[k] = C[k] @ state
        if k < L:
            own = slice(k * m, (k + 1) * m)
            G[k][:, own] = D[k]
            state = A[k] @ state
            state[:, own] = B[k]
    return G.reshape((L + 1) * p, L * m)


def embedding_matrices(arrays: Arrays) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A, B, C, D of the nilpotent embedding: one time-invariant system with the whole horizon.

    The states of all depths are stacked, as are all inputs and all outputs: row ``k n + i`` is
    state i at depth k. Gramians of the embedding are block diagonal, with those of the
    depths; its Hankel singular values are the union of theirs.

    Raises
    ------
    ValueError
        If a matrix were larger than 10^8 numbers.
    """
    L, n, m, p = sizes(arrays)
    states, inputs, outputs = (L + 1) * n, L * m, (L + 1) * p
    found = []
    for rows, columns in ((states, states), (states, inputs), (outputs, states), (outputs, inputs)):
        _check_size("embedding", rows, columns)
    for name, below in (("A", 1), ("B", 1), ("C", 0), ("D", 0)):
        blocks = arrays[name]
        rows, columns = blocks.shape[1:]
        wide = columns * (L if name in "BD" else L + 1)
        matrix = np.zeros(((L + 1) * rows, wide))
        for k in range(min(len(blocks), wide // columns)):
            at = (k + below) * rows
            matrix[at : at + rows, k * columns : (k + 1) * columns] = blocks[k]
        found.append(matrix)
    return tuple(found)


def _check_size(what: str, rows: int, columns: int) -> None:
    if rows * columns > LIMIT:
        raise ValueError(
            f"`{what}` must have at most {LIMIT} numbers in a matrix; got {rows} x {columns}. Use "
            "the time-varying system or its layers, or export fewer layers or states."
        )


def embedding(arrays: Arrays) -> Any:
    """The nilpotent embedding as ``control.ss`` with ``dt=1``; see `embedding_matrices`.

    Signals are named after the system's and the depth: ``u0@3`` is input u0 of layer 3.
    """
    import control

    L, *_ = sizes(arrays)
    signals = {
        kind: [f"{name}@{k}" for k in range(L if kind == "inputs" else L + 1) for name in own]
        for kind, own in names(arrays).items()
    }
    matrices = embedding_matrices(arrays)
    return control.ss(*matrices, dt=1, name="embedding", remove_useless_states=False, **signals)


def main() -> None:
    """Replay in numpy and in python-control."""
    report(lambda: selfcheck(load(), (response,)))


if __name__ == "__main__":
    main()
