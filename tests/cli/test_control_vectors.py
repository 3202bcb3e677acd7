"""`depthsys import vec.gguf`, `depthsys verify`, and the export of what was imported."""

import gguf
import numpy as np
import pytest
import xarray as xr

from depthsys import export, lm
from tests.export.test_control_vectors import tensors_of, written

H, N_LAYERS = 48, 4  # of demo_48x4
SETTINGS = ["--split", "12/6/6", "--device", "cpu"]


@pytest.fixture
def vectors():
    rng = np.random.default_rng(1)
    return {n: (0.3 * rng.standard_normal(H)).astype(np.float32) for n in (3, 2, 1)}


@pytest.fixture
def path(tmp_path, vectors):
    return written(tmp_path / "vec.gguf", vectors)


def test_a_control_vector_becomes_a_concept_and_a_plan(run, path, tmp_path):
    out = tmp_path / "vec.nc"
    command = ["import", path, "--out", out, "--strength", "-0.5", "--layer-range", "2:3"]
    code, shown, err = run(*command, "--model", "demo_48x4")
    assert code == 0, err
    assert "a control vector for gpt2, 4 layers, 48 features; pushes at depths 3 to 4" in shown
    assert "of which 4 is behind the last block" in shown
    assert f"depthsys verify {out} MODEL TEXTS" in shown
    found = xr.load_dataset(out, engine="h5netcdf")
    expected = export.read_control_vector(
        path, strength=-0.5, layer_range=(2, 3), n_layers=N_LAYERS, n_features=H
    )
    assert found.attrs.pop("history").endswith("depthsys import vec.gguf")
    xr.testing.assert_identical(found, expected)
    code, _, err = run(*command)
    assert code == 2
    assert "must not exist yet" in err
    assert run(*command, "--force")[0] == 0


def test_blocks_that_were_not_told_are_said(run, path, tmp_path):
    code, shown, err = run("import", path, "--out", tmp_path / "vec.nc")
    assert code == 0, err
    assert "4 layers or more (give --model)" in shown


def test_a_strength_of_zero_pushes_nothing(run, path, tmp_path):
    code, shown, err = run("import", path, "--out", tmp_path / "vec.nc", "--strength", "0")
    assert code == 0, err
    assert "48 features; no pushes\n" in shown


def test_options_for_plans_are_refused_for_vectors(run, path, tmp_path):
    assert run("import", path, "--out", tmp_path / "vec.nc")[0] == 0
    common = ["export", tmp_path / "vec.nc", "--to", "gguf", "--out", tmp_path / "b.gguf"]
    for more, option in ((["--drop"], "--drop"), (["--select", "prompt=0"], "--select")):
        code, _, err = run(*common, *more)
        assert code == 2
        assert f"`{option}` must be left out for a control vector" in err


def test_what_was_imported_is_exported_again(run, path, tmp_path):
    assert run("import", path, "--out", tmp_path / "vec.nc")[0] == 0
    again = tmp_path / "again.gguf"
    code, shown, err = run(
        "export", tmp_path / "vec.nc", "--to", "gguf", "--model-hint", "x", "--out", again
    )
    assert code == 0, err
    assert f"Written as gguf: {again}" in shown
    assert tensors_of(again) == tensors_of(path)
    assert gguf.GGUFReader(again).fields["controlvector.model_hint"].contents() == "x"


def test_it_is_said_that_llama_cpp_refuses_the_first_block(run, vectors, tmp_path):
    path = written(tmp_path / "zero.gguf", {0: np.ones(H, np.float32)} | vectors)
    said = "llama.cpp refuses a file with direction.0, as this one has. `depthsys import "
    plan, again = tmp_path / "a.nc", tmp_path / "again.gguf"
    shown = run("import", path, "--out", plan)[1]
    assert f"- {said}{path} --layer-range 1:3 --out ...`" in shown
    shown = run("export", plan, "--to", "gguf", "--out", again)[1]
    assert f"{again}. {said}{again} --layer-range 1:3 --out ...`" in shown
    assert "pushes all tokens" not in shown
    assert tensors_of(again) == tensors_of(path)
    # the cure
    shown = run("import", again, "--layer-range", "1:3", "--out", tmp_path / "b.nc")[1]
    assert "refuses" not in shown
    cured = tmp_path / "cured.gguf"
    shown = run("export", tmp_path / "b.nc", "--to", "gguf", "--out", cured)[1]
    assert f"{cured}. llama.cpp pushes all tokens with it." in shown
    assert tensors_of(cured) == tensors_of(written(tmp_path / "vec.gguf", vectors))


def test_where_the_first_block_is_all_there_is_nothing_cures_it(run, tmp_path):
    path = written(tmp_path / "zero.gguf", {0: np.ones(H, np.float32)})
    shown = run("import", path, "--out", tmp_path / "a.nc")[1]
    assert "- llama.cpp refuses a file with direction.0, which is all that this one has" in shown


def test_verify_tells_what_it_does(run, path, texts, tmp_path):
    assert run("import", path, "--out", tmp_path / "vec.nc")[0] == 0
    command = ["verify", tmp_path / "vec.nc", "demo_48x4", texts, *SETTINGS, "--strength", "2"]
    code, _, err = run(*command, "--out", tmp_path / "check")
    assert code == 0, err
    assert sorted(p.name for p in (tmp_path / "check").iterdir()) == ["effect.nc", "verify.txt"]
    found = xr.load_dataset(tmp_path / "check" / "effect.nc", engine="h5netcdf")
    assert found.attrs["vector_strength"] == 2
    model = lm.DepthModel.load(_demo(), device="cpu")
    splits = lm.read_texts(texts).split(concept=12, operating=6, held_out=6)
    concept = lm.mean_difference(model, splits.concept)
    vector = export.read_control_vector(path, strength=2, n_layers=N_LAYERS)
    expected = lm.steering_effect(model, splits.held_out, concept, vector)
    for name in expected:
        xr.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-5)
    every, last = (
        float(expected["response_mean"].sel(tokens=t, output="concept", bound="estimate"))
        for t in ("every", "last")
    )
    text = (tmp_path / "check" / "verify.txt").read_text()
    assert f"at every token it moves the concept by {every:#.3g} [" in text
    assert f"at the last token alone by {last:#.3g} [" in text
    assert "linear, last token" in text
    # the file itself does as well
    code, again, err = run(
        "verify", path, "demo_48x4", texts, *SETTINGS, "--strength", "2", "--out", tmp_path / "two"
    )
    assert code == 0, err
    assert f"by {every:#.3g} [" in again


def _demo():
    from depthsys.demo import model_path

    return model_path("demo_48x4")


def test_large_pushes_and_wrong_signs_are_told(run, texts, tmp_path):
    """Along the concept itself, turned around."""
    model = lm.DepthModel.load(_demo(), device="cpu")
    splits = lm.read_texts(texts).split(concept=12, operating=6, held_out=6)
    v = lm.mean_difference(model, splits.concept)["direction"].values
    path = written(tmp_path / "v.gguf", {3: (-9 * v[4]).astype(np.float32)})
    common = ["verify", path, "demo_48x4", texts, *SETTINGS]
    code, shown, err = run(*common, "--out", tmp_path / "one")
    assert code == 0, err
    assert "It moves the concept backwards: `--strength -1` turns it around" in shown
    assert "WARNING: the push is more than 0.3 of the state's norm at depth 4" in shown
    assert "by -9.00 [-9.00, -9.00]" in shown
    code, shown, err = run(*common, "--strength", "-0.01", "--out", tmp_path / "two")
    assert code == 0, err
    assert "WARNING" not in shown
    assert "backwards" not in shown
    assert "by 0.0900 [0.0900, 0.0900]" in shown


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["{path}", "--layer-range", "3"], "`--layer-range` must be the first and the last layer"),
        (["{path}", "--layer-range", "3:2"], "`--layer-range` must be the first and the last"),
        (["{path}", "--strength", "nan"], "`--strength` must be a finite number; got nan"),
        (["{path}", "--original", "s.nc"], "`--original` must be left out for a control vector"),
        (
            ["{path}", "--model", "demo_96x8"],
            "`FILE` must be as wide as the states of the model, 96",
        ),
        (["{deep}", "--model", "demo_48x4"], "`--model` must be more than the last block"),
        (
            ["{path}", "--model", "demo_48x4", "--layer-range", "2:9"],
            "`--layer-range` must lie within the 4 blocks of the model, 0 to 3; got 2:9",
        ),
        (["s.mat", "--strength", "2"], "`--strength` must be left out for systems; got 2.0"),
        (["s.nc", "--model", "m"], "`--model` must be left out for systems; got 'm'"),
        (["none.gguf"], "`FILE` must be an existing file"),
    ],
)
def test_wrong_imports_are_told(given, said, run, path, tmp_path):
    deep = written(tmp_path / "deep.gguf", {9: np.ones(H, np.float32)})
    given = [word.format(path=path, deep=deep) for word in given]
    code, _, err = run("import", *given, "--out", tmp_path / "vec.nc")
    assert code == 2
    assert said in err
    assert not (tmp_path / "vec.nc").exists()


def test_wrong_plans_are_told_before_the_model_is_loaded(run, path, texts, tmp_path, monkeypatch):
    monkeypatch.setattr("depthsys.lm.DepthModel.load", lambda *_, **__: pytest.fail("loaded"))
    schedule = xr.Dataset({"u": ("layer", np.zeros(N_LAYERS))})
    schedule.to_netcdf(tmp_path / "schedule.nc", engine="h5netcdf")
    deep = written(tmp_path / "deep.gguf", {9: np.ones(H, np.float32)})
    for plan, model, said in (
        ("none.nc", "demo_48x4", "`PLAN.nc` must be an existing file"),
        (tmp_path / "schedule.nc", "demo_48x4", "`PLAN.nc` must hold a control vector"),
        (path, "demo_96x8", "`PLAN.nc` must be as wide as the states of the model, 96; got 48"),
        (deep, "demo_48x4", "`PLAN.nc` must be of a model with 4 blocks; got one for at least 10"),
    ):
        code, _, err = run("verify", plan, model, texts, *SETTINGS, "--out", tmp_path / "check")
        assert code == 2
        assert said in err
    assert run("import", path, "--out", tmp_path / "vec.nc")[0] == 0
    code, _, err = run(
        "verify", tmp_path / "vec.nc", "demo_48x4", texts, "--strength", "inf", "--out", "check"
    )
    assert code == 2
    assert "`--strength` must be a finite number; got inf" in err
