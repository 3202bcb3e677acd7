"""`depthsys report` at the shell."""

import pytest


def test_it_writes_a_page_and_says_what_is_not_there(run, study_store, tmp_path):
    out = tmp_path / "new/report.html"
    code, said, _ = run("report", study_store, "--out", out)
    assert code == 0
    text = out.read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>")
    assert text.endswith("</html>")
    assert (
        "- 1 cell failed: the page says which\n- 1 cell unfinished: the page says which\n" in said
    )
    assert said.splitlines()[-1].startswith("Report of 6 cells (")
    assert [each.name for each in out.parent.iterdir()] == ["report.html"]


def test_it_replaces_nothing_without_force(run, study_store, tmp_path):
    out = tmp_path / "report.html"
    out.write_text("mine")
    code, _, error = run("report", study_store, "--out", out)
    assert code == 2
    assert "`--out` must not exist yet" in error
    assert out.read_text() == "mine"
    assert run("report", study_store, "--out", out, "--force")[0] == 0
    assert out.read_text() != "mine"


@pytest.mark.parametrize(
    ("source", "out", "said"),
    [
        ("none.zarr", "r.html", "`RESULTS` must be a study.zarr"),
        (".", "r.html", "`RESULTS` must hold results of depthsys"),
        (".", "r.pdf", "`--out` must end in .html; got 'r.pdf'"),
    ],
)
def test_what_it_refuses(run, tmp_path, monkeypatch, source, out, said):
    monkeypatch.chdir(tmp_path)
    code, _, error = run("report", source, "--out", out)
    assert code == 2
    assert said in error
    assert list(tmp_path.iterdir()) == []


def test_it_loads_no_model_library(study_store, tmp_path):
    import subprocess
    import sys

    code = (
        "import sys; from depthsys import cli; sys.argv = ['depthsys', *sys.argv[1:]]\n"
        "try: cli.main()\n"
        "except SystemExit: print([m for m in ('torch', 'matplotlib', 'zarr') if m in sys.modules])"
    )
    command = [sys.executable, "-c", code, "report", study_store, "--out", tmp_path / "r.html"]
    out = subprocess.run(command, capture_output=True, text=True, check=True)
    assert out.stdout.splitlines()[-1] == "[]"
