"""A system Dataset as files and objects of the tools that control engineers use, and back.

One module per format. Every export of a system carries a golden trajectory: a run from a fixed seed
which the receiver replays, so that a transposed or shifted system is noticed.
"""

from depthsys.export.control import ControlSystems, to_control, to_control_files
from depthsys.export.control_vectors import (
    from_control_vector,
    read_control_vector,
    with_layers,
    write_control_vector,
)
from depthsys.export.csv_tables import to_csv
from depthsys.export.fmu import replay_fmu, to_fmu
from depthsys.export.golden import check_golden, golden_trajectory
from depthsys.export.json_text import from_json, to_json
from depthsys.export.julia import to_julia
from depthsys.export.matlab import from_matlab, to_matlab
from depthsys.export.netcdf import from_netcdf, to_netcdf
from depthsys.export.npz import from_npz, to_npz
from depthsys.export.pymor_models import to_pymor, to_pymor_files
from depthsys.export.read import READERS, read
from depthsys.export.steering import injections, to_gguf, to_safetensors, unexpressed
from depthsys.export.zarr_store import from_zarr, to_zarr

__all__ = [
    "READERS",
    "ControlSystems",
    "check_golden",
    "from_control_vector",
    "from_json",
    "from_matlab",
    "from_netcdf",
    "from_npz",
    "from_zarr",
    "golden_trajectory",
    "injections",
    "read",
    "read_control_vector",
    "replay_fmu",
    "to_control",
    "to_control_files",
    "to_csv",
    "to_fmu",
    "to_gguf",
    "to_json",
    "to_julia",
    "to_matlab",
    "to_netcdf",
    "to_npz",
    "to_pymor",
    "to_pymor_files",
    "to_safetensors",
    "to_zarr",
    "unexpressed",
    "with_layers",
    "write_control_vector",
]
