"""What comparisons on many models and tasks say: counts over the pairs, and the worst of them."""

import numpy as np
import xarray as xr
from scipy.stats import rankdata

from depthsys.report.pairs import ALL, criteria, forms, pairs_of
from depthsys.wording import fixed, percent_of_page


def findings(study: xr.Dataset) -> list[str]:
    """Counts over the pairs, with the pairs that are worst."""
    return [
        f"{study.sizes['pair']} pairs of model and task.",
        *_where_errors_come_from(study),
        *_ensemble_beside_the_paper(study),
        _without_layer_0(study),
        _certificates(study),
    ]


def _where_errors_come_from(study: xr.Dataset) -> list[str]:
    found = criteria(study)
    budget = study.error_budget.sel(layers="all", bound="estimate")
    averaging = budget.sel(basis="krylov", order=4, part="averaging")
    arnoldi = study.relative_l2.sel(basis="arnoldi", order=32, bound="estimate", **ALL)
    product = study.curve_relative_l2.sel(
        curve="product of mean Jacobians", layers="all", bound="estimate"
    )
    return [
        f"Averaging alone (the product of the mean Jacobians for the mean of the products) costs "
        f"{_median(averaging)} of the gains in the median pair; worst: "
        f"{_worst(study, averaging)}. No order mends it.",
        f"The product of mean Jacobians at full order misses the measured gains by "
        f"{_median(product)} in the median pair, Arnoldi of order 32 by {_median(arnoldi)}, "
        f"ensemble balancing of order 4 by {_median(found.held_out_4)} (noise floor "
        f"{_median(found.noise_floor)}). Worst for ensemble: {_worst(study, found.held_out_4)}.",
    ]


def _ensemble_beside_the_paper(study: xr.Dataset) -> list[str]:
    n, found = study.sizes["pair"], criteria(study)
    first, fourth = (found[name] < found.allowed for name in ("operating_1", "operating_4"))
    no_loss = found.operating_4 <= found.operating_paper
    not_worse = found.held_out_4 <= found.held_out_paper
    clearly, beaten = _told_apart(study, "all")
    return [
        f"Against the gains measured on the operating prompts, ensemble of order 1 (concept "
        f"readout) is within 2 % plus the nonlinearity of those prompts in {int(first.sum())} of "
        f"{n} pairs, of order 4 (profile) in {int(fourth.sum())}; ensemble 4 is not worse "
        f"than the better of Krylov and Arnoldi of order 32 in {int(no_loss.sum())}. Where it is "
        f"worse: {_named(study, ~no_loss)}.",
        f"On held-out prompts ensemble 4 is not worse than the better of the two in "
        f"{int(not_worse.sum())} of {n} pairs. By paired intervals over prompts it beats both "
        f"clearly in {int(clearly.sum())}, and one of them beats it clearly in "
        f"{int(beaten.sum())}: {_named(study, beaten)}.",
        f"On the operating prompts, where sampling plays no part, the better of Krylov and Arnoldi "
        f"of order 32 misses by {_median(found.operating_paper)} in the median pair (worst: "
        f"{_worst(study, found.operating_paper)}); the nonlinearity of the model, the least that "
        f"any linear surrogate can miss, is {_median(found.nonlinearity)}.",
    ]


def _told_apart(study: xr.Dataset, layers: str) -> tuple[xr.DataArray, xr.DataArray]:
    """Where ensemble 4 beats Krylov and Arnoldi of order 32 clearly, and where one beats it."""
    gap = study.gap_to_ensemble_4.sel(basis=["krylov", "arnoldi"], layers=layers)
    return (gap.sel(bound="low") > 0).all("basis"), (gap.sel(bound="high") < 0).any("basis")


def size_effects(study: xr.Dataset) -> list[str]:
    """Whether the error falls with the size of the model, per form."""
    size = study.n_parameters.values
    rows = [forms(row, "relative_l2") for row in pairs_of(study)]
    draws = np.random.default_rng(0).integers(len(rows), size=(1000, len(rows)))
    texts = []
    for form in rows[0]:
        error = np.array([float(row[form].sel(bound="estimate")) for row in rows])
        with np.errstate(invalid="ignore"):
            samples = [np.corrcoef(rankdata(size[d]), rankdata(error[d]))[0, 1] for d in draws]
        estimate = np.corrcoef(rankdata(size), rankdata(error))[0, 1]
        interval = np.nanquantile(samples, [0.025, 0.975])
        texts.append(f"{form} {fixed([estimate, *interval], unknown='-')}")
    return texts


def _without_layer_0(study: xr.Dataset) -> str:
    rows = [forms(row, "relative_l2", "without_layer_0") for row in pairs_of(study)]
    errors = {
        form: xr.concat(
            [row[form].sel(bound="estimate").reset_coords(drop=True) for row in rows], "pair"
        )
        for form in rows[0]
    }
    clearly, beaten = _told_apart(study, "without_layer_0")
    return (
        f"Without layer 0: the product of mean Jacobians misses by "
        f"{_median(errors['product of mean Jacobians'])} in the median pair, Arnoldi of "
        f"order 32 by {_median(errors['paper: arnoldi 32'])}, ensemble of order 4 by "
        f"{_median(errors['ensemble 4'])}. By paired intervals ensemble 4 beats both Krylov "
        f"and Arnoldi clearly in {int(clearly.sum())} pairs; one of them beats it clearly in "
        f"{int(beaten.sum())}: {_named(study, beaten)}."
    )


def _certificates(study: xr.Dataset) -> str:
    checked = violations = 0
    for reference, basis in (("mean_system", "balanced"), ("mean_response", "ensemble")):
        part = study.sel(reference=reference)
        own = part.sel(basis=basis)
        checked += int(part.error.notnull().sum()) + int(own.upper.notnull().sum())
        violations += int((part.error < part.lower - part.resolution).sum())
        violations += int((own.error > own.upper + part.resolution).sum())
    return (
        f"Certificates: in {checked} comparisons of an exact error with a bound, {violations} "
        f"violate it by more than rounding."
    )


def _median(array: xr.DataArray) -> str:
    return percent_of_page([array.median()])


def _names(study: xr.Dataset) -> list[str]:
    return [f"{m} on {t}" for m, t in zip(study.model.values, study.task.values, strict=True)]


def _worst(study: xr.Dataset, array: xr.DataArray, count: int = 3) -> str:
    names, order = _names(study), np.argsort(-array.fillna(-1).values)[:count]
    return ", ".join(f"{names[i]} ({percent_of_page([array.values[i]])})" for i in order)


def _named(study: xr.Dataset, chosen: xr.DataArray) -> str:
    names = _names(study)
    return ", ".join(names[i] for i in np.flatnonzero(chosen.values)) or "none"
