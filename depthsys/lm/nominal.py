"""What the nominal run of the prompts of a system is like."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from depthsys.lm.channels import Channels
from depthsys.lm.frozen import FrozenBlock, FrozenRun
from depthsys.lm.gains import squeezed
from depthsys.lm.to_host import to_host


@dataclass
class NominalSums:
    """Sums over prompts of the nominal run at some depths, gathered while the blocks pass by.

    They stay on the device of the model until they are asked for, when all prompts have passed.

    Attributes
    ----------
    first
        The first of the depths.
    x, norm
        Sums of the states (depth, feature) and of their norms (depth).
    margin
        Least router margins (layer), infinite where nobody has said anything.
    gradient
        Sum of the last rows C_L (output, feature), where these differ between prompts.
    y, prompts
        Readouts (prompt, output) of batches, and the row numbers of their prompts.
    """

    first: int
    x: torch.Tensor
    norm: torch.Tensor
    margin: torch.Tensor
    gradient: torch.Tensor
    seen_margin: bool = False
    y: list[torch.Tensor] = field(default_factory=list)
    prompts: list[np.ndarray] = field(default_factory=list)

    @classmethod
    def of(cls, channels: Channels, depths: range) -> "NominalSums":
        """Nothing noted yet, of a model and a readout."""
        model, readout = channels.model, channels.readout
        like = {"dtype": torch.float64, "device": model.device}
        return cls(
            depths[0],
            torch.zeros(len(depths), model.n_features, **like),
            torch.zeros(len(depths), **like),
            torch.full((len(depths),), torch.inf, **like),
            torch.zeros(readout.n_outputs, model.n_features, **like),
        )

    @classmethod
    def at_layer(cls, channels: Channels, layer: int) -> "NominalSums":
        """Of what one layer tells: the depth before it, and of the last one the depth behind it."""
        is_last = layer == channels.model.n_layers - 1
        return cls.of(channels, range(layer, layer + 1 + is_last))

    def watched(self, channels: Channels, blocks: Iterable[FrozenBlock]) -> Iterable[FrozenBlock]:
        """The same blocks, noting their nominal states."""
        last = channels.model.n_layers - 1
        for block in blocks:
            at = block.layer - self.first
            self._note(slice(at, at + 1), block.x[None])
            if block.router_margin is not None:
                self._note_margin(slice(at, at + 1), block.router_margin[:, None])
            if block.layer == last:
                self._note(slice(at + 1, at + 2), block.x_next[None])
                self._read(channels, block.x_next, block.prompts)
            yield block

    def note_batch(self, channels: Channels, batch: FrozenRun) -> None:
        """Note the nominal states of a batch of prompts, at all depths."""
        self._note(slice(None), batch.x)
        margin = batch.router_margin
        if margin is not None:
            self._note_margin(slice(channels.model.n_layers), margin)
        self._read(channels, batch.x[-1], batch.prompts)

    def _note(self, depths: slice, x: torch.Tensor) -> None:
        """States (depth, prompt, feature) at some depths."""
        self.x[depths].add_(x.sum(1, dtype=torch.float64))
        norm = torch.linalg.vector_norm(x, dim=-1, dtype=torch.float64)
        self.norm[depths].add_(norm.sum(1))

    def _note_margin(self, layers: slice, margin: torch.Tensor) -> None:
        """Router margins (prompt, layer) of some layers."""
        least = torch.minimum(self.margin[layers], margin.amin(0).to(self.margin))
        self.margin[layers] = least
        self.seen_margin = True

    def _read(self, channels: Channels, x_last: torch.Tensor, prompts: np.ndarray) -> None:
        readout, model = channels.readout, channels.model
        if readout.tokens is not None:  # other rows are the same for all prompts
            self.gradient += readout.rows_at(model, x_last)[-1].double().sum(0)
        with torch.no_grad():
            self.y.append(readout.values(model, x_last[:, None])[:, 0])
        self.prompts.append(prompts)

    def on(self, device: torch.device) -> "NominalSums":
        """The same on a device, not to be noted to in both."""
        tensors = {name: getattr(self, name).to(device) for name in _SUMS}
        return replace(self, **tensors, y=[y.to(device) for y in self.y], prompts=[*self.prompts])

    def add(self, other: "NominalSums", start: int) -> None:
        """Add those of other prompts, which begin with row number ``start``."""
        at = slice(other.first - self.first, other.first - self.first + len(other.x))
        other = other.on(self.x.device)
        self.x[at].add_(other.x)
        self.norm[at].add_(other.norm)
        self.margin[at] = torch.minimum(self.margin[at], other.margin)
        self.gradient += other.gradient
        self.seen_margin |= other.seen_margin
        self.y += other.y
        self.prompts += [start + prompts for prompts in other.prompts]


_SUMS = ("x", "norm", "margin", "gradient")


class MeanNominal:
    """Means over prompts of the nominal run, once all prompts have passed.

    Parameters
    ----------
    channels
        What is read.
    count
        The number of prompts.
    sums
        Of all depths, where they are there already.
    """

    def __init__(self, channels: Channels, count: int, sums: NominalSums | None = None):
        self._setting, self._count = channels, count
        depths = range(channels.model.n_layers + 1)
        self.sums = NominalSums.of(channels, depths) if sums is None else sums

    def watched(self, blocks: Iterable[FrozenBlock]) -> Iterable[FrozenBlock]:
        """The same blocks, noting their nominal states."""
        return self.sums.watched(self._setting, blocks)

    @property
    def rows(self) -> torch.Tensor:
        """C_k (depth, 1, output, feature) on the device, float64."""
        rows = self._setting.readout.rows.double()
        if self._setting.readout.tokens is not None:
            rows = torch.cat([rows[:-1], self.sums.gradient[None] / self._count])
        return rows[:, None]

    @cached_property
    def _on_host(self) -> dict[str, np.ndarray]:
        """All of it, in one copy."""
        sums = self.sums
        tensors = [sums.x, sums.norm, sums.margin[:-1], self.rows, *sums.y]
        x, norm, margin, rows, *y = to_host(tensors)
        values = np.empty((self._count, self._setting.readout.n_outputs))
        for prompts, part in zip(sums.prompts, y, strict=True):
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
        return self._on_host["margin"] if self.sums.seen_margin else None

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
