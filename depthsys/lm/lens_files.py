"""A lens as a file: safetensors; and the files of the published Jacobian lens are read."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from depthsys._version import __version__
from depthsys.files import found, whole_file
from depthsys.lm.jacobian_lens import DEFINITIONS
from depthsys.lm.kinds import LENS, check_kinds, short

FORMAT = "depthsys lens"
VERSION = "1"
DIMS = {
    "J": ("depth", "feature_out", "feature"),
    "prompt_norm": ("depth",),
    "x_ref": ("depth", "feature"),
    "x_end": ("feature",),
}
PICKLED = (".pt", ".pth", ".bin")


def save_lens(lens: xr.Dataset, path: str | os.PathLike, *, force: bool = False) -> None:
    """Write a lens as safetensors; it appears whole or not at all.

    The tensors are those of the Dataset, ``J`` first of all, as they are; the metadata, all of them
    texts, hold ``depths``, the definition, how many prompts, which model (fingerprint), and the
    Dataset's other attrs.

    Parameters
    ----------
    lens
        From `depthsys.lm.lens`, or `read_lens`.
    path
        The file, usually ``*.safetensors``.
    force
        Replace an existing file.

    Raises
    ------
    FileExistsError
        If the file exists and ``force`` is False.
    TypeError
        If ``lens`` is none, or has attrs that are neither numbers nor texts.
    ValueError
        If it is not finite, its depths do not rise, or it has variables that a lens has not; or if
        ``path`` ends as pickles do.
    """
    check_kinds("save_lens", {"lens": lens}, {"lens": LENS})
    if Path(path).suffix.lower() in PICKLED:
        raise ValueError(
            f"`path` must not end in {', '.join(PICKLED)}, which are pickles; got {str(path)!r}. "
            "Name it *.safetensors."
        )
    if "depth" not in lens.coords:
        raise ValueError(
            "`lens` must say of which depths it is; got no coordinate `depth`. Add it."
        )
    if extra := sorted(map(str, set(lens.data_vars) - set(DIMS))):
        raise ValueError(
            f"`lens` must hold {', '.join(DIMS)} alone; got {extra}, which the file has no place "
            "for. Leave them out by `.drop_vars`."
        )
    try:
        _checked(lens)
    except ValueError as error:
        raise ValueError(
            f"`lens` must be one that can be read again; got one where {error}. Sort its depths, "
            "or make it again."
        ) from error
    tensors = {
        name: np.ascontiguousarray(lens[name].transpose(*dims).values)
        for name, dims in DIMS.items()
        if name in lens
    }
    attrs = {key: value.item() if isinstance(value, np.generic) else value
             for key, value in lens.attrs.items()}  # fmt: skip
    for key, value in attrs.items():
        if not isinstance(value, (str, int, float)):
            raise TypeError(
                f"`lens` must have numbers and texts as attrs; got {short(value)} for {key!r}. "
                "Leave it out."
            )
    metadata = {
        "format": FORMAT,
        "format_version": VERSION,
        "written_by": f"depthsys {__version__}",
        "depths": json.dumps(lens["depth"].values.tolist()),
        "J": "J[d, i, j]: derivative of x_L[i] by component j of the state at depths[d]",
        "attrs": json.dumps(attrs),
        **{key: str(attrs[key]) for key in ("definition", "n_prompts", "model_fingerprint")
           if key in attrs},
    }  # fmt: skip
    with whole_file(path, force) as place:
        save_file(tensors, place, metadata)


def read_lens(path: str | os.PathLike, *, pickled_weights: bool = False) -> xr.Dataset:
    """Read a lens: one of `save_lens`, or a file of the published Jacobian lens.

    Parameters
    ----------
    path
        A ``.safetensors`` file of `save_lens`; or the ``.pt`` file that ``JacobianLens.save`` of
        github.com/anthropics/jacobian-lens writes: a dict of ``J`` {layer: matrix}, ``n_prompts``,
        ``source_layers`` and ``d_model``.
    pickled_weights
        Read ``.pt``, which is a pickle, by torch's restricted unpickler (``weights_only=True``):
        it makes tensors and plain containers, and runs no code. Never done unless asked for here.

    Returns
    -------
    xr.Dataset
        As `depthsys.lm.lens` returns it. A published file has ``J`` alone, in float32: its layer l
        is the output of block l, that is depth l + 1 here, and attrs say ``definition``
        "published". It does not say which model it is of, so only sizes can be compared.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no such file, is damaged, or is a pickle and ``pickled_weights`` is False.
    """
    if not isinstance(pickled_weights, bool):
        raise TypeError(
            f"`pickled_weights` must be True or False; got {short(pickled_weights)}. True reads a "
            "pickle."
        )
    place = Path(path)
    found(place)
    if not place.is_file():
        raise FileNotFoundError(f"`path` must be an existing file; got {str(path)!r}. Look for it.")
    if place.suffix.lower() not in PICKLED:
        return _read(path, _ours)
    if not pickled_weights:
        raise ValueError(
            f"`path` must be safetensors; got the pickle {str(path)!r}. If you trust torch's "
            "restricted unpickler with it, give `pickled_weights=True`, and `save_lens` the result."
        )
    return _read(path, _published)


def _read(path: str | os.PathLike, read: Callable[[Path], xr.Dataset]) -> xr.Dataset:
    """The lens; ValueError in one line for whatever is wrong with the file."""
    try:
        return read(Path(path))
    except MemoryError:
        raise
    except Exception as error:  # whatever the libraries trip over in a damaged file
        why = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
        raise ValueError(
            f"`path` must be a lens of depthsys or of jacobian-lens; got {str(path)!r}: {why}. "
            "Write it again."
        ) from error


def _ours(path: Path) -> xr.Dataset:
    with safe_open(path, "numpy") as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != FORMAT:
            raise SafetensorError(f"its metadata say format {metadata.get('format')!r}")
        if metadata.get("format_version") != VERSION:
            raise SafetensorError(
                f"its version is {metadata.get('format_version')!r}, not {VERSION}"
            )
        arrays = {name: file.get_tensor(name) for name in DIMS if name in file.keys()}
    data = {name: (DIMS[name], array) for name, array in arrays.items()}
    depths, attrs = (json.loads(metadata[key]) for key in ("depths", "attrs"))
    return _checked(xr.Dataset(data, coords={"depth": depths}, attrs=attrs))


def _published(path: Path) -> xr.Dataset:
    # mapped, so that a file larger than the memory is refused by its sizes and not by the kernel
    given = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(given, Mapping) or not isinstance(given.get("J"), Mapping):
        keys = sorted(map(str, given))[:8] if isinstance(given, Mapping) else type(given).__name__
        raise ValueError(f"it has no matrices `J` by layer, but {keys}")
    matrices: Mapping[Any, Any] = given["J"]
    layers = sorted(matrices)
    if not all(type(layer) is int and layer >= 0 for layer in layers):
        raise ValueError("its layers are no whole numbers")
    if list(given.get("source_layers", layers)) != layers:
        raise ValueError("its `source_layers` are not those of its matrices")
    if not all(matrices[layer].is_floating_point() for layer in layers):
        raise ValueError("its matrices are not real numbers")
    J = torch.stack([matrices[layer].float() for layer in layers]).numpy()
    attrs = {
        "definition": "published",
        "definition_in_words": DEFINITIONS["published"],
        "n_prompts": int(given["n_prompts"]),
        "source": "file of github.com/anthropics/jacobian-lens",
    }
    if J.shape[1:] != (int(given["d_model"]),) * 2:
        raise ValueError(f"its matrices are {J.shape[1:]}, and its d_model is {given['d_model']}")
    depths = [layer + 1 for layer in layers]
    return _checked(xr.Dataset({"J": (DIMS["J"], J)}, coords={"depth": depths}, attrs=attrs))


def _checked(lens: xr.Dataset) -> xr.Dataset:
    if "J" not in lens or lens.sizes["feature_out"] != lens.sizes["feature"]:
        raise ValueError("it has no square matrices J")
    for name in lens.data_vars:
        if lens[name].dtype.kind != "f":
            raise ValueError(f"{name} is not of real numbers")
        if not np.isfinite(lens[name]).all():
            raise ValueError(f"{name} is not finite")
    depths = lens["depth"].values
    if depths.dtype.kind != "i" or depths.min() < 0 or (np.diff(depths) <= 0).any():
        raise ValueError("its depths are no rising whole numbers")
    return lens
