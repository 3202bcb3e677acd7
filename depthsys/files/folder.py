"""An output folder, in which the results of one run appear, each whole or not at all."""

import contextlib
import os
import stat
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from depthsys.files import renames
from depthsys.files.hdf5 import write_netcdf
from depthsys.files.leftovers import clear_leftovers, workplace
from depthsys.files.resumable import Resumable, file_hash
from depthsys.files.whole import flush_to_disk, full_disk_told, made_parents

if TYPE_CHECKING:
    import xarray as xr

_WRITTEN = "written"  # what is noted of results
_Folder = TypeVar("_Folder", bound="OutputFolder")


@dataclass(frozen=True)
class OutputFolder:
    """The output folder. Files appear whole or not at all.

    ``stale`` are results of an earlier run; they go when the first new one is whole and comes, so
    that an old and a new run are never mixed, and nothing is lost to a run that fails before that
    or is killed at any moment. A file that another run wrote in the meantime is not overwritten.
    The folder itself is made with the first result. It may be a link; its files are not followed.

    While all that the results are made of is kept in ``partial``, a `Resumable`, those that were
    written are noted there: to the same run, called again, they are no earlier results.
    """

    folder: Path
    stale: list[str]
    partial: Path | None = None

    @classmethod
    def checked(
        cls: type[_Folder],
        folder: Path,
        files: list[str],
        force: bool,
        *,
        partial: Path | None = None,
        known: Collection[str] = (),
    ) -> _Folder:
        """Put right what killed runs left in it.

        Parameters
        ----------
        folder
            The folder.
        files
            Names of all files that will be out of date.
        force
            Replace them if they are there.
        partial
            Where the work is kept until all files are written.
        known
            Hashes of files that are written again as they are.

        Raises
        ------
        ValueError
            If the folder cannot be made or written, or holds one of the files.
        """
        target = folder / "probe"
        try:
            with made_parents(target):
                clear_leftovers(folder)
                with workplace(target):
                    pass
                raise _ProbedError
        except _ProbedError:  # the folders that were made for the probe are gone again
            pass
        except OSError as error:
            raise ValueError(
                f"`--out` must be a writable folder; got {str(folder)!r}: {error.strerror}. "
                "Choose another."
            ) from error
        present = [name for name in files if os.path.lexists(folder / name)]
        earlier = _earlier(folder, present, partial, known)
        if earlier and not force:
            raise ValueError(
                f"`--out` must not hold earlier results; found "
                f"{', '.join(earlier)} in {str(folder)!r}. "
                "Choose another folder or add --force."
            )
        for name in present:
            mode = (folder / name).lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
                raise ValueError(
                    f"`--out` must hold files where results go; got {name!r} in {str(folder)!r}, "
                    "which is none. Move it away, or choose another folder."
                )
        return cls(folder, present, partial)

    def write(self, name: str, writer: Callable[[Path], Any]) -> None:
        """Write to a hidden file, which gets its name when it is whole.

        Parameters
        ----------
        name
            Of the file in the folder.
        writer
            Writes the file at the path it is given; the last part of that is ``name``.

        Raises
        ------
        ValueError
            If another run wrote that file meanwhile.
        OSError
            If the disk is full, or a limit on the size of files is reached.
        """
        target = self.folder / name
        with made_parents(target), full_disk_told(target), workplace(target) as work:
            writer(work.new)
            flush_to_disk(work.new)
            self._note(work.new)
            for stale in self.stale:
                with contextlib.suppress(FileNotFoundError):
                    renames.move(self.folder / stale, work.old / stale)
            try:
                renames.give_name(work.new, target, work.folder)
            except FileExistsError as error:
                raise ValueError(
                    f"`--out` must belong to one run at a time; another one wrote {name!r} into "
                    f"{str(self.folder)!r} meanwhile. Choose another folder."
                ) from error
            self.stale.clear()

    def _note(self, file: Path) -> None:
        """Before it gets its name: a run that is killed then has left it, too."""
        work = None if self.partial is None else Resumable.begun_in(self.partial)
        if work is not None:
            work.note(**{_WRITTEN: [*work.noted().get(_WRITTEN, ()), file_hash(file)]})

    def netcdf(self, name: str, dataset: "xr.Dataset") -> None:
        """Write a Dataset as netCDF4."""
        self.write(name, lambda path: write_netcdf(path, {None: dataset}))


def _earlier(
    folder: Path, present: list[str], partial: Path | None, known: Collection[str]
) -> list[str]:
    """Those of the files there that this run, called before and interrupted, has not written."""
    work = None if partial is None else Resumable.begun_in(partial)
    ours = {*known, *(() if work is None else work.noted().get(_WRITTEN, ()))}

    def is_ours(name: str) -> bool:
        path = folder / name
        return path.is_file() and not path.is_symlink() and file_hash(path) in ours

    return [name for name in present if not (ours and is_ours(name))]


class _ProbedError(Exception):
    """Ends `made_parents` as an error does."""
