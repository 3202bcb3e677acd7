"""The forecast of a comparison against what the comparison really does."""

import sys

import numpy as np
import pytest
import xarray as xr

from depthsys import lm
from depthsys.lm.forecast import RANGE_STEPS
from depthsys.lm.linear_range import STEPS
from depthsys.lm.linearize import Linearised
from depthsys.lm.parts import PARTS, WHOLE
from depthsys.lm.prompts import Splits
from tests.conftest import TINY
from tests.lm.conftest import counted_block_calls, labelled_ids

L, H = 3, 16
COMPARE = sys.modules["depthsys.lm.compare"]
SIZES = {"concept": 6, "operating": 5, "held_out": 4}


@pytest.fixture(scope="module")
def model():
    return lm.DepthModel(TINY["gpt2"]().double())


@pytest.fixture(scope="module")
def texts():
    return Splits(**{name: labelled_ids(n, seed) for seed, (name, n) in enumerate(SIZES.items())})


def directions(m: int) -> xr.Dataset:
    v = np.random.default_rng(7).standard_normal((L + 1, m, H))
    v /= np.linalg.norm(v, axis=-1, keepdims=True)
    return xr.Dataset({"direction": (("depth", "input", "feature"), v)})


class Counted:
    """Rows of block calls, and of products with Jacobians."""

    def __init__(self, model, monkeypatch):
        self.products = self.linearised = 0
        self._calls = counted_block_calls(model, monkeypatch)
        products, made = Linearised._products, Linearised.__init__

        def multiplying(linear, output, source, rows):
            self.products += len(linear.x) * rows.shape[-2]
            return products(linear, output, source, rows)

        def linearising(linear, f, x, *others):
            self.linearised += len(x)
            made(linear, f, x, *others)

        monkeypatch.setattr(Linearised, "_products", multiplying)
        monkeypatch.setattr(Linearised, "__init__", linearising)

    def replayed(self, n_tokens: int) -> int:
        """Rows of the last token that were neither prefilled nor linearised."""
        return sum(rows for _, rows in self._calls) - n_tokens - self.linearised


def rows(cost: xr.Dataset, *stages: str) -> float:
    return float(cost["rows"].sel(stage=list(stages)).sum())


@pytest.mark.parametrize(
    ("m", "readout"),
    [
        (1, "profile"),
        (2, "matrix"),
        pytest.param(1, "matrix", marks=pytest.mark.slow),
        pytest.param(2, "profile", marks=pytest.mark.slow),
    ],
)
def test_rows_are_those_of_the_comparison(model, texts, m, readout, monkeypatch):
    concept = directions(m)
    if readout == "matrix":
        # more outputs than inputs
        values = np.random.default_rng(1).standard_normal((L + 1, 3, H))
        readout = xr.DataArray(values, dims=("depth", "output", "feature"))
    methods, orders = ["krylov", "balanced", "pod", "arnoldi", "ensemble"], [1, 2]
    options = {"concept": concept, "readout": readout, "n_each": 3, "ablate_eps": False}
    cost = lm.comparison_cost(model, texts, methods, orders, **options)
    counted = Counted(model, monkeypatch)
    lm.compare(model, texts, methods, orders, **options, n_bootstrap=2)
    pushed = rows(cost, "measured gains", "measured gains, operating", "directions of pod")
    each = 3 * m * L * (L + 1)  # those of POD for single prompts, forecast with their systems
    products = float(cost["rows"].sum()) - pushed - each
    used = (texts.operating, texts.held_out)
    n_tokens = L * sum(model.run(given, contexts=False).n_padded_tokens for given in used)
    assert counted.replayed(n_tokens) == pytest.approx(pushed + each, rel=0.3)
    assert counted.products == pytest.approx(products, rel=0.3)


def test_passes_are_those_that_are_made(model, texts):
    def passes(**options):
        cost = lm.comparison_cost(model, texts, ["krylov"], [1], n_each=0, **options)
        found = cost["passes"].to_series()
        return {name.removeprefix("prefill "): n for name, n in found.items() if "prefill" in name}

    assert passes() == {"concept": 1, "operating": 1, "held_out": 1}
    assert passes(concept=directions(1)) == {"concept": 0, "operating": 1, "held_out": 1}
    operating = [name for name in PARTS if "operating" in name] + ["mean system", "mean response"]
    assert passes(kept=operating) == {"concept": 1, "operating": 0, "held_out": 1}
    known = {"concept": directions(1), "kept": PARTS}
    assert passes(**known) == {"concept": 0, "operating": 0, "held_out": 0}
    run = model.run(texts.held_out)
    ready = Splits(concept=texts.concept, operating=texts.operating, held_out=run)
    cost = lm.comparison_cost(model, ready, ["krylov"], [1], n_each=0)
    assert float(cost["passes"].sel(stage="prefill held_out")) == 0
    later = Splits(texts.concept, texts.operating, lm.Run.later(model, texts.held_out))
    cost = lm.comparison_cost(model, later, ["krylov"], [1], n_each=0)
    assert float(cost["passes"].sel(stage="prefill held_out")) == 1


def test_what_is_kept_costs_nothing(model, texts):
    def cost(kept):
        return lm.comparison_cost(model, texts, ["krylov", "arnoldi"], [1, 2], n_each=2, kept=kept)

    kept = ["mean system", "measured gains", "linear gains", "linear gains, operating"]
    left = cost(kept)
    free = left["stage"].values[left["kept"].values].tolist()
    # the directions of a method are part of the mean system
    assert free == [
        "measured gains",
        "linear gains",
        "linear gains, operating",
        "directions of arnoldi",
        "mean system",
    ]
    assert float(left["rows"].where(left["kept"], 0).sum()) == 0
    assert float(left["seconds"].where(left["kept"], 0).sum()) == 0
    more = ["measured gains, operating", "linear range"]
    assert bool((left["rows"] > 0).sel(stage=more).all())
    whole = cost([WHOLE])
    stages = whole.sel(stage=[s for s in whole["stage"].values if "prefill" not in s])
    assert bool(stages["kept"].all())
    assert float(stages["seconds"].sum()) == 0


def test_seconds_count_calls_and_dense_algebra(model, texts):
    cost = lm.comparison_cost(model, texts, ["krylov", "balanced"], [1, 2], n_each=2)
    seconds = cost["seconds"]
    assert bool((seconds > 0).sel(stage=[s for s in cost.stage.values if "of" not in s]).all())
    assert float(seconds.sel(stage="reductions, norms, intervals")) > 0


def test_a_bar_over_the_whole_ends_at_its_end(model, texts, monkeypatch):
    bars = []

    class Bar:
        def __init__(self, total):
            self.total, self.done = total, 0.0
            bars.append(self)

        def update(self, seconds):
            self.done += seconds

        def close(self):
            self.closed_at = self.done

    monkeypatch.setattr(COMPARE, "is_shown", lambda: True)
    monkeypatch.setattr("depthsys.lm.parts.whole_bar", Bar)
    lm.compare(model, texts, ["krylov", "arnoldi"], [1], concept=directions(1), n_each=2)
    assert len(bars) == 1
    assert bars[0].total > 0
    assert bars[0].closed_at == pytest.approx(bars[0].total)


def test_the_range_has_as_many_steps_as_are_counted():
    assert RANGE_STEPS == len(STEPS) + 3


def test_kept_parts_without_a_folder(texts, tmp_path):
    assert lm.kept_parts(tmp_path / "none", texts, ["krylov"], [1]) == lm.Kept()


def test_force_begins_anew(model, texts, tmp_path, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    options = {"concept": directions(1), "n_each": 0, "n_bootstrap": 2, "partial": tmp_path / "p"}
    with monkeypatch.context() as patch:
        patch.setattr(COMPARE, "linear_range", interrupted)
        with pytest.raises(KeyboardInterrupt):
            lm.compare(model, texts, ["krylov"], [1], **options)
    asked = {k: v for k, v in options.items() if k not in ("partial", "concept")}
    found = lm.kept_parts(tmp_path / "p", texts, ["krylov"], [1], **asked, model=model)
    assert "mean system" in found.usable
    assert found.differences == ()
    other = lm.kept_parts(
        tmp_path / "p", texts, ["krylov"], [1], **asked, model=model, concept=directions(2)
    )
    assert other.differences == ("another direction",)
    assert (other.parts, other.usable) == (found.parts, ())
    with pytest.raises(ValueError, match=r"`partial` must be resumed with .* orders 1, now 2"):
        lm.compare(model, texts, ["krylov"], [2], **options)
    table = lm.compare(model, texts, ["krylov"], [2], **options, force=True)
    assert table["order"].values.tolist() == [2]
    assert not (tmp_path / "p").exists()


def test_a_partial_that_is_kept_holds_the_whole_table(model, texts, tmp_path, monkeypatch):
    options = {"concept": directions(1), "n_each": 1, "n_bootstrap": 2, "partial": tmp_path / "p"}
    first = lm.compare(model, texts, ["krylov"], [1], **options, keep_partial=True)
    for name in ("measure_gains_at", "linear_gains", "linear_range", "MeanFull", "each_prompt"):
        monkeypatch.setattr(COMPARE, name, None)
    again = lm.compare(model, texts, ["krylov"], [1], **options, keep_partial=True)
    xr.testing.assert_identical(again, first)
    lm.compare(model, texts, ["krylov"], [1], **options)
    assert not (tmp_path / "p").exists()
