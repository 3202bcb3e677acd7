"""Where a model is: a folder, a GGUF file, or a name of the hub, at a revision if one is asked for.

And what adapter belongs to it. Nothing is read here but the configuration of the adapter.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.utils import validate_repo_id

from depthsys.lm.hf.adapters import CONFIG as ADAPTER_CONFIG
from depthsys.lm.hf.adapters import Adapter, cached, find_adapter
from depthsys.lm.hf.causes import hub_error, no_name
from depthsys.lm.hf.gguf_file import check_gguf, gguf_in, is_gguf

TOKENIZER_CONFIG = "tokenizer_config.json"
# one of these holds the weights, or says where they are
_WEIGHTS = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)  # fmt: skip


@dataclass(frozen=True)
class Found:
    """Where a model is.

    Attributes
    ----------
    source
        Folder, GGUF file or name of its weights and configuration.
    adapter
        What is merged into them.
    revision
        Branch, tag or commit of a name; None for what the hub gives without one.
    """

    source: str
    adapter: Adapter | None = None
    revision: str | None = None

    def __str__(self) -> str:
        return self.source if self.revision is None else f"{self.source}@{self.revision}"

    @property
    def gguf(self) -> Path | None:
        """The GGUF file, if it is one."""
        path = Path(self.source)
        return path if is_gguf(path) and path.is_file() else None

    @property
    def kind(self) -> str:
        """What it is, in words."""
        if self.gguf is not None:
            return "GGUF file"
        return "folder" if Path(self.source).is_dir() else "hub"

    @property
    def commit(self) -> str | None:
        """The commit that a name stands for here, once it is in the cache."""
        if self.kind != "hub":
            return None
        config = cached(self.source, "config.json", self.revision)
        return None if config is None else config.parent.name

    @property
    def at(self) -> dict[str, Any]:
        """What every reading from the hub is to be told."""
        return {} if self.revision is None else {"revision": self.revision}


def find(name_or_path: str | Path) -> Found:
    """Where the weights of a model are, and whether an adapter belongs to them.

    Raises
    ------
    ValueError
        If there is no such model; the message says why it cannot be had.
    """
    place = _place(name_or_path)
    if place.kind == "hub":
        _ask_hub(place)
    adapter = find_adapter(place.source, place.revision)
    if place.gguf is not None:
        _check_no_adapter_beside(place.gguf)
    if adapter is None or adapter.is_beside:
        return Found(place.source, adapter, place.revision)
    try:
        base = find(adapter.base_in_words)
    except ValueError as error:
        raise ValueError(
            f"`model` must come with what its adapter belongs to; {str(place)!r} holds a "
            f"{adapter.kind} adapter for {adapter.base_in_words!r}, and {error}"
        ) from error
    if base.adapter is not None:
        raise ValueError(
            f"`model` must have one adapter; {str(place)!r} holds one for "
            f"{adapter.base_in_words!r}, which has one, too. Merge that one first, and save the "
            "whole."
        )
    return Found(base.source, adapter, base.revision)


def _place(name_or_path: str | Path) -> Found:
    source, path = str(name_or_path), Path(name_or_path)
    if is_gguf(path) and not path.is_dir():
        check_gguf(path)
        return Found(source)
    if path.is_dir():
        return Found(_in_folder(source, path))
    if path.is_file():
        raise ValueError(
            f"`model` must be a folder or a GGUF file; got the file {source!r}. Give the folder "
            "that `save_pretrained` wrote."
        )
    name, at, revision = source.rpartition("@")
    if not at:
        return Found(_checked_name(source))
    if Path(name).exists():
        raise ValueError(
            f"`model` must have a revision only where it is a name of the hub; got {source!r}, and "
            f"{name!r} is here. Give it without {at + revision!r}: what lies there is what counts."
        )
    if not re.fullmatch(r"[\w.+-]+(/[\w.+-]+)*", revision):
        raise ValueError(
            f"`model` must name a branch, a tag or a commit after the @; got {source!r}. Write "
            "NAME@main, say, or the name alone."
        )
    return Found(_checked_name(name, source), revision=revision)


def _in_folder(source: str, path: Path) -> str:
    """The folder, or the GGUF file in it that holds the weights."""
    files = gguf_in(path)
    if (path / ADAPTER_CONFIG).is_file():
        if files and not (path / "config.json").is_file():
            _check_no_adapter_beside(files[0])
        return source
    if (path / "config.json").is_file() and not (files and not _has_weights(path)):
        return source
    if len(files) > 1:
        raise ValueError(
            f"`model` must be one of the GGUF files in a folder; {source!r} holds "
            f"{', '.join(file.name for file in files[:8])}. Name one of them."
        )
    if files:
        check_gguf(files[0])
        return str(files[0])
    inside = sorted(found.parent.name for found in path.glob("*/*config.json"))
    cure = f"Perhaps one of its folders: {', '.join(dict.fromkeys(inside))}." if inside else ""
    raise ValueError(
        f"`model` must be a folder with a config.json, or a GGUF file; got {source!r}. "
        f"{cure or 'Point at the folder that `save_pretrained` wrote.'}"
    )


def _has_weights(path: Path) -> bool:
    return any(any(path.glob(kind)) for kind in ("*.safetensors", "pytorch_model*.bin"))


def _check_no_adapter_beside(file: Path) -> None:
    """An adapter beside a GGUF file may be meant for it, or not: it is neither merged nor left."""
    if (file.parent / ADAPTER_CONFIG).is_file():
        raise ValueError(
            f"`model` must be a GGUF file without an adapter beside it; got {str(file)!r} with "
            f"{ADAPTER_CONFIG}. To merge the adapter, move it to a folder of its own whose "
            f"base_model_name_or_path names that file, and give the folder; else move it away."
        )


def _checked_name(name: str, given: str | None = None) -> str:
    try:
        if not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", name):
            raise ValueError
        validate_repo_id(name)  # what is none would be looked for in the cache
    except ValueError as error:
        raise no_name(given or name) from error
    return name


def _ask_hub(place: Found) -> None:
    """Ask once for what is not in the cache: transformers would try for a minute.

    ValueError if it cannot be had.
    """
    source, at = place.source, place.at
    has_adapter = huggingface_hub.try_to_load_from_cache(source, ADAPTER_CONFIG, **at)
    config = cached(source, "config.json", place.revision)
    whole = config and any(cached(source, name, place.revision) for name in _WEIGHTS)
    if has_adapter is not None and (whole or isinstance(has_adapter, str)):
        return
    try:
        # what is in the cache needs no more than a short look for an adapter beside it
        info = huggingface_hub.model_info(source, timeout=3 if whole else 10, **at)
        names = {file.rfilename for file in info.siblings or []}
        if ADAPTER_CONFIG in names:
            for name in sorted({ADAPTER_CONFIG, TOKENIZER_CONFIG} & names):
                huggingface_hub.hf_hub_download(source, name, **at)
    except Exception as error:  # the hub's HTTP library raises many unrelated types
        if not whole:
            raise hub_error(str(place), error) from error
        return
    files = sorted(name for name in names if is_gguf(Path(name)))
    shown = ", ".join(files[:8]) + (", ..." if len(files) > 8 else "")
    if files and not {"config.json", ADAPTER_CONFIG} & names:
        revision = "" if place.revision is None else f" --revision {place.revision}"
        raise ValueError(
            f"`model` must be one GGUF file on this machine; got {str(place)!r}, which holds "
            f"{shown}. Download one: `hf download {source} "
            f"{files[0]}{revision} --local-dir .`, and give it."
        )
