"""The parts of long work: a bar over all of them, and on disk those that are finished."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from depthsys._version import __version__
from depthsys.files import Resumable, content_hash
from depthsys.lm.progress import whole_bar
from depthsys.lm.prompts import SPLITS
from depthsys.lm.readouts import ReadoutLike

WHOLE = "table of methods"  # what `compare` returns
# all parts of `compare`, in the order in which they are made
PARTS = (
    "concept",
    "measured gains",
    "measured gains, operating",
    "linear gains",
    "linear gains, operating",
    "mean system",
    "mean response",
    "linear range",
    "one system per prompt",
    WHOLE,
)


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

    @property
    def kept(self) -> tuple[str, ...]:
        """Names of the parts that need not be computed."""
        work = self._work
        return () if work is None else tuple(name for name in PARTS if work.has(_key(name)))

    def close(self) -> None:
        """The bar goes."""
        if self._bar is not None:
            self._bar.close()

    def __call__(self, name: str, compute: Callable[[], xr.Dataset]) -> xr.Dataset:
        """The part of that name."""
        found = self._made(name, compute)
        self.done(name)
        return found

    def done(self, name: str) -> None:
        """The bar goes on by all that is over with the part of that name."""
        if self._bar is not None:
            over = [stage for stage in self._seconds if _is_of(stage, name)]
            self._bar.update(sum(self._seconds.pop(stage) for stage in over))

    def _made(self, name: str, compute: Callable[[], xr.Dataset]) -> xr.Dataset:
        key = _key(name)
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


@dataclass(frozen=True)
class Kept:
    """What an interrupted comparison has left on disk.

    Attributes
    ----------
    parts
        Names of the parts that are finished.
    differences
        In words, what it was begun with and is another thing now: then none of them can be used.
    """

    parts: tuple[str, ...] = ()
    differences: tuple[str, ...] = ()

    @property
    def usable(self) -> tuple[str, ...]:
        """The parts that need not be computed."""
        return () if self.differences else self.parts


def kept_in(folder: str | os.PathLike, identity: Mapping[str, Any]) -> Kept:
    """What is kept in a folder for work of that identity, of which not all need be known."""
    work = _work(folder, identity)
    differences = tuple(work.differences())
    return Kept(Parts(work).kept, differences)


@contextlib.contextmanager
def begun_parts(
    folder: str | os.PathLike | None,
    model: Any,
    texts: Any,
    concept: xr.Dataset | None,
    readout: ReadoutLike,
    settings: Mapping[str, Any],
    *,
    force: bool = False,
    keep: bool = False,
) -> Iterator[Parts]:
    """Parts kept in a folder while the work goes on; when it is done it goes, unless with ``keep``.

    Raises
    ------
    ValueError
        If the folder holds other things; or, without ``force``, work begun with other settings,
        prompts or weights, which goes with it.
    """
    if folder is None:
        with contextlib.closing(Parts(None)) as parts:
            yield parts
        return
    work = _work(folder, identity_of(model, texts, readout, settings) | of_concept(concept))
    if not force:
        work.check_same()
    with work.locked():
        if work.differences():
            work.begin()
        parts = Parts(work)
        try:
            with contextlib.closing(parts):
                yield parts
        except BaseException as error:
            if names := parts.kept:
                error.add_note(
                    f"What is finished is kept in {str(folder)!r} ({'; '.join(names)}): the same "
                    "call goes on there."
                )
            raise
        if not keep:
            work.finish()


def _work(folder: str | os.PathLike, identity: Mapping[str, Any]) -> Resumable:
    return Resumable(
        Path(folder),
        json.loads(json.dumps(identity)),
        argument="partial",
        begun_with="model, texts and settings",
    )


def identity_of(
    model: Any,
    texts: Any,
    readout: ReadoutLike,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """All that the parts depend on beside the concept, as far as known: the model may be None."""
    # with their labels, which make the direction and its AUC
    labelled = {
        f"texts of {name}": sha256
        for name in SPLITS
        if (sha256 := getattr(getattr(texts, name), "sha256", None))
    }
    found = {
        "depthsys_version": __version__,
        "readout": _hash_of(readout) if isinstance(readout, xr.DataArray) else str(readout),
        **settings,
        **labelled,
    }
    if model is None:
        return found
    tokens = {
        f"tokens of {name}": getattr(given, "tokens_sha256", None) or model.tokens_sha256(given)
        for name in SPLITS
        for given in [getattr(texts, name)]
    }
    return {
        **found,
        **tokens,
        "model_fingerprint": model.fingerprint,
        "model_width": model.n_features,
        "dtype": model.dtype_name,
        "products": model.products,
        **asdict(model.prompting),
    }


def of_concept(concept: xr.Dataset | None) -> dict[str, Any]:
    """What the parts depend on of the concept; None is found on the way, by `mean_difference`."""
    if concept is None:
        return {"concept": "mean_difference", "direction": "to be found"}
    name = str(concept.attrs.get("method", "given"))
    return {"concept": name, "direction": _hash_of(concept["direction"])}


def _key(name: str) -> str:
    """The name of a part as that of a file."""
    return name.replace(",", "").replace(" ", "_")


def _hash_of(array: xr.DataArray) -> str:
    return content_hash(np.ascontiguousarray(array.values).tobytes() + str(array.dims).encode())
