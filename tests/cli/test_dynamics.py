"""`depthsys dynamics` on the smallest embedded model: what it writes, says, keeps and refuses."""

import re

import numpy as np
import pytest
import torch
import xarray as xr

from depthsys import demo, lm, ltv
from depthsys.cli import app
from depthsys.study import dynamics as measures_of
from depthsys.study.lines import lines_of
from depthsys.study.measures import MEASURES

COMMON = ["--device", "cpu", "--jacobians", "3"]
SPLIT = ["--split", "8/4/4"]
OF_ALL = (
    {f"{name}.{kind}" for name in MEASURES for kind in ("nc", "txt")}
    | {"lens.safetensors"}
    | {
        f"{figure}.{kind}"
        for m in MEASURES.values()
        for figure in m.figures
        for kind in ("png", "svg")
    }
)


@pytest.fixture(scope="module")
def model():
    return lm.DepthModel.load(demo.model_path("demo_48x4"), device="cpu")


@pytest.fixture
def run(monkeypatch, capsys):
    def run(*args):
        monkeypatch.setattr("sys.argv", ["depthsys", "dynamics", *map(str, args)])
        with pytest.raises(SystemExit) as exit_:
            app.main()
        said = capsys.readouterr()
        return exit_.value.code or 0, said.out, said.err

    return run


@pytest.fixture
def stories(tmp_path):
    path = tmp_path / "stories.txt"
    lines = [f"once upon a time there was a number {n} that was very small ." for n in range(9)]
    path.write_text("= A title =\n\n" + "\n\n".join([*lines, lines[0]]))
    return path


def test_two_measures_are_what_the_library_finds(run, texts, model, tmp_path):
    out = tmp_path / "dyn"
    code, shown, err = run("demo_48x4", texts, *SPLIT, *COMMON, "--measures", "skip,spectra",
                           "--out", out)  # fmt: skip
    assert code == 0, err
    names = {path.name for path in out.iterdir()}
    assert {"skip.nc", "spectra.nc", "layer_skip.png", "spectra.svg", "skip.txt"} <= names
    assert names <= OF_ALL
    splits = lm.read_texts(texts).split("8/4/4")
    mean = lm.jacobians(model, splits.operating.first(3))
    found = xr.load_dataset(out / "spectra.nc", engine="h5netcdf")
    for of, update in (("layer", False), ("update", True)):
        expected = ltv.spectra(mean, update=update)
        np.testing.assert_allclose(found["departure"].sel(of=of), expected["departure"], rtol=1e-6)
        np.testing.assert_allclose(found["rank_to_end"], expected["rank_to_end"], rtol=1e-6)
    assert found["departure_each"].dims == ("prompt", "layer")
    own = ltv.spectra(lm.jacobians(model, splits.operating.first(3), per_prompt=True))
    np.testing.assert_allclose(found["departure_each"], own["departure"], rtol=1e-6)
    skip = xr.load_dataset(out / "skip.nc", engine="h5netcdf")
    concept = lm.mean_difference(model, splits.concept, held_out=splits.held_out)
    expected = lm.layer_skip(model, splits.operating, concept)
    np.testing.assert_allclose(skip["shift"], expected["shift"], rtol=1e-4, atol=1e-5)
    assert skip.attrs["split"] == "8/4/4"
    assert "whole Jacobians of 3 of them" in shown
    assert f"effective rank of {float(found['rank_to_end'][0]):.1f} of 48" in shown
    for name, other in (("skip", "effective rank of"), ("spectra", "AUC on")):
        summary = (out / f"{name}.txt").read_text("utf-8")
        assert summary.startswith("demo_48x4: L = 4, H = 48, float32; 8 texts of")
        assert other not in summary
        assert summary.splitlines()[-1] in shown
    assert "AUC on" in (out / "skip.txt").read_text("utf-8")
    assert "effective rank of" in (out / "spectra.txt").read_text("utf-8")


def test_measures_are_added_one_by_one_and_made_anew_alone(run, texts, tmp_path):
    asked = ["demo_48x4", texts, *SPLIT, *COMMON, "--out", tmp_path / "dyn"]
    assert run(*asked, "--measures", "shape")[0] == 0
    shape = (tmp_path / "dyn" / "shape.txt").read_text("utf-8")
    code, _, err = run(*asked, "--measures", "skip")
    assert code == 0, err
    code, _, err = run(*asked, "--measures", "skip")
    assert code == 2
    assert "`--out` must not hold earlier results; found skip.nc" in err
    assert run(*asked, "--measures", "skip", "--force")[0] == 0
    assert (tmp_path / "dyn" / "shape.txt").read_text("utf-8") == shape


def test_long_work_is_announced(run, texts, tmp_path, monkeypatch):
    monkeypatch.setattr("depthsys.cli.dynamics.WORTH_SAYING", 0.0)
    asked = ["demo_48x4", texts, *SPLIT, *COMMON, "--measures", "shape,spectra"]
    code, shown, err = run(*asked, "--out", tmp_path / "dyn")
    assert code == 0, err
    assert re.search(r"about \d+ seconds to come, from sizes alone: spectra \d+ seconds and", shown)


def test_lines_of_text_need_no_labels(run, stories, model, tmp_path):
    code, shown, err = run("demo_48x4", stories, *COMMON, "--lines", 4, "--measures", "spectra",
                           "--out", tmp_path / "dyn")  # fmt: skip
    assert code == 0, err
    assert "4 texts of " in shown
    drawn = lines_of(stories, 4, 0)
    assert len(set(drawn.texts)) == 4
    expected = ltv.spectra(lm.jacobians(model, list(drawn.texts[:3])))
    found = xr.load_dataset(tmp_path / "dyn" / "spectra.nc", engine="h5netcdf")
    np.testing.assert_allclose(found["growth_from_start"], expected["growth_from_start"], rtol=1e-6)


def test_measures_that_need_labels_are_named_where_lines_have_none(
    run, stories, tmp_path, monkeypatch
):
    monkeypatch.setattr("depthsys.study.measures._ALL", (MEASURES["skip"], MEASURES["shape"]))
    code, shown, err = run("demo_48x4", stories, *COMMON[:2], "--out", tmp_path / "dyn")
    assert code == 0, err
    assert "left out, for lines have no labels: skip, detached_gains, tokens" in shown
    assert {path.name for path in (tmp_path / "dyn").glob("*.nc")} == {"shape.nc"}


def test_lines_are_distinct_and_long_enough(stories):
    assert len(lines_of(stories, 100, 0)) == 9
    assert lines_of(stories, 5, 0).texts != lines_of(stories, 5, 1).texts
    assert lines_of(stories, 5, 0).texts == lines_of(stories, 5, 0).texts


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--measures", "spectrum"], "`--measures` must be names out of spectra, skip, "),
        (["--measures", "skip,skip"], "must name a measure once; got 'skip' 2 times"),
        (["--jacobians", "0"], "`--jacobians` must be >= 1; got 0"),
        (["--lines", "5"], "`--lines` must come with a .txt; got 5"),
    ],
)
def test_wrong_options_are_refused_before_a_model_is_looked_for(run, texts, tmp_path, given, said):
    code, _, err = run("no-such-model", texts, *given, "--out", tmp_path / "dyn")
    assert code == 2
    assert said in err
    assert not (tmp_path / "dyn").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--measures", "skip"], "`--measures` must need no labels for lines of text; got 'skip'"),
        (["--split", "8/4/4"], "`--split` must be left out for lines of text"),
        (["--lines", "0"], "`--lines` must be >= 1; got 0"),
    ],
)
def test_options_of_labelled_texts_are_refused_for_lines(run, stories, tmp_path, given, said):
    code, _, err = run("no-such-model", stories, *given, "--out", tmp_path / "dyn")
    assert code == 2
    assert said in err


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"short\nlines\n", "lines of 8 words or more; got none"), (b"\xff\xfe" * 9, "UTF-8")],
)
def test_a_file_without_texts_is_refused(run, tmp_path, content, said):
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    code, _, err = run("demo_48x4", path, *COMMON, "--out", tmp_path / "dyn")
    assert code == 2
    assert re.search(said, err)


def test_an_interrupted_command_goes_on(run, texts, tmp_path, monkeypatch):
    out = tmp_path / "dyn"
    asked = ["demo_48x4", texts, *SPLIT, *COMMON, "--measures", "spectra,skip", "--out", out]
    with monkeypatch.context() as patch:
        patch.setattr(measures_of, "skip", _raising(RuntimeError("the power failed")))
        with pytest.raises(RuntimeError):
            run(*asked)
    taken = []
    monkeypatch.setattr(lm, "jacobians", _noting(taken, lm.jacobians))
    with monkeypatch.context() as patch:  # before the weights are read
        patch.setattr(lm.DepthModel, "load", _raising(RuntimeError("loaded")))
        code, _, err = run(*[*asked[:-3], "spectra,skip", "--jacobians", "2", "--out", out])
        assert code == 2
        assert "was begun with whole Jacobians 3, now 2" in err
        code, _, err = run(*asked, "--seed", "5")
        assert code == 2
        assert "another texts of operating" in err
    code, _, err = run(*asked)
    assert code == 0, err
    assert taken == []
    assert {"spectra.nc", "skip.nc"} <= {path.name for path in out.iterdir()}
    assert not (out / "dynamics.partial").exists()


def _raising(error):
    def function(*args, **options):
        raise error

    return function


def _noting(calls, function):
    def noted(*args, **options):
        calls.append(args)
        return function(*args, **options)

    return noted


def test_what_cannot_be_taken_is_left_out_with_a_word_unless_it_was_asked_for(
    run, texts, tmp_path, monkeypatch
):
    quick = {name: MEASURES[name] for name in ("skip", "detached")}
    monkeypatch.setattr("depthsys.study.measures._ALL", tuple(quick.values()))
    refused = ValueError("`kind` must be 'jacobian' for this family")
    monkeypatch.setattr(measures_of, "detached", _raising_for_cells(refused))
    asked = ["demo_48x4", texts, *SPLIT, *COMMON]
    code, shown, err = run(*asked, "--out", tmp_path / "all")
    assert code == 0, err
    assert "- detached is left out: `kind` must be 'jacobian' for this family" in shown
    assert "AUC on 8 held-out texts" in shown
    names = {path.name for path in (tmp_path / "all").iterdir()}
    assert "skip.nc" in names
    assert "detached.nc" not in names
    code, _, err = run(*asked, "--measures", "detached", "--out", tmp_path / "one")
    assert code == 2
    assert "`kind` must be 'jacobian'" in err


def test_too_few_texts_are_refused_before_the_model_is_loaded(run, stories, tmp_path, monkeypatch):
    monkeypatch.setattr(lm.DepthModel, "load", _raising(RuntimeError("loaded")))
    given = ["--lines", 3, "--measures", "residual", "--out", tmp_path / "dyn"]
    code, _, err = run("demo_48x4", stories, "--device", "cpu", *given)
    assert code == 2
    assert "`--measures` must fit the texts; got 'residual' with 3, which needs 5" in err


def _raising_for_cells(error):
    def measure(cell):
        raise error

    return measure


def test_a_lens_is_written_as_a_file_of_its_own(run, texts, model, tmp_path):
    out = tmp_path / "dyn"
    asked = ["demo_48x4", texts, *SPLIT, *COMMON, "--measures", "lens", "--out", out]
    code, _, err = run(*asked)
    assert code == 0, err
    made = lm.lens(model, lm.read_texts(texts).split("8/4/4").operating.first(3))
    back = lm.read_lens(out / "lens.safetensors")
    np.testing.assert_allclose(back["J"], made["J"], rtol=1e-5, atol=1e-6)
    assert back.attrs["definition"] == "last token"
    assert back.attrs["n_prompts"] == 3
    read = lm.decode(model, model.run(["the food was"]).states, lens=back, about_mean=True)
    assert read.sizes["rank"] == 10
    found = xr.load_dataset(out / "lens.nc", engine="h5netcdf")
    assert "J" not in found
    assert "agreement" in found
    code, _, err = run(*asked)
    assert code == 2
    assert "--force" in err
    code, _, err = run(*asked, "--force")
    assert code == 0, err


def test_a_lens_of_somebody_else_is_set_beside_the_one_made_here(run, texts, model, tmp_path):
    asked = ["demo_48x4", texts, *SPLIT, *COMMON, "--measures", "lens"]
    splits = lm.read_texts(texts).split("8/4/4")
    other = lm.lens(model, splits.operating, depths=[1, 2, 3])
    lm.save_lens(other, tmp_path / "other.safetensors")
    out = tmp_path / "dyn"
    code, shown, err = run(*asked, "--lens", tmp_path / "other.safetensors", "--out", out)
    assert code == 0, err
    found = xr.load_dataset(out / "lens.nc", engine="h5netcdf")
    own = lm.read_lens(out / "lens.safetensors")
    expected = lm.lens_agreement(model, splits.held_out, other).sel(reader="J-lens")
    given = found.sel(depth=[1, 2, 3])
    for name in ("agreement", "kl"):
        assert np.isnan(found[f"given_{name}"].sel(depth=[0, 4])).all()
        np.testing.assert_allclose(given[f"given_{name}"], expected[name], rtol=1e-4, atol=1e-6)
        assert found[f"given_{name}"].attrs["units"]
    for depth in (1, 2, 3):
        a, b = (one["J"].sel(depth=depth).values.astype(float) for one in (other, own))
        cosine = (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b)
        assert float(found["given_cosine"].sel(depth=depth)) == pytest.approx(cosine)
        size = np.linalg.norm(a) / np.linalg.norm(b)
        assert float(found["given_size"].sel(depth=depth)) == pytest.approx(size)
    cosine = float(found["given_cosine"].sel(depth=2))
    assert f"has at depth 2 a cosine of {cosine:.3f} with the J-lens made here" in shown
    # without it nothing of it is there
    assert run(*asked, "--out", out, "--force")[0] == 0
    assert "given_kl" not in xr.load_dataset(out / "lens.nc", engine="h5netcdf")


def test_a_lens_that_does_not_fit_is_refused_before_the_model_is_loaded(
    run, texts, tmp_path, monkeypatch
):
    monkeypatch.setattr(lm.DepthModel, "load", _raising(RuntimeError("loaded")))
    wide = xr.Dataset({"J": (("depth", "feature_out", "feature"), np.eye(8)[None])},
                      coords={"depth": [1]}, attrs={"n_prompts": 1})  # fmt: skip
    lm.save_lens(wide, tmp_path / "wide.safetensors")
    torch.save({"J": {0: torch.eye(8)}}, tmp_path / "lens.pt")
    asked = ["demo_48x4", texts, *SPLIT, *COMMON[:2], "--out", tmp_path / "dyn"]
    for given, said in (
        (["--lens", tmp_path / "wide.safetensors"], "is 48 features wide; got one of 8. Give"),
        (["--lens", tmp_path / "lens.pt"], "`--lens` must be safetensors; got the pickle"),
        (["--lens", tmp_path / "lens.pt"], "give `--pickled-weights`, and"),
        (["--lens", tmp_path / "no.safetensors"], "`--lens` must be an existing file; got"),
        (["--pickled-weights"], "`--pickled-weights` must come with --lens; got it alone"),
        (["--measures", "shape", "--lens", tmp_path / "wide.safetensors"], "the measure lens; got"),
    ):
        code, _, err = run(*asked, *given)
        assert code == 2
        assert said in err
