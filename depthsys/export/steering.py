"""A steering plan as the vectors to add to a model: safetensors, and control vectors of llama.cpp.

A plan pushes the state at the input of block l by ``sum_i u[l, i] v[l, :, i]``, at the tokens that
its attr ``positions`` names: the last one where it names none.
"""

import json
import os
from typing import Any

import numpy as np
import xarray as xr

from depthsys._version import __version__
from depthsys.export.control import library
from depthsys.export.control_vectors import write_directions
from depthsys.export.plain import one_system
from depthsys.files import whole_file
from depthsys.fingerprints import why_another
from depthsys.ltv.labels import aligned
from depthsys.ltv.plan import OF_SYSTEM, WHAT_IT_DOES, check_pushes_exist
from depthsys.ltv.system import as_named

FORMAT = "depthsys steering plan"
HOOK = "input of block l (= residual stream before it), {tokens}"
# what a plan calls the tokens that it pushes
TOKENS = {
    "last": "last token only",
    "every": "every token",
    "generated": "last token of the prompt and every new token",
}
UNIT = (
    "that of the state: add the vectors as they are, also where the energy of the plan is relative "
    "(that only weighs the layers by the mean norm of the state over the prompts)"
)
DIFFERENCES = (
    "A steering plan of depthsys as a control vector of llama.cpp. direction.N is added to the "
    "output of block N (counted from 0): the plan's push at the input of block N + 1. Differs from "
    "the plan: {tokens}pushes at the inputs of blocks 0 and 1 cannot be made; float32; the same "
    "vectors for every prompt, not scaled to its state."
)
# llama.cpp adds nothing to the output of block 0, so its first push is at the input of block 2.
FIRST = 2


def injections(system: xr.Dataset, plan: xr.Dataset) -> xr.DataArray:
    r"""The vectors that a plan adds to the state, by default of the last token.

    ``p_l = sum_i u[l, i] v[l, :, i]``, at the input of block l, which is the state at depth l.

    Parameters
    ----------
    system
        One system with ``v`` (depth, feature, input), from `lm.identify`. Not a window of it.
    plan
        ``u`` (layer, input), from `ltv.minimum_energy`, or (layer) where there is one input, from
        `lm.compare_energies`. In the unit of the state, also where the energy is relative: that
        weighs the layers when the plan is made, and `lm.play` adds ``u v`` just the same.

    Returns
    -------
    xr.DataArray
        ``injection`` (layer, feature), float64, unit of the state; attrs say where to add it.

    Raises
    ------
    TypeError
        If ``system`` is no Dataset, or ``u`` holds no real numbers.
    ValueError
        If the system has no ``v``, batch dims, or does not start at layer 0; or if the plan has no
        ``u``, several schedules, other sizes or labels, is not finite, is of another model, or does
        more than to add vectors (a feedback law).

    Examples
    --------
    >>> from depthsys import ltv
    >>> from depthsys.export.steering import injections
    >>> s = ltv.constant([[0.5]], [[1.0]], [[1.0]], horizon=2)
    >>> s["v"] = ("depth", "feature", "input"), [[[1.0], [0.0]], [[0.6], [0.8]], [[0.0], [1.0]]]
    >>> injections(s, ltv.minimum_energy(s, target=1.0)).values
    array([[0.4 , 0.  ],
           [0.48, 0.64]])
    """
    return _pushes(*_parts(system, plan)).assign_attrs(hook=_hook(plan))


def to_safetensors(
    system: xr.Dataset, plan: xr.Dataset, path: str | os.PathLike, *, force: bool = False
) -> None:
    """Write a plan as safetensors, for a hook in PyTorch or any other reader.

    Tensors: ``injection`` (layer, feature), to be added, in float32, in which models run
    (`injections` returns it in float64); and what it is made of, ``u`` (layer, input) and ``v``
    (layer, feature, input) in float64. The metadata, all of them texts, say what to do with it
    (``operation``, ``hook``, ``positions``, ``unit``, ``sign``), and of which model, prompts and
    energy the plan is.

    Parameters
    ----------
    system, plan
        See `injections`.
    path
        The file, usually ``*.safetensors``. It appears whole or not at all.
    force
        Replace an existing file.

    Raises
    ------
    FileExistsError
        If the file exists and ``force`` is False.
    ImportError
        If safetensors is not installed.
    TypeError
        See `injections`.
    ValueError
        See `injections`; or if a push does not fit in float32.

    Notes
    -----
    A plan is as large as the linear system says. How large the full model needs it to be says
    `lm.compare_energies` (``schedule.nc``): ``u`` times the square root of ``energy`` of the
    schedule "minimum_energy" over ``predicted_energy``. ``multiple`` there compares schedules with
    each other.

    In PyTorch, before a forward pass (of left-padded prompts, if they are padded; in
    ``model.generate`` every new token is pushed in its turn):

    .. code-block:: python

        push = safetensors.torch.load_file("plan.safetensors")["injection"]

        def hook(block, args, p):
            x = args[0].clone()
            x[:, -1] += p.to(x)
            return (x, *args[1:])

        for block, p in zip(blocks, push):
            block.register_forward_pre_hook(functools.partial(hook, p=p))
    """
    safetensors = library("safetensors.numpy", "safetensors", "to_safetensors")
    u, v = _parts(system, plan)
    # safetensors writes the memory as it lies, whatever the strides
    tensors = {
        "injection": np.ascontiguousarray(_single(_pushes(u, v))),
        "u": np.ascontiguousarray(u.values),
        "v": np.ascontiguousarray(v.values),
    }
    about = {"format": FORMAT, "hook": _hook(plan), "layer_origin": "0", "unit": UNIT}
    content = safetensors.save(tensors, metadata=about | _provenance(system, plan))
    with whole_file(path, force) as partial:
        partial.write_bytes(content)  # its own `save_file` lets nobody else read


def to_gguf(
    system: xr.Dataset,
    plan: xr.Dataset,
    path: str | os.PathLike,
    *,
    model_hint: str = "",
    drop: bool = False,
    force: bool = False,
) -> None:
    """Write a plan as a control vector of llama.cpp, in GGUF.

    Tensors ``direction.N`` (feature), float32, for N = 1..L-1: llama.cpp adds them to the output
    of block N (counted from 0), which is the plan's push at the input of block N + 1. The last one
    is zero, for a plan makes no push behind the last block. To be used with::

        llama-cli -m MODEL.gguf --control-vector FILE.gguf

    What llama.cpp does is not what the plan says: it pushes every token, of the prompt and of the
    answer, instead of the last one, so the tokens before it change as well; and it has no push at
    the inputs of blocks 0 and 1. ``general.description`` in the file says so, too.

    Parameters
    ----------
    system, plan
        See `injections`.
    path
        The file, usually ``*.gguf``. It appears whole or not at all.
    model_hint
        Architecture of the model in llama.cpp's words, such as "gpt2" or "llama". llama.cpp does
        not read it.
    drop
        Leave out pushes at layers 0 and 1; `unexpressed` and ``depthsys.dropped`` in the file say
        how much of the energy that is. The other pushes stay as they are and do not make up for
        it.
    force
        Replace an existing file.

    Raises
    ------
    FileExistsError
        If the file exists and ``force`` is False.
    ImportError
        If gguf is not installed.
    TypeError
        See `injections`.
    ValueError
        See `injections`; if the plan pushes at layers 0 and 1 and ``drop`` is False, or nowhere
        else; or if a push does not fit in float32. A push below the rounding of float32 (relative
        to the largest one) counts as none.

    References
    ----------
    .. [1] llama.cpp, control vectors: https://github.com/ggml-org/llama.cpp/pull/5970
    """
    u, v = _parts(system, plan)
    pushes = _pushes(u, v)
    directions = _directions(pushes)
    about = _provenance(system, plan)
    lost = unexpressed(system, plan)
    if lost.any():
        about["dropped"] = _beyond_reach(lost, drop)
    if not (pushed := _pushed(pushes))[FIRST:].any():
        raise ValueError(
            f"`plan` must push at the input of block {FIRST} or a later one for llama.cpp; got "
            f"pushes at layers {np.flatnonzero(pushed).tolist()} of {len(pushed)}. Use safetensors."
        )
    write_directions(
        directions,
        path,
        model_hint=model_hint,
        description=_differences(plan),
        about=about,
        signs=np.sign(u.values[:, 0]) if u.sizes["input"] == 1 else None,
        force=force,
    )


def unexpressed(system: xr.Dataset, plan: xr.Dataset) -> xr.DataArray:
    """Share of a plan's energy that no control vector of llama.cpp can express.

    That of the pushes at layers 0 and 1, which `to_gguf` refuses, or leaves out with ``drop=True``.

    Parameters
    ----------
    system, plan
        See `injections`.

    Returns
    -------
    xr.DataArray
        ``unexpressed`` (layer), labels 0 and 1: a share of the energy as the plan counts it
        (relative: by the mean norm of the state; with weights of its own: absolute), 0..1. Zero
        where nothing is pushed, or less than the rounding of float32 relative to the largest push.

    Raises
    ------
    TypeError
        See `injections`.
    ValueError
        See `injections`; or if the system has no ``state_norm`` for a plan of relative energy.

    Examples
    --------
    >>> import xarray as xr
    >>> from depthsys import ltv
    >>> from depthsys.export.steering import unexpressed
    >>> s = ltv.constant([[0.5]], [[1.0]], [[1.0]], horizon=3)
    >>> s = s.assign(v=(("depth", "feature", "input"), [[[1.0]]] * 4))
    >>> unexpressed(s, xr.Dataset({"u": ("layer", [0.0, 1.0, 3.0])})).values
    array([0. , 0.1])
    """
    u, v = _parts(system, plan)
    pushed = _pushed(_pushes(u, v))[:FIRST]
    share = np.zeros(len(pushed))
    if pushed.any():
        share = np.where(pushed, _shares(system, plan, u)[:FIRST], 0.0)
    layers = {"layer": np.arange(len(share))}
    return xr.DataArray(share, layers, ["layer"], name="unexpressed", attrs={"units": "1"})


def _directions(pushes: xr.DataArray) -> dict[int, np.ndarray]:
    """Vectors (feature) for the output of block N = 1..L-1: the push at the input of N + 1."""
    vectors = _single(pushes)
    behind = np.zeros_like(vectors[:1])  # llama.cpp has a place for it, the plan has no push there
    return dict(enumerate([*vectors[FIRST:], *behind], start=FIRST - 1))


def _pushed(pushes: xr.DataArray) -> np.ndarray:
    """Which layers (layer) are pushed by more than the rounding of float32.

    A plan whose weights keep a layer out still pushes it by a trace.
    """
    sizes = np.linalg.norm(pushes.values, axis=1)
    return sizes > np.finfo(np.float32).eps * sizes.max()


def _beyond_reach(lost: xr.DataArray, drop: bool) -> str:
    """Which pushes llama.cpp cannot make, and how much of the plan they are."""
    shares = zip(lost["layer"].values, lost.values, strict=True)
    parts = [f"{100 * share:.3g} % at layer {layer}" for layer, share in shares if share]
    found = f"{' and '.join(parts)} of the energy"
    if not drop:
        raise ValueError(
            f"`plan` must not push at the inputs of blocks 0 and 1 for llama.cpp; got {found}. "
            f"Plan again without them, `ltv.minimum_energy(..., layers=range({FIRST}, L))`, or "
            "leave them out with `drop=True` (`--drop`)."
        )
    return found


def _parts(system: xr.Dataset, plan: xr.Dataset) -> tuple[xr.DataArray, xr.DataArray]:
    """``u`` (layer, input) and ``v`` (layer, feature, input), which fit each other."""
    system = one_system(system, "steering")
    if "v" not in system:
        raise ValueError(
            "`system` must hold the directions `v` of its inputs; got none (inputs: "
            f"{system.attrs.get('inputs', 'unknown')}). Identify it with a concept: "
            "`lm.identify(model, texts, concept)`."
        )
    if system["v"].ndim != 3:
        raise ValueError(
            f"`v` must have no batch dims for steering; got {dict(system['v'].sizes)}. Select one "
            "member with `.isel`."
        )
    if (first := int(system["layer"].values[0])) != 0:
        raise ValueError(
            f"`system` must start at layer 0 for steering; got a window from layer {first}. Use "
            "the whole system, with a plan that is zero elsewhere."
        )
    if not isinstance(plan, xr.Dataset) or "u" not in plan:
        got = sorted(map(str, plan)) if isinstance(plan, xr.Dataset) else type(plan).__name__
        raise ValueError(
            f"`plan` must be a Dataset with the variable 'u'; got {got}. Make one with "
            "`ltv.minimum_energy`, or `xr.Dataset({'u': u})`."
        )
    _check_same_model(system, plan)
    if (operation := plan.attrs.get("operation", "add")) != "add":
        raise ValueError(
            f"`plan` must add vectors; got operation {operation!r}, which depends on the state it "
            "acts on. No vectors do the same: play it with `lm.steering`."
        )
    v = system["v"].isel(depth=slice(-1)).drop_vars(system.coords, errors="ignore")
    v = v.rename(depth="layer").transpose("layer", "feature", "input").astype(np.float64)
    u = _schedule(system, plan["u"])
    exists = v.notnull().any("feature")
    check_pushes_exist(u, exists.values, "plan.u")
    return u, v.where(exists, 0.0)


def _check_same_model(system: xr.Dataset, plan: xr.Dataset) -> None:
    marks = [data.attrs.get("model_fingerprint") for data in (system, plan)]
    if None not in marks and marks[0] != marks[1]:
        raise ValueError(
            f"`plan` must be of the model of the system; got model_fingerprint {marks[1]!r} "
            f"instead of {marks[0]!r}. Plan again with this system.{why_another(*marks)}"
        )


def _schedule(system: xr.Dataset, u: xr.DataArray) -> xr.DataArray:
    """``u`` (layer, input) of one schedule, with a dim for a single input."""
    sizes = {dim: system.sizes[dim] for dim in ("layer", "input")}
    single = [{"layer": sizes["layer"]}] if sizes["input"] == 1 else []
    u = aligned(as_named(u, "plan.u", sizes, *single), "plan.u", system)
    if extra := {str(dim): n for dim, n in u.sizes.items() if dim not in sizes}:
        first = next(iter(extra))
        raise ValueError(
            f"`plan.u` must be one schedule; got the dims {extra}, too. Select one with "
            f"`plan.isel({first}=0)`."
        )
    u = u if "input" in u.dims else u.expand_dims("input", axis=-1)
    return u.drop_vars(u.coords)


def _pushes(u: xr.DataArray, v: xr.DataArray) -> xr.DataArray:
    found = xr.dot(v, u, dim="input")
    found = found.transpose("layer", "feature").rename("injection")
    found = found.assign_coords(layer=np.arange(found.sizes["layer"]))
    return found.assign_attrs(unit=UNIT)


def _positions(plan: xr.Dataset) -> str:
    return str(plan.attrs.get("positions", WHAT_IT_DOES["positions"]))


def _hook(plan: xr.Dataset) -> str:
    """Where the vectors are to be added, and at which tokens."""
    where = _positions(plan)
    return HOOK.format(tokens=TOKENS.get(where, f"tokens: {where}"))


def _differences(plan: xr.Dataset) -> str:
    """What the description of a control vector says of it beside the plan."""
    where = _positions(plan)
    tokens = (
        ""
        if where == "every"
        else f"every token is pushed (the plan: {TOKENS.get(where, where)}); "
    )
    return DIFFERENCES.format(tokens=tokens)


def _single(pushes: xr.DataArray) -> np.ndarray:
    """In float32, in which models and llama.cpp want them."""
    with np.errstate(over="ignore"):
        single = pushes.values.astype(np.float32)
    if not np.isfinite(single).all():
        layer = int((~np.isfinite(single)).any(axis=1).argmax())
        largest = float(abs(pushes[layer]).max())
        raise ValueError(
            f"`plan.u` must give pushes that fit in float32; got {largest:.1e} at layer "
            f"{layer}. Ask for a smaller target."
        )
    return single


def _shares(system: xr.Dataset, plan: xr.Dataset, u: xr.DataArray) -> np.ndarray:
    """Share of every layer (layer) in the energy of the plan, as `lm.compare_energies` counts."""
    size = np.linalg.norm(u.values, axis=1)
    if plan.attrs.get("energy") == "relative":
        if "state_norm" not in system:
            raise ValueError(
                "`system` must hold 'state_norm' (depth) for a plan of relative energy; got "
                f"{sorted(map(str, system))}. Identify it again with `lm.identify`."
            )
        size = size / system["state_norm"].values[:-1]
    energy = (size / size.max()) ** 2  # squares of tiny or huge plans would vanish or overflow
    return energy / energy.sum()


def _provenance(system: xr.Dataset, plan: xr.Dataset) -> dict[str, str]:
    """What the files say of the system and the plan; texts, of what is known."""
    found: dict[str, Any] = {"depthsys_version": __version__}
    found |= {"operation": "add", "positions": _positions(plan)}
    found |= {
        key: plan.attrs[key] for key in ("sign", "target_unit", "layers") if key in plan.attrs
    }
    found |= {key: system.attrs[key] for key in OF_SYSTEM if key in system.attrs}
    if "input_name" in system.coords:
        found["inputs"] = json.dumps(system["input_name"].values.astype(str).tolist())
    if "energy" in plan.attrs:
        found["energy"] = plan.attrs["energy"]
    if "target" in plan.attrs:
        found["target"] = plan.attrs["target"]
    elif "target" in plan:
        found["target"] = json.dumps(plan["target"].values.tolist())
    if "prompts_sha256" in plan.attrs:
        found["plan_prompts_sha256"] = plan.attrs["prompts_sha256"]
    return {key: str(value) for key, value in found.items()}
