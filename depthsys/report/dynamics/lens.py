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
    from_where = ", ".join(
        f"{depths[int(np.argmax(_ever_after(curve)))]:.0f} ({reader})"
        for reader, curve in agreement.items()
        if reader != "mean state"
    )
    found.append(f"most prompts are read right from depth {from_where} on")
    if "share" in stage.variables:
        share = stage.value("share")
        found.append(
            f"the mean Jacobian to the end holds {number(share[0])} of its prompts' own at depth "
            f"{depths[0]:.0f} and {number(share[middle])} at depth {depths[middle]:.0f}"
        )
    return found


_SHORT = {"J-lens about the mean": "about the mean"}


def _ever_after(curve: np.ndarray) -> np.ndarray:
    """Where the curve is above one half, and stays there."""
    return np.logical_and.accumulate((curve > 0.5)[::-1])[::-1]


def _of(variable: str) -> tuple[Curve, ...]:
    return tuple(Curve(variable, _SHORT.get(r, r), {"reader": r}) for r in READERS)


SHOWN = Shown(
    called="Jacobian lens",
    marks=frozenset({"agreement", "share"}),
    figures=(
        Drawn(
            "Prompts whose next token is read right",
            "agreement",
            "depth",
            _of("agreement"),
            "share of prompts",
            note="The likeliest token of each lens against that of the model.",
        ),
        Drawn(
            "How far what is read is from what the model says",
            "divergence",
            "depth",
            _of("kl"),
            "nats",
            log=True,
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
