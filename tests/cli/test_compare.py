"""`depthsys compare` on the smallest embedded model: what it writes, says and refuses."""

import io
import sys

import numpy as np
import pytest
import xarray as xr

from depthsys import cli, lm, plot
from depthsys.cli.results import COMPARISON_FILES
from depthsys.study.names import CONCEPTS, METHODS

pytestmark = pytest.mark.slow  # about a minute; tests/lm/test_compare.py has the numbers
METHODS_ASKED = ["ensemble", "krylov", "pod"]
COMMON = ["--split", "20/10/10", "--device", "cpu"]
COMMAND = [*COMMON, "--methods", ",".join(METHODS_ASKED), "--orders", "1,3", "--each", "3"]


def depthsys(*args):
    """Run a command in this process; gives (exit status, stdout, stderr)."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["depthsys", *map(str, args)])
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        with pytest.raises(SystemExit) as exit_:
            cli.main()
    return exit_.value.code or 0, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def finished(texts, tmp_path_factory):
    """One whole run: (folder, what it printed)."""
    out = tmp_path_factory.mktemp("compare") / "cmp"
    code, shown, err = depthsys("compare", "demo_48x4", texts, *COMMAND, "--out", out)
    assert code == 0, err
    return out, shown


@pytest.fixture(scope="module")
def table(finished):
    return xr.load_dataset(finished[0] / "comparison.nc", engine="h5netcdf")


def test_every_file_is_written_and_no_other(finished):
    assert {path.name for path in finished[0].iterdir()} == set(COMPARISON_FILES)


def test_the_table_has_the_methods_orders_and_provenance_asked_for(table, texts):
    assert table["basis"].values.tolist() == METHODS_ASKED
    assert table["order"].values.tolist() == [1, 3]
    assert table.sizes["prompt"] == 20
    assert table["prompt_relative_l2"].sizes == {"basis_each": 3, "order": 2, "prompt_each": 3}
    source = lm.read_texts(texts).split(concept=20, operating=10, held_out=10)
    expected = {
        "model": "demo_48x4",
        "readout": "profile",
        "concept": "mean_difference",
        "eps": 0.01,
        "texts": str(texts),
        "split": "20/10/10",
        "seed": 0,
        "prompts_sha256": source.held_out.sha256,
        "operating_prompts_sha256": source.operating.sha256,
        "concept_sha256": source.concept.sha256,
        "held_out_sha256": source.held_out.sha256,
    }
    assert {name: table.attrs[name] for name in expected} == expected


def test_the_table_is_that_of_the_function(table, texts, demo_model):
    splits = lm.read_texts(texts).split(concept=20, operating=10, held_out=10)
    alone = lm.compare(demo_model, splits, METHODS_ASKED[:1], [1, 3], n_each=0)
    for name in ("relative_l2", "error_budget", "error", "surrogate_gain"):
        np.testing.assert_allclose(table[name][:1], alone[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [n for n in COMPARISON_FILES if n.endswith(".png")])
def test_figures_are_not_empty(finished, name):
    from matplotlib.image import imread

    pixels = imread(finished[0] / name)[..., :3]
    assert min(pixels.shape[:2]) > 300
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50  # black, white and its greys are 256
    assert 0.005 < (pixels.mean(axis=-1) < 0.9).mean() < 0.7
    svg = (finished[0] / name).with_suffix(".svg").read_text()
    assert "</svg>" in svg
    wanted = "without layer 0" if name.startswith("linear_range") else "krylov"
    assert wanted in svg


def test_the_summary_tells_the_numbers_of_the_file(finished, table):
    out, shown = finished
    summary = (out / "comparison.txt").read_text()
    assert summary == shown
    lines = summary.splitlines()
    assert max(map(len, lines[:40])) <= 100
    assert "…" not in summary
    # the first block of each method is its agreement, the second its exact errors
    agreement = lines.index(next(line for line in lines if line.startswith("Agreement")))
    exact = lines.index(next(line for line in lines if line.startswith("Exact error")))
    for name in METHODS_ASKED:
        part = table.sel(basis=name)
        for order in (1, 3):
            row = row_of(lines[agreement:], name, order)
            fit = part.relative_l2.sel(order=order, injection="absolute", layers="all")
            estimate, low, high = 100 * fit.values
            assert row[:4] == [f"{estimate:#.3g}", "%", f"[{low:#.2g}".rstrip(".") + ",",
                               f"{high:#.2g}".rstrip(".") + "]"]  # fmt: skip
            spearman = part.spearman.sel(order=order, injection="absolute", layers="all")
            assert row[-3] == f"{spearman.values[0]:.2f}"
            row = row_of(lines[exact:], name, order)
            at = part.sel(order=order, reference="mean_system")
            assert int(row[0]) == int(at.states)
            error = 100 * float(at.error / at.norm)
            assert row[1] == ("<" if error < 1e-3 else f"{error:#.3g}")
            if np.isfinite(at.ratio):
                assert float(row[4].rstrip(")")) == pytest.approx(float(at.ratio), rel=5e-3)
            assert float(row[-3]) == pytest.approx(float(at.seconds), rel=0.06)
    assert f"AUC on 20 held-out texts: {float(table.auc[0]):.2f} at depth 0" in summary
    low, high = float(table.auc_low[-1]), float(table.auc_high[-1])
    assert f"{float(table.auc[-1]):.2f} [{low:.2f}, {high:.2f}] at depth 4" in summary
    assert "3 methods at orders 1, 3, profile readout" in summary
    assert "all 12 exact errors lie above the lower bound" in summary
    assert "one system for each of 3 prompts, order 3" in summary
    floor = 100 * float(table.noise_floor.sel(layers="all", injection="absolute"))
    assert f"{floor:#.3g} %" in summary
    assert lines[-1].endswith(f"{out}/")


def row_of(lines, name, order):
    """Words after method and order of a row of a table, whose method stands in its first row."""
    start = next(i for i, line in enumerate(lines) if line.split()[:2] == [name, "1"])
    words = lines[start if order == 1 else start + 1].split()
    return words[2:] if order == 1 else words[1:]


def test_results_are_not_overwritten_unless_asked_for(finished, texts, tmp_path, monkeypatch):
    (tmp_path / "prompt_spread.png").write_text("old")
    (tmp_path / "mine.txt").write_text("not a result")
    short = ["compare", "demo_48x4", texts, *COMMON, "--methods", "krylov", "--orders", "2"]
    command = [*short, "--each", "0", "--out", tmp_path]
    code, _, err = depthsys(*command)
    assert code == 2
    assert "must not hold earlier results; found prompt_spread.png in" in err
    # a step that fails before the first result loses nothing
    with monkeypatch.context() as patch:
        patch.setattr(lm, "compare", _raises(FloatingPointError("`model` must be finite")))
        assert depthsys(*command, "--force")[0] == 2
    assert {path.name for path in tmp_path.iterdir()} == {"prompt_spread.png", "mine.txt"}
    # and with 0 prompts there is no figure of them: the old one goes
    code, shown, err = depthsys(*command, "--force")
    assert code == 0, err
    names = {path.name for path in tmp_path.iterdir()}
    spread = {"prompt_spread.png", "prompt_spread.svg"}
    assert names == {"mine.txt", *COMPARISON_FILES} - spread
    assert "1 method at order 2" in shown
    assert "one system for each" not in shown


def _raises(error):
    def function(*args, **kwargs):
        raise error

    return function


def test_an_interrupted_run_leaves_only_whole_files(texts, table, tmp_path, monkeypatch):
    monkeypatch.setattr(lm, "compare", lambda *a, **k: table.copy())

    def interrupted(fig, path, kind):
        path.write_text("half of it")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(plot, "save", interrupted)
        depthsys("compare", "demo_48x4", texts, *COMMAND, "--out", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["comparison.nc"]
    xr.load_dataset(tmp_path / "comparison.nc", engine="h5netcdf")
    assert depthsys("compare", "demo_48x4", texts, *COMMAND, "--out", tmp_path)[0] == 2
    code, _, _ = depthsys("compare", "demo_48x4", texts, *COMMAND, "--out", tmp_path, "--force")
    assert code == 0


@pytest.fixture
def unsaved(monkeypatch):
    """Figures are drawn, but saving them takes long."""
    monkeypatch.setattr(plot, "save", lambda fig, path, kind: path.touch())


@pytest.mark.usefixtures("unsaved")
def test_a_direction_without_separation_is_said(texts, table, tmp_path, monkeypatch):
    warned = table.copy()
    said = "the direction does not separate held-out texts at the last depth: AUC 0.49 [0.3, 0.7]"
    warned.attrs["concept_warning"] = said
    monkeypatch.setattr(lm, "compare", lambda *a, **k: warned)
    code, shown, _ = depthsys("compare", "demo_48x4", texts, *COMMAND, "--out", tmp_path)
    assert code == 0
    assert f"- {said}; gains are real, but do not call them gains of the concept" in shown


@pytest.mark.usefixtures("unsaved")
def test_options_reach_the_comparison(texts, table, tmp_path, monkeypatch):
    seen = {}

    def recorded(model, splits, methods, orders, **options):
        seen.update(options, methods=methods, orders=orders, model=model, splits=splits)
        return table.copy()

    monkeypatch.setattr(lm, "compare", recorded)
    options = ["--eps", "0.02", "--seed", "3", "--readout", "concept", "--concept", "pca"]
    options += ["--dtype", "float64", "--max-tokens", "9", "--device", "cpu"]
    command = ["compare", "demo_48x4", texts, "--split", "20/10/8", *options]
    code, shown, err = depthsys(*command, "--out", tmp_path)
    assert code == 0, err
    assert (seen["methods"], seen["orders"]) == (list(METHODS), [1, 2, 4, 8, 16, 32])
    assert (seen["eps"], seen["seed"], seen["readout"]) == (0.02, 3, "concept")
    assert seen["n_each"] == 16  # all held-out prompts, as there are fewer than 64
    assert seen["concept"].attrs["method"] == "pca"
    assert (seen["model"].dtype_name, seen["model"].max_tokens) == ("float64", 9)
    assert seen["splits"].seed == 3
    assert [len(seen["splits"].operating), len(seen["splits"].held_out)] == [20, 16]
    assert "cut on the right at 9 tokens" in shown


BAD = {
    "`--methods` must be names out of ensemble, balanced": ["--methods", "ensemble,svd"],
    "got ''. Write them as in ensemble,krylov,pod": ["--methods", ""],
    "`--methods` must name a method once; got 'pod' 2 times": ["--methods", "pod,krylov, pod"],
    "`--orders` must be rising whole numbers >= 1; got '4,2'": ["--orders", "4,2"],
    "`--orders` must be rising whole numbers >= 1; got '2,2'": ["--orders", "2,2"],
    "`--orders` must be rising whole numbers >= 1; got '0,2'": ["--orders", "0,2"],
    "`--orders` must be rising whole numbers >= 1; got '1,2.5'": ["--orders", "1,2.5"],
    "`--orders` must be rising whole numbers >= 1; got ''": ["--orders", ""],
    "`--orders` must be rising whole numbers >= 1; got '²'": ["--orders", "²"],
    "`--orders` must be at most 48, the width of the model; got 49": ["--orders", "1,49"],
    "`--split` must be three positive numbers": ["--split", "20/10"],
    "`--eps` must be positive and finite; got 0.0": ["--eps", "0"],
    "`--eps` must be positive and finite; got nan": ["--eps", "nan"],
    "`--each` must be in 0..20, the number of held-out prompts; got -1": ["--each", "-1"],
    "`--each` must be in 0..20, the number of held-out prompts; got 21": ["--each", "21"],
    "`--seed` must be >= 0": ["--seed", "-1"],
    "`--max-tokens` must be >= 1": ["--max-tokens", "0"],
    "`--readout` must be concept or profile; got 'all'": ["--readout", "all"],
    "`--concept` must be one of mean_difference, whitened, logistic, pca, pair": [
        "--concept",
        "svm",
    ],
    "`--dtype` must be float32, float64, bfloat16 or float16": ["--dtype", "float8"],
    "`--eps` must be well above the rounding": ["--dtype", "bfloat16"],
    "`--device` must be": ["--device", "quantum"],
    "must hold 440 distinct texts per class": ["--split", "20/10/410"],
    "`--out` must be a writable folder": ["--out", "texts.csv/run"],
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_one_clear_line_before_the_model(texts, tmp_path, message, monkeypatch):
    monkeypatch.setattr(lm.DepthModel, "load", lambda *a, **k: pytest.fail("a model was loaded"))
    options = [texts.parent / arg if arg == "texts.csv/run" else arg for arg in BAD[message]]
    out = [] if "--out" in options else ["--out", tmp_path / "run"]
    code, _, err = depthsys("compare", "demo_48x4", texts, *COMMON, *options, *out)
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_the_model_and_texts_are_checked_first(texts, tmp_path):
    for source, file, message in (
        ("./no-model", texts, "neither. Check the path"),
        ("demo_48x4", tmp_path / "absent.csv", "`TEXTS` must be an existing file"),
    ):
        code, _, err = depthsys("compare", source, file, *COMMON, "--out", tmp_path / "run")
        assert code == 2
        assert message in err


def test_help_shows_an_example_and_the_methods():
    code, shown, _ = depthsys("compare", "--help")
    assert code == 0
    assert "Example: depthsys compare" in shown
    assert all(name in shown for name in (*METHODS, *CONCEPTS))
    assert "Example: depthsys demo" in depthsys("--help")[1]
