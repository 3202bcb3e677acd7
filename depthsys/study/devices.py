"""Where and in what a model is to run, as it is typed: checked before the weights are read."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

Sizes = tuple[tuple[int | str, int | str], ...]


def parsed_max_memory(given: str | Mapping[int | str, int | str] | Sizes) -> Sizes:
    """Sizes by place, for `DepthModel.load(max_memory=...)`.

    Examples
    --------
    >>> parsed_max_memory("0=20GiB, cpu=100GiB")
    ((0, '20GiB'), ('cpu', '100GiB'))
    """
    if not isinstance(given, str):
        return tuple(dict(given).items())
    found: dict[int | str, int | str] = {}
    for part in given.split(","):
        place, _, size = (each.strip() for each in part.partition("="))
        key = int(place) if re.fullmatch(r"[0-9]{1,4}", place) else place
        if not (isinstance(key, int) or place == "cpu") or not size or key in found:
            raise ValueError(
                "`--max-memory` must be sizes by place, each once: the number of the card, and "
                f"cpu for the machine's memory; got {given!r}. Write them as in "
                "0=20GiB,cpu=100GiB."
            )
        found[key] = int(size) if size.isascii() and size.isdecimal() else size
    return tuple(found.items())


def check_place(
    device: "torch.device",
    dtype: str,
    *,
    tf32: bool | None,
    tf32_asked: bool,
    device_map: str | None,
    max_memory: Sizes | None,
) -> None:
    """ValueError for what no model can be given on that device.

    Parameters
    ----------
    device, dtype
        In which it is to run.
    tf32, tf32_asked
        Whether products are to be made in TF32, and whether that was typed or is that of something
        stored.
    device_map, max_memory
        See `DepthModel.load`.
    """
    from depthsys.lm.hf.placing import checked_placing
    from depthsys.lm.switch import has_tf32

    checked_placing(device_map, None if max_memory is None else dict(max_memory), device)
    if not tf32:
        return
    got = "it" if tf32_asked else "that of what is gone on from"
    if dtype != "float32":
        raise ValueError(
            f"`--tf32` must be off for a model in {dtype}, for it rounds products of float32 "
            f"numbers alone; got {got}. Pass --no-tf32, or --dtype float32."
        )
    if not has_tf32(device):
        raise ValueError(
            f"`--tf32` must be off on {str(device)!r}, which has no TF32 (NVIDIA GPUs from Ampere "
            f"on have it); got {got}. Pass --no-tf32."
        )


def made_in(attrs: Mapping[str, Any]) -> tuple[str | None, bool | None]:
    """The dtype that a result was made in, and whether its products were in TF32; None: unknown."""
    dtype = attrs.get("dtype")
    return dtype, None if dtype is None else attrs.get("products") == "tf32"
