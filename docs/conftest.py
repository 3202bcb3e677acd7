"""The examples of the pages write their files into a temporary folder."""

import pytest

# for Sphinx, which is in the extra `docs`
collect_ignore = ["conf.py", "_extensions"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
