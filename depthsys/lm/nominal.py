"""What the nominal run of the prompts of a system is like."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from depthsys.lm.channels import Channels
from depthsys.lm.frozen import FrozenBlock, FrozenRun
from depthsys.lm.gains import squeezed


class MeanNominal:
    """Means over prompts of the nominal run, gathered while the blocks pass by."""

    def __init__(self, channels: Channels, count: int):
        model, self._setting, self._count = channels.model, channels, count
        self.x = np.zeros((model.n_layers + 1, 1, model.n_features))
        self.state_norm = np.zeros((1, model.n_layers + 1))
        self.rows = np.zeros((model.n_layers + 1, channels.readout.n_outputs, model.n_features))
        self._margin = np.full((1, model.n_layers), np.inf)
        self._seen_margin = False
        self._y = np.empty((count, channels.readout.n_outputs))

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

    def note_batch(self, batch: FrozenRun) -> None:
        """Note the nominal states of a batch of prompts."""
        for _ in self.watched(batch.blocks):
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

    def __init__(self, channels: Channels, batch: FrozenRun):
        model, readout = channels.model, channels.readout
        self.x = batch.x.double().cpu().numpy()
        self.state_norm = np.linalg.norm(self.x, axis=-1).T
        self.all_rows = readout.rows_at(model, batch.x[-1]).double().cpu().numpy()
        margin = batch.router_margin
        self.router_margin = None if margin is None else margin.double().cpu().numpy()
        with torch.no_grad():
            self.y_last = readout.values(model, batch.x[-1][:, None])[:, 0].cpu().numpy()
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
