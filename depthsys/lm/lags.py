"""How far gains of pushes at earlier tokens depend on the lag alone, as a Toeplitz map would."""

from collections.abc import Callable

import numpy as np
import xarray as xr

from depthsys.lm.kinds import short

# What the gain of an earlier token may be guessed by, from the other prompts.
BY = ("layer", "lag", "position")
OF = {"gain": "gain", "gradient": "gradient_norm"}
_NEEDED = ("gain", "gradient_norm", "state_norm", "n_tokens")


def lag_map(found: xr.Dataset, *, of: str = "gain", relative: bool = False) -> xr.Dataset:
    r"""Mean map over lags of `token_gains`, what it explains, and how it decays.

    Experimental. If the gain of a push depended on the lag alone, the map from pushes at all
    tokens to the last one would be Toeplitz over positions: a convolution, one for every layer.
    Whether it does is told by setting every gain g of an earlier token (lag >= 1) beside a guess
    :math:`\hat g` from the *other* prompts:

    * by "layer": their mean over all earlier tokens of that layer;
    * by "lag": their mean at that layer and lag (Toeplitz);
    * by "position": their mean at that layer and place from the start of the prompt.

    The share that is explained is :math:`\sum g \hat g / \sum g^2`. It is 1 for a map that is the
    same in all prompts, and estimates without bias, however few the prompts, which share of the
    mean square gain belongs to the map that all prompts have in common. It is 0 where they have
    none, and falls below by chance alone, or where their gains are opposed.

    Parameters
    ----------
    found
        From `token_gains`, of one output and one input.
    of
        "gain", of pushes along the concept; or "gradient": the norm of the readout's gradient, the
        gain of the worst push, which is never negative.
    relative
        Gains per fraction of the norm of the state that is pushed, in place of gains per unit.

    Returns
    -------
    xr.Dataset
        ``mean``, ``spread`` and ``rms`` (layer, lag): mean, standard deviation and root mean
        square of the gains over the prompts that have such a token; ``n_prompts`` (lag).
        ``explained`` (layer, by), ``by`` being the three above, of those tokens that other prompts
        know by all three; ``explained_in_all`` (by) of all layers together.
        ``earlier_share`` (layer): of the squared gradient of the readout, how much lies at earlier
        tokens, mean over prompts. ``decay_rate`` (layer): slope of -log ``rms`` over the lag, per
        token, and ``decay_power`` (layer): the same over log lag, by least squares over lags >= 1
        that half of the prompts have; ``decay_rate_r2`` and ``decay_power_r2``: how well each line
        fits; NaN where fewer than three lags can be used.

    Raises
    ------
    TypeError
        If ``found`` is not a Dataset.
    ValueError
        If it is not one from `token_gains`, of one output and one input, and two prompts or more;
        if there is no such ``of``.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> from depthsys import lm
    >>> one = 2.0 ** -np.arange(5.0)  # halves from token to token, in both prompts
    >>> dims = ("prompt", "layer", "lag")
    >>> gain = xr.DataArray(np.broadcast_to(one, (2, 1, 5)), dims=dims)
    >>> found = xr.Dataset({"gain": gain, "gradient_norm": gain, "state_norm": gain,
    ...                     "n_tokens": ("prompt", [5, 5])})
    >>> found = lm.lag_map(found)
    >>> found["explained"].sel(by="lag").item(), round(found["decay_rate"].item(), 3)
    (1.0, 0.693)
    """
    _check(found)
    if of not in OF:
        raise ValueError(f"`of` must be one of {tuple(OF)}; got {short(of)}. Pick one.")
    dims = ("prompt", "layer", "lag")
    gain, norm = (found[name].transpose(*dims).values for name in (OF[of], "state_norm"))
    gain = gain * norm if relative else gain
    n_prompts = np.isfinite(norm[:, 0]).sum(0)
    count = np.maximum(n_prompts, 1)
    mean = np.nansum(gain, 0) / count
    rms = np.sqrt(np.nansum(gain**2, 0) / count)
    spread = np.sqrt(np.nansum((gain - mean) ** 2, 0) / count)
    undefined = np.isnan(gain).all(0)
    for array in (mean, rms, spread):
        array[undefined] = np.nan
    explained, in_all = _explained(gain, found["n_tokens"].values)
    gradient = found["gradient_norm"].transpose(*dims).values ** 2
    with np.errstate(invalid="ignore"):  # NaN where the readout depends on nothing
        share = np.nansum(gradient[:, :, 1:], -1) / np.nansum(gradient, -1)
    usable = np.flatnonzero(2 * n_prompts >= len(gain))
    lags = usable[usable >= 1]
    rate, rate_r2 = _slopes(lags, rms[:, lags], np.asarray)
    power, power_r2 = _slopes(lags, rms[:, lags], np.log)
    by_lag = ("layer", "lag")
    return xr.Dataset(
        {
            "mean": (by_lag, mean),
            "spread": (by_lag, spread),
            "rms": (by_lag, rms),
            "n_prompts": ("lag", n_prompts),
            "explained": (("layer", "by"), explained),
            "explained_in_all": ("by", in_all),
            "earlier_share": ("layer", share.mean(0)),
            "decay_rate": ("layer", rate),
            "decay_rate_r2": ("layer", rate_r2),
            "decay_power": ("layer", power),
            "decay_power_r2": ("layer", power_r2),
        },
        coords={
            "layer": found.coords.get("layer", np.arange(gain.shape[1])),
            "lag": np.arange(gain.shape[2]),
            "by": list(BY),
        },
        attrs={**found.attrs, "of": of, "relative": int(relative)},
    )


def _check(found: xr.Dataset) -> None:
    if not isinstance(found, xr.Dataset):
        raise TypeError(f"`found` must be a Dataset; got {short(found)}. Use `lm.token_gains`.")
    missing = [name for name in _NEEDED if name not in found]
    if missing:
        raise ValueError(f"`found` must hold {missing[0]!r}; got none. Use `lm.token_gains`.")
    extra = [d for d in found["gain"].dims if d not in ("prompt", "layer", "lag")]
    if extra:
        raise ValueError(
            f"`found` must be of one output and one input; got a dim {extra[0]!r}. Select one with "
            f".isel({extra[0]}=0)."
        )
    for dim in ("prompt", "layer", "lag"):
        if dim not in found["gain"].dims:
            raise ValueError(
                f"`found` must have a dim {dim}; got {dict(found['gain'].sizes)}. Select it as in "
                f".isel({dim}=[0])."
            )
    if "lag" in found.coords and not np.array_equal(found["lag"], np.arange(found.sizes["lag"])):
        got = short(found["lag"].values.tolist())
        raise ValueError(
            f"`found` must have the lags 0, 1, 2 and so on; got {got}. Give it as `lm.token_gains` "
            "made it, with fewer lags by `n_lags=`."
        )
    if found.sizes["prompt"] < 2:
        raise ValueError(
            "`found` must have two prompts or more, each being guessed from the others; got "
            f"{found.sizes['prompt']}. Give more texts."
        )


def _explained(gain: np.ndarray, n_tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shares (layer, by) and (by) of gains (prompt, layer, lag) guessed from the other prompts."""
    earlier = gain[:, :, 1:].swapaxes(1, 2)  # (prompt, lag, layer)
    lag = np.arange(1, gain.shape[2])
    position = n_tokens[:, None] - 1 - lag
    known = (position >= 0) & ~np.isnan(earlier).all(2)
    if not known.any():
        return np.full((gain.shape[1], len(BY)), np.nan), np.full(len(BY), np.nan)
    prompt, place = np.nonzero(known)
    values = np.nan_to_num(earlier[prompt, place])  # (token, layer)
    groups = {"layer": np.zeros_like(place), "lag": place, "position": position[prompt, place]}
    guesses = np.stack([_from_others(values, prompt, groups[by]) for by in BY], axis=-1)
    usable = np.isfinite(guesses).all((1, 2))
    values, guesses = values[usable], guesses[usable]
    common = (values[..., None] * guesses).sum(0)
    whole = (values**2).sum(0)[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        return common / whole, common.sum(0) / whole.sum(0)


def _from_others(values: np.ndarray, prompt: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Mean of the values (token, layer) of other prompts in the same group; NaN without any."""
    width = prompt.max() + 1
    cell = group * width + prompt
    n_cells = (group.max() + 1) * width
    total, count = np.zeros((n_cells, values.shape[1])), np.zeros(n_cells)
    np.add.at(total, cell, values)
    np.add.at(count, cell, 1)
    total_of = total.reshape(-1, width, values.shape[1]).sum(1)[group] - total[cell]
    count_of = count.reshape(-1, width).sum(1)[group] - count[cell]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(count_of > 0, 1.0, np.nan)[:, None] * total_of / count_of[:, None]


def _slopes(
    lags: np.ndarray, rms: np.ndarray, scale: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Slopes of -log rms (layer, lag) over a scale of the lag, and the R^2 of each line."""
    slope, fit = np.full(len(rms), np.nan), np.full(len(rms), np.nan)
    for layer, row in enumerate(rms):
        usable = np.isfinite(row) & (row > 0)
        if usable.sum() < 3:
            continue
        x, y = scale(lags[usable].astype(float)), -np.log(row[usable])
        x, y = x - x.mean(), y - y.mean()
        slope[layer] = x @ y / (x @ x)
        fit[layer] = 1 - ((y - slope[layer] * x) ** 2).sum() / (y @ y) if y.any() else 1.0
    return slope, fit
