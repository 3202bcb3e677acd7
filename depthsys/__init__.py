"""The depth of a language model as a linear time-varying system.

Wings: `depthsys.ltv` (numpy, scipy, xarray: systems and control), `depthsys.lm` (torch:
language models), `depthsys.export` (files for other tools), `depthsys.study` (main jobs and
comparisons step by step), `depthsys.report` (tables and verdicts), `depthsys.plot` (figures).
They are loaded on first use, so importing `depthsys` or `depthsys.ltv` loads no torch.
"""

from importlib import import_module

from depthsys._version import __version__ as __version__

_WINGS = ("demo", "export", "lm", "ltv", "plot", "report", "study")


def __getattr__(name: str):
    if name in _WINGS:
        return import_module(f"depthsys.{name}")
    raise AttributeError(f"module 'depthsys' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_WINGS]
