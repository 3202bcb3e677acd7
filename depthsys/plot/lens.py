"""Figures of Jacobian lenses: how much prompts share, how well they read, and what."""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from depthsys.plot.style import (
    GREY,
    STYLES,
    check_dims,
    colour_bar,
    coordinate,
    depth_axis,
    key_above,
    log_axis,
    thinned,
)
from depthsys.plot.table import held

_CURE = "Use `lm.lens`."
_AGREE = "Use `lm.lens_agreement`."
_READ = "Use `lm.decode`."
LONGEST = 12  # characters of a token


def lens(ax: Axes, found: xr.Dataset) -> None:
    r"""How much of their transition Jacobians prompts share, over depth.

    Parameters
    ----------
    ax
        Axes. The curve is :math:`\|J_k\|_F` over the root mean square of the prompts' own: 1 where
        all prompts have the same; the dashed line is where they have nothing in common,
        :math:`1/\sqrt{P}`.
    found
        From `lm.lens`.

    Raises
    ------
    TypeError
        If ``found`` is not a Dataset.
    ValueError
        If a variable is missing or has other dims.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> from depthsys import plot
    >>> J = (("depth", "feature_out", "feature"), np.array([[[0.5]], [[1.0]]]))
    >>> fig, (ax,) = plot.figure()
    >>> plot.lens(ax, xr.Dataset({"J": J, "prompt_norm": ("depth", np.ones(2))}))
    >>> ax.lines[0].get_ydata()
    array([0.5, 1. ])
    """
    found = held(found, "J", "prompt_norm", name="found", cure=_CURE)
    check_dims(found["J"], "J", ("depth", "feature_out", "feature"))
    check_dims(found["prompt_norm"], "prompt_norm", ("depth",))
    J = found["J"].transpose("depth", "feature_out", "feature").values.astype(float)
    share = np.linalg.norm(J, axis=(1, 2)) / found["prompt_norm"].values
    at = coordinate(found["J"], "depth")
    ax.plot(at, share, markevery=thinned(share), label=r"$\|E J\|_F$ of $(E\|J\|_F^2)^{1/2}$",
            **STYLES[0])  # fmt: skip
    if "n_prompts" in found.attrs:
        ax.axhline(found.attrs["n_prompts"] ** -0.5, color=GREY, ls="--", lw=1,
                   label="nothing in common")  # fmt: skip
    ax.set_ylim(0, 1.05)
    ax.set_ylabel("share that the mean holds")
    depth_axis(ax, at)
    key_above(ax)


def lens_agreement(axes: Sequence[Axes], found: xr.Dataset) -> None:
    """How well each lens reads, at every depth, what the model says in the end.

    Parameters
    ----------
    axes
        Two Axes: the share of prompts whose likeliest token is the model's; and the divergence
        from the model's distribution, averaged over prompts, on a log axis.
    found
        From `lm.lens_agreement`.

    Raises
    ------
    TypeError
        If ``found`` is not a Dataset.
    ValueError
        If a variable is missing or has other dims, or there are not two Axes.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> from depthsys import plot
    >>> dims = ("reader", "depth", "prompt")
    >>> found = xr.Dataset(
    ...     {"agreement": (dims, np.ones((1, 2, 3))), "kl": (dims, np.full((1, 2, 3), 0.5))},
    ...     coords={"reader": ["logit lens"]},
    ... )
    >>> fig, axes = plot.figure(10, 4, columns=2)
    >>> plot.lens_agreement(axes, found)
    >>> axes[1].lines[0].get_ydata()
    array([0.5, 0.5])
    """
    if len(axes) != 2:
        raise ValueError(f"`axes` must be two; got {len(axes)}. Make them with `columns=2`.")
    found = held(found, "agreement", "kl", "reader", name="found", cure=_AGREE)
    panels = {"agreement": "share of prompts with the model's token",
              "kl": "divergence from the model (nats)"}  # fmt: skip
    readers = found["reader"].values.tolist()
    for ax, (name, label) in zip(axes, panels.items(), strict=True):
        check_dims(found[name], name, ("reader", "depth", "prompt"))
        at = coordinate(found[name], "depth")
        means = found[name].mean("prompt").transpose("reader", "depth").values
        for row, (reader, values) in enumerate(zip(readers, means, strict=True)):
            # at the last depth the distribution is the model's: 0 has no place on a log axis
            shown = np.where(values > 1e-9, values, np.nan) if name == "kl" else values
            marks = thinned(shown, row, len(readers))
            ax.plot(at, shown, markevery=marks, label=reader, **STYLES[row % len(STYLES)])
        ax.set_ylabel(label)
        depth_axis(ax, at)
        key_above(ax, ncols=2)
    axes[0].set_ylim(-0.03, 1.03)
    log_axis(axes[1])


def decoded(ax: Axes, found: xr.Dataset) -> None:
    """The tokens that one prompt's states are read as, depth by depth.

    Parameters
    ----------
    ax
        Axes; a colour bar is put beside them. Each row is a depth, from 0 at the bottom, with its
        tokens by falling rank; dark is likely, and spaces are written as
        underscores, ends of lines as arrows.
    found
        From `lm.decode`, of one prompt: ``token`` and ``probability`` (depth, rank); or without
        ``probability``, of directions.

    Raises
    ------
    TypeError
        If ``found`` is not a Dataset.
    ValueError
        If there are no tokens, or there is another dim.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> from depthsys import plot
    >>> found = xr.Dataset({
    ...     "token": (("depth", "rank"), np.array([[" a", "b"], ["c", "d"]])),
    ...     "probability": (("depth", "rank"), np.array([[0.6, 0.1], [0.9, 0.01]])),
    ... })
    >>> fig, (ax,) = plot.figure()
    >>> plot.decoded(ax, found)
    >>> [text.get_text() for text in ax.texts]
    ['_a', 'b', 'c', 'd']
    """
    found = held(found, "token", name="found", cure=_READ)
    check_dims(found["token"], "token", ("depth", "rank"), finite=False)
    token = found["token"].transpose("depth", "rank").values
    depths, ranks = coordinate(found["token"], "depth"), np.arange(token.shape[1])
    share = np.zeros(token.shape)
    if "probability" in found:
        share = found["probability"].transpose("depth", "rank").values
        colours = mpl.colormaps["Blues"]
        drawn = ax.pcolormesh(
            np.append(ranks, len(ranks)) + 0.5, np.append(depths - 0.5, depths[-1] + 0.5), share,
            vmin=0, vmax=1, cmap=colours, rasterized=True,
        )  # fmt: skip
        colour_bar(ax, drawn, "probability")
    for row, depth in enumerate(depths):
        for rank in ranks:
            colour = "w" if share[row, rank] > 0.6 else "k"
            ax.text(rank + 1, depth, _shown(token[row, rank]), ha="center", va="center",
                    fontsize="x-small", color=colour, clip_on=True)  # fmt: skip
    ax.set_xlim(0.5, len(ranks) + 0.5)
    ax.set_ylim(depths[0] - 0.5, depths[-1] + 0.5)
    ax.set_xticks(ranks + 1)
    ax.set_xlabel("rank of the token")
    ax.set_ylabel("depth $k$ (layers passed)")


def _shown(token: str) -> str:
    """A token in one line that shows its spaces; a box for what no font of a figure has."""
    signs = {" ": "_", "\n": "↵", "\t": "⇥", "$": r"\$"}
    text = "".join(
        signs.get(c, c if (c.isprintable() and ord(c) < 0x250) or c in "“”‘’–—…" else "□")
        for c in str(token)
    )
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
