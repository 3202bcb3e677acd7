"""A system that depthsys exported, for python-control. Needs numpy and control, not depthsys.

    x[k+1] = A[k] x[k] + B[k] u[k]      k = 0..L-1
    y[k]   = C[k] x[k] + D[k] u[k]      k = 0..L, no input at depth L

In Python:

    import load_control
    arrays = load_control.load()            # system.npz beside this file, as numpy arrays
    system = load_control.nlsys(arrays)     # time-varying; also layers(arrays), embedding(arrays)

`python load_control.py` replays the run that came with the system, once in numpy and once in
python-control, and says PASS or FAIL. A changed or reduced system goes back by `save`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Arrays = Mapping[str, np.ndarray]
Run = Callable[[Arrays, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]

RTOL = 1e-9
LIMIT = 10**8  # numbers in one matrix: 0.8 GB
GOLDEN = ("x0", "u", "x", "y")


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
    ValueError
        If an array is missing, or its shape is not that of such a system.
    """
    path = Path(__file__).with_name("system.npz") if path is None else Path(path)
    with path.open("rb") as file:  # numpy leaves a broken one open
        stored = np.load(file, allow_pickle=False)
        arrays = {name: stored[name] for name in stored.files}
    return checked(arrays, path.name)


def checked(arrays: dict[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
    """The same arrays; ValueError if one is missing or its shape is not that of a system."""
    wanted = {*"ABCD", *(f"golden_{name}" for name in GOLDEN)}
    if missing := sorted(wanted - arrays.keys()):
        raise ValueError(f"`{where}` must hold {missing}, too; got {sorted(arrays)}. Export again.")
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


def check_run(arrays: Arrays, x: np.ndarray, y: np.ndarray, where: str = "system.npz") -> float:
    """The largest relative error of a run from ``golden_x0`` with ``golden_u``.

    That of ``x`` or ``y`` at a depth is relative to their largest norm up to there.

    Parameters
    ----------
    arrays
        See `load`.
    x, y
        (depth, state) and (depth, output).
    where
        What to call it in the message.

    Raises
    ------
    ValueError
        If it is above 1e-9; the message says where first, and whether every A is transposed.
    """
    error, place = _compare(arrays, x, y)
    if error <= RTOL:
        return error
    turned = {**arrays, "A": arrays["A"].swapaxes(1, 2)}
    hint = "It was changed after its export, or its layers or axes were shuffled"
    with np.errstate(over="ignore", invalid="ignore"):
        if _compare(arrays, *simulate(turned, arrays["golden_x0"], arrays["golden_u"]))[0] <= RTOL:
            hint = "It does with every A transposed: a reader has reversed the axes"
    raise ValueError(
        f"depthsys selfcheck: FAIL - `{where}` must replay its golden trajectory; got a relative "
        f"error of {error:.1e} in {place} (allowed: {RTOL:.0e}). {hint}; export it again."
    )


def _compare(arrays: Arrays, x: np.ndarray, y: np.ndarray) -> tuple[float, str]:
    """The relative error where it first is too large, or the largest one; and where."""
    found = []
    for name, got in (("x", x), ("y", y)):
        wanted = arrays[f"golden_{name}"]
        scale = np.maximum.accumulate(np.linalg.norm(wanted, axis=1))
        with np.errstate(over="ignore", invalid="ignore"):
            error = np.linalg.norm(got - wanted, axis=1) / np.where(scale > 0, scale, 1.0)
        error = np.where(np.isnan(error), np.inf, error)
        found += [(float(value), depth, name) for depth, value in enumerate(error)]
    wrong = [place for place in found if place[0] > RTOL]
    error, depth, name = min(wrong, key=lambda place: place[1]) if wrong else max(found)
    return error, f"{name} at depth {depth}"


def selfcheck(
    arrays: Arrays, runs: Sequence[Run] = (simulate,), where: str = "system.npz"
) -> float:
    """Replay the golden trajectory, print one line, and return the largest relative error.

    Parameters
    ----------
    arrays
        See `load`.
    runs
        What has to replay it: functions like `simulate`.
    where
        What to call it in the message.

    Raises
    ------
    ValueError
        If one of them does not; see `check_run`.
    """
    worst = 0.0
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


def save(path: Any, arrays: Arrays, A: Any, B: Any, C: Any, D: Any = None) -> None:
    """Save a changed or reduced system for depthsys: `depthsys import` reads it.

    Provenance, names and what does not depend on the state are carried over; what has a dim of the
    old state is left out. A new golden trajectory is stored.

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
    found = {"states": [f"x{i}" for i in range(n)]}
    for kind, size in (("input", m), ("output", p)):
        default = np.array([f"{'u' if kind == 'input' else 'y'}{i}" for i in range(size)])
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
    try:
        selfcheck(load(), (simulate, response))
    except ValueError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
