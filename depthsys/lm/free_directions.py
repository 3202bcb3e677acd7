"""The directions in which a push moves the readout most, and how far a concept is from them."""

import numpy as np
import torch
import xarray as xr

from depthsys.lm.directions import defined, direction_note, directions
from depthsys.lm.frozen import FrozenRun
from depthsys.lm.gains import squeezed
from depthsys.lm.lockstep import Steps
from depthsys.lm.of_run import of_run
from depthsys.lm.optimal_plan import weights_of
from depthsys.lm.readouts import Readout, ReadoutLike, checked_readout
from depthsys.lm.run import Run
from depthsys.lm.shards import in_shards, summed
from depthsys.lm.stamp import stamp
from depthsys.lm.step import state_norms
from depthsys.ltv.plan import ENERGIES


@of_run(once=True, shards=True)
def free_directions(
    run: Run, concept: xr.Dataset, *, readout: ReadoutLike = "concept"
) -> xr.Dataset:
    r"""The mean gradient of the readout at every depth: where a push moves it most.

    Of all vectors of a given length at depth l, the one along
    :math:`g_l = \tfrac1N \sum_p \partial y_L(p) / \partial x_l(p)` shifts the mean readout most,
    to first order. With weights w the least energy of a unit shift is
    :math:`1 / \sum_l \|g_l\|^2 / w_l`, the floor below which no choice of directions comes;
    with the directions V_l of the concept it is
    :math:`1 / \sum_l \|\Pi_l g_l\|^2 / w_l`, where :math:`\Pi_l` projects onto their span and the
    energy is that of the vector that is pushed.

    Parameters
    ----------
    run
        The prompts; or a model and texts.
    concept
        The directions that are compared, and what the readout "concept" reads.
    readout
        See `identify`; of a profile the last depth counts.

    Returns
    -------
    xr.Dataset
        ``direction`` (depth, feature), unit length: a concept that `play`, `optimal_plan` and
        others take; (depth, input, feature) with one input for each of several outputs. NaN where
        the readout does not depend on the state. ``gain`` (depth), the length of g, unit of the
        readout per unit of the state; ``cosine`` (layer) between the concept's direction and g,
        NaN where there is none; ``state_norm`` (depth). For "relative" and "absolute" energy
        (energy): ``energy_floor``, ``energy_of_concept`` and ``over_floor``, the second over the
        first; infinite where the concept does not reach the readout. With the further dims output
        and input where there are several.
    """
    model = run.model
    v = directions(model, concept)
    reader = checked_readout(model, readout, concept)
    n_layers, n_outputs = model.n_layers, reader.n_outputs
    mean = (_gradient_sums(run, reader) / len(run)).cpu().numpy()
    norm = state_norms(run).mean(axis=0)
    length = np.linalg.norm(mean, axis=-1)
    with np.errstate(invalid="ignore"):
        direction = mean / np.where(length > 0, length, np.nan)[..., None]
    exists = defined(concept)[:-1]
    vectors = v[:-1].double().cpu().numpy()
    cosine = np.einsum("lof,lif->loi", direction[:-1], vectors)
    cosine = np.where(exists[:, None], cosine, np.nan)
    inside = np.stack([_inside(g, rows) for g, rows in zip(mean[:-1], vectors, strict=True)])
    energies = {"energy_floor": length[:-1], "energy_of_concept": inside}
    dims = ("depth", "input", "feature") if n_outputs > 1 else ("depth", "feature")
    found = xr.Dataset(
        {
            "direction": (dims, direction if n_outputs > 1 else direction[:, 0]),
            "gain": squeezed(length, "depth", "output"),
            "cosine": squeezed(cosine, "layer", "output", "input"),
            "state_norm": ("depth", norm),
            **{
                name: squeezed(_for_a_unit(gain, norm), "energy", "output")
                for name, gain in energies.items()
            },
        },
        coords={
            "depth": np.arange(n_layers + 1),
            "layer": np.arange(n_layers),
            "energy": list(ENERGIES),
        },
        attrs={**stamp(run, "free_directions"), "readout": reader.name, **direction_note(concept)},
    )
    found["over_floor"] = found["energy_of_concept"] / found["energy_floor"]
    return found


@in_shards(summed, "free directions")
def _gradient_sums(run: Run, reader: Readout) -> torch.Tensor:
    """Sums over prompts of the gradients of the readout (depth, output, feature)."""
    model = run.model
    shape = (model.n_layers + 1, reader.n_outputs, model.n_features)
    total = torch.zeros(shape, dtype=torch.float64, device=model.device)

    def work(batch: FrozenRun) -> Steps[None]:
        carried = reader.rows_at(model, batch.x[-1])[-1]
        total[-1].add_(carried.sum(0, dtype=torch.float64))
        for block in reversed(batch.blocks):
            yield block.layer
            carried = block.vjp(carried)
            total[block.layer].add_(carried.sum(0, dtype=torch.float64))

    for _ in run.in_step(work, "free directions", held=8 * reader.n_outputs * model.n_features):
        pass
    return total


def _inside(gradient: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Length (output) of the part of rows (output, feature) in the span of some vectors."""
    left, size, right = np.linalg.svd(vectors, full_matrices=False)
    del left
    span = right[size > 1e-10 * max(float(size.max(initial=0.0)), 1e-300)]
    return np.linalg.norm(gradient @ span.T, axis=-1)


def _for_a_unit(gain: np.ndarray, norm: np.ndarray) -> np.ndarray:
    """Least energy (energy, output) of a unit shift, with gains (layer, output)."""
    total = [(gain**2 / weights_of(name, norm)[:, None]).sum(axis=0) for name in ENERGIES]
    with np.errstate(divide="ignore"):
        return 1 / np.array(total)
