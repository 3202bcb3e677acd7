"""GGUF files of others: what is whole is read, and nothing of what is damaged is believed."""

import struct

import gguf
import numpy as np
import pytest

from depthsys.files.strangers import limits
from depthsys.files.strangers.gguf import read_gguf
from depthsys.files.strangers.limits import Refused

VALUES = np.random.default_rng(0).standard_normal((2, 6)).astype(np.float32)


def text(said: str | bytes) -> bytes:
    said = said.encode() if isinstance(said, str) else said
    return struct.pack("<Q", len(said)) + said


def entry(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: str, shape=(6,), kind=0, offset=0) -> bytes:
    dims = struct.pack(f"<{len(shape)}Q", *shape)
    return text(name) + struct.pack("<I", len(shape)) + dims + struct.pack("<IQ", kind, offset)


ARCHITECTURE = entry("general.architecture", 8, text("tool"))


def content(entries=(), tensors=(), data=b"", version=3, n_tensors=None, n_entries=None) -> bytes:
    """By hand, so that every count may lie."""
    entries = [ARCHITECTURE, *entries]
    counts = (len(tensors) if n_tensors is None else n_tensors,
              len(entries) if n_entries is None else n_entries)  # fmt: skip
    head = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join([*entries, *tensors])
    return head + bytes(-len(head) % 32) + data


@pytest.fixture
def read(tmp_path):
    def call(data: bytes):
        path = tmp_path / "file.gguf"
        path.write_bytes(data)
        return read_gguf(path, "tool")

    return call


def test_what_the_gguf_package_writes_is_read(tmp_path):
    path = tmp_path / "file.gguf"
    writer = gguf.GGUFWriter(path, "tool")
    writer.add_string("a.text", "Maß")
    writer.add_uint32("a.count", 7)
    writer.add_int8("a.small", -7)
    writer.add_float64("a.number", 0.1)
    writer.add_bool("a.flag", True)
    writer.add_array("a.many", [1, -2, 3])
    writer.add_array("a.words", ["x", "yz"])
    arrays = {"one": VALUES[0], "half": VALUES.astype(np.float16), "double": VALUES.astype(float)}
    for name, values in arrays.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = read_gguf(path, "tool")
    assert found.metadata == {
        "general.architecture": "tool", "a.text": "Maß", "a.count": 7, "a.small": -7,
        "a.number": 0.1, "a.flag": True, "a.many": [1, -2, 3], "a.words": ["x", "yz"],
    }  # fmt: skip
    assert list(found.tensors) == list(arrays)
    for name, values in arrays.items():
        np.testing.assert_array_equal(found.tensors[name], values)
    assert [t.dtype for t in found.tensors.values()] == [np.float32, np.float32, np.float64]


def test_bfloat16_is_read_as_the_float32_it_is(read):
    import torch

    values = torch.tensor(VALUES[0]).bfloat16()
    data = values.view(torch.int16).numpy().tobytes()
    found = read(content(tensors=[tensor("a", kind=30)], data=data))
    np.testing.assert_array_equal(found.tensors["a"], values.float().numpy())


def test_nothing_of_another_architecture_is_read(read):
    data = content(n_tensors=5)[:70]  # a model, of which the beginning is enough
    other = data.replace(text("tool"), text("calf"))
    found = read(other)
    assert (found.architecture, found.tensors) == ("calf", {})


A = tensor("a")
DATA = VALUES[0].tobytes()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "ends too early"),
        (b"PK\3\4 and so on", "does not begin as a GGUF"),
        (content(version=1), "of version 1"),
        (content(version=3 << 24), "the small end of numbers first"),
        (content(n_entries=3), "says '' twice"),
        (content(n_entries=9)[:80], "ends too early"),
        (content([ARCHITECTURE]), "says 'general.architecture' twice"),
        (content([entry("a", 13, b"")]), "value of the unknown kind 13"),
        (content([entry("a", 9, struct.pack("<IQ", 9, 1) + bytes(12))]), "unknown kind 9"),
        (content(tensors=[A, A], data=DATA), "two of its tensors have one name"),
        (content(tensors=[tensor("a", shape=(1,) * 5)]), "has 5 dims"),
        (content(tensors=[tensor("a", kind=2)], data=DATA), "'a' is quantised"),
        (content(tensors=[A], data=DATA[:-1]), "before the end of the tensor 'a'"),
        (content(tensors=[tensor("a", offset=2**63)], data=DATA), "before the end of the tensor"),
        (content([entry("general.alignment", 4, bytes(4))], [A], DATA), "its alignment is 0"),
        (content([entry("general.alignment", 8, text("x"))], [A], DATA), "its alignment is x"),
    ],
)  # fmt: skip
def test_damaged_files_are_told(data, said, read):
    with pytest.raises(ValueError, match=said):
        read(data)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (content(n_entries=2**40), "declares 1099511627776 entries of metadata"),
        (content(n_tensors=2**63), "declares 9223372036854775808 tensors"),
        (content([entry("a", 9, struct.pack("<IQ", 4, 2**60))]), "values in one entry"),
        (content([entry("a", 8, struct.pack("<Q", 2**50))]), "a text of"),
        (content(tensors=[tensor("a", shape=(2**30, 2**30))], data=DATA), "tensors declare"),
        # each of them fits, and together they would be many times the file
        (content(tensors=[tensor(str(i), (120,)) for i in range(200)], data=DATA * 20), "declare"),
    ],
)
def test_lies_about_sizes_are_refused_before_anything_is_read(data, said, read):
    with pytest.raises(Refused, match=said):
        read(data)


def test_a_count_up_to_the_limit_is_allowed(read, monkeypatch):
    monkeypatch.setattr("depthsys.files.strangers.gguf._Content.count.__defaults__", (2,))
    assert list(read(content([entry("a", 7, b"\1")], [A], DATA)).tensors) == ["a"]
    with pytest.raises(Refused, match="declares 3 entries of metadata, and 2 are allowed"):
        read(content([entry("a", 7, b"\1"), entry("b", 7, b"\0")], [A], DATA))


def test_every_damage_is_told_or_harmless(read):
    """All ends, and every byte changed in two ways."""
    whole = content(
        [entry("a", 9, struct.pack("<IQ", 4, 2) + bytes(8)), entry("b", 8, text("said"))],
        [A, tensor("b", shape=(3, 2), offset=32)],
        DATA + bytes(8) + DATA,
    )
    assert list(read(whole).tensors) == ["a", "b"]
    changed = [whole[:n] for n in range(len(whole))]
    for at in range(len(whole)):
        for new in (0xFF, whole[at] ^ 1):
            changed.append(whole[:at] + bytes([new]) + whole[at + 1 :])
    n_read = 0
    for data in changed:
        said = told(read, data)
        n_read += said == ""
        assert len(said) < limits.MESSAGE
        assert said.isprintable()
    assert 0 < n_read < len(changed) / 2


def told(read, data) -> str:
    """What is said of a file; "" if it is read."""
    try:
        read(data)
    except (Refused, ValueError) as error:
        return str(error)
    return ""
