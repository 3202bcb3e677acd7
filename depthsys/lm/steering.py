"""Pushing a model while it runs and writes: a plan, control vector or law inside a `with` block."""

import contextlib
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr

from depthsys.fingerprints import why_another, why_rounded
from depthsys.lm.directions import as_concept, defined, directions, in_inputs_of
from depthsys.lm.hf.checkpoint import input_device, refuse_config
from depthsys.lm.hf.columns import Decode
from depthsys.lm.hf.fingerprint import checked_fingerprint
from depthsys.lm.hf.steering_hooks import Law, Push, steered
from depthsys.lm.hf.weights import Weights
from depthsys.lm.kinds import short
from depthsys.lm.positions import Positions, checked, decoder
from depthsys.lm.precision import dtype_name
from depthsys.ltv.labels import in_order_of
from depthsys.ltv.plan import WHAT_IT_DOES, check_pushes_exist, schedule

OPERATIONS = ("add", "feedback")
HOOK = "input of block l"
_LAW = ("K", "W", "x_ref", "r_ref")
# what a plan is to know of the model that its directions were found in
_MADE_WITH = ("model", "model_fingerprint", "dtype", "products")
# fingerprints of models that are not wrapped, which cost a look at every weight
_FINGERPRINTS: weakref.WeakKeyDictionary[Any, tuple[Weights, str]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Steered:
    """A model that is pushed, as `steering` gives it.

    Attributes
    ----------
    hf
        The Hugging Face model, to call and to `generate` with.
    positions
        The tokens that are pushed.
    """

    hf: Any
    positions: Positions
    _session: Any

    @contextlib.contextmanager
    def prompts_of(self, n_tokens: int) -> Iterator[None]:
        """Calls of the model itself whose first ``n_tokens`` columns are the prompt.

        What follows are then new tokens, as `generate` would have written them. Without this all
        that a call outside of `generate` is given is the prompt. It holds for this thread.
        """
        if isinstance(n_tokens, bool) or not isinstance(n_tokens, int) or n_tokens < 1:
            raise ValueError(
                f"`n_tokens` must be a whole number >= 1; got {short(n_tokens)}. Count the columns "
                "of the prompts, padding included."
            )
        with self._session.prompts_of(n_tokens):
            yield


@dataclass(frozen=True)
class _Sizes:
    """What is to be known of a model to push it."""

    hf: Any
    n_layers: int
    n_features: int
    dtype: torch.dtype
    device: torch.device
    decode: Decode | None


@contextlib.contextmanager
def steering(
    model: Any,
    concept: xr.Dataset | xr.DataArray,
    plan: xr.Dataset,
    *,
    positions: Positions | None = None,
    strength: float = 1.0,
) -> Iterator[Steered]:
    r"""The model with a plan in it: every call and every `generate` in the block is pushed.

    At the input of block l, :math:`\sum_i u_{l,i} v_{l,i}` is added to the states of the chosen
    tokens. Behind the block nothing is left, also after an exception. Blocks may be nested, their
    pushes add up, and they may be left in any order. Runs of this package itself (`DepthModel.run`,
    `play`, and all that replays blocks) are not pushed.

    Parameters
    ----------
    model
        A `DepthModel`, or a Hugging Face causal language model as it is.
    concept
        The directions (depth, feature), or (depth, input, feature).
    plan
        ``u`` (layer, input), or (layer) for one input; and ``u_end`` behind the last block, as
        control vectors have it. With ``K`` (layer, input, state), ``W`` (depth, feature, state),
        ``x_ref`` (depth, feature) and ``r_ref`` (depth, state) it is a law:
        :math:`u_l - K_l [W_l^\top (x_l - x^{ref}_l) - r^{ref}_l]` is pushed, with the state x_l of
        the token that is pushed, as it comes into the block.
    positions
        The tokens that are pushed: "last", the last one of the prompt; "generated", that one and
        all new tokens, so every state that a new token is read from; "every", all tokens of the
        prompt and all new ones; `After` a marker in the prompt. By default what the plan's attrs
        say, or "last".
    strength
        Factor on the whole push.

    Yields
    ------
    Steered
        What is steered, and `Steered.prompts_of`.

    Raises
    ------
    TypeError, ValueError
        If plan, concept and model do not fit, or the plan was made for other weights. Within the
        block, if the model is called in a way in which the tokens meant are not known: padding on
        the right, several texts packed in one row, a filled cache outside of `generate`, a
        `generate` that runs other prompts beside (guidance, contrastive search).
    FloatingPointError
        If a push is not finite in the dtype of the model; within the block, if the logits of a
        `generate` are not. Other calls give such logits back as they are.

    Notes
    -----
    In `generate`, beams, sampling, several answers per prompt, padding on the left, any cache of
    transformers or none, and an assistant model work, and nothing is compiled. Outside of
    `generate` what a call is given is its prompt. Predictions of a plan hold for "last"; at other
    tokens what a push does can only be measured (`generation_effects`, `play`).

    All threads that call the model in the block are pushed, each with prompts of its own. What
    changes the model itself must not overlap with a `generate` of another thread: entering or
    leaving `steering` pushes a part of that text, or stops it with an error; and runs of this
    package switch the model's attention meanwhile. Take turns, or load a model for each thread.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> from depthsys import demo, lm
    >>> model = lm.DepthModel.load(demo.model_path("demo_48x4"), device="cpu")
    >>> concept = xr.Dataset({"direction": (("depth", "feature"), np.eye(5, 48))})
    >>> plan = xr.Dataset({"u": ("layer", [0.0, 0.0, 9.0, 0.0])})
    >>> before = model.generate(["the movie"], max_new_tokens=3)
    >>> with lm.steering(model, concept, plan, positions="generated"):
    ...     changed = model.generate(["the movie"], max_new_tokens=3)
    >>> changed != before, model.generate(["the movie"], max_new_tokens=3) == before
    (True, True)
    """
    sizes = _sizes_of(model)
    push = _push_of(sizes, concept, plan, positions, strength)
    for each in (as_concept(concept), plan):
        _check_origin(model, each.attrs)
    with steered(sizes.hf, push) as session:
        yield Steered(sizes.hf, push.positions, session)


def _sizes_of(model: Any) -> _Sizes:
    if hasattr(model, "hf") and hasattr(model, "blocks"):
        model.check_weights()
        decode = decoder(model.tokenizer)
        return _Sizes(model.hf, model.n_layers, model.n_features, model.dtype, model.device, decode)
    if not hasattr(model, "config") or not isinstance(model, torch.nn.Module):
        raise TypeError(
            f"`model` must be a DepthModel or a Hugging Face model; got {short(model)}. Load one "
            "with `lm.DepthModel.load(name_or_folder)`."
        )
    hf: Any = model
    refuse_config(hf.config)
    text: Any = hf.config.get_text_config(decoder=True)
    dtype: Any = hf.get_input_embeddings().weight.dtype
    device = input_device(hf)
    return _Sizes(hf, text.num_hidden_layers, text.hidden_size, dtype, device, None)


def _check_origin(model: Any, attrs: dict) -> None:
    """ValueError for a plan or a concept of other weights."""
    made_for = attrs.get("model_fingerprint")
    if made_for is None:
        return
    if hasattr(model, "fingerprint"):
        is_now = model.fingerprint
    else:
        known = _FINGERPRINTS.get(model)
        if known is None or known[0].have_changed:
            known = _FINGERPRINTS[model] = Weights(model), checked_fingerprint(model)
        is_now = known[1]
    if made_for != is_now:
        dtype = str(model.dtype).removeprefix("torch.")
        raise ValueError(
            f"`plan` must be made for the weights that it steers; it is of the model "
            f"{attrs.get('model', 'unknown')!r} with another fingerprint. Make it with this model; "
            "if you know that it fits, `del plan.attrs['model_fingerprint']` (and the concept's)."
            f"{why_another(made_for, is_now) or why_rounded(attrs.get('dtype'), dtype)}"
        )


def _push_of(
    sizes: _Sizes, concept: Any, plan: Any, positions: Positions | None, strength: float
) -> Push:
    """The plan as tensors, all of it checked."""
    v: Any = directions(sizes, concept)  # pyright: ignore[reportArgumentType]
    plan = in_inputs_of(plan, concept, "plan")
    u = schedule(plan, sizes.n_layers, v.shape[1])
    if not np.isfinite(u).all():
        raise ValueError("`plan` must be finite; got NaN or infinity in `u`. Make it again.")
    is_real = isinstance(strength, (int, float, np.integer, np.floating))
    if not is_real or not np.isfinite(strength):
        raise ValueError(
            f"`strength` must be a finite number; got {short(strength)}. The default is 1."
        )
    operation = plan.attrs.get("operation", "add")
    law = _law_of(sizes, plan, v)
    if operation not in OPERATIONS or (operation == "feedback") != (law is not None):
        raise ValueError(
            f"`plan` must be one of {OPERATIONS}, and with {', '.join(_LAW)} where it is feedback; "
            f"got the operation {operation!r} with {sorted(map(str, plan))}. Make it again."
        )
    hook = plan.attrs.get("hook", HOOK)
    if not str(hook).startswith(HOOK):
        raise ValueError(
            f"`plan` must push at the {HOOK}, the state at depth l; got one for {short(hook)}. "
            "Move it by a layer, or make it again."
        )
    unit = plan.attrs.get("unit", WHAT_IT_DOES["unit"])
    if unit != WHAT_IT_DOES["unit"]:
        raise ValueError(
            f"`plan` must hold u in the unit of the state; got the unit {short(unit)}. Convert u, "
            "and set plan.attrs['unit'] = 'state'."
        )
    exists = defined(concept)
    check_pushes_exist(u, exists[:-1])
    added = torch.zeros(sizes.n_layers + 1, sizes.n_features, dtype=v.dtype, device=v.device)
    added[:-1] = torch.einsum("li,lif->lf", torch.as_tensor(u.values).to(v), v[:-1])
    added[-1] = _end_of(plan, v)
    if not bool((strength * added).to(sizes.dtype).isfinite().all()):
        raise FloatingPointError(
            f"`strength` must leave every push finite in {dtype_name(sizes.dtype)}; got "
            f"{strength:g} for pushes up to {float(added.norm(dim=-1).max()):.3g}. Use a smaller "
            "one, or a smaller plan."
        )
    where = checked(plan.attrs.get("positions", "last") if positions is None else positions)
    return Push(added, where, float(strength), law, sizes.decode)


def _end_of(plan: xr.Dataset, v: torch.Tensor) -> torch.Tensor:
    if "u_end" not in plan:
        return torch.zeros_like(v[-1, 0])
    end = plan["u_end"]
    is_number = not end.ndim and end.dtype.kind in "biuf" and bool(np.isfinite(end))
    if not is_number or v.shape[1] != 1 or (end and not bool(v[-1].any())):
        raise ValueError(
            "`plan.u_end` must be one finite number, for one input with a direction at the last "
            f"depth; got {dict(end.sizes) or short(end.item())} for {v.shape[1]} inputs. Leave it "
            "out with `plan.drop_vars('u_end')`."
        )
    return float(end) * v[-1, 0]


def _check_needs_no_nominal(attrs: dict) -> None:
    """ValueError for laws that read what a model that writes does not have: its unsteered run."""
    for name, allowed in (("reference", ("mean", "none")), ("reads", ("live",))):
        if attrs.get(name, allowed[0]) not in allowed:
            raise ValueError(
                f"`plan` must be feedback with {name} {' or '.join(allowed)} while a model writes, "
                f"where there is no run without pushes beside it; got {name} {attrs[name]!r}. Make "
                "such a law, or play this one with `lm.play_law`."
            )


def _law_of(sizes: _Sizes, plan: xr.Dataset, v: torch.Tensor) -> Law | None:
    if "K" not in plan:
        return None
    _check_needs_no_nominal(plan.attrs)
    n_layers, n_features, n_inputs = sizes.n_layers, sizes.n_features, v.shape[1]
    n_states = plan.sizes.get("state", 0)
    dims = {
        "K": {"layer": n_layers, "input": n_inputs, "state": n_states},
        "W": {"depth": n_layers + 1, "feature": n_features, "state": n_states},
        "x_ref": {"depth": n_layers + 1, "feature": n_features},
        "r_ref": {"depth": n_layers + 1, "state": n_states},
    }
    tensors: dict[str, torch.Tensor] = {}
    for name, wanted in dims.items():
        held = plan[name] if name in plan else xr.DataArray(np.nan)
        if dict(held.sizes) != wanted and set(held.dims) == set(wanted) - {"input"}:
            held = held.expand_dims(input=n_inputs) if n_inputs == 1 else held
        fits = dict(held.sizes) == wanted and held.dtype.kind in "biuf"
        if not fits or not np.isfinite(held).all():
            raise ValueError(
                f"`plan` must hold a finite {name} {wanted} where it is feedback; got "
                f"{dict(held.sizes)} of {held.dtype}. Make it with this model."
            )
        for dim in {"layer", "depth"} & set(wanted):
            held = in_order_of(held, f"plan.{name}", dim, np.arange(wanted[dim]))
        values = np.array(held.transpose(*wanted).values)
        tensors[name] = torch.as_tensor(values).to(v)
    return Law(**tensors, v=v)


def equal_push_plan(
    concept: xr.Dataset | xr.DataArray,
    *,
    size: float | None = None,
    relative: float | None = None,
    state_norm: xr.DataArray | None = None,
    layers: Sequence[int] | None = None,
    positions: Positions = "every",
) -> xr.Dataset:
    """A plan that pushes equally at several layers, as repeng and steering-vectors do.

    Parameters
    ----------
    concept
        One direction per depth.
    size
        The push at every layer, in the unit of the state: repeng's coefficient, where its vectors
        have unit length.
    relative
        Instead, the push as a fraction of ``state_norm`` (depth), the mean norm of the state.
    state_norm
        Needed for ``relative``: as `identify` gives it, or ``run.states`` does.
    layers
        Those that push; by default all that have a direction, but the first, whose input no
        control vector reaches.
    positions
        See `steering`.

    Returns
    -------
    xr.Dataset
        ``u`` (layer) and ``direction`` (depth, feature): a concept and a plan in one.

    Raises
    ------
    ValueError
        If there is not exactly one size, several directions, or a layer has none.

    Examples
    --------
    >>> import numpy as np
    >>> concept = xr.DataArray(np.eye(4), dims=("depth", "feature"))
    >>> equal_push_plan(concept, size=2.0).u.values.tolist()
    [0.0, 2.0, 2.0]
    """
    held = as_concept(concept)
    if (size is None) == (relative is None) or (relative is None) != (state_norm is None):
        raise ValueError(
            "`size` must be given, or `relative` with `state_norm`, and not both; got "
            f"size={size}, relative={relative}, state_norm={short(state_norm)}. Choose one."
        )
    exists = defined(held)
    if exists.shape[1] != 1:
        raise ValueError(
            f"`concept` must hold one direction per depth here; got {exists.shape[1]}. Select one: "
            "`concept.isel(input=0)`."
        )
    n_layers = len(exists) - 1
    chosen = [k for k in range(1, n_layers) if exists[k, 0]] if layers is None else list(layers)
    whole = np.asarray(chosen).dtype.kind in "iu"  # a mask is none
    wrong = [k for k in chosen if not whole or k not in range(n_layers) or not exists[k, 0]]
    if wrong or not chosen:
        raise ValueError(
            f"`layers` must be layers in 0..{n_layers - 1} with a direction; got {short(chosen)}. "
            "Leave out those without."
        )
    value = float(relative if size is None else size)  # pyright: ignore[reportArgumentType]
    if not np.isfinite(value):
        raise ValueError(f"`size` must be finite; got {value}. Give a number.")
    norm = np.ones(n_layers + 1)
    if state_norm is not None:
        others = [dim for dim in state_norm.dims if dim != "depth"]
        norm = state_norm.mean(others).values
        if norm.shape != (n_layers + 1,):
            raise ValueError(
                f"`state_norm` must have the {n_layers + 1} depths of the concept; got "
                f"{dict(state_norm.sizes)}. Compute both with this model."
            )
    u = np.zeros(n_layers)
    u[chosen] = value * norm[chosen]
    direction = held["direction"]
    if "input" in direction.dims:
        direction = direction.isel(input=0, drop=True)
    about = {n: held.attrs[n] for n in _MADE_WITH if n in held.attrs}
    does = WHAT_IT_DOES | {"positions": str(checked(positions))}
    return xr.Dataset({"u": ("layer", u), "direction": direction}, attrs=about | does)
