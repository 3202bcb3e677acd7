"""HDF5 and netCDF4 on disks that may be full.

libhdf5 ends the process by a signal, or leaves a broken file, where a write fails. So it never sees
a write fail: it writes to an object of Python, which keeps the first error to itself, pretends that
all went well, and raises it when the library has closed the file.
"""

import contextlib
import io
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import h5py
    import xarray as xr

_KEPT = 2**16  # bytes: larger pieces are data, which the library does not read again


class _Patient(io.RawIOBase):
    """A file to which every write succeeds; ``error`` is the first that did not.

    From then on nothing goes to the disk. Small pieces stay in memory, where the library finds them
    again: the tables it keeps about the file.
    """

    def __init__(self, path: Path) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
        self._file = os.open(path, flags, 0o666)
        self._at = 0
        self._size = 0
        self._kept: dict[int, bytes] = {}
        self.error: BaseException | None = None

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        start = (0, self._at, self._size)[whence]
        self._at = start + offset
        return self._at

    def write(self, data) -> int:
        with memoryview(data) as view, view.cast("B") as content:
            if self.error is None:
                try:
                    self._to_disk(content)
                except BaseException as error:  # an interrupt, too: not inside the library
                    self.error = error
            if self.error is not None and len(content) <= _KEPT:
                self._kept[self._at] = bytes(content)
            self._at += len(content)
            self._size = max(self._size, self._at)
            return len(content)

    def _to_disk(self, content: memoryview) -> None:
        done = 0
        while done < len(content):
            done += os.pwrite(self._file, content[done:], self._at + done)

    def readinto(self, buffer) -> int:
        with memoryview(buffer) as view, view.cast("B") as room:
            count = max(0, min(len(room), self._size - self._at))
            found = os.pread(self._file, count, self._at).ljust(count, b"\0")
            room[:count] = found
            for start, content in self._kept.items():
                low, high = max(start, self._at), min(start + len(content), self._at + count)
                if low < high:
                    room[low - self._at : high - self._at] = content[low - start : high - start]
            self._at += count
            return count

    def truncate(self, size: int | None = None) -> int:
        size = self._at if size is None else size
        if self.error is None:
            try:
                os.ftruncate(self._file, size)
            except BaseException as error:
                self.error = error
        self._size = size
        return size

    def close(self) -> None:
        if not self.closed:
            os.close(self._file)
        super().close()


@contextlib.contextmanager
def patient_file(path: Path) -> Iterator[io.RawIOBase]:
    """A new file to hand to libhdf5; the first write that failed is raised when the block ends.

    Raises
    ------
    OSError
        If the disk is full, or a limit on the size of files is reached.
    """
    with _Patient(path) as file:
        try:
            yield file
        except Exception:
            if file.error is None:
                raise
        if file.error is not None:
            raise file.error


@contextlib.contextmanager
def hdf5_file(path: Path, **options) -> Iterator["h5py.File"]:
    """A new HDF5 file to write to, see `patient_file`."""
    import h5py  # takes a while

    with patient_file(path) as file, h5py.File(file, "w", **options) as content:
        yield content


def write_netcdf(path: Path, groups: Mapping[str | None, "xr.Dataset"]) -> None:
    """Write Datasets as the groups of one new netCDF4 file; None is the root.

    Parameters
    ----------
    path
        The file, which must not exist yet. Use `whole_file` around it.
    groups
        The Datasets; texts, numbers and what else `xarray.Dataset.to_netcdf` takes.

    Raises
    ------
    OSError
        If the disk is full, or a limit on the size of files is reached.
    """
    import h5netcdf
    from xarray.backends import H5NetCDFStore

    with patient_file(path) as file, h5netcdf.File(file, "w") as content:
        for name, dataset in groups.items():
            node = content if name is None else content.create_group(name)
            dataset.dump_to_store(H5NetCDFStore(node))  # pyright: ignore[reportArgumentType]
