"""What `depthsys doctor` finds, where all is well and where something is broken."""

import json
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from depthsys import export, lm, ltv
from depthsys.study import doctor, self_test
from depthsys.study.findings import ABSENT, FAILED, NOTE, OK, Finding

ROOT = Path(__file__).parents[2]


def by_name(findings):
    return {each.name: each for each in findings}


def test_every_needed_package_is_imported_and_its_version_told():
    found = by_name(doctor.versions())
    assert {each.state for each in found.values()} == {OK}
    assert found["torch"].said == torch.__version__
    assert found["numpy"].said == np.__version__
    assert found["python"].said.startswith(f"{sys.version_info.major}.{sys.version_info.minor}.")


def test_a_package_that_cannot_be_imported_is_named_with_its_reason(monkeypatch):
    real = doctor.importlib.import_module

    def importing(name):
        if name == "sklearn":
            raise OSError("libgomp.so.1: cannot open shared object file\nand more")
        return real(name)

    monkeypatch.setattr(doctor.importlib, "import_module", importing)
    found = by_name(doctor.versions())
    broken = [each for each in found.values() if each.state == FAILED]
    assert [each.name for each in broken] == ["scikit-learn"]
    assert broken[0].said == "OSError: libgomp.so.1: cannot open shared object file"
    assert "pip install --force-reinstall 'scikit-learn>=" in broken[0].line()


@pytest.mark.parametrize(("there", "said"), [("0.0.1", "0.0.1; >="), (None, "not installed; >=")])
def test_a_package_that_is_old_or_missing_comes_with_its_install_line(monkeypatch, there, said):
    real = metadata.version

    def version(name):
        if name != "zarr":
            return real(name)
        if there is None:
            raise metadata.PackageNotFoundError(name)
        return there

    monkeypatch.setattr(doctor.metadata, "version", version)
    found = by_name(doctor.versions())["zarr"]
    assert (found.state, found.said.startswith(said)) == (FAILED, True)
    assert found.cure.startswith("pip install 'zarr>=")


def test_a_source_tree_that_is_not_installed(monkeypatch):
    def none(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.metadata, "metadata", none)
    found = by_name(doctor.versions())
    assert found["packages"].state == FAILED
    assert "pip install -e ." in found["packages"].cure
    parts = by_name(doctor.optional_parts())
    assert "peft" in parts
    assert not any(name.startswith("depthsys[") for name in parts)


def test_every_extra_says_what_it_brings():
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(asked["optional-dependencies"]) - {"dev"} <= set(doctor.BRINGS)


def test_extras_and_programs_that_are_missing_are_not_failures(monkeypatch):
    asked = [("left>=1; extra == 'control'", "1.2"), ("right; extra == 'control'", None)]
    monkeypatch.setattr(doctor.metadata, "metadata", lambda name: SimpleNamespace(
        get_all=lambda _: ["control", "dev"]
    ))  # fmt: skip
    texts = [text for text, _ in asked] + ["ruff; extra == 'dev'", "numpy"]
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: texts)
    there = {text.split(">")[0].split(";")[0]: version for text, version in asked}
    monkeypatch.setattr(doctor, "_installed", lambda name: there.get(name, "9"))
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    found = by_name(doctor.optional_parts())
    assert found["depthsys[control]"] == Finding(
        "optional parts",
        "depthsys[control]",
        ABSENT,
        "SLICOT's norms and Riccati solvers; without right",
        "pip install 'depthsys[control]'",
    )
    assert (found["octave"].state, "octave.org" in found["octave"].cure) == (ABSENT, True)
    assert (found["peft"].state, found["peft"].said) == (OK, "adapters, such as LoRA: peft 9")
    there["right"] = "3"
    found = by_name(doctor.optional_parts())["depthsys[control]"]
    assert (found.state, found.cure) == (OK, "")
    assert found.said.endswith("left 1.2, right 3")


# -------------------------------------------------------------------------------- devices


def a_torch(n_cards=0, broken=(), cuda="12.6", mps=False):
    """As much of torch as is asked, with cards that are this processor."""

    def ones(*shape, device):
        if device in broken:
            raise RuntimeError("CUDA error: no kernel image is available for this device")
        return torch.ones(*shape)

    about = SimpleNamespace(name="Card X", total_memory=80 * 10**9, major=9, minor=0)
    return SimpleNamespace(
        ones=ones,
        __version__="9.9",
        version=SimpleNamespace(cuda=cuda),
        cuda=SimpleNamespace(
            device_count=lambda: n_cards, get_device_properties=lambda number: about
        ),
        backends=SimpleNamespace(mps=SimpleNamespace(is_available=lambda: mps)),
    )


def test_every_card_is_told_once_it_has_computed():
    found = by_name(doctor._accelerators("devices", a_torch(2, ["cuda:1"], mps=True)))
    assert list(found) == ["cuda:0", "cuda:1", "mps"]
    assert found["cuda:0"].said == "Card X, 80 GB, compute capability 9.0"
    assert (found["cuda:0"].state, found["mps"].state) == (OK, OK)
    assert found["cuda:1"].state == FAILED
    assert "no kernel image" in found["cuda:1"].said
    assert "pytorch.org" in found["cuda:1"].cure


def test_a_card_that_computes_wrongly_has_failed():
    wrong = a_torch(1)
    wrong.ones = lambda *shape, device: 2.0 * torch.ones(*shape)
    (found,) = doctor._accelerators("devices", wrong)
    assert found.state == FAILED
    assert "a product of ones is 1.04858e+06 on cuda:0" in found.said


def test_a_driver_that_does_not_answer():
    silent = a_torch()

    def count():
        raise RuntimeError("driver is too old")

    silent.cuda.device_count = count
    (found,) = doctor._accelerators("devices", silent)
    assert (found.state, found.said) == (FAILED, "RuntimeError: driver is too old")


@pytest.mark.parametrize(
    ("driver", "cuda", "said", "cure"),
    [
        (None, None, "none, so models run on the processor", ""),
        ("/usr/bin/nvidia-smi", None, "built without CUDA", "Install a build with CUDA"),
        ("/usr/bin/nvidia-smi", "12.6", "sees no card: RuntimeError: too old", "See what CUDA_VIS"),
    ],
)
def test_why_there_is_no_card(monkeypatch, driver, cuda, said, cure):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: driver)
    monkeypatch.setattr(Path, "is_dir", lambda self: False)
    here = a_torch(cuda=cuda)

    def init():
        raise RuntimeError("too old")

    here.cuda.init = init
    (found,) = doctor._accelerators("devices", here)
    assert (found.name, found.state) == ("GPU", NOTE)
    assert said in found.said
    assert found.cure.startswith(cure)


def test_cores_memory_and_threads(monkeypatch):
    monkeypatch.setattr("depthsys.lm.memory.available_memory", lambda: 12 * 10**9)
    monkeypatch.setattr(doctor.os, "cpu_count", lambda: 64)
    monkeypatch.setattr(doctor.os, "sched_getaffinity", lambda pid: {1, 2, 3}, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    found = by_name(doctor.devices())
    assert found["processor"].said.startswith("3 cores of 64")
    assert found["memory"].said == "12 GB available to this process"
    assert found["threads"].said == f"{torch.get_num_threads()} of torch, OMP_NUM_THREADS=3"


# --------------------------------------------------------------------------------- places


def test_where_the_real_model_is(monkeypatch, tmp_path):
    from depthsys.demo.real import MODEL

    monkeypatch.setenv("DEPTHSYS_REAL", str(tmp_path))
    monkeypatch.setattr(Path, "home", lambda: tmp_path.parent)
    found = by_name(doctor.places())["real model"]
    assert (found.state, found.cure) == (ABSENT, "depthsys fetch")
    assert found.said == f"SmolLM2 is not in ~/{tmp_path.name}"
    (tmp_path / MODEL).touch()
    found = by_name(doctor.places())["real model"]
    assert (found.state, found.said) == (OK, f"~/{tmp_path.name}/{MODEL}")


def test_a_home_that_is_not_there(monkeypatch):
    def none():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("DEPTHSYS_REAL", raising=False)
    monkeypatch.setattr(Path, "home", none)
    found = by_name(doctor.places())
    assert found["real model"].state == FAILED
    assert "DEPTHSYS_REAL" in found["real model"].cure


def test_temporary_files_that_cannot_be_written(monkeypatch, tmp_path):
    assert by_name(doctor.places())["temporary files"].state == OK
    monkeypatch.setattr(doctor.tempfile, "gettempdir", lambda: str(tmp_path / "none"))
    found = by_name(doctor.places())["temporary files"]
    assert (found.state, found.said.startswith("FileNotFoundError")) == (FAILED, True)
    assert "TMPDIR" in found.cure


# ------------------------------------------------------------------------------ self-test

NAMES = [
    "linear systems", "files", "load a model", "contract", "identify",
    "predicted against measured gains",
]  # fmt: skip


def states():
    found = by_name(self_test.self_test())
    assert list(found) == NAMES
    assert {each.section for each in found.values()} == {"self-test"}
    return found


def test_all_steps_pass_here():
    found = states()
    assert {each.state for each in found.values()} == {OK}
    assert "demo_48x4 on cpu" in found["load a model"].said


def test_gains_that_do_not_agree(monkeypatch):
    real = lm.measure_gains
    monkeypatch.setattr(lm, "measure_gains", lambda *given: 1.02 * real(*given))
    found = states()
    assert [each.name for each in found.values() if each.state == FAILED] == NAMES[-1:]
    assert "they differ by 2.0e-02, where 0.01 is allowed" in found[NAMES[-1]].said
    monkeypatch.setattr(lm, "measure_gains", lambda *given: np.nan * real(*given))
    assert states()[NAMES[-1]].state == FAILED


def test_linear_systems_and_files_that_are_wrong(monkeypatch):
    plan, read = ltv.minimum_energy, export.read
    monkeypatch.setattr(ltv, "minimum_energy", lambda *given: (1 + 1e-8) * plan(*given))
    monkeypatch.setattr(export, "read", lambda path: read(path).assign(B=2 * read(path)["B"]))
    monkeypatch.setattr(lm.DepthModel, "load", lambda *_: pytest.fail("not this one"))
    found = list(zip(range(2), self_test.self_test(), strict=False))
    assert [each.state for _, each in found] == [FAILED, FAILED]
    assert "the output that a plan reaches is 0.7" in found[0][1].said
    assert "B is another one, read back from system.nc" in found[1][1].said


def test_a_plan_that_costs_more_than_the_least(monkeypatch):
    plan = ltv.minimum_energy
    dearer = lambda *given: plan(*given).assign(energy=1.1 * plan(*given)["energy"])  # noqa: E731
    monkeypatch.setattr(ltv, "minimum_energy", dearer)
    found = next(self_test.self_test())
    assert (found.state, "its energy is" in found.said) == (FAILED, True)


def test_without_a_model_the_other_steps_say_that_they_were_not_tried(monkeypatch):
    def broken(*_):
        raise RuntimeError("undefined symbol: _ZN2at4_ops")

    monkeypatch.setattr(lm.DepthModel, "load", broken)
    found = states()
    assert [found[name].state for name in NAMES] == [OK, OK, *[FAILED] * 4]
    assert found["load a model"].said == "RuntimeError: undefined symbol: _ZN2at4_ops"
    assert found["identify"].said == "not tried, for 'load a model' failed"


WITHOUT = """
import sys
for name in {names!r}:
    sys.modules[name] = None  # importing it is an ImportError
sys.argv = ["depthsys", "doctor", "--json"]
from depthsys.cli import main
main()
"""


def test_it_runs_where_nothing_can_be_imported():
    names = ["numpy", "scipy", "torch", "xarray", "transformers", "packaging", "huggingface_hub"]
    code = WITHOUT.format(names=names)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    told = json.loads(done.stdout)
    assert not told["ok"]
    assert {"versions: packages", "self-test: linear systems"} <= set(told["failed"])
    assert "places: temporary files" not in told["failed"]
