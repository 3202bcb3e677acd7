"""A system Dataset as files and objects of the tools that control engineers use, and back.

One module per format. Every export carries a golden trajectory, which the receiver replays.
"""

from depthsys.export.csv_tables import to_csv
from depthsys.export.golden import check_golden, golden_trajectory
from depthsys.export.json_text import from_json, to_json
from depthsys.export.netcdf import from_netcdf, to_netcdf
from depthsys.export.npz import from_npz, to_npz
from depthsys.export.zarr_store import from_zarr, to_zarr

__all__ = [
    "check_golden",
    "from_json",
    "from_netcdf",
    "from_npz",
    "from_zarr",
    "golden_trajectory",
    "to_csv",
    "to_json",
    "to_netcdf",
    "to_npz",
    "to_zarr",
]
