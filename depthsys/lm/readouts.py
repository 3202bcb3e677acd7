"""What is read from the states: the rows C_k of a system, and the readout of the full model."""

import json
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
import torch
import xarray as xr

from depthsys.lm.directions import directions
from depthsys.lm.kinds import short
from depthsys.lm.precision import wide_dtype
from depthsys.lm.run_model import Model

READOUTS = ("concept", "profile")
HEAD_ROWS = 256


@dataclass(frozen=True)
class LogitDifference:
    """``y_L = logit(positive) - logit(negative)`` of the next token, through the model's own head.

    The rows of the system are its gradient at x_L, one per prompt (their mean for a mean system).

    Parameters
    ----------
    positive, negative
        Token ids, or texts that the tokenizer makes one token of.
    """

    positive: int | str
    negative: int | str


ReadoutLike = str | LogitDifference | xr.DataArray


@dataclass(frozen=True)
class Readout:
    """A readout made for one model.

    Attributes
    ----------
    name
        What to call it in results.
    rows
        (depth, output, feature): C_k, zero where nothing is read.
    tokens
        Instead of the last rows: the two tokens of a logit difference.
    """

    name: str
    rows: torch.Tensor
    tokens: tuple[int, int] | None = None

    @property
    def n_outputs(self) -> int:
        """Number of outputs."""
        return self.rows.shape[1]

    @cached_property
    def depths(self) -> list[int]:
        """Where something is read, known to the host."""
        read = (self.rows != 0).flatten(1).any(1).tolist()
        read[-1] = read[-1] or self.tokens is not None
        return [depth for depth, is_read in enumerate(read) if is_read]

    def rows_at(self, model: Model, x_last: torch.Tensor) -> torch.Tensor:
        """C_k of every prompt (depth, prompt, output, feature), given x_L (prompt, feature)."""
        rows = self.rows[:, None].expand(-1, len(x_last), -1, -1)
        if self.tokens is None:
            return rows
        with torch.enable_grad():
            x = x_last.detach().clone().requires_grad_()
            (gradient,) = torch.autograd.grad(self.values(model, x[:, None]).sum(), x)
        return torch.cat([rows[:-1], gradient[None, :, None]])

    def values(self, model: Model, x_last: torch.Tensor) -> torch.Tensor:
        """y_L (prompt, copy, output) of last states (prompt, copy, feature), float64."""
        if self.tokens is None:
            return x_last.double() @ self.rows[-1].double().mT
        # a few rows at a time: a row of logits is as long as the vocabulary
        parts = x_last.flatten(0, 1).split(HEAD_ROWS)
        pairs = torch.cat([model.head(part)[:, list(self.tokens)] for part in parts]).double()
        difference = pairs[:, 0] - pairs[:, 1]
        return difference.unflatten(0, x_last.shape[:2])[:, :, None]


def checked_readout(model: Model, readout: ReadoutLike, concept: xr.Dataset) -> Readout:
    """A readout from what a user may give.

    "concept" (``v_L' x_L``), "profile" (``v_k' x_k`` for k = 1..L), a `LogitDifference`, or a
    matrix (output, feature) at the last depth or (depth, output, feature). A concept with several
    directions has as many outputs.

    Raises
    ------
    ValueError
        If the name is unknown, a token is none, or a matrix does not fit, is not finite or zero.
    """
    if isinstance(readout, LogitDifference):
        tokens = _token(model, readout.positive), _token(model, readout.negative)
        if tokens[0] == tokens[1]:
            raise ValueError(
                f"`readout` must compare two tokens; got {tokens[0]} twice. Name two of them."
            )
        rows = torch.zeros(model.n_layers + 1, 1, model.n_features)
        name = f"logit_difference {json.dumps(asdict(readout))}"
        return Readout(name, rows.to(model.device, wide_dtype(model.dtype)), tokens)
    if isinstance(readout, str) and readout in READOUTS:
        rows = directions(model, concept).clone()
        if not bool((rows[-1] != 0).any(-1).all()):
            raise ValueError(
                "`concept` must have a direction at the last depth, which the readout "
                f"{readout!r} reads; got none there. Choose a LogitDifference or a matrix."
            )
        rows[: 1 if readout == "profile" else -1] = 0
        return Readout(readout, rows)
    if not isinstance(readout, (xr.DataArray, np.ndarray)):
        raise ValueError(
            f"`readout` must be one of {READOUTS}, a LogitDifference or a matrix; got "
            f"{short(readout)}. Pick one."
        )
    return Readout("matrix", _matrix(model, readout))


def _matrix(model: Model, given: xr.DataArray | np.ndarray) -> torch.Tensor:
    dims = ("depth", "output", "feature")
    if isinstance(given, np.ndarray):
        given = xr.DataArray(given, dims=dims[-given.ndim :] if 0 < given.ndim < 4 else None)
    n_depths = model.n_layers + 1
    sizes = {"depth": n_depths, "feature": model.n_features}
    fits = set(given.dims) in ({"output", "feature"}, set(dims))
    if not fits or any(given.sizes[d] != n for d, n in sizes.items() if d in given.dims):
        raise ValueError(
            f"`readout` must be a matrix (output, feature) or (depth, output, feature) with "
            f"{sizes}; got {dict(given.sizes)}. Rename or cut its dims."
        )
    if "depth" not in given.dims:
        rows = np.zeros((n_depths, given.sizes["output"], model.n_features))
        rows[-1] = given.transpose("output", "feature").values
    else:
        rows = given.transpose(*dims).values
    if not np.isfinite(rows).all() or not rows.any(axis=(0, 2)).all():
        raise ValueError(
            "`readout` must be finite and read something with every output; got nan, inf or zero "
            "rows. Drop those outputs."
        )
    return torch.as_tensor(rows.copy(), dtype=wide_dtype(model.dtype), device=model.device)


def _token(model: Model, token: int | str) -> int:
    if isinstance(token, str):
        if model.tokenizer is None:
            raise ValueError(
                f"`readout` must name token ids where the model has no tokenizer; got {token!r}."
            )
        ids = model.tokenizer(token, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise ValueError(
                f"`readout` must name single tokens; got {token!r}, which is {len(ids)}. Mind the "
                "leading space, or give a token id."
            )
        return int(ids[0])
    n_tokens = model.hf.get_output_embeddings().weight.shape[0]
    if isinstance(token, bool) or not 0 <= token < n_tokens:
        raise ValueError(
            f"`readout` must name token ids in 0..{n_tokens - 1}; got {token}. Look it up with "
            "the tokenizer."
        )
    return int(token)
