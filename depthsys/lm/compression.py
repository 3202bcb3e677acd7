"""A compressing autoencoder: states of all sublayers through a plane and back."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import nn

from depthsys.lm import trajectories
from depthsys.lm.kinds import short
from depthsys.lm.progress import bar
from depthsys.ltv.system import whole_number

HIDDEN = (256, 64, 16)
BATCH = 256
RATE = 1e-3
EPOCHS, STEPS = 30, 1400  # at least so many of both, unless it is said
LEAST = 5  # prompts
SMALLEST, LARGEST = 1e-100, 1e100  # numbers whose squares can be summed up
TESTED = 0.2  # of the prompts, which the fit does not see


def compress(
    states: xr.DataArray,
    *,
    seed: int = 0,
    n_dims: int = 2,
    epochs: int | None = None,
    hidden: tuple[int, ...] = HIDDEN,
) -> xr.Dataset:
    r"""A small autoencoder that puts states of all sublayers through a plane, beside PCA.

    Both are fitted on the states of four fifths of the prompts, all sublayers together, and judged
    on those of the others: what share of the variance they give back.

    Parameters
    ----------
    states
        (sublayer, prompt, feature), 5 prompts at least; from `sublayer_states`.
    seed
        Of the weights, of the order of training, and of which prompts are left out.
    n_dims
        Numbers between encoder and decoder.
    epochs
        How often every state is seen; by default 30 times, and more where few states would make
        fewer than 1400 steps of it.
    hidden
        Widths of the layers between the states and the code; the decoder has them in reverse.

    Returns
    -------
    xr.Dataset
        ``code`` (sublayer, prompt, dim), of all prompts; ``loss`` (epoch, split), the mean squared
        error over the variance of the states fitted on, of "fit" (while it is fitted) and "test".
        ``explained`` (compressor): :math:`1 - \sum\|x - \hat x\|^2 / \sum\|x - c\|^2` over left-out
        prompts and all sublayers, with c the mean state of those fitted on; ``explained_at``
        (compressor, sublayer), the same of one sublayer; ``explained_within`` (compressor,
        sublayer), with c the mean of the left-out states of that sublayer: what is told of the
        prompts and not of the depth, negative where it is less than that mean tells. Compressors
        are "autoencoder" and "pca". Coord ``tested`` (prompt).

    Raises
    ------
    TypeError
        If ``states`` is not a DataArray.
    ValueError
        If it has other dims, too few prompts or a number that is not finite, or an argument is out
        of its range.

    Notes
    -----
    Linear layers with GELU between them, mean squared error, Adam with a rate that falls along a
    cosine, all in float32 on the CPU; states are centred, and scaled by one number, so that the
    error is that which PCA minimises. The same seed gives the same numbers on the same number of
    threads.

    References
    ----------
    .. [1] Fernando and Guitchounts (2025), arXiv:2502.12131, have a compressing autoencoder to two
       numbers; its layers and its training were not available here and are ours.
    """
    whole_number(seed, "seed", 0, 2**32 - 1, "The default is 0.")
    if not isinstance(hidden, Sequence) or isinstance(hidden, str) or not hidden:
        raise ValueError(
            f"`hidden` must be some widths, as in {HIDDEN}; got {short(hidden)}. Leave it out."
        )
    rows = _checked(states, n_dims, epochs, hidden)
    rng = np.random.default_rng(seed)
    n_prompts = rows.shape[1]
    tested = np.zeros(n_prompts, dtype=bool)
    tested[rng.permutation(n_prompts)[: max(1, round(TESTED * n_prompts))]] = True
    fitted = rows[:, ~tested].reshape(-1, rows.shape[2])
    if np.ptp(fitted, axis=0).max() == 0:
        raise ValueError("`states` must differ; got the same state everywhere. Take other prompts.")
    pca = trajectories.components(fitted, n_dims, rng)
    if epochs is None:
        epochs = max(EPOCHS, -(-STEPS // -(-len(fitted) // BATCH)))
    scale = float(np.sqrt(((fitted - pca.centre) ** 2).sum(axis=1).mean() / rows.shape[2]))
    both = [torch.as_tensor((x.reshape(-1, rows.shape[2]) - pca.centre) / scale).float()
            for x in (rows[:, ~tested], rows[:, tested])]  # fmt: skip
    net, loss = _trained(both[0], both[1], hidden, n_dims, epochs, seed)
    test = rows[:, tested]
    flat = torch.as_tensor((rows - pca.centre) / scale).float()
    with torch.no_grad():
        code = net.encoder(flat)
        back = net.decoder(code[:, torch.as_tensor(tested)]).double().numpy() * scale + pca.centre
    returned = np.stack([back, pca.states(pca.scores(test))])
    from_all, from_own = (
        np.stack([_explained(test, one, centre) for one in returned])
        for centre in (pca.centre, test.mean(axis=1, keepdims=True))
    )
    whole = [1 - ((test - one) ** 2).sum() / ((test - pca.centre) ** 2).sum() for one in returned]
    by_sublayer = ("compressor", "sublayer")
    return xr.Dataset(
        {
            "code": (("sublayer", "prompt", "dim"), code.double().numpy()),
            "loss": (("epoch", "split"), loss),
            "explained": ("compressor", whole),
            "explained_at": (by_sublayer, from_all),
            "explained_within": (by_sublayer, from_own),
        },
        coords={
            **{name: states.coords[name] for name in ("layer", "before") if name in states.coords},
            "sublayer": np.arange(len(rows)),
            "compressor": ["autoencoder", "pca"],
            "split": ["fit", "test"],
            "tested": ("prompt", tested),
        },
        attrs={
            **states.attrs,
            "seed": seed,
            "hidden": str(tuple(hidden)),
            "epochs": epochs,
            "batch": BATCH,
            "rate": RATE,
            "torch": str(torch.__version__),  # its own kind of text is none for a file
        },
    )


def _checked(states: Any, n_dims: Any, epochs: Any, hidden: Any) -> np.ndarray:
    """The states (sublayer, prompt, feature) in float64."""
    if not isinstance(states, xr.DataArray):
        raise TypeError(
            f"`states` must be a DataArray; got {short(states)}. `lm.sublayer_states` gives one."
        )
    dims = ("sublayer", "prompt", "feature")
    if {*states.dims} != {*dims} or states.sizes["prompt"] < LEAST:
        raise ValueError(
            f"`states` must be {dims} with {LEAST} prompts at least; got {dict(states.sizes)}. "
            "`lm.sublayer_states` gives them."
        )
    given = {"n_dims": n_dims} | ({} if epochs is None else {"epochs": epochs})
    given |= {f"hidden[{place}]": width for place, width in enumerate(hidden)}
    for name, value in given.items():
        whole_number(value, name, cure="Leave it out.")
    if n_dims >= states.sizes["feature"]:
        raise ValueError(
            f"`n_dims` must be less than the {states.sizes['feature']} features; got {n_dims}. "
            "Take 2."
        )
    rows = states.transpose(*dims).values.astype(np.float64)
    if not np.isfinite(rows).all():
        raise ValueError("`states` must be finite; got nan or inf. Look at where they come from.")
    size = np.abs(rows).max()
    if size and not SMALLEST < size < LARGEST:  # squares are summed up
        raise ValueError(
            f"`states` must be of a size that can be squared; the largest number is {size:.1e}. "
            "Scale them."
        )
    return rows


def _explained(states: np.ndarray, back: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Share of squared distances from a centre that is given back (sublayer)."""
    lost = ((states - back) ** 2).sum(axis=(1, 2))
    total = ((states - centre) ** 2).sum(axis=(1, 2))
    return 1 - lost / np.where(total > 0, total, np.nan)


@dataclass(frozen=True)
class _Net:
    encoder: nn.Sequential
    decoder: nn.Sequential


def _net(width: int, hidden: tuple[int, ...], n_dims: int) -> _Net:
    widths = [width, *hidden, n_dims]
    return _Net(_chain(widths), _chain(widths[::-1]))


def _chain(widths: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.GELU()]
    return nn.Sequential(*layers[:-1])


def _trained(
    fitted: torch.Tensor,
    test: torch.Tensor,
    hidden: tuple[int, ...],
    n_dims: int,
    epochs: int,
    seed: int,
) -> tuple[_Net, np.ndarray]:
    """A net, and its losses (epoch, split)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        net = _net(fitted.shape[1], hidden, n_dims)
        weights = [*net.encoder.parameters(), *net.decoder.parameters()]
        n_steps = epochs * -(-len(fitted) // BATCH)
        adam = torch.optim.Adam(weights, lr=RATE)
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(adam, n_steps)
        losses = np.empty((epochs, 2))
        with bar("autoencoder", epochs, "epoch") as shown:
            for epoch in range(epochs):
                total = 0.0
                for rows in torch.randperm(len(fitted), generator=generator).split(BATCH):
                    x = fitted[rows]
                    loss = (net.decoder(net.encoder(x)) - x).square().mean()
                    adam.zero_grad()
                    loss.backward()
                    adam.step()
                    falling.step()
                    total += float(loss.detach()) * len(rows)
                with torch.no_grad():
                    missed = (net.decoder(net.encoder(test)) - test).square().mean()
                losses[epoch] = total / len(fitted), float(missed)
                shown.update(1)
    return net, losses
