"""The names that the command line tells and checks without loading anything.

Each tuple repeats a list of the library; tests/study/test_names.py holds them against it.
"""

# depthsys.lm.methods.METHODS
METHODS = (
    "ensemble",
    "balanced",
    "two_sided",
    "krylov",
    "arnoldi",
    "pod",
    "adjoint",
    "random",
)
# depthsys.lm.records.FORMATS
TEXT_FORMATS = ("csv", "tsv", "json", "jsonl", "parquet", "arrow")
# functions of depthsys.lm.concepts
CONCEPTS = ("mean_difference", "whitened", "logistic", "pca", "paired_difference")
# depthsys.lm.readouts.READOUTS
READOUTS = ("concept", "profile")
# depthsys.ltv.plan.ENERGIES
ENERGIES = ("relative", "absolute")
# how the step of a measured gain is counted, see depthsys.lm.Step
STEPS = ("relative", "absolute")
# depthsys.lm.hf.checkpoint.DTYPES
DTYPES = ("float32", "float64", "bfloat16", "float16")
# depthsys.export.formats.FORMATS, and what files that are read back end in
FORMATS = (
    "netcdf",
    "zarr",
    "matlab",
    "julia",
    "python-control",
    "pymor",
    "fmu",
    "npz",
    "json",
    "csv",
    "safetensors",
    "gguf",
)
READABLE = (".nc", ".zarr", ".mat", ".npz", ".json")
