"""Control vectors of others: files of llama.cpp and repeng, objects of repeng and steering-vectors.

All of them add a vector to the output of a block, at every token: to the output of block N, counted
from 0, which is the input of block N + 1, and so the state at depth N + 1 here.
"""

import json
import math
import os
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np
import xarray as xr

from depthsys.export.control import library
from depthsys.export.guard import existing_file, told_of
from depthsys.files import file_hash, whole_file
from depthsys.files.strangers.gguf import Gguf, read_gguf
from depthsys.files.strangers.limits import FREE, RATIO, one_line

ARCHITECTURE = "controlvector"
SIGNS = "depthsys.signs"  # of a plan's u, which a vector alone does not tell
HOOK = "input of block l (= residual stream before it), depth L behind the last block"
_MOST_LAYERS = 10_000
_ONE_OF_OURS = "Give what `export.read_control_vector` returned."


def read_control_vector(
    path: str | os.PathLike,
    *,
    strength: float = 1.0,
    layer_range: tuple[int, int] | None = None,
    n_layers: int | None = None,
    n_features: int | None = None,
) -> xr.Dataset:
    r"""A control vector in GGUF, of repeng, llama.cpp's cvector-generator or our own `to_gguf`.

    A tensor ``direction.N`` (feature) is added to the output of block N. Here that is the push
    :math:`u_l v_l` at the input of block l = N + 1, where :math:`v_l` is the tensor divided by its
    length, and :math:`u_l` the length times ``strength``. The sign is that of the file.

    Parameters
    ----------
    path
        The file. It may come from anybody: sizes, kinds and counts are checked first.
    strength
        Factor on the whole vector, as the number of llama.cpp's ``--control-vector-scaled`` and
        repeng's ``coeff``; negative turns it around.
    layer_range
        First and last N that are added, both included, as of llama.cpp's
        ``--control-vector-layer-range`` and of repeng's ``layer_ids``. The others keep their
        directions and are not pushed. By default all. Where ``n_layers`` is told it must lie within
        the model; llama.cpp's own default, 1 to ``n_layers``, is taken.
    n_layers, n_features
        Blocks and width of the model that it is for. Where the blocks are not told they are taken
        to end with the last tensor, which `with_layers` corrects.

    Returns
    -------
    xr.Dataset
        A concept and a plan in one: ``direction`` (depth, feature), unit length, NaN where there
        is no vector; ``u`` (layer), unit of the state; ``u_end``, the push behind the last block,
        along the direction at depth L. `lm.play` takes it as concept and as plan.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    TypeError, ValueError
        If an option is none; if the file is damaged or no control vector, if its tensors do not fit
        each other or the model, are not finite, or all zero.

    References
    ----------
    .. [1] llama.cpp, control vectors: https://github.com/ggml-org/llama.cpp/pull/5970
    .. [2] repeng: https://github.com/vgel/repeng
    """
    place = existing_file(path)
    with told_of(path, "a whole GGUF file", "Fetch or write it again."):
        read = read_gguf(place, ARCHITECTURE)
    if read.architecture != ARCHITECTURE:
        what = one_line(read.architecture, 40) or "nothing"
        raise ValueError(
            f"`path` must be a control vector (general.architecture {ARCHITECTURE!r}); got "
            f"{str(path)!r}, which says {what!r}. A model goes where a MODEL is asked for."
        )
    vectors = {_block_of(name, path): values for name, values in read.tensors.items()}
    made = _made(
        vectors, strength, layer_range, n_layers, n_features, where=f" in {str(path)!r}",
        signs=_signs(read, vectors),
    )  # fmt: skip
    hint = read.metadata.get("controlvector.model_hint", "")
    return made.assign_attrs(
        source="gguf", model_hint=one_line(hint, 100), file_sha256=file_hash(place)
    )


def from_control_vector(
    vector: Any,
    *,
    strength: float = 1.0,
    layer_range: tuple[int, int] | None = None,
    n_layers: int | None = None,
    n_features: int | None = None,
) -> xr.Dataset:
    """A control vector as repeng, steering-vectors or you hold it in memory.

    Parameters
    ----------
    vector
        A ``steering_vectors.SteeringVector`` of layer type "decoder_block", a
        ``repeng.ControlVector``, or a mapping from the number of a block, from 0, to the vector
        (feature) that is added to its output. Numbers below 0 count from the last block, for which
        ``n_layers`` must be given. To save a SteeringVector, save what this returns.
    strength, layer_range, n_layers, n_features
        See `read_control_vector`; ``strength`` is also steering-vectors' ``multiplier``.

    Returns
    -------
    xr.Dataset
        See `read_control_vector`.

    Raises
    ------
    TypeError, ValueError
        If it is no such object, is added elsewhere than to the output of blocks, or see
        `read_control_vector`.

    Examples
    --------
    >>> from depthsys.export import from_control_vector
    >>> found = from_control_vector({0: [3.0, 4.0]}, n_layers=2)
    >>> found["u"].values.tolist(), found["direction"].values[1].tolist()
    ([0.0, 5.0], [0.6, 0.8])
    """
    vectors, about = _held(vector)
    numbered = {
        _number(block, n_layers): _numbers(values, block) for block, values in vectors.items()
    }
    if len(numbered) < len(vectors):
        raise ValueError(
            f"`vector` must hold each block once; got {sorted(vectors)} with n_layers={n_layers}. "
            "Drop one of those that are the same."
        )
    made = _made(numbered, strength, layer_range, n_layers, n_features)
    return made.assign_attrs(about)


def with_layers(vector: xr.Dataset, n_layers: int) -> xr.Dataset:
    """The control vector for a model of that many blocks.

    Parameters
    ----------
    vector
        From `read_control_vector` or `from_control_vector`.
    n_layers
        Blocks of the model. Where they were not told when it was read, those that follow the last
        tensor are added, without a push.

    Raises
    ------
    ValueError
        If it is of a model with other blocks.
    """
    u, direction, end = parts_of(vector)
    told = bool(vector.attrs.get("n_layers_told", 1))
    if n_layers == len(u) or (n_layers > len(u) and not told):
        more = n_layers - len(u)
        if not more:
            return vector
        return _dataset(
            np.concatenate([u, [end], np.zeros(more - 1)]),
            np.concatenate([direction, np.full((more, direction.shape[1]), np.nan)]),
            0.0,
            vector.attrs | {"n_layers_told": 1},
        )
    least = "" if told else "at least "
    raise ValueError(
        f"`vector` must be of a model with {n_layers} blocks; got one for {least}{len(u)}. Give "
        "the model that it was made for."
    )


def write_control_vector(
    vector: xr.Dataset,
    path: str | os.PathLike,
    *,
    model_hint: str | None = None,
    force: bool = False,
) -> None:
    """Write a control vector for llama.cpp and repeng, with the pushes ``u`` that it has now.

    Read with strength 1 and written again, the tensors are the same bytes. llama.cpp refuses a file
    with ``direction.0``: read it with a ``layer_range`` from 1 on, and it is left out.

    Parameters
    ----------
    vector
        From `read_control_vector` or `from_control_vector`.
    path
        The file, usually ``*.gguf``. It appears whole or not at all.
    model_hint
        See `to_gguf`; by default the one it came with.
    force
        Replace an existing file.

    Raises
    ------
    FileExistsError
        If the file exists and ``force`` is False.
    ImportError
        If gguf is not installed.
    TypeError, ValueError
        If it is no control vector; if it pushes at the input of block 0, which no control vector
        can; if it lacks layers; or by more than fits in float32.
    """
    u, direction, end = parts_of(vector)
    if u[0]:
        raise ValueError(
            f"`vector` must not push at the input of block 0 in a GGUF; got {u[0]:.3g} there. Set "
            "`u` to zero at layer 0."
        )
    pushes = np.append(u, end)[1:]
    vectors = {}
    for block in written_blocks(vector):
        known = not np.isnan(direction[block + 1]).any()
        found = pushes[block] * direction[block + 1] if known else np.zeros(direction.shape[1])
        with np.errstate(over="ignore"):
            vectors[block] = found.astype(np.float32)
        if not np.isfinite(vectors[block]).all():
            raise ValueError(
                f"`vector` must give pushes that fit in float32; got {abs(found).max():.1e} at "
                f"layer {block + 1}. Use a smaller strength."
            )
    hint = vector.attrs.get("model_hint", "") if model_hint is None else model_hint
    write_directions(vectors, path, model_hint=hint, force=force)


def written_blocks(vector: xr.Dataset) -> list[int]:
    """N of every ``direction.N`` that `write_control_vector` writes, in its order.

    Those that it came with, and then those that were pushed since.

    Raises
    ------
    TypeError, ValueError
        If it is no control vector, or lacks layers that it came with.
    """
    u, direction, end = parts_of(vector)
    pushes = np.append(u, end)[1:]
    came = json.loads(vector.attrs.get("blocks", "[]"))
    if came and max(came) >= len(pushes):
        raise ValueError(
            f"`vector` must hold all layers that it came with; got {len(pushes)} where there is a "
            f"vector for block {max(came)}. Set `u` to zero where nothing is to be pushed."
        )
    blocks = came + [block for block in np.flatnonzero(pushes).tolist() if block not in came]
    # llama.cpp refuses direction.0 even if it is zero; one that came as zeros has no direction
    switched_off = not pushes[0] and not np.isnan(direction[1]).any()
    return [block for block in blocks if block or not switched_off]


def write_directions(
    vectors: Mapping[int, np.ndarray],
    path: str | os.PathLike,
    *,
    model_hint: str = "",
    description: str = "",
    about: Mapping[str, str] | None = None,
    signs: np.ndarray | None = None,
    force: bool = False,
) -> None:
    """Write ``direction.N`` (feature), float32, for each block N, as a file of llama.cpp.

    ``about`` goes into keys ``depthsys.*``; ``signs`` (layer) are those of the u of a plan.
    """
    gguf = library("gguf", "gguf", "to_gguf")
    with whole_file(path, force) as partial:
        writer = gguf.GGUFWriter(partial, ARCHITECTURE)
        try:
            writer.add_string(f"{ARCHITECTURE}.model_hint", model_hint)
            writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(vectors))
            if description:
                writer.add_description(description)
            for key, text in (about or {}).items():
                writer.add_string(f"depthsys.{key.removeprefix('depthsys_')}", text)
            if signs is not None:
                writer.add_array(SIGNS, [int(sign) for sign in signs])
            for block, vector in vectors.items():
                writer.add_tensor(f"direction.{block}", vector)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()


def parts_of(vector: xr.Dataset) -> tuple[np.ndarray, np.ndarray, float]:
    """``u`` (layer), ``direction`` (depth, feature) and ``u_end`` of a control vector, checked.

    Raises
    ------
    TypeError
        If it is none.
    ValueError
        If its sizes do not fit, it does not begin with layer 0, a push is not finite, or one has
        no direction.
    """
    if not isinstance(vector, xr.Dataset) or not {"u", "direction"} <= set(vector):
        got = sorted(map(str, vector)) if isinstance(vector, xr.Dataset) else type(vector).__name__
        raise TypeError(
            f"`vector` must be a Dataset with `u` and `direction`; got {got}. {_ONE_OF_OURS}"
        )
    u, direction = vector["u"], vector["direction"]
    sizes = {"depth": u.size + 1, "feature": direction.sizes.get("feature", 0)}
    end = vector.get("u_end", xr.DataArray(0.0))
    if u.dims != ("layer",) or dict(direction.sizes) != sizes or end.ndim or not direction.size:
        raise ValueError(
            f"`vector` must hold u (layer), direction (depth, feature), one depth more than "
            f"layers, and one u_end; got {dict(u.sizes)}, {dict(direction.sizes)} and "
            f"{dict(end.sizes)}. {_ONE_OF_OURS}"
        )
    for name in ("layer", "depth"):
        if not np.array_equal(vector[name], np.arange(vector.sizes[name])):
            raise ValueError(
                f"`vector` must hold every {name} from 0 on; got "
                f"{one_line(vector[name].values.tolist(), 60)}. Set `u` to zero where nothing is "
                "to be pushed."
            )
    if any(values.dtype.kind not in "fiu" for values in (u, direction, end)):
        raise ValueError(f"`vector` must hold real numbers; got {u.dtype}, {direction.dtype}.")
    pushes = np.append(u.values, end.values).astype(np.float64)
    v = direction.transpose("depth", "feature").values.astype(np.float64)
    wrong = (pushes != 0) & ~np.isfinite(v).all(-1) | ~np.isfinite(pushes)
    if wrong.any():
        depth = int(wrong.argmax())
        raise ValueError(
            f"`vector` must push by finite numbers, where it has a direction; got {pushes[depth]} "
            f"at depth {depth}. {_ONE_OF_OURS}"
        )
    return pushes[:-1], v, float(pushes[-1])


# ------------------------------------------------------------------------- what it is made of


def _block_of(name: str, path: str | os.PathLike) -> int:
    """N of ``direction.N``."""
    kind, _, number = name.partition(".")
    plain = number.isascii() and number.isdecimal() and str(int(number[:9])) == number
    if kind != "direction" or not plain or int(number) >= _MOST_LAYERS:
        raise ValueError(
            f"`path` must hold tensors direction.N, N from 0 to {_MOST_LAYERS - 1}, and no others; "
            f"got {one_line(repr(name), 60)} in {str(path)!r}. Write it as repeng's does."
        )
    return int(number)


def _signs(read: Gguf, vectors: Mapping[int, np.ndarray]) -> dict[int, float]:
    """Signs of the u of a plan of ours by block; none for files of others."""
    told = read.metadata.get(SIGNS)
    if not isinstance(told, list) or not all(sign in (-1, 0, 1) for sign in told):
        return {}
    return {block: -1.0 for block in vectors if block + 1 < len(told) and told[block + 1] == -1}


def _held(vector: Any) -> tuple[dict[Any, Any], dict[str, str]]:
    """Vectors by block, and attrs that say what held them."""
    kind = type(vector).__name__
    if isinstance(vector, Mapping):
        return dict(vector), {"source": "mapping", "model_hint": ""}
    activations = getattr(vector, "layer_activations", None)
    if isinstance(activations, Mapping):
        where = getattr(vector, "layer_type", "decoder_block")
        if where != "decoder_block":
            raise ValueError(
                f"`vector` must be added to the output of blocks (layer_type 'decoder_block'); got "
                f"{one_line(repr(where), 40)}. Train it on decoder blocks."
            )
        return dict(activations), {"source": "steering-vectors", "model_hint": ""}
    directions = getattr(vector, "directions", None)
    if isinstance(directions, Mapping):
        hint = one_line(getattr(vector, "model_type", ""), 100)
        return dict(directions), {"source": "repeng", "model_hint": hint}
    raise TypeError(
        f"`vector` must be a steering_vectors.SteeringVector, a repeng.ControlVector or a mapping "
        f"from blocks to vectors; got {one_line(kind, 60)}. Read files with "
        "`export.read_control_vector`."
    )


def _number(block: Any, n_layers: int | None) -> int:
    """A block counted from the first one."""
    counted = isinstance(block, int | np.integer) and not isinstance(block, bool)
    if not counted or block >= _MOST_LAYERS or (block < 0 and n_layers is None):
        raise ValueError(
            f"`vector` must number blocks from 0 (below 0 from the last one, with `n_layers`); got "
            f"{one_line(repr(block), 40)}. Give `n_layers`."
        )
    if block < -(n_layers or 0):
        raise ValueError(
            f"`vector` must number blocks from {-(n_layers or 0)} on; got {block}. Give the model "
            "that it is of."
        )
    number = int(block)
    return number + (n_layers or 0) if number < 0 else number


def _numbers(values: Any, block: Any) -> np.ndarray:
    """A vector as numpy's; tensors of torch are brought to the host."""
    try:
        if hasattr(values, "detach"):
            values = values.detach().cpu().double()
        found = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise _no_vector(block, type(values).__name__) from error
    if found.dtype.kind not in "fiu":
        raise _no_vector(block, f"{type(values).__name__} of {found.dtype}")
    return found.reshape(-1) if found.size == max(found.shape, default=0) else found


def _no_vector(block: Any, got: str) -> ValueError:
    return ValueError(
        f"`vector` must hold real numbers for each block; got a {one_line(got, 60)} for block "
        f"{block}. Give arrays (feature)."
    )


def _made(
    vectors: Mapping[int, np.ndarray],
    strength: float,
    layer_range: tuple[int, int] | None,
    n_layers: int | None,
    n_features: int | None,
    *,
    where: str = "",
    signs: Mapping[int, float] | None = None,
) -> xr.Dataset:
    """The Dataset of vectors by block, after all checks."""
    first, last = _checked_options(strength, layer_range, n_layers)
    width = _checked_width(vectors, n_features, where)
    deepest = max(vectors)
    layers = deepest + 1 if n_layers is None else n_layers
    if deepest >= layers:
        raise ValueError(
            f"`n_layers` must be more than the last block that is pushed; got {layers} where there "
            f"is a vector for block {deepest}{where}. It is of a deeper model."
        )
    given = sum(values.nbytes for values in vectors.values())
    if (layers + 1) * width * 8 > FREE + RATIO * given:
        raise ValueError(
            f"`vector` must hold vectors for a fair part of the blocks; got {len(vectors)} of "
            f"width {width} for {layers} blocks{where}. Number the blocks from 0."
        )
    u, direction = np.zeros(layers + 1), np.full((layers + 1, width), np.nan)
    for block, values in vectors.items():
        length, unit = _length_and_unit(values)
        if length:
            sign = (signs or {}).get(block, 1.0)
            direction[block + 1] = sign * unit
            if first <= block <= last:
                u[block + 1] = sign * _push(float(strength), length, values, f"{block}{where}")
    if np.isnan(direction).all():
        raise ValueError(
            f"`vector` must push somewhere; got nothing but zeros{where}. Make it again."
        )
    attrs = {
        "format": "control vector",
        "hook": HOOK,
        "strength": float(strength),
        "layer_range": json.dumps(None if layer_range is None else [first, last]),
        "blocks": json.dumps(list(vectors)),
        "n_layers_told": int(n_layers is not None),
    }
    return _dataset(u[:-1], direction, float(u[-1]), attrs)


def _length_and_unit(values: np.ndarray) -> tuple[float, np.ndarray]:
    """Length and unit vector, of the smallest and of the largest numbers too; 0 of zeros."""
    values = values.astype(np.float64)
    largest = np.abs(values).max()
    if not largest:
        return 0.0, values
    # a power of two, which changes no digit
    exponent = int(np.frexp(largest)[1])
    scaled = np.ldexp(values, -exponent)
    length = np.linalg.norm(scaled)
    with np.errstate(over="ignore"):
        return float(np.ldexp(length, exponent)), scaled / length


def _push(strength: float, length: float, values: np.ndarray, where: str) -> float:
    """``strength`` times the length, where that is a number."""
    if math.isinf(length):
        raise ValueError(
            f"`vector` must have a length that fits in float64; got entries up to "
            f"{np.abs(values).max():.1e} for block {where}. Make them smaller."
        )
    if math.isinf(strength * length):
        raise ValueError(
            f"`strength` must give pushes that fit in float64; got {strength:.1e} times the length "
            f"{length:.1e} for block {where}. Use a smaller strength."
        )
    return strength * length


def _is_finite(number: Real) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # a whole number beyond float64
        return False


def _checked_options(strength: Any, layer_range: Any, n_layers: int | None) -> tuple[int, float]:
    """First and last block that are pushed."""
    if not isinstance(strength, Real) or isinstance(strength, bool) or not _is_finite(strength):
        raise ValueError(
            f"`strength` must be a finite number; got {one_line(repr(strength), 40)}. 1 adds the "
            "vectors as they are."
        )
    if n_layers is not None and (not isinstance(n_layers, Integral) or n_layers < 1):
        raise ValueError(
            f"`n_layers` must be a whole number >= 1; got {one_line(repr(n_layers), 40)}. It is "
            "the number of blocks of the model."
        )
    if layer_range is None:
        return 0, math.inf
    try:
        first, last = (int(end) for end in layer_range)
        whole = (first, last) == tuple(layer_range)
    except (TypeError, ValueError, OverflowError):
        first, last, whole = -1, -1, False
    if not (whole and 0 <= first <= last):
        raise ValueError(
            "`layer_range` must be the first and the last block whose output is pushed, from 0; "
            f"got {one_line(repr(layer_range), 40)}. Write (10, 20)."
        )
    # llama.cpp's own default ends at the number of blocks
    if n_layers is not None and (first >= n_layers or last > n_layers):
        raise ValueError(
            f"`layer_range` must lie within the {n_layers} blocks of the model, 0 to "
            f"{n_layers - 1}; got {first}:{last}. Give the numbers of its blocks."
        )
    return first, last


def _checked_width(vectors: Mapping[int, np.ndarray], n_features: int | None, where: str) -> int:
    if not vectors:
        raise ValueError(f"`vector` must hold a vector for some block; got none{where}.")
    shapes = {block: values.shape for block, values in vectors.items()}
    width = next(iter(shapes.values()))
    odd = next(
        (block for block, shape in shapes.items() if len(shape) != 1 or shape != width), None
    )
    if odd is not None or not width[0]:
        block = next(iter(shapes)) if odd is None else odd
        raise ValueError(
            f"`vector` must hold vectors (feature) of one length; got {shapes[block]} for block "
            f"{block}{where}, and {width} for the first. Make it again with one model."
        )
    for block, values in vectors.items():
        if not np.isfinite(values).all():
            raise ValueError(
                f"`vector` must be finite; got nan or inf for block {block}{where}. Make it again."
            )
    if n_features is not None and width[0] != n_features:
        raise ValueError(
            f"`vector` must be as wide as the states of the model, {n_features}; got "
            f"{width[0]}{where}. Give the model that it is of."
        )
    return width[0]


def _dataset(
    u: np.ndarray, direction: np.ndarray, end: float, attrs: Mapping[str, Any]
) -> xr.Dataset:
    unknown = np.flatnonzero(np.isnan(direction).any(-1)).tolist()
    note = {}
    if unknown:
        depths = ", ".join(map(str, unknown))
        many = "s" * (len(unknown) > 1)
        note = {"direction_note": f"no direction at depth{many} {depths}: the vector has none"}
    attrs = {key: value for key, value in attrs.items() if key != "direction_note"} | note
    return xr.Dataset(
        {"direction": (("depth", "feature"), direction), "u": ("layer", u), "u_end": end},
        coords={"depth": np.arange(len(direction)), "layer": np.arange(len(u))},
        attrs=attrs,
    )
