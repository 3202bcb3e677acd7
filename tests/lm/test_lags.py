"""What a map over lags explains, by hand and by loops."""

import numpy as np
import pytest
import xarray as xr

from depthsys import lm

DIMS = ("prompt", "layer", "lag")


def dataset(gain, n_tokens, norm=None) -> xr.Dataset:
    gain = np.array(gain, dtype=float)
    missing = np.arange(gain.shape[2]) >= np.asarray(n_tokens)[:, None]
    norm = np.ones(gain.shape) if norm is None else np.array(norm, dtype=float)
    for array in (gain, norm):
        array[np.broadcast_to(missing[:, None], array.shape)] = np.nan
    return xr.Dataset(
        {
            "gain": (DIMS, gain),
            "gradient_norm": (DIMS, abs(gain)),
            "state_norm": (DIMS, norm),
            "n_tokens": ("prompt", n_tokens),
        }
    )


@pytest.fixture
def found():
    rng = np.random.default_rng(0)
    return dataset(rng.standard_normal((5, 2, 6)), [6, 3, 4, 6, 1], rng.uniform(1, 2, (5, 2, 6)))


def test_a_toeplitz_map_is_explained_by_the_lag_and_one_of_positions_is_not():
    n_tokens, kernel = [8, 6, 7, 5], 3.0 * 0.5 ** np.arange(8)
    by_lag = lm.lag_map(dataset(np.broadcast_to(kernel, (4, 1, 8)), n_tokens))
    shares = by_lag["explained"].isel(layer=0)
    assert float(shares.sel(by="lag")) == pytest.approx(1, abs=1e-12)
    assert float(shares.sel(by="position")) < 0.9
    assert float(shares.sel(by="layer")) < 0.9
    assert by_lag["decay_rate"].item() == pytest.approx(np.log(2))
    assert by_lag["decay_rate_r2"].item() == pytest.approx(1)
    assert by_lag["decay_power_r2"].item() < 0.99
    position = np.array(n_tokens)[:, None] - 1 - np.arange(8)
    gain = (0.5 ** np.clip(position, 0, None).astype(float))[:, None]
    by_place = lm.lag_map(dataset(gain, n_tokens))["explained"].isel(layer=0)
    assert float(by_place.sel(by="position")) == pytest.approx(1, abs=1e-12)
    assert float(by_place.sel(by="lag")) < 0.9


def test_what_is_shared_is_found_without_bias_from_few_prompts():
    """A common map of half of the mean square, and as much that is each prompt's own."""
    rng, shares = np.random.default_rng(4), []
    for _ in range(200):
        common, own = rng.standard_normal((1, 1, 41)), rng.standard_normal((3, 1, 41))
        table = lm.lag_map(dataset((common + own) * np.ones((3, 1, 41)), [41, 41, 41]))
        shares.append(table["explained_in_all"].sel(by=["lag", "layer"]).values)
    mean, error = np.mean(shares, 0), np.std(shares, 0) / np.sqrt(200)
    np.testing.assert_allclose(mean, [0.5, 0.0], atol=0.02)
    assert (error < 0.01).all()


def test_a_power_law_is_told_from_an_exponential():
    gain = np.broadcast_to((1.0 + np.arange(9)) ** -1.5, (2, 1, 9)).copy()
    gain[:, :, 1:] = np.arange(1, 9.0) ** -1.5
    found = lm.lag_map(dataset(gain, [9, 9]))
    assert found["decay_power"].item() == pytest.approx(1.5)
    assert found["decay_power_r2"].item() == pytest.approx(1)
    assert found["decay_rate_r2"].item() < 0.99


@pytest.mark.parametrize("relative", [False, True])
def test_shares_are_those_of_loops(found, relative):
    gain = found["gain"].values * (found["state_norm"].values if relative else 1)
    n_tokens = found["n_tokens"].values
    entries = [(p, t) for p in range(5) for t in range(1, 6) if t < n_tokens[p]]

    def guess(by, p, t, layer):
        same = {
            "layer": lambda q, s: True,
            "lag": lambda q, s: s == t,
            "position": lambda q, s: n_tokens[q] - s == n_tokens[p] - t,
        }[by]
        others = [gain[q, layer, s] for q, s in entries if q != p and same(q, s)]
        return np.mean(others) if others else None

    summed = np.zeros((2, 3, 2))
    for layer in range(2):
        for p, t in entries:
            guesses = [guess(by, p, t, layer) for by in ("layer", "lag", "position")]
            if None not in guesses:
                truth = gain[p, layer, t]
                summed[layer] += [[truth * g, truth**2] for g in guesses]
    table = lm.lag_map(found, relative=relative)
    expected = summed[..., 0] / summed[..., 1]
    np.testing.assert_allclose(table["explained"], expected, rtol=1e-12)
    total = summed.sum(0)
    np.testing.assert_allclose(table["explained_in_all"], total[:, 0] / total[:, 1])
    assert table.attrs["relative"] == int(relative)


def test_means_spreads_and_shares_of_gradients(found):
    table = lm.lag_map(found)
    gain = found["gain"]
    np.testing.assert_allclose(table["mean"], gain.mean("prompt"))
    np.testing.assert_allclose(table["spread"], gain.std("prompt"))
    np.testing.assert_allclose(table["rms"], np.sqrt((gain**2).mean("prompt")))
    assert table["n_prompts"].values.tolist() == [5, 4, 4, 3, 2, 2]
    square = found["gradient_norm"] ** 2
    share = 1 - square.isel(lag=0) / square.sum("lag")
    np.testing.assert_allclose(table["earlier_share"], share.mean("prompt"))
    # lags 1 to 3 are those of half of the prompts
    y = -np.log(table["rms"].values[0, 1:4])
    assert float(table["decay_rate"][0]) == pytest.approx(np.polyfit([1, 2, 3], y, 1)[0])
    power = np.polyfit(np.log([1, 2, 3]), y, 1)[0]
    assert float(table["decay_power"][0]) == pytest.approx(power)


def test_of_the_gradient(found):
    table = lm.lag_map(found, of="gradient")
    same = lm.lag_map(found.assign(gain=found["gradient_norm"]))
    xr.testing.assert_identical(table.drop_attrs(), same.drop_attrs())
    assert (table.attrs["of"], same.attrs["of"]) == ("gradient", "gain")


def test_where_nothing_can_be_said():
    alone = lm.lag_map(dataset(np.ones((2, 1, 4)), [1, 4]))
    assert np.isnan(alone["explained"]).all()  # no other prompt has such tokens
    short = lm.lag_map(dataset(np.ones((2, 1, 2)), [2, 2]))
    assert np.isnan(short["decay_rate"]).all()
    ones = lm.lag_map(dataset(np.ones((3, 1, 1)), [1, 1, 1]))
    assert np.isnan(ones["explained"]).all()
    assert np.isnan(ones["explained_in_all"]).all()
    undefined = dataset(np.ones((3, 2, 4)), [4, 4, 4])
    undefined["gain"][:, 1] = np.nan  # no direction
    table = lm.lag_map(undefined)
    assert np.isnan(table["mean"][1]).all()
    assert float(table["explained"].sel(by="lag")[0]) == 1
    assert np.isnan(table["explained"].sel(by="lag")[1])
    assert np.isnan(table["decay_rate"][1])


def test_what_is_no_table_of_gains_is_refused(found):
    with pytest.raises(TypeError, match=r"`found` must be a Dataset; got .*`lm\.token_gains`"):
        lm.lag_map(found["gain"])
    with pytest.raises(ValueError, match="`found` must hold 'gradient_norm'; got none"):
        lm.lag_map(found.drop_vars("gradient_norm"))
    with pytest.raises(ValueError, match=r"`of` must be one of .'gain', 'gradient'.; got 'push'"):
        lm.lag_map(found, of="push")
    with pytest.raises(ValueError, match="one output and one input; got a dim 'output'"):
        lm.lag_map(found.expand_dims(output=2))
    with pytest.raises(ValueError, match=r"two prompts or more, .*; got 1"):
        lm.lag_map(found.isel(prompt=[0]))
    labelled = found.assign_coords(lag=np.arange(6))
    xr.testing.assert_equal(lm.lag_map(labelled), lm.lag_map(found))
    for other in (labelled.isel(lag=slice(1, None)), labelled.isel(lag=slice(None, None, -1))):
        with pytest.raises(ValueError, match=r"must have the lags 0, 1, 2 and so on; got \["):
            lm.lag_map(other)
    with pytest.raises(ValueError, match=r"must have a dim layer; got .*\.isel\(layer=\[0\]\)"):
        lm.lag_map(found.isel(layer=0))


@pytest.mark.filterwarnings("error")
def test_gains_of_zero_have_no_shares(found):
    table = lm.lag_map(found * 0)
    assert np.isnan(table["earlier_share"]).all()
