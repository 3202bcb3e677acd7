"""What is driven and what is read: the inputs and outputs of a system."""

import json
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
import xarray as xr

from depthsys.lm.directions import direction_note, directions, input_names
from depthsys.lm.kinds import short
from depthsys.lm.linearize import Linearisation
from depthsys.lm.precision import SIXTEEN_BITS, TF32_EPS, dtype_name, eps
from depthsys.lm.readouts import READOUTS, Readout, ReadoutLike, checked_readout
from depthsys.lm.run import Run
from depthsys.lm.run_model import Model
from depthsys.lm.stamp import stamp
from depthsys.ltv.plan import classes_of_inputs

INPUTS = ("concept", "free")
# In 16 bits the rounding of a product: below it nothing can be told from rounding.
RTOL = {
    "float32": 1e-5,
    "float64": 1e-9,
    **{dtype_name(dtype): eps(dtype) for dtype in SIXTEEN_BITS},
}


@dataclass(frozen=True)
class Channels:
    """What is driven and what is read, checked against the model.

    ``v`` (depth, input, feature) are the concept directions; ``free`` says that all of R^H is
    driven instead. ``rtol`` says when a direction counts as dependent on earlier ones, ``kind``
    which derivative of a block is meant.
    """

    model: Model
    v: torch.Tensor
    readout: Readout
    free: bool
    rtol: float
    kind: Linearisation = field(default_factory=Linearisation)

    @classmethod
    def checked(
        cls,
        model: Model,
        concept: xr.Dataset,
        inputs: str,
        readout: ReadoutLike,
        rtol: float | None,
        part: str | Linearisation = "block",
    ) -> "Channels":
        """ValueError for unknown inputs or readouts and directions that do not fit."""
        if inputs not in INPUTS:
            raise ValueError(f"`inputs` must be one of {INPUTS}; got {short(inputs)}. Pick one.")
        v = directions(model, concept)
        if rtol is None:
            rtol = TF32_EPS if model.products == "tf32" else RTOL[model.dtype_name]
        if not 0 < rtol < 1:
            raise ValueError(f"`rtol` must be between 0 and 1; got {rtol}. Try {RTOL}.")
        reader = checked_readout(model, readout, concept)
        return cls(model, v, reader, inputs == "free", rtol, Linearisation.of(part))

    def attrs(self, action: str, run: Run, concept: xr.Dataset) -> dict[str, str | int]:
        """Provenance of a system with these channels."""
        warning = concept.attrs.get("warning")
        each = {} if self.free else classes_of_inputs(concept.attrs)
        return {
            **({} if warning is None else {"concept_warning": warning}),
            **direction_note(concept),
            **stamp(run, action),
            "inputs": "free" if self.free else "concept",
            "readout": self.readout.name,
            "concept": concept.attrs.get("method", "given"),
            "classes": concept.attrs.get("classes", "[]"),
            **({"classes_of_inputs": json.dumps(each)} if each else {}),
            "n_prompts": len(run),
            **self.kind.attrs,
            "step": "exact Jacobian (no step)",
        }

    def names(self, concept: xr.Dataset) -> dict[str, tuple[str, np.ndarray]]:
        """The coordinates ``input_name`` and ``output_name`` of a system with these channels."""
        names = input_names(concept)
        features = [f"feature{i}" for i in range(self.model.n_features)]
        outputs = [f"y{i}" for i in range(self.readout.n_outputs)]
        if self.readout.name in READOUTS:
            outputs = names
        elif self.readout.tokens is not None:
            outputs = ["logit_difference"]
        return {
            "input_name": ("input", np.array(features if self.free else names)),
            "output_name": ("output", np.array(outputs)),
        }

    @cached_property
    def inputs(self) -> list[np.ndarray] | None:
        """V_l (feature, input) of every depth, None if free."""
        return None if self.free else list(self.v.double().cpu().numpy().swapaxes(1, 2))
