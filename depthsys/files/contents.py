"""What lies in a folder, and whether all of it is ours."""

import os
from collections.abc import Iterable
from pathlib import Path
from unicodedata import normalize

MARKER = ".depthsys-export"  # in a folder: the files that belong to the export, a line each
_BY_RUNNING = "__pycache__"  # of a script that was run in the folder


def files_below(folder: Path) -> list[str]:
    """All files below a folder, links among them, relative to it."""
    found = []
    for place, folders, files in os.walk(folder):
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        found += [(Path(place) / name).relative_to(folder).as_posix() for name in files + links]
    return sorted(found)


def marked_foreign(folder: Path) -> list[str]:
    """What no export has written in a folder, by the list that exports leave there."""
    marker = folder / MARKER
    if marker.is_symlink() or not marker.is_file():
        return files_below(folder) or [folder.name]
    ours = {MARKER, *marker.read_text(encoding="utf-8", errors="replace").split("\n")}
    return [
        name
        for name in files_below(folder)
        if name not in ours and _BY_RUNNING not in Path(name).parts
    ]


def mark(folder: Path) -> None:
    """List all files of a folder in it, so that `marked_foreign` knows them."""
    (folder / MARKER).write_text("\n".join(files_below(folder)), encoding="utf-8")


def check_case(folder: Path, names: Iterable[str]) -> None:
    """ValueError where two names differ only by case and would be one file.

    Parameters
    ----------
    folder
        An existing folder, in which no file has one of the names.
    names
        Of variables, each to be a file or folder of its own.
    """
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(normalize("NFC", name).casefold(), name)
        if other != name and _one_file(folder, other, name):
            raise ValueError(
                "`path` must lie on a disk that tells upper from lower case where names differ by "
                f"nothing else; got the variables {other!r} and {name!r}, which would be one file "
                "there. Write npz, or rename one."
            )


def _one_file(folder: Path, name: str, other: str) -> bool:
    """Whether two names mean the same file in a folder."""
    (folder / name).touch()
    found = (folder / other).exists()
    (folder / name).unlink()
    return found
