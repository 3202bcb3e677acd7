"""The formats of `depthsys export`, the only list of them.

A new format is one file with its writer, and one entry here.
"""

from dataclasses import dataclass

READ_BACK = "It was read back and replayed its golden trajectory."


@dataclass(frozen=True)
class Format:
    """How a format is written, and how its receiver checks it.

    Attributes
    ----------
    writer
        Name of a function of `depthsys.export`.
    suffix
        What its files end in; "" for folders.
    check
        What the receiver does to check it.
    options
        Those that the writer takes.
    plan
        Whether it also takes a schedule.
    reads
        What a file of it ends in that `export.read` reads; "" where there is no way back.
    """

    writer: str
    suffix: str
    check: str
    options: tuple[str, ...] = ()
    plan: bool = False
    reads: str = ""


FORMATS = {
    "netcdf": Format("to_netcdf", ".nc", READ_BACK, reads=".nc"),
    "zarr": Format("to_zarr", ".zarr", READ_BACK, reads=".zarr"),
    "matlab": Format(
        "to_matlab", "", "Check it there: run `selfcheck` in the folder.", ("name",), reads=".mat"
    ),
    "julia": Format("to_julia", "", "Check it there: include the .jl file.", ("name",)),
    "python-control": Format("to_control_files", "", "Check it there: `python load_control.py`."),
    "pymor": Format("to_pymor_files", "", "Check it there: `python load_pymor.py`."),
    "fmu": Format(
        "to_fmu", ".fmu", "Check it there: unzip it, `python documentation/check_fmu.py`.",
        ("name",),
    ),
    "npz": Format("to_npz", ".npz", READ_BACK, reads=".npz"),
    "json": Format("to_json", ".json", READ_BACK, reads=".json"),
    "csv": Format("to_csv", "", "Check it there: `python load_csv.py`."),
    "safetensors": Format(
        "to_safetensors", ".safetensors", "Its metadata say where the vectors go.", plan=True
    ),
    "gguf": Format(
        "to_gguf", ".gguf", "llama.cpp pushes all tokens, this plan was made for the last.",
        ("drop", "model_hint"), plan=True,
    ),
}  # fmt: skip
READABLE = tuple(form.reads for form in FORMATS.values() if form.reads)
# what the files inside an exported folder end in
IN_FOLDERS = (".mat", ".m", ".jl", ".py", ".csv")
