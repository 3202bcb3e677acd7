"""The depth of a language model as a linear time-varying system.

Wings: `depthsys.ltv` (numpy, scipy, xarray: systems and control), `depthsys.lm` (torch:
language models), `depthsys.plot` (figures). They are loaded on first use, so importing
`depthsys` or `depthsys.ltv` loads no torch.
"""

from importlib import import_module

from depthsys._version import __version__

__all__ = ["__version__", "lm", "ltv", "plot"]  # noqa: F822  (loaded by __getattr__)


def __getattr__(name: str):
    if name in ("lm", "ltv", "plot"):
        return import_module(f"depthsys.{name}")
    raise AttributeError(f"module 'depthsys' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
