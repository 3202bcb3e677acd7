"""What a model is read from: tells, without reading the weights in, whether it is the same."""

from dataclasses import dataclass
from pathlib import Path

from depthsys.files import content_hash, file_hash
from depthsys.lm.hf.adapters import CONFIG as ADAPTER_CONFIG
from depthsys.lm.hf.adapters import Adapter, cached
from depthsys.lm.hf.source import find

# what a model, its tokenizer and its adapter are read from
_KINDS = (
    "*.safetensors", "*.bin", "*.gguf", "*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken",
)  # fmt: skip


@dataclass(frozen=True)
class Contents:
    """What a model is read from.

    Attributes
    ----------
    files
        Files on this machine, by names.
    commits
        Of repositories of the hub, by names: what a commit holds never changes, so that its files
        need not be here yet.
    """

    files: dict[str, Path]
    commits: dict[str, str]

    @property
    def state(self) -> tuple[object, ...]:
        """What changes where a file is written anew; quick to get."""
        stats = ((name, path.stat()) for name, path in self.files.items())
        known = tuple((name, s.st_size, s.st_mtime_ns, s.st_ino) for name, s in stats)
        return (*known, *self.commits.items())

    @property
    def sha256(self) -> str:
        """A hash of the contents of files and of their names, and of commits."""
        hashes = {name: file_hash(path) for name, path in self.files.items()}
        return content_hash({**hashes, **self.commits})


def contents_of(name_or_path: str) -> Contents | None:
    """What a model, its tokenizer and its adapter are read from.

    None for a model of the hub of which nothing is in the cache.

    Raises
    ------
    ValueError
        If there is no such model.
    """
    found = find(name_or_path)
    files, commits = {}, {}
    if found.gguf is not None:
        files = {"model.gguf": found.gguf}
    elif found.kind == "folder":
        files = _in_folder(Path(found.source))
    elif (config := cached(found.source, "config.json", found.revision)) is not None:
        commits = {found.source: config.parent.name}
    else:
        return None
    if found.adapter is not None:
        files, commits = _with_adapter(found.adapter, files, commits)
    return Contents(files, commits)


def _with_adapter(
    adapter: Adapter, files: dict[str, Path], commits: dict[str, str]
) -> tuple[dict[str, Path], dict[str, str]]:
    if Path(adapter.source).is_dir():
        return {**files, **_in_folder(Path(adapter.source), "adapter/")}, commits
    config = cached(adapter.source, ADAPTER_CONFIG, adapter.revision)
    known = {} if config is None else {f"adapter {adapter.source}": config.parent.name}
    return files, {**commits, **known}


def _in_folder(folder: Path, before: str = "") -> dict[str, Path]:
    found = {path for kind in _KINDS for path in folder.glob(kind) if path.is_file()}
    return {before + path.name: path for path in sorted(found)}
