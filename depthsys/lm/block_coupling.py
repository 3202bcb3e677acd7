"""Coupling of blocks: all pairs of layers, for every prompt."""

import numpy as np
import torch
import xarray as xr

from depthsys.lm.at_once import whole_jacobians
from depthsys.lm.frozen import FrozenBlock, FrozenRun
from depthsys.lm.linearize import Linearisation
from depthsys.lm.lockstep import Steps
from depthsys.lm.of_run import of_run
from depthsys.lm.precision import wide
from depthsys.lm.run import Run
from depthsys.lm.shards import along, in_shards
from depthsys.lm.stamp import stamp
from depthsys.ltv.coupling import check_form, check_top, mismatch


@of_run(once=True, shards=True)
def coupling(run: Run, *, top: int = 10, form: str = "signed") -> xr.Dataset:
    r"""Whether the leading singular vectors of one block diagonalise another, for every prompt.

    With :math:`J_l = A_l - I = U_l S_l V_l^\top` of the last token's own state, context frozen:
    :math:`m(l, l') = \|U_{l'}^\top J_l V_{l'} - S_l\|_F / \|S_l\|_F`, of the ``top`` leading
    directions. See `depthsys.ltv.coupling`, which is of given matrices, for what the numbers mean;
    ``ltv.coupling(lm.jacobians(run))`` is of the mean Jacobians.

    Parameters
    ----------
    run
        The prompts; or a model and texts.
    top, form
        See `depthsys.ltv.coupling`.

    Returns
    -------
    xr.Dataset
        ``coupling`` (prompt, layer, layer_2), unit 1, 0 for a layer with itself; the paper's
        average over prompts is ``.mean("prompt")``. ``singular_value`` (prompt, layer, index).

    Raises
    ------
    ValueError
        If ``top`` is not in 1..H, there is no such form, or a block adds nothing.
    FloatingPointError
        If a Jacobian is not finite.

    Notes
    -----
    Per prompt H transposed products at each layer, and K for each pair of a layer and a later one:
    no matrix is kept after its layer, so memory is flat in prompts and in layers, but for the
    vectors. The paper measures Jacobians of several kinds; these are those of a token by itself,
    at the last position, as its code has them.

    Examples
    --------
    >>> from depthsys import lm
    >>> from depthsys.demo import model_path
    >>> model = lm.DepthModel.load(model_path("demo_48x4"), device="cpu")
    >>> found = lm.coupling(model, ["the food was good", "the room was cold"], top=5)
    >>> dict(found["coupling"].sizes)
    {'prompt': 2, 'layer': 4, 'layer_2': 4}
    """
    check_form(form)
    check_top(top, run.model.n_features)
    M, s = _turned(run, int(top))
    if not (np.isfinite(M).all() and np.isfinite(s).all()):
        raise FloatingPointError(
            "`model` must have finite Jacobians; got values that are not. Use a wider dtype, or "
            "leave out those prompts."
        )
    layers = np.arange(run.n_layers)
    return xr.Dataset(
        {
            "coupling": (("prompt", "layer", "layer_2"), mismatch(M, s, form)),
            "singular_value": (("prompt", "layer", "index"), s),
        },
        coords={"layer": layers, "layer_2": layers},
        attrs={
            **stamp(run, "coupling"),
            **Linearisation().attrs,
            "top": int(top),
            "form": form,
            "of": "update",
        },
    )


@in_shards(along(0), "coupling")
def _turned(run: Run, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Every layer in the singular vectors of every layer, and its leading values.

    (prompt, layer, layer_2, top, top) and (prompt, layer, top).
    """
    n_layers, width = run.n_layers, run.model.n_features
    M = np.empty((len(run), n_layers, n_layers, top, top))
    s = np.empty((len(run), n_layers, top))

    def work(batch: FrozenRun) -> Steps[list[tuple[torch.Tensor, torch.Tensor]]]:
        most = whole_jacobians(batch.x[0], len(batch.prompts))
        parts = [
            _of_part(batch, start, min(start + most, len(batch.prompts)), top)
            for start in range(0, len(batch.prompts), most)
        ]
        return (yield from run.several(parts))

    pairs = n_layers * top * (2 * width + n_layers * top) * 4
    for batch, found in run.in_step(work, "coupling", held=pairs + width**2 * 4):
        M[batch.prompts] = torch.cat([one[0] for one in found]).cpu().numpy()
        s[batch.prompts] = torch.cat([one[1] for one in found]).cpu().numpy()
    return M, s


def _of_part(
    batch: FrozenRun, start: int, stop: int, top: int
) -> Steps[tuple[torch.Tensor, torch.Tensor]]:
    """The same of some prompts of a batch.

    First forwards: a layer's matrix is there for its own vectors and those of earlier layers. Then
    once more, by products with the vectors of later layers, which are known by then.
    """
    n_layers, n_prompts = len(batch.blocks), stop - start
    U, V = [], []
    x = wide(batch.x[:1, :1])
    M = x.new_empty(n_prompts, n_layers, n_layers, top, top)
    s = x.new_empty(n_prompts, n_layers, top)
    for layer in range(n_layers):
        yield layer
        J = wide(_block(batch, layer, start, stop).jacobian())
        J.diagonal(dim1=1, dim2=2).sub_(1)
        left, values, right = torch.linalg.svd(J)
        U.append(left[..., :top].clone())  # a slice would hold the matrix
        V.append(right[:, :top].clone())
        s[:, layer] = values[:, :top]
        for other in range(layer + 1):
            M[:, layer, other] = U[other].mT @ (J @ V[other].mT)
    for layer in range(n_layers - 2, -1, -1):
        yield layer
        later = torch.cat(V[layer + 1 :], dim=1)  # (prompt, direction, feature)
        block = _block(batch, layer, start, stop)
        turned = wide(block.jvp(later.to(block.x.dtype))) - later
        for place, other in enumerate(range(layer + 1, n_layers)):
            of_other = turned[:, place * top : (place + 1) * top]
            M[:, layer, other] = U[other].mT @ of_other.mT
    return M, s


def _block(batch: FrozenRun, layer: int, start: int, stop: int) -> FrozenBlock:
    block = batch.blocks[layer]
    whole = stop - start == len(batch.prompts)
    return block if whole else block.between(start, stop)
