"""Files and folders that appear whole or not at all, and never over somebody else's."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: str | os.PathLike, force: bool) -> Iterator[Path]:
    """A hidden path to write to, which becomes ``path`` when the block ends without an error."""
    target = Path(path)
    _check(target, force, "file")
    partial = _partial(target)
    try:
        yield partial
        if force:
            os.replace(partial, target)
        else:
            os.link(partial, target)  # unlike a rename, never overwrites
    except FileExistsError as error:
        raise FileExistsError(_exists(target)) from error
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: str | os.PathLike, force: bool) -> Iterator[Path]:
    """A hidden folder to fill, which becomes ``path`` when the block ends without an error.

    With ``force`` an earlier folder is replaced only if it holds nothing but such files.
    """
    target = Path(path)
    _check(target, force, "folder")
    partial = _partial(target)
    partial.mkdir()
    try:
        yield partial
        if target.is_dir() and os.listdir(target):
            _swap(partial, target)
        else:
            os.rename(partial, target)  # fails if somebody has filled it meanwhile
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _partial(target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    return target.parent / f".{target.name}.part-{os.getpid()}"


def _exists(target: Path) -> str:
    return (
        f"`path` must not exist yet; got {str(target)!r}, which does. Choose another, or replace "
        "it with `force=True` (`--force`)."
    )


def _check(target: Path, force: bool, kind: str) -> None:
    if target.name in ("", ".", ".."):
        raise ValueError(f"`path` must name a {kind}; got {str(target)!r}. Add a name.")
    if not target.exists():
        return
    if target.is_dir() != (kind == "folder"):
        raise FileExistsError(
            f"`path` must be a {kind}; got {str(target)!r}, which is not one. Choose another."
        )
    if kind == "folder" and not os.listdir(target):
        return
    if not force:
        raise FileExistsError(_exists(target))


def _swap(partial: Path, target: Path) -> None:
    strange = sorted(
        entry.name
        for entry in target.iterdir()
        if not (partial / entry.name).exists()
        and not (entry / "zarr.json").is_file()
        and entry.name != "__pycache__"  # of a script that was run there
    )
    if strange:
        raise FileExistsError(
            f"`path` must hold nothing but an earlier export to be replaced; found {strange[:5]} "
            f"in {str(target)!r}. Choose another, or move them away."
        )
    old = target.parent / f".{target.name}.old-{os.getpid()}"
    os.rename(target, old)
    try:
        os.rename(partial, target)
    except OSError:
        os.rename(old, target)
        raise
    shutil.rmtree(old)
