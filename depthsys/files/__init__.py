"""The ground: a file or folder appears whole or not at all.

Names, temporary files, swaps, locks, what to do without hard links or room, what killed runs left;
and work that is kept on disk and gone on with. Imports nothing of depthsys.
"""

from depthsys.files.contents import MARKER, check_case, files_below, marked_foreign
from depthsys.files.folder import OutputFolder
from depthsys.files.hdf5 import hdf5_file, write_netcdf
from depthsys.files.leftovers import clear_leftovers, found
from depthsys.files.resumable import PROGRESS, Resumable, content_hash, file_hash
from depthsys.files.whole import whole_file, whole_folder

__all__ = [
    "MARKER",
    "PROGRESS",
    "OutputFolder",
    "Resumable",
    "check_case",
    "clear_leftovers",
    "content_hash",
    "file_hash",
    "files_below",
    "found",
    "hdf5_file",
    "marked_foreign",
    "whole_file",
    "whole_folder",
    "write_netcdf",
]
