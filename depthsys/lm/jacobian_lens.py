"""Mean transition Jacobians from every depth to the last one: a lens on the states of a model."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
import xarray as xr

from depthsys.lm.at_once import whole_jacobians
from depthsys.lm.frozen import FrozenBlock, FrozenRun
from depthsys.lm.kinds import short
from depthsys.lm.linearize import Linearisation
from depthsys.lm.lockstep import Steps
from depthsys.lm.memory import available_memory, free_on
from depthsys.lm.of_run import of_run
from depthsys.lm.published_lens import SKIP, check_lengths, check_skip, published_sums
from depthsys.lm.run import Run
from depthsys.lm.run_model import Model
from depthsys.lm.shards import in_shards
from depthsys.lm.stamp import stamp
from depthsys.lm.sums import added
from depthsys.lm.switch import check_graph
from depthsys.ltv.system import is_whole

DEFINITIONS = {
    "last token": "mean over prompts of the derivative of the last token's x_L by its own x_l",
    "published": (
        "mean over prompts and source positions of the derivatives of x_L, summed over target "
        "positions from the source on, by x_l of the source; the first positions and the last are "
        "left out of both (github.com/anthropics/jacobian-lens)"
    ),
}
ROOM = 0.5  # of the free memory


@of_run(once=True, shards=True)
def lens(
    run: Run,
    *,
    depths: Iterable[int] | None = None,
    definition: str = "last token",
    skip: int = SKIP,
) -> xr.Dataset:
    r"""Mean transition Jacobians :math:`J_l = E_p[\partial x_L / \partial x_l]`, for all depths.

    What a state at depth l says in the words of the last depth: `decode` reads
    :math:`J_l x_l` with the model's own final norm and unembedding, as the logit lens reads
    :math:`x_l`. The mean of products of Jacobians is not the product of `jacobians`' means, where
    the Jacobians of layers vary together over prompts.

    Parameters
    ----------
    run
        The prompts; or a model and texts.
    depths
        Those that are wanted, of 0..L; by default all. At depth L it is the identity.
    definition
        "last token": of the last token's state by itself, context frozen, see
        `depthsys.lm.model`. "published": as the Jacobian lens of Anthropic is fitted [1]_, over
        all positions of whole sequences: for one prompt of T tokens with s = ``skip``

        .. math:: \frac{1}{T - 1 - s} \sum_{t=s}^{T-2} \sum_{t'=t}^{T-2}
            \frac{\partial x_L^{(t')}}{\partial x_l^{(t)}}.

        Their ``J[l]`` is of the output of block l: that of depth l + 1 here. It is a slow
        reference, for small models and few prompts.
    skip
        With "published", how many first positions of a prompt are left out.

    Returns
    -------
    xr.Dataset
        ``J`` (depth, feature_out, feature), unit 1, in the model's dtype (at least float32).
        ``prompt_norm`` (depth): the root of the mean over prompts of :math:`\|J_{l,p}\|_F^2`.
        :math:`\|J_l\|_F` over it is 1 where all prompts have the same Jacobian, and
        :math:`1/\sqrt{P}` where they have nothing in common. With "last token" also ``x_ref``
        (depth, feature) and ``x_end`` (feature), the mean states x_l and x_L, for `decode` about
        the mean. attrs ``definition``, ``n_prompts``; of "published" ``skip``.

    Raises
    ------
    ValueError
        If there is no such definition or depth, a prompt is too short for ``skip``, or the result
        does not fit into memory.
    FloatingPointError
        If a Jacobian is not finite.
    RuntimeError
        Within ``torch.inference_mode()``.

    Notes
    -----
    "last token": one sweep backwards through the blocks for each batch gives all depths; per prompt
    H transposed products at each layer, those of `jacobians`. Memory is flat in the number of
    prompts: the sums, H x H for each depth in float64, and H x H for each prompt of a batch.
    "published": H backward passes of whole sequences per prompt, through all layers.

    References
    ----------
    .. [1] github.com/anthropics/jacobian-lens, ``jlens/fitting.py`` (2026).

    Examples
    --------
    >>> from depthsys import lm
    >>> from depthsys.demo import model_path
    >>> model = lm.DepthModel.load(model_path("demo_48x4"), device="cpu")
    >>> found = lm.lens(model, ["the food was good", "the room was cold"])
    >>> dict(found.J.sizes)
    {'depth': 5, 'feature_out': 48, 'feature': 48}
    """
    check_graph()
    model = run.model
    wanted = _checked_depths(model, depths)
    if not isinstance(definition, str) or definition not in DEFINITIONS:
        raise ValueError(
            f"`definition` must be one of {tuple(DEFINITIONS)}; got {short(definition)}. Pick one."
        )
    check_skip(skip)
    _check_room(model, len(wanted))
    more: dict[str, Any] = {}
    if definition == "published":
        check_lengths(run, skip)
        total, squares = published_sums(run, wanted, skip)
        about: dict[str, Any] = {"skip": int(skip)}
    else:
        total, squares, x = _sums(run, wanted)
        states = (x / len(run)).cpu().numpy()
        more = {"x_ref": (("depth", "feature"), states[list(wanted)]), "x_end": ("feature",
                states[-1])}  # fmt: skip
        about = Linearisation().attrs
    J = (total / len(run)).cpu().numpy()
    if not (np.isfinite(J).all() and np.isfinite(squares.cpu().numpy()).all()):
        at = [depth for depth, one in zip(wanted, J, strict=True) if not np.isfinite(one).all()]
        raise FloatingPointError(
            f"`model` must have finite Jacobians; got values that are not at depths {at}. Use a "
            "wider dtype."
        )
    return xr.Dataset(
        {
            "J": (("depth", "feature_out", "feature"), J.astype(model.numpy_dtype)),
            "prompt_norm": ("depth", np.sqrt(squares.cpu().numpy() / len(run))),
            **more,
        },
        coords={"depth": list(wanted)},
        attrs={
            **stamp(run, "lens"),
            "definition": definition,
            "definition_in_words": DEFINITIONS[definition],
            "n_prompts": len(run),
            "n_layers": model.n_layers,
            **about,
        },
    )


def _checked_depths(model: Model, depths: Any) -> tuple[int, ...]:
    """Depths that are wanted, rising."""
    if depths is None:
        return tuple(range(model.n_layers + 1))
    try:
        given = [*depths]
        wanted = sorted({int(depth) for depth in given})
        fits = all(is_whole(depth) for depth in given)
    except (TypeError, ValueError):
        wanted, fits = [], False
    if not fits or not wanted or wanted[0] < 0 or wanted[-1] > model.n_layers:
        raise ValueError(
            f"`depths` must be whole numbers in 0..{model.n_layers}; got {short(depths)}. Leave "
            "them out for all."
        )
    return tuple(wanted)


def _check_room(model: Model, n_depths: int) -> None:
    size = n_depths * model.n_features**2 * (8 + model.numpy_dtype.itemsize)
    on_card = model.device.type != "cpu"
    free = free_on(model.device) if on_card else available_memory()
    if free is not None and size > ROOM * free:
        raise ValueError(
            f"`depths` must be few enough for the memory; got {n_depths}, which take "
            f"{size / 1e9:.1f} GB of {free / 1e9:.1f} GB. Ask for some of them at a time."
        )


@in_shards(added, "lens")
def _sums(run: Run, wanted: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sums over prompts of Jacobians, of their squared norms, and of states; float64."""
    model = run.model
    like = {"dtype": torch.float64, "device": model.device}
    total = torch.zeros(len(wanted), model.n_features, model.n_features, **like)
    squares = torch.zeros(len(wanted), **like)
    x = torch.zeros(model.n_layers + 1, model.n_features, **like)
    places = {depth: place for place, depth in enumerate(wanted)}

    def carried(blocks: Iterator[FrozenBlock]) -> Steps[None]:
        rows = torch.eye(model.n_features, dtype=model.dtype, device=model.device)
        for block in blocks:
            if block.layer < wanted[0]:
                return
            yield block.layer
            rows = block.vjp(rows)
            if (place := places.get(block.layer)) is not None:
                total[place] += rows.sum(0, dtype=torch.float64)
                norms = torch.linalg.vector_norm(rows, dim=(1, 2), dtype=torch.float64)
                squares[place] += norms.square().sum()

    def work(batch: FrozenRun) -> Steps[None]:
        x.add_(batch.x.sum(1, dtype=torch.float64))
        if model.n_layers in places:
            place = places[model.n_layers]
            n_prompts = len(batch.prompts)
            total[place].diagonal().add_(n_prompts)
            squares[place] += n_prompts * model.n_features
        yield from run.several([carried(part) for part in _parts(batch)])

    held = model.n_features**2 * model.dtype.itemsize
    for _ in run.in_step(work, "lens", held=held):
        pass
    return total, squares, x


def _parts(batch: FrozenRun) -> list[Iterator[FrozenBlock]]:
    """The blocks from the last to the first, for as many prompts as have room for their Jacobians.

    All prompts of a batch on the CPU; on an accelerator its memory tells.
    """
    n_prompts = len(batch.prompts)
    most = whole_jacobians(batch.x[0], n_prompts)
    if most >= n_prompts:
        return [iter(batch.blocks[::-1])]
    return [_between(batch, start, start + most) for start in range(0, n_prompts, most)]


def _between(batch: FrozenRun, start: int, stop: int) -> Iterator[FrozenBlock]:
    calls = None
    for block in reversed(batch.blocks):
        part = block.between(start, stop, calls)
        calls = part.calls
        yield part
