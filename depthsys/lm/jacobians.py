"""Full Jacobians of every block: in memory, or on disk with progress and resume."""

import functools
import os
import shutil
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
import zarr
from zarr.codecs import Crc32cCodec

from depthsys.files import PROGRESS, Resumable
from depthsys.lm.at_once import whole_jacobians
from depthsys.lm.hf.blocks import Calls
from depthsys.lm.hf.fingerprint import checked_fingerprint
from depthsys.lm.lane import Lane
from depthsys.lm.linearize import ROWS, Linearisation
from depthsys.lm.memory import available_memory
from depthsys.lm.of_run import of_run
from depthsys.lm.precision import wide_dtype
from depthsys.lm.run import Run
from depthsys.lm.run_model import Model
from depthsys.lm.stamp import stamp
from depthsys.lm.sweep import Layer
from depthsys.ltv.system import STAMP


@of_run(once=True)
def jacobians(
    run: Run,
    *,
    per_prompt: bool = False,
    part: str | Linearisation = "block",
    out: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    memory_share: float = 0.25,
) -> xr.Dataset:
    r"""Full Jacobian of every block on the last token, averaged over prompts or for each.

    .. math:: \bar A_l = \frac1P \sum_p \frac{\partial f_l}{\partial x}(x_{l,p}),
        \qquad l = 0, \dots, L-1,

    where :math:`x_{l+1} = f_l(x_l)` is block l on the last token's state, the keys and values of
    the earlier tokens frozen, and :math:`x_{l,p}` the nominal state of prompt p [1]_. Column j
    holds the response of x_{l+1} to a unit push of component j of x_l.

    Parameters
    ----------
    run
        The prompts; or a model, and texts or token ids.
    per_prompt
        Keep the Jacobians of every prompt, instead of their mean.
    part
        Which derivative of a block, see `Linearisation`.
    out
        Folder of a Zarr store to write, for results that do not fit into memory; it appears when
        it is whole. Until then the work lies in ``<out>.partial``, and the same call after an
        interruption goes on after the last finished layer. None keeps the result in memory.
    overwrite
        Replace the store ``out`` of an earlier run, once the new one is whole. Datasets that are
        still open on the old one read the new one from then on: load them first.
    memory_share
        Largest share, in (0, 1], of the memory available now that a result in memory may take.
        Not used with ``out``.

    Returns
    -------
    xr.Dataset
        ``A`` (layer, state_next, state), unit 1, in the model's dtype (at least float32); sums
        over prompts are made in float64. ``x_ref`` (depth, state), the mean nominal state x_l at
        the input of block l and x_L at the end, in float64, in the unit of the state. With
        ``per_prompt`` both have the leading dim ``prompt``. Coordinates ``layer`` 0..L-1,
        ``depth`` 0..L, ``prompt``; provenance in attrs. With ``out`` the arrays are read from
        the store when they are used: ``ds.A[3].values`` reads one layer, ``ds.load()`` all of
        it, and ``xarray.open_zarr(out)`` opens it again.

    Raises
    ------
    ValueError
        Before any block is run, if a prompt or ``memory_share`` is unusable; the result is too
        large for the memory or for the disk; ``out`` exists, is not a folder or lies in none;
        or ``<out>.partial`` was begun with another model, other prompts or other settings (the
        message names them).
    FloatingPointError
        If a state or a Jacobian is not finite.

    Notes
    -----
    One sweep over the layers: every block sees all prompts before the next block, so its weights
    are read once per batch. H vector-Jacobian products per prompt and layer.

    Memory, beside the model, the result and what the budget of the run takes: for the mean a few
    H x H matrices (a few 1024 x H where H is smaller) at any number of prompts; with
    ``per_prompt`` the Jacobians of one batch at one layer (at most 32 prompts; fewer or more on an
    accelerator, by its memory). There the host writes a layer while the next one is computed.

    The store has Zarr format 3, one chunk per matrix, with a checksum and not compressed (that
    would save a tenth). A damaged chunk is an error when it is read, a missing one NaN.
    A layer counts as done after all of it is written. A resumed run reads the finished layers
    back, computes from the first one that is not whole, and passes the prompts through the
    blocks before it without derivatives. On one machine, with as many threads, the result has
    the same bits as that of an uninterrupted run. A second run on the same ``out`` is refused.

    References
    ----------
    .. [1] Elhage et al. (2021), A mathematical framework for transformer circuits,
       transformer-circuits.pub/2021/framework: the residual stream. Freezing the context is exact
       for a causal model, see `depthsys.lm.model`.

    Examples
    --------
    The mean over two prompts in memory, and the same on disk:

    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from depthsys import lm
    >>> from depthsys.demo import model_path
    >>> model = lm.DepthModel.load(model_path("demo_48x4"), device="cpu")
    >>> texts = ["the food was good", "the room was cold"]
    >>> ds = lm.jacobians(model, texts)
    >>> dict(ds.A.sizes)
    {'layer': 4, 'state_next': 48, 'state': 48}
    >>> with TemporaryDirectory() as folder:
    ...     stored = lm.jacobians(model, texts, out=Path(folder) / "jacobians.zarr")
    ...     last = stored.A[3].values  # reads the matrix of one layer
    >>> bool((last == ds.A[3]).all())
    True
    """
    _check_share(memory_share)
    model, kind = run.model, Linearisation.of(part)
    layout = _layout(model, len(run) if per_prompt else None)
    attrs = {
        **STAMP,
        **stamp(run, "jacobians"),
        "per_prompt": int(per_prompt),
        "n_prompts": len(run),
        **kind.attrs,
        "step": f"exact {'detached map' if kind.is_detached else 'Jacobian'} (no step)",
    }
    if out is None:
        _check_memory(_size(layout), memory_share)
        arrays = {name: np.empty(v.shape, v.dtype) for name, v in layout.items()}
        for _ in _layers(run, kind, arrays, 0):
            pass
        data = {name: (layout[name].dims, array) for name, array in arrays.items()}
        return xr.Dataset(data, coords=_coords(layout), attrs=attrs)
    if checked_fingerprint(model.hf) != attrs["model_fingerprint"]:
        raise ValueError(
            "`model` must keep the weights it was wrapped with; they have changed. Wrap it again."
        )
    store = _Store.checked(Path(out), layout, _identity(attrs), overwrite)
    with store.work.locked():
        arrays, done = store.opened()
        try:
            for layer in _layers(run, kind, arrays, done):
                store.mark(layer + 1)
        except BaseException as error:
            error.add_note(
                f"The finished layers are kept in {str(store.partial)!r}: the same call goes on "
                "there."
            )
            raise
        store.publish(attrs)
    return xr.open_zarr(store.out, chunks=None)


# ------------------------------------------------------------------------------- layout


@dataclass(frozen=True)
class _Variable:
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize


def _layout(model: Model, n_prompts: int | None) -> dict[str, _Variable]:
    """The variables of the result, without coordinates; ``n_prompts`` None for the mean."""
    n_layers, width = model.n_layers, model.n_features
    dtype = np.dtype(str(_result_dtype(model)).removeprefix("torch."))
    matrix, vector = (1, width, width), (1, width)
    A = _Variable(("layer", "state_next", "state"), (n_layers, width, width), matrix, dtype)
    x_ref = _Variable(("depth", "state"), (n_layers + 1, width), vector, np.dtype(np.float64))
    if n_prompts is None:
        return {"A": A, "x_ref": x_ref}
    return {
        "A": _with_prompts(A, n_prompts, 1),
        "x_ref": _with_prompts(x_ref, n_prompts, n_prompts),
    }


def _with_prompts(variable: _Variable, n_prompts: int, chunk: int) -> _Variable:
    return _Variable(
        ("prompt", *variable.dims),
        (n_prompts, *variable.shape),
        (chunk, *variable.chunks),
        variable.dtype,
    )


def _coords(layout: Mapping[str, _Variable]) -> dict[str, np.ndarray]:
    sizes = {d: n for v in layout.values() for d, n in zip(v.dims, v.shape, strict=True)}
    return {dim: np.arange(sizes[dim]) for dim in ("prompt", "layer", "depth") if dim in sizes}


def _size(layout: Mapping[str, _Variable]) -> int:
    return sum(variable.nbytes for variable in layout.values())


def _result_dtype(model: Model) -> torch.dtype:
    """The model's dtype, or float32 where numpy has none such (bfloat16)."""
    return wide_dtype(model.dtype)


# ------------------------------------------------------------------------------- numbers


def _layers(run: Run, kind: Linearisation, arrays: Mapping[str, Any], done: int) -> Iterator[int]:
    """Fill the arrays, numpy or Zarr, from layer ``done`` on; yields a layer once it is written."""
    if done == run.n_layers:
        return
    of_layer = _mean if arrays["A"].ndim == 3 else _each
    # an accelerator goes on with the next work while the host writes what it found
    behind = run.model.device.type != "cpu"
    begun: list[Callable[[], None] | int] = []
    steps = _steps(run, kind, of_layer, arrays, done)
    try:
        for step in steps:
            if not isinstance(step, int) and begun:
                yield from _finished(begun)
            begun.append(step)
            if not behind:
                yield from _finished(begun)
    except FloatingPointError as error:
        steps.throw(error)  # the sweep knows whether a state is the cause
    yield from _finished(begun)


def _steps(
    run: Run, kind: Linearisation, of_layer: Any, arrays: Mapping[str, Any], done: int
) -> Generator[Callable[[], None] | int, None, None]:
    """What writes the work that has begun; and after all of a layer its number."""
    calls: dict[tuple[int, int], Calls] = {}
    lane = Lane(run.model.device)
    with run.sweep() as sweep:
        for blocks in sweep.forward("Jacobians"):
            if blocks.layer >= done:  # else the sweep itself passes the prompts through this block
                yield from of_layer(run, kind, blocks, arrays, lane, calls)
                yield blocks.layer


def _finished(begun: list[Callable[[], None] | int]) -> Iterator[int]:
    """Write what was begun; yields the layers of which all is written."""
    for step in begun:
        if isinstance(step, int):
            yield step
        else:
            step()
    begun.clear()


def _leaving(lane: Lane, *tensors: torch.Tensor) -> Callable[[], list[np.ndarray]]:
    """Begin to copy tensors to the host; gives what waits for them."""
    copies = [lane.out(tensor) for tensor in tensors]
    return lambda: [copy.here().numpy() for copy in copies]


def _mean(
    run: Run, kind: Linearisation, blocks: Layer, arrays: Mapping[str, Any], lane: Lane, _: dict
) -> Iterator[Callable[[], None]]:
    """Begin with the mean of a layer; yields what writes it."""
    model, layer, count = run.model, blocks.layer, len(run)
    width = model.n_features
    identity = torch.eye(width, dtype=model.dtype, device=model.device)
    total = torch.zeros(width, width, dtype=torch.float64, device=model.device)
    x = torch.zeros(2, width, dtype=torch.float64, device=model.device)
    for block in blocks:
        linear = block.linearised(kind)
        # never the Jacobians of all prompts of the batch: some of their rows at a time
        n_rows = max(1, linear.rows_at_once(ROWS) // len(block.prompts))
        for start in range(0, width, n_rows):
            part = slice(start, start + n_rows)
            total[part] += linear.vjp(identity[part]).sum(0, dtype=torch.float64)
        x += torch.stack([block.x, block.x_next]).sum(1, dtype=torch.float64)
    found = _leaving(lane, (total / count).to(_result_dtype(model)), x / count)

    def write() -> None:
        A, states = found()
        _check_finite(A, f"at layer {layer}")
        arrays["A"][layer] = A
        arrays["x_ref"][layer] = states[0]
        if layer == model.n_layers - 1:
            arrays["x_ref"][layer + 1] = states[1]

    yield write


def _each(
    run: Run, kind: Linearisation, blocks: Layer, arrays: Mapping[str, Any], lane: Lane, calls: dict
) -> Iterator[Callable[[], None]]:
    """Begin with the Jacobians of some prompts of a layer; yields what writes them."""
    model, layer, count = run.model, blocks.layer, len(run)
    states = np.empty((2, count, model.n_features))
    written = 0

    def write(found: Callable[[], list[np.ndarray]], prompts: np.ndarray) -> None:
        nonlocal written
        matrices, states[:, prompts] = found()
        for prompt, A in zip(prompts, matrices, strict=True):
            _check_finite(A, f"at layer {layer}, prompt {prompt}")
            arrays["A"][int(prompt), layer] = A
        written += len(prompts)
        if written == count:
            arrays["x_ref"][:, layer] = states[0]
            if layer == model.n_layers - 1:
                arrays["x_ref"][:, layer + 1] = states[1]

    for number, block in enumerate(blocks):
        most = whole_jacobians(block.x, len(block.prompts))
        for start in range(0, len(block.prompts), most):
            part = block
            if most < len(block.prompts):
                part = block.between(start, start + most, calls.get((number, start)))
                calls[number, start] = part.calls
            found = _leaving(
                lane,
                part.jacobian(part=kind).to(_result_dtype(model)),
                torch.stack([part.x, part.x_next]).double(),
            )
            yield functools.partial(write, found, part.prompts)


def _check_finite(A: np.ndarray, where: str) -> None:
    if not np.isfinite(A).all():
        raise FloatingPointError(
            f"`model` must have finite Jacobians; got a value that is not {where}. "
            "Use a wider dtype, or leave out that prompt."
        )


# ------------------------------------------------------------------------------- memory


def _check_share(memory_share: float) -> None:
    if not 0 < memory_share <= 1:
        raise ValueError(
            f"`memory_share` must be in (0, 1]; got {memory_share}. The default is 0.25."
        )


def _check_memory(size: int, memory_share: float) -> None:
    available = available_memory()
    if available is None:
        raise ValueError(
            "`out` must be given where the available memory is unknown; got None on this "
            f"system. Give out='jacobians.zarr' on a disk with {_bytes(size)} free."
        )
    if size > memory_share * available:
        raise ValueError(
            f"`out` must be given for a result above `memory_share` of the memory; got None for "
            f"{_bytes(size)}, where {memory_share:g} of {_bytes(available)} available is "
            f"{_bytes(memory_share * available)}. Give out='jacobians.zarr' on a disk with that "
            "much free, or fewer prompts."
        )


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


# ------------------------------------------------------------------------------- store

_IDENTITY = (
    "model_fingerprint",
    "tokens_sha256",
    "per_prompt",
    "part",
    "dtype",
    "device",
    "left_padding",
    "depthsys_version",
)


def _identity(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """What a run must share with an interrupted one to go on with it."""
    products = attrs.get("products", "float32")
    same = {**{key: attrs[key] for key in _IDENTITY}, "products": products}
    if "linearisation" in attrs:  # in the part, since stores of the Jacobian have no such key
        same["part"] = f"{attrs['part']}, {attrs['linearisation']}, linear in {attrs['linear']}"
    return same


@dataclass(frozen=True)
class _Store:
    """The Zarr store ``out``, which lies in ``out``.partial until it is whole.

    ``partial`` holds progress.json (what is computed, and how many layers of it are done) beside
    store/, which has no root metadata before the end: nothing opens it as a group by accident.
    """

    out: Path
    layout: Mapping[str, _Variable]
    overwrite: bool
    work: Resumable
    done: int = 0

    @classmethod
    def checked(cls, out: Path, layout, identity, overwrite: bool) -> "_Store":
        """ValueError unless ``out`` can be written, and an interrupted run be gone on with."""
        out = out.resolve()
        partial = out.with_name(out.name + ".partial")
        store = cls(out, layout, overwrite, Resumable(partial, identity, work="store"))
        store.work.recover(out)
        store._check_out()
        work = Resumable.checked(
            partial, identity, begun_with="model, prompts and settings", work="store"
        )
        store = replace(store, work=work, done=_layers_done(work))
        n_layers = layout["A"].shape[-3]
        needed = _size(layout) * (n_layers - store.done) // n_layers
        free = shutil.disk_usage(store.out.parent).free
        if needed > free:
            raise ValueError(
                f"`out` must be on a disk with {_bytes(needed)} free; got {_bytes(free)} free at "
                f"{str(store.out.parent)!r}. Make room, choose another disk or fewer prompts."
            )
        return store

    @property
    def partial(self) -> Path:
        return self.work.folder

    def _check_out(self) -> None:
        if not self.out.parent.is_dir():
            raise ValueError(
                f"`out` must lie in an existing folder; got {str(self.out)!r}. "
                f"Make {str(self.out.parent)!r} first."
            )
        for path in (self.out, self.partial):
            if path.exists() and not path.is_dir():
                raise ValueError(
                    f"`out` must be a folder to write; got the file {str(path)!r}. "
                    "Choose another name."
                )
        if not self.out.exists():
            return
        if not self.overwrite:
            raise ValueError(
                f"`out` must not exist; got {str(self.out)!r}, which does. Choose another name, "
                "open it with `xarray.open_zarr`, or pass `overwrite=True`."
            )
        if not (self.out / "zarr.json").is_file():
            raise ValueError(
                f"`out` must be a Zarr store to be overwritten; got {str(self.out)!r}, which "
                "holds other things. Choose another name."
            )

    def opened(self) -> tuple[dict[str, zarr.Array], int]:
        """The arrays to write to, and how many of their layers are there and whole."""
        if self.done > 0:
            arrays: Any = {n: zarr.open_array(self._path(n), mode="r+") for n in self.layout}
            return arrays, next((n for n in range(self.done) if not _whole(arrays, n)), self.done)
        self.work.begin()
        self.mark(0)
        for dim, values in _coords(self.layout).items():
            shape = values.shape
            _create(self._path(dim), _Variable((dim,), shape, shape, values.dtype))[:] = values
        return {name: _create(self._path(name), v) for name, v in self.layout.items()}, 0

    def _path(self, name: str) -> Path:
        return self.work.work_folder / name

    def mark(self, done: int) -> None:
        """Note how many layers are written, all or nothing."""
        self.work.note(layers_done=done)

    def publish(self, attrs: Mapping[str, Any]) -> None:
        """Give the finished store its root metadata and its name."""
        whole = self.work.work_folder
        zarr.open_group(whole, mode="a").attrs.update(attrs)
        with warnings.catch_warnings():
            # readers that do not know consolidated metadata ignore it
            warnings.filterwarnings("ignore", "Consolidated metadata", UserWarning)
            zarr.consolidate_metadata(whole)
        self._check_out()
        self.work.publish(self.out)


def _layers_done(work: Resumable) -> int:
    """How many layers an interrupted run has finished; ValueError where it does not say."""
    if not work.begun:
        return 0
    try:
        return int(work.noted()["layers_done"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"`out` must have readable progress; got {type(error).__name__} in "
            f"{str(work.folder / PROGRESS)!r}. Choose another name, or delete that folder if it "
            "holds nothing you need."
        ) from error


def _create(path: Path, variable: _Variable) -> zarr.Array:
    return zarr.create_array(
        path,
        shape=variable.shape,
        chunks=variable.chunks,
        dtype=variable.dtype,
        fill_value=np.nan if variable.dtype.kind == "f" else None,
        compressors=[Crc32cCodec()],
        dimension_names=variable.dims,
    )


def _whole(arrays: Mapping[str, zarr.Array], layer: int) -> bool:
    """Whether all of a finished layer is still there."""
    A = arrays["A"]
    rows = [(layer,)] if A.ndim == 3 else [(prompt, layer) for prompt in range(A.shape[0])]
    x_ref = arrays["x_ref"]
    depths = [layer, layer + 1] if layer == A.shape[-3] - 1 else [layer]
    try:
        return all(np.isfinite(A[row]).all() for row in rows) and all(
            np.isfinite(x_ref[..., depth, :]).all() for depth in depths
        )
    except ValueError:  # a checksum that does not hold
        return False
