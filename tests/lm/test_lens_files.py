"""A lens as a file, and the files of others."""

import json
import pickle

import numpy as np
import pytest
import torch
import xarray as xr
from safetensors import safe_open
from safetensors.numpy import save_file

from depthsys import lm
from tests.conftest import tiny_gpt2

IDS = [[3, 1, 4, 1, 5], [9, 2, 6]]


@pytest.fixture(scope="module")
def model():
    return lm.DepthModel(tiny_gpt2())


@pytest.fixture(scope="module")
def found(model):
    return lm.lens(model, IDS, depths=[0, 2])


@pytest.fixture
def path(found, tmp_path):
    lm.save_lens(found, tmp_path / "lens.safetensors")
    return tmp_path / "lens.safetensors"


def test_it_comes_back_as_it_was(found, path, model):
    back = lm.read_lens(path)
    xr.testing.assert_identical(back, found)
    states = model.run(IDS).states.sel(depth=[0, 2])
    one, other = (lm.decode(model, states, lens=lens, top=3) for lens in (found, back))
    xr.testing.assert_identical(one.drop_attrs(), other.drop_attrs())


def test_others_can_read_what_it_is(found, path, model):
    with safe_open(path, "numpy") as file:
        metadata = file.metadata()
        np.testing.assert_array_equal(file.get_tensor("J"), found["J"])
    assert metadata["format"] == "depthsys lens"
    assert json.loads(metadata["depths"]) == [0, 2]
    assert metadata["definition"] == "last token"
    assert metadata["n_prompts"] == "2"
    assert metadata["model_fingerprint"] == model.fingerprint


def test_nothing_is_replaced_unasked(found, path):
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="`path` must not exist yet"):
        lm.save_lens(found, path)
    assert path.read_bytes() == before
    lm.save_lens(found * 2, path, force=True)
    np.testing.assert_array_equal(lm.read_lens(path)["J"], 2 * found["J"])


def test_a_lens_that_has_no_place_in_a_file_is_refused(found, tmp_path):
    with pytest.raises(
        ValueError, match=r"`path` must not end in \.pt, .* Name it \*\.safetensors"
    ):
        lm.save_lens(found, tmp_path / "lens.pt")
    with pytest.raises(ValueError, match="got no coordinate `depth`"):
        lm.save_lens(found.drop_vars("depth"), tmp_path / "lens.safetensors")
    with pytest.raises(ValueError, match=r"alone; got \['mine'\], which the file has no place for"):
        lm.save_lens(found.assign(mine=1.0), tmp_path / "lens.safetensors")
    assert list(tmp_path.glob("*.pt")) == []


def test_a_write_that_fails_leaves_nothing(found, tmp_path, monkeypatch):
    def broken(*_):
        raise OSError("no more")

    monkeypatch.setattr("depthsys.lm.lens_files.save_file", broken)
    with pytest.raises(OSError, match="no more"):
        lm.save_lens(found, tmp_path / "new" / "lens.safetensors")
    assert list(tmp_path.iterdir()) == []


def published(n_layers=3, width=16):
    """What ``JacobianLens.save`` of jacobian-lens writes: float16, layers 0..L-2."""
    generator = torch.Generator().manual_seed(0)
    J = {
        layer: torch.randn(width, width, generator=generator).half()
        for layer in range(n_layers - 1)
    }
    return {"J": J, "n_prompts": 7, "source_layers": sorted(J), "d_model": width}


def test_a_published_file_is_read_by_its_layers(model, tmp_path):
    given = published()
    torch.save(given, tmp_path / "lens.pt")
    back = lm.read_lens(tmp_path / "lens.pt", pickled_weights=True)
    np.testing.assert_array_equal(back["depth"], [1, 2])  # the outputs of blocks 0 and 1
    for layer, J in given["J"].items():
        np.testing.assert_array_equal(back["J"].sel(depth=layer + 1), J.float())
    assert back["J"].dtype == np.float32
    assert (back.attrs["definition"], back.attrs["n_prompts"]) == ("published", 7)
    run = model.run(IDS)
    read = lm.lens_agreement(run, back)
    assert list(read["reader"].values) == ["logit lens", "J-lens"]
    lm.save_lens(back, tmp_path / "lens.safetensors")
    xr.testing.assert_identical(lm.read_lens(tmp_path / "lens.safetensors"), back)


def test_our_reference_fills_a_published_file(model, tmp_path):
    """The same matrices whether they come by their file or from `lens`."""
    ours = lm.lens(model, IDS, definition="published", skip=0)
    layers = range(model.n_layers - 1)
    given = published()
    given["J"] = {n: torch.tensor(ours["J"].sel(depth=n + 1).values).half() for n in layers}
    torch.save(given, tmp_path / "lens.pt")
    back = lm.read_lens(tmp_path / "lens.pt", pickled_weights=True)
    np.testing.assert_allclose(back["J"], ours["J"].sel(depth=[1, 2]), rtol=2e-3, atol=1e-3)


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code was run')",))


def test_pickles_are_read_only_when_asked_and_run_no_code(tmp_path):
    torch.save(published(), tmp_path / "lens.pt")
    with pytest.raises(ValueError, match=r"must be safetensors; got the pickle .*restricted"):
        lm.read_lens(tmp_path / "lens.pt")
    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"J": Evil()}))
    with pytest.raises(ValueError, match="`path` must be a lens of depthsys or of jacobian-lens"):
        lm.read_lens(tmp_path / "evil.pt", pickled_weights=True)
    torch.save({"J": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="`path` must be a lens of depthsys or of jacobian-lens"):
        lm.read_lens(tmp_path / "evil.pt", pickled_weights=True)


def test_what_is_no_lens_is_refused_in_one_line(found, path, tmp_path):
    with pytest.raises(FileNotFoundError, match="`path` must be an existing file"):
        lm.read_lens(tmp_path / "none.safetensors")
    with pytest.raises(TypeError, match="`lens` must be a lens with `J`"):
        lm.save_lens(xr.Dataset(), tmp_path / "x.safetensors")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(path.read_bytes()[:-100])
    foreign = tmp_path / "foreign.safetensors"
    save_file({"J": np.eye(3)}, foreign)
    bad = {
        "keys": {"jacobian_sum": {}, "n_done": 3},
        "d_model": published() | {"d_model": 8},
        "layers": published() | {"J": {"a": torch.eye(16)}},
        "nan": published() | {"J": {0: torch.full((16, 16), torch.nan)}, "source_layers": [0]},
        "list": [1, 2],
    }
    for name, given in bad.items():
        torch.save(given, tmp_path / f"{name}.pt")
    said = {
        cut: "",
        foreign: "its metadata say format None",
        tmp_path / "keys.pt": r"it has no matrices `J` by layer, but \['jacobian_sum', 'n_done'\]",
        tmp_path / "d_model.pt": "its d_model is 8",
        tmp_path / "layers.pt": "its layers are no whole numbers",
        tmp_path / "nan.pt": "J is not finite",
        tmp_path / "list.pt": "but list",
    }
    for place, why in said.items():
        with pytest.raises(ValueError, match=f"must be a lens .*{why}") as caught:
            lm.read_lens(place, pickled_weights=True)
        assert "\n" not in str(caught.value)


def test_what_could_not_be_read_again_is_not_written(found, tmp_path):
    path = tmp_path / "lens.safetensors"
    for wrong, said in (
        (found.isel(depth=[1, 0]), "its depths are no rising whole numbers"),
        (found * np.nan, "J is not finite"),
    ):
        with pytest.raises(ValueError, match=said):
            lm.save_lens(wrong, path)
    with pytest.raises(TypeError, match=r"numbers and texts as attrs; got .* for 'x'"):
        lm.save_lens(found.assign_attrs(x=np.ones(2)), path)
    assert not path.exists()
    with pytest.raises(TypeError, match="`pickled_weights` must be True or False"):
        lm.read_lens(path, pickled_weights="no")


def test_a_lens_that_is_not_finite_reads_nothing(found, model):
    states = model.run(IDS).states.sel(depth=[0, 2])
    with pytest.raises(ValueError, match="`lens` must be finite; got NaN or infinity in J"):
        lm.decode(model, states, lens=found.assign(J=found["J"] * np.nan))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"J": {True: torch.eye(4)}}, "its layers are no whole numbers"),
        ({"source_layers": [5, 6]}, "`source_layers` are not those of its matrices"),
        ({"J": {0: torch.eye(4, dtype=torch.complex64)}}, "its matrices are not real numbers"),
    ],
)
def test_a_published_file_that_contradicts_itself_is_refused(tmp_path, change, said):
    given = {"J": {0: torch.eye(4)}, "n_prompts": 2, "source_layers": [0], "d_model": 4} | change
    if "J" in change:
        given["source_layers"] = list(change["J"])
    torch.save(given, tmp_path / "lens.pt")
    with pytest.raises(ValueError, match=said):
        lm.read_lens(tmp_path / "lens.pt", pickled_weights=True)
