"""Texts that a model writes under a plan, by strength."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from depthsys.export.control_vectors import read_control_vector, with_layers
from depthsys.export.netcdf import read_variables
from depthsys.fingerprints import KIND, why_another
from depthsys.ltv.plan import large_push
from depthsys.study.cell import Found, find_model
from depthsys.study.devices import made_in
from depthsys.study.exchange import VECTOR_SUFFIX, model_sizes
from depthsys.study.names import DTYPES

if TYPE_CHECKING:
    from depthsys.lm import After, DepthModel

PLAN_VARIABLES = ("u", "u_end", "direction", "energy", "push", "K", "W", "x_ref", "r_ref")
_CURE = (
    "Give a plan with its directions, or a control vector: `depthsys import vec.gguf --out vec.nc` "
    "writes one, and so does `depthsys plan`."
)


def parsed_strengths(text: str) -> list[float]:
    """Numbers with commas between them.

    Examples
    --------
    >>> parsed_strengths("0, 0.5,-1")
    [0.0, 0.5, -1.0]
    """
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or not np.isfinite(found).all() or len(set(found)) < len(found):
        raise ValueError(
            f"`--strength` must be finite numbers, each once; got {text!r}. Write them as in "
            "0,0.5,1,2."
        )
    return found


def read_steering_plan(path: Path, model: str) -> xr.Dataset:
    """A plan with its directions, fitting a model of that name: from netCDF4, or a control vector.

    A control vector acts on every token, as where it comes from, unless its file says otherwise.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError, TypeError
        If it is none, or is of a model with other sizes.
    """
    if path.suffix == VECTOR_SUFFIX:
        plan = read_control_vector(path)
    else:
        plan = read_variables(path, PLAN_VARIABLES, needed="u", cure=_CURE)
    if "direction" not in plan:
        raise ValueError(
            f"`plan` must hold `u` and `direction`; got {str(path)!r} without `direction`. {_CURE}"
        )
    sizes = model_sizes(model)
    if plan["direction"].sizes.get("feature") != sizes["n_features"]:
        raise ValueError(
            f"`plan` must be as wide as the states of the model, {sizes['n_features']}; got "
            f"{dict(plan['direction'].sizes)} in {str(path)!r}. Give the model that it is of."
        )
    if "u_end" in plan or path.suffix == VECTOR_SUFFIX:
        plan = with_layers(plan, sizes["n_layers"])
        plan = plan.assign_attrs(positions=plan.attrs.get("positions", "every"))
    return plan


def found_for(found: Found, plan: xr.Dataset) -> Found:
    """The model in what the plan was made in, unless something else was asked for.

    Raises
    ------
    ValueError
        If it cannot be had in that here, or the weights of the plan cannot be compared with any.
    """
    attrs = plan.attrs
    if why := why_another(attrs.get("model_fingerprint"), KIND):
        raise ValueError(
            "`plan` must be made for the weights that it steers; got the fingerprint of another "
            f"version, of the model {attrs.get('model', 'unknown')!r}.{why}"
        )
    settings = found.settings
    dtype, tf32 = made_in(attrs)
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(
            f"`plan` must be made in {', '.join(DTYPES[:-1])} or {DTYPES[-1]}; got "
            f"{str(dtype)!r:.40}. {_CURE}"
        )
    # a dtype that was asked for is another arithmetic, which the plan says nothing of
    tf32 = tf32 if settings.dtype in (None, dtype) else None
    settings = replace(
        settings,
        dtype=settings.dtype or dtype,
        tf32=tf32 if settings.tf32 is None else settings.tf32,
    )
    return find_model(found.name, settings)


def steered_texts(
    model: "DepthModel",
    plan: xr.Dataset,
    prompts: Sequence[str],
    strengths: Sequence[float],
    *,
    positions: "str | After | None",
    max_new_tokens: int,
    seed: int,
    options: dict[str, Any],
) -> xr.Dataset:
    """``text`` (prompt, strength): what the model writes behind each prompt.

    Sampled texts of all strengths are made with the same random numbers.
    """
    from depthsys import lm
    from depthsys.lm.prices import same_chance

    texts = np.empty((len(prompts), len(strengths)), dtype=object)
    where = ""
    for place, strength in enumerate(strengths):
        with lm.steering(model, plan, plan, positions=positions, strength=strength) as here:
            where = str(here.positions)
            with same_chance(seed, model.device):
                written = model.generate(prompts, max_new_tokens=max_new_tokens, **options)
        texts[:, place] = written
    return xr.Dataset(
        {"text": (("prompt", "strength"), texts.astype(str))},
        coords={"prompt": list(prompts), "strength": list(strengths)},
        attrs={
            "positions": where,
            "model": model.name,
            "max_new_tokens": max_new_tokens,
            **{name: plan.attrs[name] for name in ("not_met", "warning") if name in plan.attrs},
            **_large_at(plan, strengths),
        },
    )


def _large_at(plan: xr.Dataset, strengths: Sequence[float]) -> dict[str, str]:
    """The attr ``warning`` where the largest strength makes pushes large; or none."""
    if "push" not in plan:
        return {}
    most = max(map(abs, strengths))
    return {
        name: f"at strength {most:g}: {said}"
        for name, said in large_push(most * plan["push"]).items()
    }
