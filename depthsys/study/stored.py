"""Going on from a stored system: what it was made of is found again and compared."""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depthsys.fingerprints import KIND, why_another, why_rounded
from depthsys.prompting import Prompting
from depthsys.study.cell import Cell
from depthsys.study.settings import IDENTIFICATION, LAYOUT, Settings, typed

if TYPE_CHECKING:
    import xarray as xr

    from depthsys.lm import Splits

# what a stored system must say for its model and texts to be found again
NEEDED_ATTRS = {
    "texts", "split", "seed", "max_tokens", "model", "order", "readout", "dtype",
    "prompts_sha256", "concept_sha256", "held_out_sha256", "model_fingerprint", "tokens_sha256",
}  # fmt: skip
NEEDED_VARIABLES = {"A", "B", "C", "D", "v", "auc", "gain_full", "state_norm", "y_std"}


def lacks(system: "xr.Dataset") -> set[str]:
    """What is needed to go on from a system and is not in it."""
    return NEEDED_ATTRS - system.attrs.keys() | NEEDED_VARIABLES - set(map(str, system.variables))


def read_system(path: Path, settings: Settings) -> "xr.Dataset":
    """A system that was written by `depthsys identify`.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is none that one can go on from, or was asked to be another one.
    """
    from depthsys import export, files

    if settings.asked & set(IDENTIFICATION):
        raise ValueError(
            f"`{path}` already holds its settings; got {_typed(settings)} beside it. Leave "
            "them out, or give a model and texts to identify anew."
        )
    if not files.found(path).is_file():
        raise FileNotFoundError(
            f"`SYSTEM.nc` must be an existing file; got {str(path)!r}. "
            "Write one with `depthsys identify`."
        )
    system = export.from_netcdf(path)
    if "prompt" in system.dims:
        raise ValueError(
            f"`SYSTEM.nc` must be the system of all prompts together; got {str(path)!r}, which "
            "holds one of each prompt. Give the system.nc that `depthsys identify` wrote beside it."
        )
    if missing := lacks(system):
        raise ValueError(
            f"`SYSTEM.nc` must be a system.nc written by `depthsys identify`; {str(path)!r} lacks "
            f"{', '.join(sorted(missing))}. Identify again."
        )
    if why_another(system.attrs["model_fingerprint"], KIND):
        raise ValueError(
            f"`SYSTEM.nc` must know its weights by a fingerprint of this version; got that of "
            f"another version in {str(path)!r}, which cannot be compared. Identify again."
        )
    return system


def _typed(settings: Settings) -> str:
    """Options that are stored with a system, as they were typed."""
    asked = [name for name in IDENTIFICATION if name in settings.asked]
    return ", ".join(map(typed, asked))


def settings_of(system: "xr.Dataset", settings: Settings) -> Settings:
    """The settings with what the texts of the system need; how it was identified is in it."""
    attrs = system.attrs
    stored = Settings.checked(
        readout=attrs["readout"],
        split=attrs["split"],
        seed=int(attrs["seed"]),
        positive=_positive(attrs),
        **_layout(attrs),
    )
    return replace(
        settings,
        readout=stored.readout,
        split=stored.split,
        seed=stored.seed,
        **asdict(Prompting.stored(attrs)),
        positive=stored.positive,
        **{name: getattr(stored, name) for name in LAYOUT},
        dtype=settings.dtype or attrs["dtype"],
        tf32=attrs.get("products") == "tf32" if settings.tf32 is None else settings.tf32,
    )


def _positive(attrs: Mapping[str, Any]) -> str | None:
    """The label that became 1, whatever labels were sorted by when the system was made."""
    classes = json.loads(attrs.get("classes", "[]"))
    return classes[1] if len(classes) == 2 else None


def _layout(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """How the texts were read."""
    said = json.loads(attrs.get("texts_layout", "{}"))
    return {name: said[name] for name in LAYOUT if name in said}


def texts_of(system: "xr.Dataset", path: Path, moved: Path | None) -> Path:
    """Where the texts of the system at that path are; ``moved`` is where they are said to be."""
    texts = Path(system.attrs["texts"]) if moved is None else moved
    if not texts.exists():
        raise FileNotFoundError(
            f"`TEXTS` of {str(path)!r} must exist; {str(texts)!r} is not there any more. Say "
            f"where it is: `depthsys ... {path} TEXTS`."
        )
    return texts


def check_same_texts(system: "xr.Dataset", texts: "Splits", path: Path) -> None:
    """ValueError unless these are the texts that the system is of."""
    found = {
        "prompts_sha256": texts.operating.sha256,
        "concept_sha256": texts.concept.sha256,
        "held_out_sha256": texts.held_out.sha256,
    }
    _check(system, found, "texts", path)


def check_same_model(system: "xr.Dataset", cell: Cell, path: Path) -> None:
    """ValueError unless the cell has the weights and the tokens that the system is of."""
    found = {
        "model_fingerprint": cell.model.fingerprint,
        "tokens_sha256": cell.model.tokens_sha256(cell.texts.operating),
    }
    _check(system, found, "weights or another tokenizer", path, cell.model.dtype_name)


def _check(
    system: "xr.Dataset", found: dict[str, str], what: str, path: Path, dtype: str | None = None
) -> None:
    def why(mark: str) -> str:
        made_in = system.attrs.get("dtype")
        return why_another(system.attrs["model_fingerprint"], mark) or why_rounded(made_in, dtype)

    for name, value in found.items():
        if system.attrs[name] != value:
            raise ValueError(
                f"`{path}` was identified with other {what}: its {name} differs from what is "
                "there now. Identify again."
                f"{why(value) if name == 'model_fingerprint' else ''}"
            )
