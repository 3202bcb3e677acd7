"""Whether the nominal states are finite, found out without waiting for each block."""

import numpy as np
import torch

# Prompts that a message names.
NAMED = 8


class FiniteStates:
    """Refuses states that are not finite: at once on the CPU, elsewhere when it is asked.

    An accelerator works behind the host, which would have to wait for it to see a number. So the
    largest magnitude of every state stays there until `check` fetches all of them together.

    Parameters
    ----------
    first_number
        What prompt 0 is called in messages.
    """

    def __init__(self, first_number: int = 0):
        self._first_number = first_number
        self._noted: list[tuple[int, np.ndarray, torch.Tensor]] = []

    def note(self, layer: int, prompts: np.ndarray, x: torch.Tensor) -> None:
        """Note states (layer, prompt, feature) after some layers, from ``layer`` on.

        ``prompts`` holds their row numbers. FloatingPointError on the CPU if one is not finite.
        """
        prompts = prompts + self._first_number
        # NaN and infinity both show in the largest magnitude
        largest = torch.linalg.vector_norm(x, torch.inf, dim=-1)
        if largest.device.type == "cpu":
            _refuse([(layer, prompts, largest)])
        else:
            self._noted.append((layer, prompts, largest))

    def check(self) -> None:
        """FloatingPointError if a state is not finite among those that were noted.

        What was found stays found: a second call says it again.
        """
        if not self._noted:
            return
        values = torch.cat([largest.flatten() for _, _, largest in self._noted]).cpu()
        parts = values.split([largest.numel() for _, _, largest in self._noted])
        _refuse(
            [
                (layer, prompts, part.view(largest.shape))
                for (layer, prompts, largest), part in zip(self._noted, parts, strict=True)
            ]
        )
        self._noted.clear()


def _refuse(noted: list[tuple[int, np.ndarray, torch.Tensor]]) -> None:
    """FloatingPointError that names the first layer and its prompts, if a magnitude says so."""
    if all(bool(torch.isfinite(largest).all()) for _, _, largest in noted):
        return
    found: dict[int, list[int]] = {}
    for first, prompts, largest in noted:
        for layer, finite in enumerate(torch.isfinite(largest), start=first):
            found.setdefault(layer, []).extend(prompts[~finite.numpy()].tolist())
    layer = min(layer for layer, prompts in found.items() if prompts)
    which = sorted(set(found[layer]))  # a batch that was tried again is noted again
    more = f" and {len(which) - NAMED} more" if len(which) > NAMED else ""
    raise FloatingPointError(
        f"`model` must have finite states; got a non-finite one after layer {layer}, of the "
        f"prompts number {', '.join(map(str, which[:NAMED]))}{more}. Use float32 or float64 "
        "weights that do not overflow."
    )
