"""An output folder, in which the results of one run appear, each whole or not at all."""

import contextlib
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from depthsys.files import renames
from depthsys.files.hdf5 import write_netcdf
from depthsys.files.leftovers import clear_leftovers, workplace
from depthsys.files.whole import flush_to_disk, full_disk_told, made_parents

if TYPE_CHECKING:
    import xarray as xr

_Folder = TypeVar("_Folder", bound="OutputFolder")


@dataclass(frozen=True)
class OutputFolder:
    """The output folder. Files appear whole or not at all.

    ``stale`` are results of an earlier run; they go when the first new one is whole and comes, so
    that an old and a new run are never mixed, and nothing is lost to a run that fails before that
    or is killed at any moment. A file that another run wrote in the meantime is not overwritten.
    The folder itself is made with the first result. It may be a link; its files are not followed.
    """

    folder: Path
    stale: list[str]

    @classmethod
    def checked(cls: type[_Folder], folder: Path, files: list[str], force: bool) -> _Folder:
        """Put right what killed runs left in it.

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
        if present and not force:
            raise ValueError(
                f"`--out` must not hold earlier results; found "
                f"{', '.join(present)} in {str(folder)!r}. "
                "Choose another folder or add --force."
            )
        for name in present:
            mode = (folder / name).lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
                raise ValueError(
                    f"`--out` must hold files where results go; got {name!r} in {str(folder)!r}, "
                    "which is none. Move it away, or choose another folder."
                )
        return cls(folder, present)

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

    def netcdf(self, name: str, dataset: "xr.Dataset") -> None:
        """Write a Dataset as netCDF4."""
        self.write(name, lambda path: write_netcdf(path, {None: dataset}))


class _ProbedError(Exception):
    """Ends `made_parents` as an error does."""
