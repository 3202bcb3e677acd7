"""Adapters (LoRA and the like): found before the weights they belong to are taken for the model."""

import importlib.util
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub

CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
# given to transformers, keeps it from putting the adapter in by itself: it would stay unmerged
NOT_BY_ITSELF = {"subfolder": "no-adapter"}


@dataclass(frozen=True)
class Adapter:
    """An adapter and what it belongs to.

    Attributes
    ----------
    source
        The folder or name that holds it.
    base
        The folder, GGUF file or name of the model it belongs to.
    kind
        For example "LORA".
    revision, base_revision
        Of both, where they are names of the hub and one was asked for.
    """

    source: str
    base: str
    kind: str
    revision: str | None = None
    base_revision: str | None = None

    def __str__(self) -> str:
        return f"{self.kind} adapter {self.in_words!r}, merged into {_of(self)}"

    @property
    def in_words(self) -> str:
        """Where it is, as one writes it."""
        return _at(self.source, self.revision)

    @property
    def base_in_words(self) -> str:
        """Where its base is, as one writes it."""
        return _at(self.base, self.base_revision)

    @property
    def is_beside(self) -> bool:
        """Whether the weights that it belongs to lie beside it."""
        return self.in_words == self.base_in_words

    @property
    def at(self) -> dict[str, Any]:
        """What every reading of it from the hub is to be told."""
        return {} if self.revision is None else {"revision": self.revision}

    def file(self, name: str) -> Path | None:
        """A file that lies with it: in its folder, or in the cache."""
        folder = Path(self.source)
        if not folder.is_dir():
            return cached(self.source, name, self.revision)
        return folder / name if (folder / name).is_file() else None


def _at(source: str, revision: str | None) -> str:
    return source if revision is None else f"{source}@{revision}"


def find_adapter(source: str, revision: str | None = None) -> Adapter | None:
    """The adapter in a folder, or in the cache under a name of the hub; None if there is none.

    Weights and a config.json beside it are those it belongs to; else it names them itself.

    Raises
    ------
    ValueError
        If its configuration cannot be read, or names nothing.
    """
    folder = Path(source)
    found = folder / CONFIG if folder.exists() else cached(source, CONFIG, revision)
    if found is None or not found.is_file():
        return None
    try:
        config = json.loads(found.read_text(encoding="utf-8"))
        kind, named = str(config["peft_type"]), config.get("base_model_name_or_path")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"`model` must have a readable {CONFIG}, or none; that of {source!r} is not: "
            f"{type(error).__name__}: {error}. Save the adapter again."
        ) from error
    beside = (found.parent / "config.json").is_file()
    if beside:
        return Adapter(source, source, kind, revision, revision)
    if not named:
        raise ValueError(
            f"`model` must say what its adapter belongs to; {CONFIG} of {source!r} has no "
            "base_model_name_or_path. Write it there, or merge the adapter and save the whole."
        )
    # a path may have been written as seen from the adapter
    inside = found.parent / str(named)
    base = str(inside if inside.exists() else named)
    return Adapter(source, base, kind, revision, config.get("revision"))


def cached(source: str, name: str, revision: str | None = None) -> Path | None:
    """A file of a model of the hub, if it is in the cache."""
    at: dict[str, Any] = {} if revision is None else {"revision": revision}
    found = huggingface_hub.try_to_load_from_cache(source, name, **at)
    return Path(found) if isinstance(found, str) else None


def check_adapter(adapter: Adapter, *, pickled_weights: bool) -> None:
    """ValueError unless the adapter can be merged here."""
    if not _has_peft():
        raise ValueError(
            f"`model` must be whole; got {adapter.in_words!r}, which holds a {adapter.kind} "
            f"adapter for {_of(adapter)}, and without the package peft only those would be loaded. "
            "Run `pip install peft`; or merge it with `merge_and_unload` and save the whole."
        )
    folder = Path(adapter.source)
    if folder.is_dir() and not (folder / _WEIGHTS).is_file() and not pickled_weights:
        raise ValueError(
            f"`model` must hold its adapter as {_WEIGHTS}; {adapter.in_words!r} does not. Save it "
            "again, or see `pickled_weights`."
        )


def merged(hf: Any, adapter: Adapter) -> Any:
    """The model with the adapter in its weights.

    The sum is made in float64, so that copies in float32 and float64 have the same fingerprint.

    Raises
    ------
    ValueError
        If the adapter does not fit the model, or cannot be merged.
    """
    import peft

    own, dtype = {id(parameter) for parameter in hf.parameters()}, hf.dtype
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.filterwarnings("error", message="Found missing adapter keys")
            wrapped = peft.PeftModel.from_pretrained(hf, adapter.source, **adapter.at)
            weights = peft.utils.load_peft_weights(adapter.source, device="cpu", **adapter.at)
            unused = peft.set_peft_model_state_dict(wrapped, weights).unexpected_keys
            if unused:
                raise ValueError(f"it has no place for {sorted(unused)[:2]}")
            for parameter in wrapped.parameters():
                if id(parameter) not in own:
                    parameter.data = parameter.data.double()
            return wrapped.merge_and_unload().to(dtype)
    except (ValueError, RuntimeError, KeyError, TypeError, AttributeError, Warning) as error:
        raise ValueError(
            f"`model` must have an adapter that fits and can be merged; that of "
            f"{adapter.in_words!r} ({adapter.kind}) for {_of(adapter)} does not: "
            f"{' '.join(str(error).split())[:300]}. Merge it where it was made, and save the whole."
        ) from error


def _has_peft() -> bool:
    return importlib.util.find_spec("peft") is not None


def _of(adapter: Adapter) -> str:
    return "the weights beside it" if adapter.is_beside else repr(adapter.base_in_words)
