"""Whatever goes wrong while a file is read is one clear line."""

import numpy as np
import pytest

from depthsys import export
from depthsys.export import guard, npz
from depthsys.files.strangers.limits import Refused, one_line
from tests.export.systems import random_system


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError("no\nway."), r"`path` must be a whole thing; got 'x': no way\. Mend it\."),
        (ZeroDivisionError(), "must be a whole thing; got 'x': ZeroDivisionError"),
        (Refused("it bites"), r"must be a whole thing that is safe to read; got 'x': it bites\."),
        (MemoryError("9 GiB"), "must fit into the memory; got 'x'"),
    ],
)
def test_what_the_libraries_trip_over(error, message):
    with pytest.raises(ValueError, match=message), guard.told_of("x", "a whole thing", "Mend it."):
        raise error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("`a` must be b; got c. D."), "^`a` must be b; got c. D.$"),
        (TypeError("`a` must be b; got c. D."), "^`a` must be b; got c. D.$"),
        (ValueError("a\nb"), "must hold a system; got .*does not fit: ValueError, a b. Export it"),
        (AttributeError("no"), "in which something does not fit: AttributeError, no. Export it"),
        (MemoryError("9 GiB"), "must fit into the memory; got"),
    ],
)
def test_what_makes_no_sense_together(error, message, tmp_path, monkeypatch):
    def fails(*_):
        raise error

    export.to_npz(random_system(), tmp_path / "s.npz")
    monkeypatch.setattr(npz, "restored", fails)
    kind = TypeError if isinstance(error, TypeError) else ValueError
    with pytest.raises(kind, match=message):
        export.read(tmp_path / "s.npz")


def test_long_messages_keep_their_beginning_and_their_end(tmp_path, monkeypatch):
    def fails(*_):
        raise ValueError("`a` must be b; got " + "x\n" * 10**6 + ". Do that.")

    export.to_npz(random_system(), tmp_path / "s.npz")
    monkeypatch.setattr(npz, "restored", fails)
    with pytest.raises(ValueError, match=r"^`a` must be b; got .* \.\.\. .*Do that\.$") as caught:
        export.read(tmp_path / "s.npz")
    assert len(str(caught.value)) <= guard.LONGEST


def test_one_line():
    assert one_line("a\tb\x1b[31m\n c ") == "a b [31m c"
    assert one_line("x" * 1000, 10) == "xxxxxx ..."
    assert one_line(np.float64(1.5)) == "1.5"
