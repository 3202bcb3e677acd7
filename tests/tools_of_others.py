"""repeng, steering-vectors and llama.cpp, whose pins conflict with ours, in their own environment.

Making it takes a minute or two and needs a package index; it is kept in pytest's cache.
DEPTHSYS_TEST_TOOLS names the interpreter of another one.
"""

import json
import os
import platform
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from filelock import FileLock

# repeng 0.4 needs numpy below 2, steering-vectors transformers below 5
PACKAGES = ["numpy<2", "transformers>=4.50,<5", "repeng==0.4.0", "steering-vectors==0.12.2"]
LLAMA_CPP = "xllamacpp==2026.10.11549"  # a wheel that holds llama.cpp


def interpreter(folder: Path) -> Path:
    """That of the environment in the folder; torch is the one that runs this."""
    if given := os.environ.get("DEPTHSYS_TEST_TOOLS"):
        return Path(given)
    python = folder / "bin" / "python"
    with FileLock(folder.with_suffix(".lock")):  # several workers may want it
        if not (folder / "made").exists():
            _make(folder, python)
    return python


def _make(folder: Path, python: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    find = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    site = subprocess.run([python, "-c", find], check=True, capture_output=True, text=True).stdout
    # packages of this environment come after its own
    (Path(site.strip()) / "zz_outer.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    wanted = [*PACKAGES, LLAMA_CPP] if platform.machine() == "x86_64" else PACKAGES
    done = subprocess.run([python, "-m", "pip", "install", "-q", *wanted], capture_output=True)
    if done.returncode:
        pytest.skip(f"the tools could not be installed: {done.stderr.decode()[-300:]}")
    (folder / "made").touch()


def called(python: Path, script: Path, request: dict, folder: Path) -> None:
    """Run a script with that interpreter; what it is asked for lies in the folder."""
    path = folder / "request.json"
    path.write_text(json.dumps(request))
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [python, script, path],
        env=env | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr[-3000:]
