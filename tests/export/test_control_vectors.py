"""Control vectors of others: what becomes of them here, and the way back."""

import json
import struct
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
import torch
import xarray as xr

from depthsys import export, lm
from depthsys.export.control_vectors import parts_of
from tests.export.test_steering import directions, identified, random_plan

H = 16


def written(path, vectors, architecture="controlvector", hint="gpt2", **tensors):
    """As repeng and cvector-generator write it, by the gguf package."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_string("controlvector.model_hint", hint)
    writer.add_uint32("controlvector.layer_count", len(vectors))
    named = {f"direction.{block}": vector for block, vector in vectors.items()} | tensors
    for name, vector in named.items():
        writer.add_tensor(name, vector)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tensors_of(path) -> dict[str, bytes]:
    return {t.name: np.array(t.data).tobytes() for t in gguf.GGUFReader(path).tensors}


@pytest.fixture
def vectors() -> dict[int, np.ndarray]:
    """Of five blocks, the last one first as repeng has them."""
    rng = np.random.default_rng(1)
    sizes = {4: 3.0, 3: 1e-3, 2: 1e4, 1: 0.5}
    return {n: (s * rng.standard_normal(H)).astype(np.float32) for n, s in sizes.items()}


@pytest.fixture
def path(tmp_path, vectors):
    return written(tmp_path / "vec.gguf", vectors)


# ------------------------------------------------------------------------- layers, sign, scale


def test_direction_n_is_the_push_at_the_input_of_the_next_block(path, vectors):
    found = export.read_control_vector(path, n_layers=5, n_features=H)
    assert found["u"].sizes == {"layer": 5}
    for block, vector in vectors.items():
        v = found["direction"].sel(depth=block + 1).values
        u = found["u_end"] if block == 4 else found["u"].sel(layer=block + 1)
        assert np.linalg.norm(v) == pytest.approx(1, abs=1e-15)
        assert u == pytest.approx(np.linalg.norm(vector.astype(float)), rel=1e-15)
        np.testing.assert_allclose(float(u) * v, vector, rtol=1e-15)
    assert np.isnan(found["direction"].values[:2]).all()
    assert found["u"].values[:2].tolist() == [0, 0]
    assert found.attrs["direction_note"].startswith("no direction at depths 0, 1:")
    assert found.attrs["model_hint"] == "gpt2"


def test_strength_and_range_are_those_of_llama_cpp(path):
    one = export.read_control_vector(path)
    for strength in (-0.7, 0.0, 2.0):
        found = export.read_control_vector(path, strength=strength)
        np.testing.assert_allclose(found["u"], strength * one["u"], rtol=1e-15)
        assert float(found["u_end"]) == strength * float(one["u_end"])
        xr.testing.assert_equal(found["direction"], one["direction"])
    some = export.read_control_vector(path, layer_range=(2, 3))  # of N, both included
    kept = np.array([0, 0, 0, 1, 1])
    np.testing.assert_array_equal(some["u"], kept * one["u"])
    assert float(some["u_end"]) == 0
    xr.testing.assert_equal(some["direction"], one["direction"])
    assert json.loads(some.attrs["layer_range"]) == [2, 3]


def test_the_default_range_of_llama_cpp_is_taken(path):
    xr.testing.assert_equal(
        export.read_control_vector(path, layer_range=(1, 7), n_layers=7),
        export.read_control_vector(path, n_layers=7),
    )


def test_the_first_block_is_left_out_where_the_range_excludes_it(tmp_path):
    path = written(tmp_path / "v.gguf", {0: np.ones(4, np.float32)} | ONE)
    export.write_control_vector(export.read_control_vector(path), tmp_path / "same.gguf")
    assert tensors_of(tmp_path / "same.gguf") == tensors_of(path)
    some = export.read_control_vector(path, layer_range=(1, 1))
    export.write_control_vector(some, tmp_path / "some.gguf")
    kept = written(tmp_path / "kept.gguf", ONE)
    assert tensors_of(tmp_path / "some.gguf") == tensors_of(kept)


def test_blocks_that_were_not_told_are_added_later(path, vectors):
    """The push behind the last block that is known becomes that at the input of the next one."""
    short, long = (export.read_control_vector(path, n_layers=n) for n in (None, 7))
    assert (short.sizes["layer"], short.attrs["n_layers_told"]) == (5, 0)
    xr.testing.assert_identical(export.with_layers(short, 7), long)
    xr.testing.assert_equal(export.with_layers(short, 5), short)
    assert export.with_layers(long, 7) is long
    with pytest.raises(ValueError, match=r"with 6 blocks; got one for 7\. Give"):
        export.with_layers(long, 6)
    with pytest.raises(ValueError, match=r"with 4 blocks; got one for at least 5\. Give"):
        export.with_layers(short, 4)


def test_a_zero_tensor_is_no_direction(tmp_path, vectors):
    path = written(tmp_path / "zero.gguf", vectors | {3: np.zeros(H, np.float32)})
    found = export.read_control_vector(path)
    assert np.isnan(found["direction"].values[4]).all()
    assert found["u"].values[4] == 0


@pytest.mark.parametrize("size", [5e-324, 1e-300, 1e-200, 1e-160, 1.0, 1e160, 1e300])
def test_numbers_of_every_size_have_a_unit_direction(size):
    found = export.from_control_vector({0: [3 * size, -4 * size]}, n_layers=2)
    np.testing.assert_allclose(found["direction"][1], [0.6, -0.8], rtol=1e-12)
    np.testing.assert_allclose(found["u"], [0, 5 * size], rtol=1e-12)
    some = export.from_control_vector({0: [1e308] * 4, 1: [1.0] * 4}, layer_range=(1, 1))
    assert (some["u"].values.tolist(), float(some["u_end"])) == ([0, 0], 2)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_plain_numbers_are_read_exactly(dtype, tmp_path, vectors):
    small = {n: np.clip(v, -100, 100).astype(dtype) for n, v in vectors.items()}
    found = export.read_control_vector(written(tmp_path / "v.gguf", small))
    expected = export.from_control_vector(small)
    xr.testing.assert_equal(found, expected)


# ------------------------------------------------------------------------- there and back


def test_import_and_export_give_the_same_bytes(path, tmp_path, vectors):
    again = tmp_path / "again.gguf"
    export.write_control_vector(export.read_control_vector(path), again)
    assert tensors_of(again) == tensors_of(path)
    assert list(tensors_of(again)) == [f"direction.{n}" for n in vectors]
    fields = gguf.GGUFReader(again).fields
    assert fields["controlvector.model_hint"].contents() == "gpt2"
    assert fields["controlvector.layer_count"].contents() == 4
    assert fields["general.architecture"].contents() == "controlvector"


def test_the_same_bytes_for_every_size_of_number(tmp_path):
    """Subnormal, huge, and with zeros among them."""
    rng = np.random.default_rng(4)
    bits = rng.integers(0, 2**32, size=(40, 64), dtype=np.uint32).view(np.float32)
    bits = np.where(np.isfinite(bits), bits, 0)
    bits[3] *= 1e-45
    vectors = dict(enumerate(bits, start=1)) | {41: np.zeros(64, np.float32)}
    path = written(tmp_path / "v.gguf", vectors)
    export.write_control_vector(export.read_control_vector(path), tmp_path / "again.gguf")
    mine, theirs = tensors_of(tmp_path / "again.gguf"), tensors_of(path)
    assert mine == theirs


def test_changes_are_written_too(path, tmp_path, vectors):
    vector = export.read_control_vector(path)
    export.write_control_vector(
        vector.assign(u=2 * vector["u"]), tmp_path / "b.gguf", model_hint="x"
    )
    found = {t.name: np.array(t.data) for t in gguf.GGUFReader(tmp_path / "b.gguf").tensors}
    np.testing.assert_array_equal(found["direction.2"], 2 * vectors[2])
    np.testing.assert_array_equal(found["direction.4"], vectors[4])
    assert gguf.GGUFReader(tmp_path / "b.gguf").fields["controlvector.model_hint"].contents() == "x"
    with pytest.raises(FileExistsError):
        export.write_control_vector(vector, tmp_path / "b.gguf")


def test_pushes_that_were_added_are_written_too(path, tmp_path, vectors):
    vector = export.read_control_vector(path)
    vector["direction"][1] = np.eye(H)[2]
    vector["u"][1] = -5.0
    export.write_control_vector(vector, tmp_path / "b.gguf")
    found = {t.name: np.array(t.data) for t in gguf.GGUFReader(tmp_path / "b.gguf").tensors}
    assert list(found) == [f"direction.{n}" for n in (*vectors, 0)]
    np.testing.assert_array_equal(found["direction.0"], -5 * np.eye(H)[2])
    for n, values in vectors.items():
        np.testing.assert_array_equal(found[f"direction.{n}"], values)


def test_a_part_of_the_layers_is_not_written(path, tmp_path):
    vector = export.read_control_vector(path)
    first = vector.isel(layer=slice(2), depth=slice(3))
    with pytest.raises(ValueError, match=r"all layers that it came with; got 2 .* block 4\."):
        export.write_control_vector(first, tmp_path / "b.gguf")
    last = vector.isel(layer=slice(2, None), depth=slice(2, None))
    with pytest.raises(ValueError, match=r"every layer from 0 on; got \[2, 3, 4\]\."):
        export.write_control_vector(last, tmp_path / "b.gguf")
    wrong = vector.assign_coords(depth=np.arange(6) + 1)
    with pytest.raises(ValueError, match=r"every depth from 0 on; got \[1, 2, 3, 4, 5, 6\]\."):
        export.write_control_vector(wrong, tmp_path / "b.gguf")
    assert not (tmp_path / "b.gguf").exists()


def test_a_vector_made_by_hand_is_written_where_it_pushes(tmp_path, vectors):
    vector = export.from_control_vector(vectors)
    del vector.attrs["blocks"]
    export.write_control_vector(vector.drop_vars("u_end"), tmp_path / "b.gguf")
    assert list(tensors_of(tmp_path / "b.gguf")) == [f"direction.{n}" for n in (1, 2, 3)]


EPS = np.finfo(np.float32).eps / 2  # of float32 storage


def test_our_own_export_comes_back(model, ids, tmp_path):
    """A plan with pushes against the direction too: u, directions and response are the same."""
    system, concept = identified(model, ids, 1)
    plan = random_plan(1, first=2)
    assert (plan.u.values < 0).any()
    export.to_gguf(system, plan, tmp_path / "plan.gguf")
    found = export.read_control_vector(
        tmp_path / "plan.gguf", n_layers=model.n_layers, n_features=model.n_features
    )
    u = plan["u"].values[:, 0]
    np.testing.assert_allclose(found["u"], u, rtol=EPS)
    v = concept["direction"].isel(input=0).values
    np.testing.assert_allclose(found["direction"][2:-1], v[2:-1], atol=2 * EPS)
    assert np.isnan(found["direction"].values[[0, 1, -1]]).all()
    assert float(found["u_end"]) == 0
    single = (u[:, None] * v[:-1]).astype(np.float32)
    pushes = np.nan_to_num(
        found["u"] * found["direction"][:-1].rename(depth="layer").drop_vars("layer")
    )
    np.testing.assert_array_equal(pushes.astype(np.float32)[2:], single[2:])  # to the bit
    back = tmp_path / "back.gguf"
    export.write_control_vector(found, back)
    assert tensors_of(back) == tensors_of(tmp_path / "plan.gguf")
    rows = xr.DataArray(np.eye(H), dims=("output", "feature"))
    for tokens in ("last", "every"):
        mine = lm.play(model, ids, concept, plan, readout=rows, tokens=tokens)
        theirs = lm.play(model, ids, found, found, readout=rows, tokens=tokens)
        size = float(abs(mine.response).max())
        np.testing.assert_allclose(theirs.response, mine.response, rtol=0, atol=1e-5 * size)
        assert size > 0.1


def test_of_several_inputs_the_pushes_come_back(model, ids, tmp_path):
    system, _ = identified(model, ids, 2)
    plan = random_plan(2, first=2)
    export.to_gguf(system, plan, tmp_path / "plan.gguf")
    found = export.read_control_vector(tmp_path / "plan.gguf")
    pushes = found["u"].values[:, None] * found["direction"].values[:-1]
    expected = export.injections(system, plan).values
    np.testing.assert_allclose(pushes[2:], expected[2:], rtol=0, atol=EPS * abs(expected).max())
    assert (found["u"] >= 0).all()


@pytest.mark.parametrize("told", [b"\x05\x00\x00\x00", b"\xff\xff\xff\x7f"])
def test_signs_that_are_none_are_not_believed(told, model, ids, tmp_path):
    system, _ = identified(model, ids, 1)
    export.to_gguf(system, random_plan(1, first=2), tmp_path / "plan.gguf")
    content = (tmp_path / "plan.gguf").read_bytes()
    at = content.index(b"depthsys.signs") + 14 + 16
    (tmp_path / "b.gguf").write_bytes(content[:at] + told + content[at + 4 :])
    assert (export.read_control_vector(tmp_path / "b.gguf")["u"] >= 0).all()


# ------------------------------------------------------------------------- objects


def test_objects_of_the_tools_are_taken(path, vectors):
    """What each of them holds, by its own names; the tools themselves: test_tools_of_others.py."""
    expected = export.read_control_vector(path)
    repeng = SimpleNamespace(model_type="gpt2", directions=vectors)
    theirs = {n: torch.tensor(v)[None, :].requires_grad_() for n, v in vectors.items()}
    steering = SimpleNamespace(layer_activations=theirs, layer_type="decoder_block")
    for vector, source in (
        (repeng, "repeng"),
        (steering, "steering-vectors"),
        (vectors, "mapping"),
    ):
        found = export.from_control_vector(vector)
        xr.testing.assert_equal(found, expected)
        assert found.attrs["source"] == source
    assert export.from_control_vector(repeng).attrs["model_hint"] == "gpt2"


def test_numbers_below_zero_count_from_the_last_block(vectors):
    turned = {n - 6: v for n, v in vectors.items()}
    found = export.from_control_vector(turned, n_layers=6)
    xr.testing.assert_equal(found, export.from_control_vector(vectors, n_layers=6))


def test_a_push_of_block_0_is_kept_and_not_written(tmp_path):
    """repeng may hold one; llama.cpp refuses the file."""
    path = written(tmp_path / "v.gguf", {0: np.ones(4, np.float32), 1: np.ones(4, np.float32)})
    found = export.read_control_vector(path)
    assert found["u"].values.tolist() == [0, 2]
    export.write_control_vector(found, tmp_path / "again.gguf")
    assert tensors_of(tmp_path / "again.gguf") == tensors_of(path)
    wrong = found.assign(u=("layer", [1.0, 2.0]), direction=found["direction"].fillna(0.5))
    with pytest.raises(ValueError, match="must not push at the input of block 0 in a GGUF; got 1"):
        export.write_control_vector(wrong, tmp_path / "b.gguf")


# ------------------------------------------------------------------------- what is refused

ONE = {1: np.ones(4, np.float32)}


@pytest.mark.parametrize(
    ("vectors", "options", "said"),
    [
        ({}, {}, "a vector for some block; got none in"),
        ({1: np.zeros(4, np.float32)}, {}, "push somewhere; got nothing but zeros in"),
        (ONE | {2: np.ones(5, np.float32)}, {}, r"one length; got \(5,\) for block 2 in"),
        ({1: np.ones((2, 2), np.float32)}, {}, r"one length; got \(2, 2\) for block 1 in"),
        ({1: np.array([1, np.nan], np.float32)}, {}, "finite; got nan or inf for block 1 in"),
        (ONE | {"x": ONE[1]}, {}, r"tensors direction\.N.* got 'direction\.x'"),
        (ONE | {"01": ONE[1]}, {}, r"tensors direction\.N.* got 'direction\.01'"),
        (ONE | {"-1": ONE[1]}, {}, r"tensors direction\.N.* got 'direction\.-1'"),
        ({99999: ONE[1]}, {}, r"tensors direction\.N.* got 'direction\.99999'"),
        ({9000: np.ones(4096, np.float32)}, {}, "a fair part of the blocks; got 1 of width 4096"),
        (
            ONE,
            {"n_layers": 1},
            "more than the last block that is pushed; got 1 where .* block 1 in",
        ),
        (ONE, {"n_features": 8}, "as wide as the states of the model, 8; got 4 in"),
        (ONE, {"n_layers": 0}, "`n_layers` must be a whole number >= 1; got 0"),
        (ONE, {"strength": np.inf}, "`strength` must be a finite number; got inf"),
        (ONE, {"strength": 10**400}, "`strength` must be a finite number; got 1000"),
        (ONE, {"strength": "1"}, "`strength` must be a finite number; got '1'"),
        (ONE, {"layer_range": (3, 2)}, r"`layer_range` must be .*; got \(3, 2\)"),
        (ONE, {"layer_range": (-1, 2)}, r"`layer_range` must be .*; got \(-1, 2\)"),
        (ONE, {"layer_range": (0.5, 2)}, r"`layer_range` must be .*; got \(0.5, 2\)"),
        (ONE, {"layer_range": 3}, "`layer_range` must be .*; got 3"),
        (ONE, {"layer_range": (1, 4), "n_layers": 3}, "the 3 blocks of .*, 0 to 2; got 1:4"),
        (ONE, {"layer_range": (3, 3), "n_layers": 3}, "the 3 blocks of .*, 0 to 2; got 3:3"),
        (ONE, {"layer_range": (0, np.inf)}, r"`layer_range` must be .*; got \(0, inf\)"),
        (ONE, {"layer_range": (0, np.nan)}, r"`layer_range` must be .*; got \(0, nan\)"),
        (ONE, {"layer_range": (0, 1.5, 2)}, r"`layer_range` must be .*; got \(0, 1\.5, 2\)"),
        (ONE, {"layer_range": (0, 1, 2)}, r"`layer_range` must be .*; got \(0, 1, 2\)"),
        (
            {1: np.full(4, 1e308)},
            {},
            r"fits in float64; got entries up to 1\.0e\+308 for block 1 in",
        ),
        (
            {1: np.full(4, 1e10)},
            {"strength": -1e300},
            r"`strength` must give .*; got -1\.0e\+300 times the length 2\.0e\+10 for block 1",
        ),
    ],
)
def test_files_that_do_not_fit_are_refused(vectors, options, said, tmp_path):
    path = written(tmp_path / "v.gguf", vectors)
    with pytest.raises(ValueError, match=said) as caught:
        export.read_control_vector(path, **options)
    assert str(caught.value).isprintable()


def test_other_tensors_are_refused(tmp_path):
    path = written(tmp_path / "v.gguf", ONE, **{"token_embd.weight": ONE[1]})
    with pytest.raises(ValueError, match=r"and no others; got 'token_embd\.weight'"):
        export.read_control_vector(path)


def test_models_and_damaged_files_are_told(tmp_path):
    path = written(tmp_path / "v.gguf", ONE, architecture="llama")
    with pytest.raises(
        ValueError, match=r"must be a control vector .* says 'llama'\. A model goes"
    ):
        export.read_control_vector(path)
    path = written(tmp_path / "w.gguf", ONE)
    path.write_bytes(path.read_bytes()[:90])
    with pytest.raises(ValueError, match=r"must be a whole GGUF file; got .* ends too early"):
        export.read_control_vector(path)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 2**60, 1))
    with pytest.raises(ValueError, match=r"that is safe to read; got .* tensors"):
        export.read_control_vector(path)
    with pytest.raises(FileNotFoundError, match="must be an existing file"):
        export.read_control_vector(tmp_path / "none.gguf")


class Other:
    pass


@pytest.mark.parametrize(
    ("vector", "options", "error", "said"),
    [
        (Other(), {}, TypeError, "or a mapping from blocks to vectors; got Other"),
        (
            SimpleNamespace(layer_activations={1: [1.0]}, layer_type="mlp"), {},
            ValueError, r"output of blocks \(layer_type 'decoder_block'\); got 'mlp'",
        ),
        ({-1: [1.0]}, {}, ValueError, "number blocks from 0 .*; got -1"),
        ({True: [1.0]}, {}, ValueError, "number blocks from 0 .*; got True"),
        ({-3: [1.0]}, {"n_layers": 2}, ValueError, "number blocks from -2 on; got -3"),
        ({-1: [1.0], 1: [1.0]}, {"n_layers": 2}, ValueError, "hold each block once"),
        ({1: "text"}, {}, ValueError, "real numbers for each block; got a str of .* for block 1"),
        ({1: [[1.0], [1.0, 2.0]]}, {}, ValueError, "real numbers for each block; got a list"),
        ({1: []}, {}, ValueError, r"one length; got \(0,\) for block 1"),
    ],
)  # fmt: skip
def test_objects_that_are_none_are_refused(vector, options, error, said):
    with pytest.raises(error, match=said):
        export.from_control_vector(vector, **options)


def test_what_is_no_control_vector_is_not_written(tmp_path):
    good = export.from_control_vector(ONE)
    with pytest.raises(TypeError, match=r"a Dataset with `u` and `direction`; got \['u'\]"):
        export.write_control_vector(good[["u"]], tmp_path / "v.gguf")
    with pytest.raises(TypeError, match="a Dataset with `u` and `direction`; got dict"):
        parts_of({})  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="one depth more than layers"):
        parts_of(good.isel(layer=slice(1)))
    with pytest.raises(ValueError, match="must hold real numbers"):
        parts_of(good.assign(u=("layer", ["a", "b"])))
    with pytest.raises(ValueError, match=r"where it has a direction; got 1.0 at depth 0"):
        parts_of(good.assign(u=("layer", [1.0, 0.0])))
    with pytest.raises(ValueError, match=r"must push by finite numbers.*; got nan at depth 2"):
        parts_of(good.assign(u_end=np.nan))
    with pytest.raises(ValueError, match=r"fit in float32; got 2\.0e\+39 at layer 2"):
        export.write_control_vector(good.assign(u_end=4e39), tmp_path / "v.gguf")
    assert list(tmp_path.iterdir()) == []


def test_the_directions_of_a_stored_concept_are_none_of_a_vector():
    """What `directions` of other tests gives has no u."""
    with pytest.raises(TypeError, match="`u` and `direction`"):
        parts_of(directions(1))
