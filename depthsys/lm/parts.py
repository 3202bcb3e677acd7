"""The parts of long work: a bar over all of them, and on disk those that are finished."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import xarray as xr

from depthsys._version import __version__
from depthsys.files import Resumable, content_hash
from depthsys.lm.progress import whole_bar
from depthsys.lm.readouts import ReadoutLike


class Parts:
    """Computes a part, or reads it where an interrupted run has left it.

    Called with a name and a function without arguments that gives a Dataset.
    """

    def __init__(self, work: Resumable | None):
        self._work = work
        self._bar: Any = None
        self._seconds: dict[str, float] = {}

    def show(self, cost: xr.Dataset) -> None:
        """Show a bar over the whole, in the seconds that `forecast` expects of every stage."""
        self._seconds = dict(
            zip(map(str, cost["stage"].values), cost["seconds"].values, strict=True)
        )
        self._bar = whole_bar(float(cost["seconds"].sum()))

    def close(self) -> None:
        """The bar goes."""
        if self._bar is not None:
            self._bar.close()

    def __call__(self, name: str, compute: Callable[[], xr.Dataset]) -> xr.Dataset:
        """The part of that name."""
        found = self._made(name, compute)
        if self._bar is not None:
            done = [stage for stage in self._seconds if _is_of(stage, name)]
            self._bar.update(sum(self._seconds.pop(stage) for stage in done))
        return found

    def _made(self, name: str, compute: Callable[[], xr.Dataset]) -> xr.Dataset:
        key = name.replace(",", "").replace(" ", "_")
        if self._work is None:
            return compute()
        if self._work.has(key):
            return xr.load_dataset(self._work.path(key), engine="h5netcdf")
        found = compute()
        self._work.write(key, lambda path: found.to_netcdf(path, engine="h5netcdf"))
        return found


def _is_of(stage: str, part: str) -> bool:
    """Whether a stage of the forecast is over when that part is."""
    if part == "mean system":
        return stage == part or stage.startswith("directions of ")
    if part == "concept" or part == "measured gains":  # the first that need the runs
        return stage == part or stage.startswith("prefill ")
    return stage == part


@contextlib.contextmanager
def begun_parts(
    folder: str | os.PathLike | None,
    model: Any,
    texts: Any,
    concept: xr.Dataset | None,
    readout: ReadoutLike,
    settings: Mapping[str, Any],
) -> Iterator[Parts]:
    """Parts kept in a folder while the work goes on; the folder goes when it is done.

    Raises
    ------
    ValueError
        If the folder holds other things, or work begun with other settings, prompts or weights.
    """
    if folder is None:
        with contextlib.closing(Parts(None)) as parts:
            yield parts
        return
    tokens = {
        name: getattr(given, "tokens_sha256", None) or model.tokens_sha256(given)
        for name in ("concept", "operating", "held_out")
        for given in [getattr(texts, name)]
    }
    # labels make the direction and its AUC
    labelled = {
        name: str(getattr(getattr(texts, name), "sha256", "")) for name in ("concept", "held_out")
    }
    identity = {
        "depthsys_version": __version__,
        "model_fingerprint": model.fingerprint,
        "dtype": model.dtype_name,
        "max_tokens": model.max_tokens,
        **{f"tokens of {name}": value for name, value in tokens.items()},
        **{f"texts of {name}": value for name, value in labelled.items()},
        "concept": "mean_difference" if concept is None else _hash_of(concept["direction"]),
        "readout": _hash_of(readout) if isinstance(readout, xr.DataArray) else repr(readout),
        **settings,
    }
    work = Resumable.checked(
        folder,
        json.loads(json.dumps(identity)),
        argument="partial",
        begun_with="model, texts and settings",
    )
    with work.locked():
        try:
            with contextlib.closing(Parts(work)) as parts:
                yield parts
        except BaseException as error:
            error.add_note(
                f"What is finished is kept in {str(folder)!r}: the same call goes on there."
            )
            raise
        work.finish()


def _hash_of(array: xr.DataArray) -> str:
    return content_hash(np.ascontiguousarray(array.values).tobytes() + str(array.dims).encode())
