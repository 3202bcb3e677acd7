"""The Jacobian lens: what states say before the end, by it and by the logit lens."""

import numpy as np

from depthsys.report.dynamics.shown import Curve, Drawn, Shown, places_along
from depthsys.report.stage import Stage
from depthsys.wording import number

READERS = ("logit lens", "J-lens", "J-lens about the mean", "mean state")


def verdicts(stage: Stage) -> list[str]:
    """How well each reads the middle, from where on most tokens are right, and what is shared."""
    agreement = {
        reader: stage.value("agreement", reader=reader).mean(axis=-1)
        for reader in READERS
        if reader in stage.places["reader"]
    }
    depths = places_along(stage, "depth", stage.sizes["depth"])
    middle = len(depths) // 2
    kl = {reader: stage.value("kl", reader=reader).mean(axis=-1)[middle] for reader in agreement}
    said = ", ".join(
        f"{reader} {100 * agreement[reader][middle]:.0f} % ({number(kl[reader])} nats)"
        for reader in agreement
    )
    found = [f"the model's own next token at depth {depths[middle]:.0f}: {said}"]
    if stage.attrs.get("own_prompts", 0):
        found.append(
            "the lens is read on the very prompts that it was made of: more texts than whole "
            "Jacobians would say how it does on others"
        )
    lenses = {reader: curve for reader, curve in agreement.items() if reader != "mean state"}
    found.append(f"most prompts are read right from depth {_from_where(depths, lenses, 0.5)} on")
    if (mean := agreement.get("mean state")) is not None:
        # of the last state, so the same at every depth
        alone = float(mean[-1])
        found[-1] += (
            f"; the mean state alone, the same for all prompts, is right for {100 * alone:.0f} %, "
            f"and more than that are read from depth {_from_where(depths, lenses, alone)} on"
        )
    if "given_agreement" in stage.variables:
        found.append(_given(stage, depths, agreement["J-lens"]))
    if "share" in stage.variables:
        share = stage.value("share")
        found.append(
            f"the mean Jacobian to the end holds {number(share[0])} of its prompts' own at depth "
            f"{depths[0]:.0f} and {number(share[middle])} at depth {depths[middle]:.0f}"
        )
    return found


def _given(stage: Stage, depths: np.ndarray, ours: np.ndarray) -> str:
    """How a lens from elsewhere reads, at the middle one of its depths."""
    right = stage.value("given_agreement").mean(axis=-1)
    known = np.flatnonzero(np.isfinite(right))
    at = known[len(known) // 2]
    cosine, size = (float(stage.value(f"given_{name}")[at]) for name in ("cosine", "size"))
    kl = float(stage.value("given_kl")[at].mean())
    return (
        f"the lens that was given (definition: {stage.attrs.get('given_definition', 'not said')}) "
        f"has at depth {depths[at]:.0f} a cosine of {number(cosine)} with the J-lens made here and "
        f"{number(size)} times its norm, and reads {100 * right[at]:.0f} % of the prompts right "
        f"({number(kl)} nats), the J-lens {100 * ours[at]:.0f} %"
    )


_SHORT = {"J-lens about the mean": "about the mean"}


def _from_where(depths: np.ndarray, curves: dict[str, np.ndarray], share: float) -> str:
    """From which depth on each curve is above a share, and stays there."""
    said = []
    for reader, curve in curves.items():
        above = np.logical_and.accumulate((curve > share)[::-1])[::-1]
        where = f"{depths[int(np.argmax(above))]:.0f}" if above.any() else "none"
        said.append(f"{where} ({reader})")
    return ", ".join(said)


EXACT = 1e-6  # nats, of all prompts


def _exact(stage: Stage) -> np.ndarray:
    """Depths behind the last block: what is read there is what the model says."""
    if "logit lens" not in stage.places.get("reader", {}):
        return np.zeros(stage.sizes["depth"], dtype=bool)
    return stage.value("kl", reader="logit lens").max(axis=-1) < EXACT


def _of(variable: str) -> tuple[Curve, ...]:
    own = tuple(Curve(variable, _SHORT.get(r, r), {"reader": r}) for r in READERS)
    return (*own, Curve(f"given_{variable}", "lens given"))


SHOWN = Shown(
    called="Jacobian lens",
    marks=frozenset({"agreement", "share"}),
    figures=(
        Drawn(
            "Prompts whose next token is read right",
            "right",
            "depth",
            _of("agreement"),
            "share of prompts",
            note="The likeliest token of each lens against that of the model.",
        ),
        Drawn(
            "How far what is read is from what the model says",
            "nats",
            "depth",
            _of("kl"),
            "nats",
            log=True,
            note="The depth behind the last block is left out: every lens is exact there.",
            left_out=_exact,
        ),
        Drawn(
            "How much of their Jacobians to the end prompts share",
            "share",
            "depth",
            (Curve("share", "share"),),
            "share",
        ),
    ),
    verdicts=verdicts,
)
