"""Chosen variables of a Zarr hierarchy are those that xarray reads, and nothing else is read."""

import json
import shutil

import numpy as np
import pytest
import xarray as xr

from depthsys.files.trees import read_tree

HOW = {"consolidated": False, "zarr_format": 3}


@pytest.fixture(scope="module")
def data() -> xr.Dataset:
    rng = np.random.default_rng(0)
    return xr.Dataset(
        {
            "plain": (("x", "y"), rng.normal(size=(5, 3))),
            "holes": (("x",), [1.0, np.nan, np.inf, -np.inf, 0.0]),
            "unknown": (("x",), np.full(5, np.nan)),
            "small": (("y",), np.float32([1, 2, 3])),
            "whole": (("y",), [1, -2, 3]),
            "met": (("y",), [True, False, True]),
            "alone": 2.5,
            "said": (("y",), np.array(["a", "", "ü &"], dtype=object)),
            "of_one_length": (("y",), np.array(["ab", "c", ""])),
            "not_wanted": (("x",), np.zeros(5)),
        },
        coords={"y": np.array(["one", "two", "three"], dtype=object), "x": [0, 2, 4, 6, 8]},
        attrs={"name": "a"},
    )


@pytest.fixture(scope="module")
def written(data, tmp_path_factory):
    import warnings

    path = tmp_path_factory.mktemp("tree") / "store.zarr"
    encoding = {"plain": {"chunks": (2, 2)}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that texts of a fixed length have no specification
        xr.Dataset(attrs={"of": "all"}).to_zarr(path, **HOW)
        data.to_zarr(path, group="a/b", mode="a", encoding=encoding, **HOW)
    return path


@pytest.fixture
def store(written, tmp_path):
    """A copy that may be spoiled."""
    return shutil.copytree(written, tmp_path / "store.zarr")


NAMES = {"plain", "holes", "unknown", "small", "whole", "met", "alone", "said", "of_one_length"}


def wanted(group):
    return NAMES if group == "a/b" else ()


def changed(store, name, **changes):
    file = store / "a/b" / name / "zarr.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_it_reads_what_xarray_reads(written, data):
    nodes = read_tree(written, wanted)
    assert list(nodes) == ["", "a", "a/b"]
    assert nodes[""].attrs == {"of": "all"}
    assert nodes["a/b"].attrs == {"name": "a"}
    read = xr.Dataset(nodes["a/b"].variables)
    assert set(read.variables) == NAMES | {"x", "y"}
    for name, variable in read.variables.items():
        assert variable.dims == data[name].dims
        np.testing.assert_array_equal(variable.values, data[name].values)


def one(group):
    return {"whole"} if group == "a/b" else ()


def test_only_what_is_wanted_is_opened(store):
    (store / "a/b/not_wanted/zarr.json").write_text("spoiled")
    assert set(read_tree(store, one)["a/b"].variables) == {"whole", "y"}


def test_what_only_has_a_size_is_not_read(store):
    shutil.rmtree(store / "a/b/not_wanted/c", ignore_errors=True)
    node = read_tree(store, one, ["not_wanted"])["a/b"]
    assert node.sizes == {"x": 5, "y": 3}
    assert "not_wanted" not in node.variables


def test_a_chunk_that_was_not_written_is_what_stands_for_it(store):
    shutil.rmtree(store / "a/b/plain/c/1")
    plain = read_tree(store, wanted)["a/b"].variables["plain"][1]
    assert np.isnan(plain[2:4]).all()
    assert np.isfinite(plain[[0, 1, 4]]).all()


def test_gzip_and_checksums_are_read(tmp_path):
    import zarr

    root = zarr.open_group(tmp_path / "s.zarr", mode="w", zarr_format=3)
    array = root.create_group("g").create_array(
        "v",
        shape=(4,),
        dtype="float64",
        dimension_names=("x",),
        compressors=[zarr.codecs.GzipCodec(), zarr.codecs.Crc32cCodec()],
    )
    array[:] = np.arange(4)
    read = read_tree(tmp_path / "s.zarr", lambda group: {"v"} if group == "g" else ())
    np.testing.assert_array_equal(read["g"].variables["v"][1], np.arange(4))


def test_links_are_no_part_of_it(store, tmp_path):
    (store / "elsewhere").symlink_to(store / "a")
    assert "elsewhere" not in read_tree(store, wanted)
    (tmp_path / "text").write_bytes((store / "a/b/alone/c").read_bytes())
    (store / "a/b/alone/c").unlink()
    (store / "a/b/alone/c").symlink_to(tmp_path / "text")
    with pytest.raises(ValueError, match=r"that is whole; got .*OSError"):
        read_tree(store, wanted)


def test_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"`path` must be an existing folder; got .*none"):
        read_tree(tmp_path / "none", wanted)


def test_no_store(tmp_path):
    with pytest.raises(ValueError, match=r"there is no zarr\.json in it"):
        read_tree(tmp_path, wanted)


def cut(path, count):
    path.write_bytes(path.read_bytes()[:count])


def coded(name, *codecs):
    """With other codecs in its description."""
    said = [each if isinstance(each, dict) else {"name": each} for each in codecs]
    return lambda store: changed(store, name, codecs=said)


BIG = {"name": "bytes", "configuration": {"endian": "big"}}


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda s: cut(s / "a/zarr.json", 20), r"a/zarr\.json is not whole"),
        (lambda s: (s / "a/zarr.json").write_text("[]"), r"a/zarr\.json is not of version 3"),
        (lambda s: changed(s, "whole", zarr_format=2), r"whole/zarr\.json is not of version 3"),
        (lambda s: changed(s, "whole", node_type="group"), "a variable is not whole"),
        (lambda s: cut(s / "a/b/holes/c/0", 10), r"a chunk of holes is not whole \("),
        (coded("holes", "bytes"), "a chunk of holes is not whole"),
        (coded("holes", "bytes", "blosc"), "holes needs the codec 'blosc'"),
        (coded("holes", "sharding_indexed"), "holes needs the codec 'sharding_indexed'"),
        (coded("whole", BIG), "whole is stored in big-endian numbers"),
        (coded("said", "vlen-utf8"), "a chunk of said is not whole"),
        (lambda s: changed(s, "whole", data_type="complex128"), "unknown kind 'complex128'"),
        (lambda s: changed(s, "whole", chunk_grid={"name": "odd"}), "chunks of an unknown kind"),
        (lambda s: changed(s, "whole", chunk_key_encoding={"name": "v2"}), "names of an unknown"),
        (lambda s: changed(s, "whole", shape=[2**40]), "declares more than"),
        (lambda s: changed(s, "whole", shape="x"), "ValueError: "),
    ],
)
def test_what_is_not_whole_or_not_known_is_refused(store, spoil, said):
    spoil(store)
    whole = "must be a Zarr store of version 3 that is whole"
    with pytest.raises(ValueError, match=f"{whole}.*{said}"):
        read_tree(store, wanted)


def test_texts_must_be_texts(store):
    changed(store, "said", codecs=[{"name": "vlen-utf8"}])
    (store / "a/b/said/c/0").write_bytes(b"\3\0\0\0" + 3 * b"\1\0\0\0\xff")
    with pytest.raises(ValueError, match="said holds what is no text"):
        read_tree(store, wanted)


def test_texts_may_not_be_packed_too_large(store):
    (store / "a/b/said/c/0").write_bytes(bytes(2**22 + 1))
    with pytest.raises(ValueError, match="a chunk of said is too large for texts"):
        read_tree(store, wanted)
