"""What is installed here, on which devices, and what is missing: for `depthsys doctor`.

Needs the standard library alone, so that it can say which package is broken; nothing here raises
because something is missing.
"""

import importlib
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from depthsys._version import __version__
from depthsys.study.findings import ABSENT, FAILED, NOTE, OK, Finding, reason, shown, tried
from depthsys.study.self_test import self_test
from depthsys.wording import counted, size

# what the extras of the package bring
BRINGS = {
    "cluster": "studies on the workers of a Dask cluster",
    "control": "SLICOT's norms and Riccati solvers",
    "docs": "the documentation site, `make docs`",
    "export": "FMUs and safetensors files for others",
    "parquet": "texts in Parquet files and folders of `datasets`",
    "pymor": "systems as models of pyMOR",
}
# what the package uses where it is installed, and has no extra for
OTHERS = {
    "optimum-quanto": "checkpoints quantised with quanto",
    "peft": "adapters, such as LoRA",
}
PROGRAMS = {
    "octave": ("runs the checks of exports to MATLAB", "Install GNU Octave: https://octave.org"),
}
_DEVELOPERS = "dev"
# packages that are imported by another name than they are installed by
_MODULES = {"scikit-learn": "sklearn", "optimum-quanto": "optimum", "FMPy": "fmpy"}


def everything() -> Iterator[Finding]:
    """All that `depthsys doctor` looks at, one after the other."""
    yield from (*versions(), *devices(), *optional_parts(), *places())
    yield from self_test()


# ------------------------------------------------------------------------------- versions


def versions() -> list[Finding]:
    """Of Python, of this package, and of every package that it needs, each of them imported."""
    section = "versions"
    about = f"{platform.python_version()}, {shown(sys.executable)}, {platform.platform()}"
    found = [
        Finding(section, "python", OK, about),
        Finding(section, "depthsys", OK, f"{__version__}, {shown(Path(__file__).parents[1])}"),
    ]
    try:
        needed = [each for each, extra in requirements() if extra is None]
    except ImportError as error:  # there is no metadata, or nothing that reads it
        cure = "Install it, also from its sources: pip install -e ."
        return [*found, Finding(section, "packages", FAILED, reason(error), cure)]
    return found + [_needed(section, each) for each in needed]


def requirements() -> list[tuple[Any, str | None]]:
    """What the installed package asks for: requirements, and the extra that each belongs to.

    Raises
    ------
    ImportError
        If depthsys is not installed as a package, or ``packaging`` is missing.
    """
    from packaging.requirements import Requirement

    extras = metadata.metadata("depthsys").get_all("Provides-Extra") or []
    found: list[tuple[Any, str | None]] = []
    for text in metadata.requires("depthsys") or []:
        each = Requirement(text)
        of = [e for e in extras if each.marker and each.marker.evaluate({"extra": e})]
        if each.marker is None or each.marker.evaluate({"extra": ""}):
            found.append((each, None))
        else:
            found += [(each, extra) for extra in of]
    return found


def _needed(section: str, asked: Any) -> Finding:
    name, wanted = str(asked.name), str(asked.specifier)
    install = f"pip install '{name}{wanted}'"
    version = _installed(name)
    if version is None:
        return Finding(section, name, FAILED, f"not installed; {wanted} is needed", install)
    if not asked.specifier.contains(version, prereleases=True):
        return Finding(section, name, FAILED, f"{version}; {wanted} is needed", install)
    again = f"It is installed, and broken: pip install --force-reinstall '{name}{wanted}'"

    def imported() -> str:
        importlib.import_module(_MODULES.get(name, name.replace("-", "_")))
        return version

    return tried(section, name, imported, again)


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


# -------------------------------------------------------------------------------- devices


def devices() -> list[Finding]:
    """Cores, memory, threads, and every accelerator, each of which computes something."""
    section = "devices"
    found = [
        Finding(section, "processor", OK, _cores()),
        tried(section, "memory", _memory),
    ]
    try:
        import torch
    except Exception as error:  # `versions` says what is wrong with it
        return [
            *found,
            Finding(section, "accelerators", FAILED, reason(error), "Mend torch first."),
        ]
    found.append(Finding(section, "threads", *_threads(torch.get_num_threads())))
    return found + _accelerators(section, torch)


def _cores() -> str:
    total = os.cpu_count() or 1
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else total
    told = counted(mine, "core") + (f" of {total}" if mine != total else "")
    return f"{told}, {platform.machine()}"


def _memory() -> str:
    from depthsys.lm.memory import available_memory

    free = available_memory()
    return "not known" if free is None else f"{size(free)} available to this process"


def _threads(count: int) -> tuple[str, str, str]:
    asked = os.environ.get("OMP_NUM_THREADS")
    return OK, f"{count} of torch{f', OMP_NUM_THREADS={asked}' if asked else ''}", ""


def _accelerators(section: str, torch: Any) -> list[Finding]:
    found = []
    try:
        count = torch.cuda.device_count()
    except Exception as error:
        return [Finding(section, "GPU", FAILED, reason(error), "Reinstall torch and the driver.")]
    for number in range(count):
        told = lambda n=number: _computes(torch, f"cuda:{n}", _card(torch, n))  # noqa: E731
        cure = "The driver, torch's build and this card must fit: https://pytorch.org/get-started"
        found.append(tried(section, f"cuda:{number}", told, cure))
    if not count:
        found.append(Finding(section, "GPU", *_no_gpu(torch)))
    if torch.backends.mps.is_available():
        found.append(tried(section, "mps", lambda: _computes(torch, "mps", "Apple's GPU")))
    return found


def _card(torch: Any, number: int) -> str:
    about = torch.cuda.get_device_properties(number)
    return (
        f"{about.name}, {size(about.total_memory)}, compute capability {about.major}.{about.minor}"
    )


def _computes(torch: Any, device: str, about: str) -> str:
    """What it is, once a product on it has come out right."""
    ones = torch.ones(64, 64, device=device)
    total = float((ones @ ones).sum())
    if total != 64.0**3:
        raise ArithmeticError(f"a product of ones is {total:g} on {device}, not {64.0**3:g}")
    return about


def _no_gpu(torch: Any) -> tuple[str, str, str]:
    has_driver = shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia").is_dir()
    if has_driver and torch.version.cuda is None:
        said = f"an NVIDIA driver is here, but torch {torch.__version__} is built without CUDA"
        return NOTE, said, "Install a build with CUDA: https://pytorch.org/get-started"
    if has_driver:
        said = f"an NVIDIA driver is here, but torch {torch.__version__} sees no card"
        try:
            torch.cuda.init()
        except Exception as error:  # of the driver, say: it tells its version
            said += f": {reason(error)}"
        return NOTE, said, "See what CUDA_VISIBLE_DEVICES is, and what `nvidia-smi` says."
    return NOTE, "none, so models run on the processor", ""


# --------------------------------------------------------------------------- optional parts


def optional_parts() -> list[Finding]:
    """Every extra, package and program that is used where it is there, with its install line."""
    section = "optional parts"
    try:
        asked = requirements()
    except ImportError:  # `versions` says so
        asked = []
    extras: dict[str, list[str]] = {}
    for each, extra in asked:
        if extra not in (None, _DEVELOPERS):
            extras.setdefault(extra, []).append(each.name)
    found = [_extra(section, extra, names) for extra, names in sorted(extras.items())]
    in_extras = {_normal(name) for names in extras.values() for name in names}
    for name, brings in OTHERS.items():
        if _normal(name) not in in_extras:
            found.append(_part(section, name, [name], brings, f"pip install {name}"))
    for name, (brings, install) in PROGRAMS.items():
        place = shutil.which(name)
        state, said = (ABSENT, brings) if place is None else (OK, f"{shown(place)}; {brings}")
        found.append(Finding(section, name, state, said, install if place is None else ""))
    return found


def _extra(section: str, extra: str, names: list[str]) -> Finding:
    brings = BRINGS.get(extra, ", ".join(names))
    return _part(section, f"depthsys[{extra}]", names, brings, f"pip install 'depthsys[{extra}]'")


def _part(section: str, name: str, packages: list[str], brings: str, install: str) -> Finding:
    there = {each: _installed(each) for each in packages}
    missing = [each for each, version in there.items() if version is None]
    if missing:
        return Finding(section, name, ABSENT, f"{brings}; without {', '.join(missing)}", install)
    told = ", ".join(f"{each} {version}" for each, version in there.items())
    return Finding(section, name, OK, f"{brings}: {told}")


def _normal(name: str) -> str:
    return name.lower().replace("_", "-")


# ----------------------------------------------------------------------------------- places


def places() -> list[Finding]:
    """The folder for temporary files, the real model, and where the hub keeps others."""
    section = "places"
    cure = "Set TMPDIR to a folder that can be written, with room for a model's contexts."
    found = [tried(section, "temporary files", _temporary, cure)]
    found.append(_real_model(section))
    return [*found, tried(section, "models of the hub", _hub)]


def _real_model(section: str) -> Finding:
    name = "real model"
    try:
        from depthsys.demo.real import MODEL, default_folder

        place = default_folder() / MODEL
        is_there = place.is_file()
    except Exception as error:  # no home folder, or one that must not be read
        cure = "Name a folder in the environment variable DEPTHSYS_REAL."
        return Finding(section, name, FAILED, reason(error), cure)
    if is_there:
        return Finding(section, name, OK, shown(place))
    return Finding(
        section, name, ABSENT, f"SmolLM2 is not in {shown(place.parent)}", "depthsys fetch"
    )


def _temporary() -> str:
    folder = Path(tempfile.gettempdir())
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"depthsys")
    return f"{shown(folder)} can be written, {size(shutil.disk_usage(folder).free)} free"


def _hub() -> str:
    from huggingface_hub import constants

    offline = ", which is not asked (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else ""
    return f"{shown(constants.HF_HUB_CACHE)}{offline}"
