"""What is driven and read, and what the nominal run of the prompts is like."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr

from depthsys.lm.frozen import FrozenBlock, FrozenRun
from depthsys.lm.linearize import squeezed
from depthsys.lm.model import DepthModel
from depthsys.lm.readouts import READOUTS, LogitDifference, Readout, checked_readout

INPUTS = ("concept", "free")
RTOL = {"float32": 1e-5, "float64": 1e-9}


@dataclass(frozen=True)
class Setting:
    """What is driven and what is read, checked against the model.

    ``v`` (depth, input, feature) are the concept directions; ``free`` says that all of R^H is
    driven instead. ``rtol`` says when a direction counts as dependent on earlier ones.
    """

    model: DepthModel
    v: torch.Tensor
    readout: Readout
    free: bool
    rtol: float

    @classmethod
    def checked(
        cls,
        model: DepthModel,
        concept: xr.Dataset,
        inputs: str,
        readout: str | LogitDifference | xr.DataArray,
        rtol: float | None,
    ) -> "Setting":
        """ValueError for unknown inputs or readouts and directions that do not fit."""
        if inputs not in INPUTS:
            raise ValueError(f"`inputs` must be one of {INPUTS}; got {inputs!r}. Pick one.")
        v = model.directions(concept)
        rtol = RTOL[model.dtype_name] if rtol is None else rtol
        if not 0 < rtol < 1:
            raise ValueError(f"`rtol` must be between 0 and 1; got {rtol}. Try {RTOL}.")
        reader = checked_readout(model, readout, concept)
        return cls(model, v, reader, inputs == "free", rtol)

    def attrs(self, action: str, texts, concept: xr.Dataset) -> dict[str, str | int]:
        """Provenance of a system made with this setting."""
        warning = concept.attrs.get("warning")
        return {
            **({} if warning is None else {"concept_warning": warning}),
            **self.model.provenance(action),
            "inputs": "free" if self.free else "concept",
            "readout": self.readout.name,
            "concept": concept.attrs.get("method", "given"),
            "classes": concept.attrs.get("classes", "[]"),
            "n_prompts": len(texts),
            **self.model.which(texts),
            "step": "exact Jacobian (no step)",
        }

    def names(self, concept: xr.Dataset) -> dict[str, tuple[str, np.ndarray]]:
        """The coordinates ``input_name`` and ``output_name`` of a system made with this setting."""
        if self.v.shape[1] == 1:
            directions = ["concept"]
        elif "input" in concept.coords:
            directions = [str(name) for name in concept["input"].values]
        else:
            directions = [f"concept{i}" for i in range(self.v.shape[1])]
        features = [f"feature{i}" for i in range(self.model.n_features)]
        outputs = [f"y{i}" for i in range(self.readout.n_outputs)]
        if self.readout.name in READOUTS:
            outputs = directions
        elif self.readout.tokens is not None:
            outputs = ["logit_difference"]
        return {
            "input_name": ("input", np.array(features if self.free else directions)),
            "output_name": ("output", np.array(outputs)),
        }

    @property
    def inputs(self) -> list[np.ndarray] | None:
        """V_l (feature, input) of every depth, None if free."""
        return None if self.free else list(self.v.double().cpu().numpy().swapaxes(1, 2))


class MeanNominal:
    """Means over prompts of the nominal run, gathered while the blocks pass by."""

    def __init__(self, setting: Setting, count: int):
        model, self._setting, self._count = setting.model, setting, count
        self.x = np.zeros((model.n_layers + 1, 1, model.n_features))
        self.state_norm = np.zeros((1, model.n_layers + 1))
        self.rows = np.zeros((model.n_layers + 1, setting.readout.n_outputs, model.n_features))
        self._margin = np.full((1, model.n_layers), np.inf)
        self._seen_margin = False
        self._y = np.empty((count, setting.readout.n_outputs))

    def watched(self, blocks: Iterable[FrozenBlock]) -> Iterable[FrozenBlock]:
        """The same blocks, noting their nominal states."""
        last = self._setting.model.n_layers - 1
        for block in blocks:
            self._note(block.layer, block.x)
            if block.router_margin is not None:
                margin = float(block.router_margin.min())
                self._margin[0, block.layer] = min(self._margin[0, block.layer], margin)
                self._seen_margin = True
            if block.layer == last:
                self._note(last + 1, block.x_next)
                self._read(block)
            yield block

    def note_run(self, run: FrozenRun) -> None:
        """Note the nominal states of a batch of prompts."""
        for _ in self.watched(run.blocks):
            pass

    def _note(self, depth: int, x: torch.Tensor) -> None:
        x = x.double()
        self.x[depth, 0] += x.sum(0).cpu().numpy() / self._count
        self.state_norm[0, depth] += float(x.norm(dim=-1).sum()) / self._count

    def _read(self, block: FrozenBlock) -> None:
        readout, model = self._setting.readout, self._setting.model
        rows = readout.rows_at(model, block.x_next).double().sum(1).cpu().numpy()
        self.rows += rows / self._count
        with torch.no_grad():
            y = readout.values(model, block.x_next[:, None])[:, 0]
        self._y[block.prompts] = y.cpu().numpy()

    @property
    def router_margin(self) -> np.ndarray | None:
        """(1, layer), None without experts."""
        return self._margin if self._seen_margin else None

    @property
    def y_last(self) -> np.ndarray:
        """Mean nominal y_L (1, output)."""
        return self._y.mean(axis=0)[None]

    @property
    def y_std(self) -> np.ndarray:
        """Standard deviation of y_L over prompts (1, output)."""
        return self._y.std(axis=0)[None]

    @property
    def all_rows(self) -> np.ndarray:
        """C_k (depth, 1, output, feature)."""
        return self.rows[:, None]


class EachNominal:
    """The nominal run of every prompt of a batch."""

    def __init__(self, setting: Setting, run: FrozenRun):
        model, readout = setting.model, setting.readout
        self.x = run.x.double().cpu().numpy()
        self.state_norm = np.linalg.norm(self.x, axis=-1).T
        self.all_rows = readout.rows_at(model, run.x[-1]).double().cpu().numpy()
        margin = run.router_margin
        self.router_margin = None if margin is None else margin.double().cpu().numpy()
        with torch.no_grad():
            self.y_last = readout.values(model, run.x[-1][:, None])[:, 0].cpu().numpy()
        self.y_std = None


def nominal_run(nominal: Any) -> dict[str, Any]:
    """The variables of a system that say what the nominal run was like."""
    y_ref = np.einsum("kpof,kpf->pko", nominal.all_rows, nominal.x)
    y_ref[:, -1] = nominal.y_last
    about: dict[str, Any] = {
        "y_ref": (("prompt", "depth", "output"), y_ref),
        "state_norm": (("prompt", "depth"), nominal.state_norm),
    }
    if nominal.y_std is not None:
        about["y_std"] = squeezed(nominal.y_std, "prompt", "output")
    if nominal.router_margin is not None:
        about["router_margin"] = (("prompt", "layer"), nominal.router_margin)
    return about
