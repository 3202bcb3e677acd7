"""One small study for all tests of pages."""

from pathlib import Path

import pytest

from tests.report import stores


@pytest.fixture(scope="session")
def stages():
    return stores.results()


@pytest.fixture(scope="session")
def store(stages, tmp_path_factory) -> Path:
    """Six cells, to be read only."""
    return stores.write_study(tmp_path_factory.mktemp("study") / "study.zarr", stages)
