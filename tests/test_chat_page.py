"""docs/chat_prompts.md says what docs/chat_prompts.nc holds."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

DOCS = Path(__file__).parents[1] / "docs"
PAGE = " ".join((DOCS / "chat_prompts.md").read_text(encoding="utf-8").split())


@pytest.fixture(scope="module")
def stored() -> xr.Dataset:
    return xr.load_dataset(DOCS / "chat_prompts.nc", engine="h5netcdf")


def test_the_command_is_the_one_that_was_run(stored):
    template = stored.attrs["template"].replace("\n", "\\n")
    assert f"--chat --template '{template}'" in PAGE
    assert f"--split {stored.attrs['split']}" in PAGE


def test_what_is_said_of_the_gains(stored):
    gain = stored.measured_gain.values
    assert "before layer 15 moves the last state little (gains of -0.8 to 0.5)" in PAGE
    assert [round(float(f(gain[1:15])), 1) for f in (np.min, np.max)] == [-0.8, 0.5]
    assert "one from layer 16 on much (1.3 to 3.0)" in PAGE
    assert [round(float(f(gain[16:])), 1) for f in (np.min, np.max)] == [1.3, 3.0]
    assert "at depth 0 there is no direction" in PAGE
    assert np.isnan(gain[0])
    error, floor = float(stored.relative_l2[0]), float(stored.noise_floor)
    said = f"misses the measured gains by {100 * error:.1f} %, of which {100 * floor:.1f} %"
    assert said in PAGE


def test_what_is_said_of_the_auc(stored):
    auc, low = stored.auc.values, stored.auc_low.values
    best = int(np.nanargmax(auc))
    assert f"best {auc[best]:.2f} [{low[best]:.2f}" in PAGE
    # "from depth 15 on the header knows about the review"
    assert low[15:].min() > 0.65
    assert np.nanmax(auc[:14]) < 0.65
