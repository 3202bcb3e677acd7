"""A hash of a model's files: what tells, without reading the weights in, whether it is the same."""

from pathlib import Path

from depthsys.files import content_hash, file_hash
from depthsys.lm.hf.adapters import cached
from depthsys.lm.hf.source import Found, find

# what a model, its tokenizer and its adapter are read from
_KINDS = (
    "*.safetensors", "*.bin", "*.gguf", "*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken",
)  # fmt: skip


def files_of(name_or_path: str) -> dict[str, Path] | None:
    """The files of a model, of its tokenizer and of its adapter, by names.

    None for a model of the hub that is not in the cache.

    Raises
    ------
    ValueError
        If there is no such model.
    """
    found = find(name_or_path)
    files = _files(found)
    if files is None or found.adapter is None or not Path(name_or_path).is_dir():
        return files
    return {**files, **_in_folder(Path(name_or_path), "adapter/")}


def hash_of(files: dict[str, Path]) -> str:
    """A hash of the contents of files and of their names."""
    return content_hash({name: file_hash(path) for name, path in files.items()})


def _files(found: Found) -> dict[str, Path] | None:
    if found.gguf is not None:
        return {"model.gguf": found.gguf}
    if found.kind == "folder":
        return _in_folder(Path(found.source))
    config = cached(found.source, "config.json", found.revision)
    return None if config is None else _in_folder(config.parent)


def _in_folder(folder: Path, before: str = "") -> dict[str, Path]:
    found = {path for kind in _KINDS for path in folder.glob(kind) if path.is_file()}
    return {before + path.name: path for path in sorted(found)}
