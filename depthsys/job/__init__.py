"""The jobs step by step, with their files and summaries: what the commands are made of.

Heavy imports happen inside the functions, so that the command line answers bad input at once.
"""

from depthsys.job.exchange import FORMATS, export_system, import_system
from depthsys.job.folder import (
    ALL_FILES,
    COMPARISON_FILES,
    CONTROL_FILES,
    GAIN_FILES,
    OutputFolder,
)
from depthsys.job.main_job import Job
from depthsys.job.settings import (
    BASES,
    CONCEPTS,
    READOUTS,
    Plan,
    Settings,
    check_eps,
    check_model,
    is_system,
)

__all__ = [
    "ALL_FILES",
    "BASES",
    "COMPARISON_FILES",
    "CONCEPTS",
    "CONTROL_FILES",
    "FORMATS",
    "GAIN_FILES",
    "Job",
    "OutputFolder",
    "Plan",
    "READOUTS",
    "Settings",
    "check_eps",
    "check_model",
    "export_system",
    "import_system",
    "is_system",
]
