"""What the nominal run of the prompts of a system is like."""

from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np
import torch

from depthsys.lm.channels import Channels
from depthsys.lm.frozen import FrozenBlock, FrozenRun
from depthsys.lm.gains import squeezed
from depthsys.lm.to_host import to_host


class MeanNominal:
    """Means over prompts of the nominal run, gathered while the blocks pass by.

    Sums stay on the device of the model until they are asked for, when all prompts have passed.
    """

    def __init__(self, channels: Channels, count: int):
        model, readout = channels.model, channels.readout
        self._setting, self._count = channels, count
        n_layers, like = model.n_layers, {"dtype": torch.float64, "device": model.device}
        self._x = torch.zeros(n_layers + 1, model.n_features, **like)
        self._norm = torch.zeros(n_layers + 1, **like)
        self._gradient = torch.zeros(readout.n_outputs, model.n_features, **like)
        self._margin = torch.full((n_layers,), torch.inf, **like)
        self._seen_margin = False
        self._y: list[torch.Tensor] = []
        self._prompts: list[np.ndarray] = []

    def watched(self, blocks: Iterable[FrozenBlock]) -> Iterable[FrozenBlock]:
        """The same blocks, noting their nominal states."""
        last = self._setting.model.n_layers - 1
        for block in blocks:
            at = slice(block.layer, block.layer + 1)
            self._note(at, block.x[None])
            if block.router_margin is not None:
                self._note_margin(at, block.router_margin[:, None])
            if block.layer == last:
                self._note(slice(last + 1, last + 2), block.x_next[None])
                self._read(block.x_next, block.prompts)
            yield block

    def note_batch(self, batch: FrozenRun) -> None:
        """Note the nominal states of a batch of prompts."""
        self._note(slice(None), batch.x)
        margin = batch.router_margin
        if margin is not None:
            self._note_margin(slice(None), margin)
        self._read(batch.x[-1], batch.prompts)

    def _note(self, depths: slice, x: torch.Tensor) -> None:
        """States (depth, prompt, feature) at some depths."""
        self._x[depths].add_(x.sum(1, dtype=torch.float64))
        norm = torch.linalg.vector_norm(x, dim=-1, dtype=torch.float64)
        self._norm[depths].add_(norm.sum(1))

    def _note_margin(self, layers: slice, margin: torch.Tensor) -> None:
        """Router margins (prompt, layer) of some layers."""
        least = torch.minimum(self._margin[layers], margin.amin(0).to(self._margin))
        self._margin[layers] = least
        self._seen_margin = True

    def _read(self, x_last: torch.Tensor, prompts: np.ndarray) -> None:
        readout, model = self._setting.readout, self._setting.model
        if readout.tokens is not None:  # other rows are the same for all prompts
            self._gradient += readout.rows_at(model, x_last)[-1].double().sum(0)
        with torch.no_grad():
            self._y.append(readout.values(model, x_last[:, None])[:, 0])
        self._prompts.append(prompts)

    @property
    def rows(self) -> torch.Tensor:
        """C_k (depth, 1, output, feature) on the device, float64."""
        rows = self._setting.readout.rows.double()
        if self._setting.readout.tokens is not None:
            rows = torch.cat([rows[:-1], self._gradient[None] / self._count])
        return rows[:, None]

    @cached_property
    def _on_host(self) -> dict[str, np.ndarray]:
        """All of it, in one copy."""
        tensors = [self._x, self._norm, self._margin, self.rows, *self._y]
        x, norm, margin, rows, *y = to_host(tensors)
        values = np.empty((self._count, self._setting.readout.n_outputs))
        for prompts, part in zip(self._prompts, y, strict=True):
            values[prompts] = part
        x, norm = x / self._count, norm / self._count
        return {
            "x": x[:, None],
            "norm": norm[None],
            "margin": margin[None],
            "rows": rows,
            "y": values,
        }

    @property
    def x(self) -> np.ndarray:
        """Mean nominal states (depth, 1, feature)."""
        return self._on_host["x"]

    @property
    def state_norm(self) -> np.ndarray:
        """Mean norms of the nominal states (1, depth)."""
        return self._on_host["norm"]

    @property
    def router_margin(self) -> np.ndarray | None:
        """(1, layer), None without experts."""
        return self._on_host["margin"] if self._seen_margin else None

    @property
    def y_last(self) -> np.ndarray:
        """Mean nominal y_L (1, output)."""
        return self._on_host["y"].mean(axis=0)[None]

    @property
    def y_std(self) -> np.ndarray:
        """Standard deviation of y_L over prompts (1, output)."""
        return self._on_host["y"].std(axis=0)[None]

    @property
    def all_rows(self) -> np.ndarray:
        """C_k (depth, 1, output, feature)."""
        return self._on_host["rows"]


class EachNominal:
    """The nominal run of every prompt of a batch."""

    def __init__(self, channels: Channels, batch: FrozenRun):
        model, readout = channels.model, channels.readout
        self.rows = readout.rows_at(model, batch.x[-1]).double()
        with torch.no_grad():
            y = readout.values(model, batch.x[-1][:, None])[:, 0]
        margin = batch.router_margin
        tensors = [batch.x, self.rows, y] + ([] if margin is None else [margin])
        self.x, self.all_rows, self.y_last, *margins = to_host(tensors)
        self.router_margin = margins[0] if margins else None
        self.state_norm = np.linalg.norm(self.x, axis=-1).T
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
