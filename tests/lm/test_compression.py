"""The autoencoder: what it can and cannot do, beside PCA."""

import numpy as np
import pytest
import torch
import xarray as xr

from depthsys import lm


def states(rows: np.ndarray) -> xr.DataArray:
    return xr.DataArray(rows, dims=("sublayer", "prompt", "feature"))


@pytest.fixture(scope="module")
def curved():
    """A circle that bends through a third dimension and more: one number tells it all."""
    rng = np.random.default_rng(0)
    t = rng.uniform(0, 2 * np.pi, (4, 60))
    bent = np.stack([np.cos(t), np.sin(t), np.cos(2 * t), np.sin(2 * t)], axis=-1)
    turn = np.linalg.qr(rng.standard_normal((8, 8)))[0][:4]
    return states(bent @ turn + 0.5)


@pytest.fixture(scope="module")
def found(curved):
    return lm.compress(curved, epochs=600, hidden=(64, 32), seed=1)


def test_it_bends_where_pca_cannot(found):
    assert float(found["explained"].sel(compressor="autoencoder")) > 0.9
    assert float(found["explained"].sel(compressor="pca")) == pytest.approx(0.5, abs=0.1)


def test_explained_is_of_prompts_left_out(curved, found):
    tested = found["tested"].values
    assert tested.sum() == 12
    fitted = curved.values[:, ~tested].reshape(-1, 8)
    centre = fitted.mean(0)
    axes = np.linalg.svd(fitted - centre, full_matrices=False)[2][:2]
    x = curved.values[:, tested]
    back = centre + (x - centre) @ axes.T @ axes
    lost, total = ((x - back) ** 2).sum((1, 2)), ((x - centre) ** 2).sum((1, 2))
    pca = found.sel(compressor="pca")
    assert float(pca["explained"]) == pytest.approx(1 - lost.sum() / total.sum())
    np.testing.assert_allclose(pca["explained_at"], 1 - lost / total)
    within = ((x - x.mean(1, keepdims=True)) ** 2).sum((1, 2))
    np.testing.assert_allclose(pca["explained_within"], 1 - lost / within)


def test_loss_falls_to_what_is_not_explained(found):
    loss = found["loss"]
    assert float(loss[-1, 0]) < 0.2 * float(loss[0, 0])
    test = float(loss.sel(split="test")[-1])
    missing = 1 - float(found["explained"].sel(compressor="autoencoder"))
    # of the variance of the fitted ones, or of the test ones
    assert test == pytest.approx(missing, rel=0.2)


def test_the_same_seed_gives_the_same(curved):
    draw = torch.random.get_rng_state()
    first, again = (lm.compress(curved, epochs=2, hidden=(8,), seed=3) for _ in range(2))
    xr.testing.assert_identical(first, again)
    assert torch.equal(draw, torch.random.get_rng_state())  # nobody else's numbers change
    other = lm.compress(curved, epochs=2, hidden=(8,), seed=4)
    assert not np.allclose(first["code"], other["code"])


def test_states_of_a_model_keep_what_they_are_of(tiny):
    from tests.lm.conftest import labelled_ids

    x = lm.sublayer_states(tiny, labelled_ids(10, 2))
    found = lm.compress(x, epochs=1, hidden=(8,))
    assert found.attrs["model"] == x.attrs["model"]
    assert found["before"].values.tolist() == x["before"].values.tolist()
    assert found["code"].shape == (x.sizes["sublayer"], 10, 2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"states": states(np.zeros((2, 4, 3)))}, "with 5 prompts at least; got"),
        ({"states": xr.DataArray(np.zeros((2, 12)), dims=("sublayer", "prompt"))}, "`states` must"),
        ({"states": states(np.zeros((2, 12, 3)))}, "`states` must differ"),
        ({"states": states(np.full((2, 12, 3), np.nan))}, "`states` must be finite"),
        ({"states": states(np.full((2, 12, 3), 1e200))}, r"can be squared; the .* 1\.0e\+200"),
        ({"states": states(np.full((2, 12, 3), 1e-200))}, r"can be squared; the .* 1\.0e-200"),
        ({"seed": 0.5}, r"`seed` must be a whole number in 0..4294967295; got 0.5"),
        ({"hidden": ()}, "`hidden` must be some widths"),
        ({"hidden": 8}, "`hidden` must be some widths"),
        ({"n_dims": 0}, "`n_dims` must be a whole number >= 1; got 0"),
        ({"n_dims": 8}, "`n_dims` must be less than the 8 features; got 8"),
        ({"epochs": 1.5}, "`epochs` must be a whole number >= 1; got 1.5"),
        ({"hidden": (4, 0)}, r"`hidden\[1\]` must be a whole number >= 1; got 0"),
    ],
)
def test_what_is_refused(curved, change, words):
    given = {"states": curved, **change}
    with pytest.raises(ValueError, match=words):
        lm.compress(given.pop("states"), **given)


def test_arrays_are_refused():
    with pytest.raises(TypeError, match="`states` must be a DataArray; got an array of shape"):
        lm.compress(np.zeros((2, 12, 3)))


def test_a_result_can_be_stored(found, tmp_path):
    found.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "a.nc", engine="h5netcdf") as kept:
        xr.testing.assert_allclose(kept.load(), found)


def test_few_states_are_seen_more_often(monkeypatch):
    rng = np.random.default_rng(0)
    few = xr.DataArray(rng.standard_normal((3, 6, 5)), dims=("sublayer", "prompt", "feature"))
    monkeypatch.setattr("depthsys.lm.compression.STEPS", 70)
    assert lm.compress(few, hidden=(4,)).attrs["epochs"] == 70  # one step each
    monkeypatch.setattr("depthsys.lm.compression.STEPS", 7)
    assert lm.compress(few, hidden=(4,)).attrs["epochs"] == 30


@pytest.mark.parametrize(
    ("options", "said"),
    [({"seed": -1}, "`seed` must be a whole number"), ({"hidden": 8}, "`hidden` must be some")],
)
def test_more_wrong_options(options, said):
    x = xr.DataArray(np.eye(6)[None].repeat(2, 0), dims=("sublayer", "prompt", "feature"))
    with pytest.raises(ValueError, match=said):
        lm.compress(x, **options)
