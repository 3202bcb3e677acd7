"""`depthsys doctor` as it is typed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from depthsys import __version__
from depthsys.study.findings import ABSENT, FAILED, OK, Finding

ROOT = Path(__file__).parents[2]
WELL = [
    Finding("versions", "python", OK, "3.12"),
    Finding("optional parts", "peft", ABSENT, "adapters; without peft", "pip install peft"),
    Finding("self-test", "files", OK, "the same"),
]
BROKEN = Finding("versions", "h5py", FAILED, "ImportError: libhdf5.so", "pip install h5py")


def finds(monkeypatch, findings):
    """`everything` as the command takes it."""
    monkeypatch.setattr("depthsys.cli.doctor.everything", lambda: iter(findings))


def test_lines_by_section_and_a_verdict(run, monkeypatch):
    finds(monkeypatch, WELL)
    code, shown, err = run("doctor")
    assert (code, err) == (0, "")
    *lines, verdict = shown.splitlines()
    assert lines == [
        "Versions",
        "  ok      python: 3.12",
        "Optional parts",
        "  absent  peft: adapters; without peft -> pip install peft",
        "Self-test",
        "  ok      files: the same",
    ]
    assert verdict.startswith("All is well. ")


def test_a_failure_is_named_and_is_the_exit_status(run, monkeypatch):
    finds(monkeypatch, [BROKEN, *WELL])
    code, shown, err = run("doctor")
    assert (code, err) == (1, "")
    assert "  FAILED  h5py: ImportError: libhdf5.so -> pip install h5py\n" in shown
    assert shown.splitlines()[-1].startswith("FAILED: h5py (versions). ")
    assert "  ok      files: the same" in shown  # the rest was looked at


@pytest.mark.parametrize("more", [[], [BROKEN]])
def test_json_for_reports_of_faults(run, monkeypatch, more):
    finds(monkeypatch, [*WELL, *more])
    code, shown, _ = run("doctor", "--json")
    told = json.loads(shown)
    assert code == len(more)
    assert (told["depthsys"], told["ok"]) == (__version__, not more)
    assert told["failed"] == ["versions: h5py"] * len(more)
    assert told["findings"][1] == {
        "section": "optional parts",
        "name": "peft",
        "state": "absent",
        "said": "adapters; without peft",
        "cure": "pip install peft",
    }
    assert told["seconds"] >= 0


def test_what_packages_print_is_not_in_the_json(run, monkeypatch):
    def chatty():
        print("welcome to a package")
        yield WELL[0]

    monkeypatch.setattr("depthsys.cli.doctor.everything", chatty)
    _, shown, err = run("doctor", "--json")
    assert json.loads(shown)["ok"]
    assert "welcome" in err


@pytest.mark.slow
def test_the_whole_of_it_in_a_process_of_its_own():
    """No optional part is imported only to be told."""
    code = (
        "import sys, json; sys.argv = ['depthsys', 'doctor', '--json']\n"
        "from depthsys.cli import main\n"
        "try:\n    main()\n"
        "finally:\n    print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    told = json.loads(done.stdout)
    assert told["ok"]
    sections = list(dict.fromkeys(each["section"] for each in told["findings"]))
    assert sections == ["versions", "devices", "optional parts", "places", "self-test"]
    loaded = set(json.loads(done.stderr.splitlines()[-1]))
    assert not loaded & {"fmpy", "optimum", "peft", "pymor", "pythonfmu"}
    assert FAILED not in {each["state"] for each in told["findings"]}
