"""Copies that go on beside the work: their order, with streams that only note what is asked."""

import contextlib
from types import SimpleNamespace

import pytest
import torch

from depthsys.lm import lane, stores
from depthsys.lm.lane import Ahead, Copy, Lane

CPU = torch.device("cpu")


class Streams:
    """What torch says of a device with streams; ``log`` holds who waited for whom."""

    def __init__(self):
        self.log: list[str] = []
        self.events = 0
        self.current = self.stream_named("work")

    def stream_named(self, name):
        log = self.log
        return SimpleNamespace(
            name=name,
            wait_stream=lambda other: log.append(f"{name} waits for {other.name}"),
            wait_event=lambda event: log.append(f"{name} waits for {event.what}"),
        )

    def Stream(self, device):
        return self.stream_named("lane")

    def Event(self):
        event = SimpleNamespace(what="nothing")

        def record(stream):
            self.events += 1
            event.what = f"event {self.events} of {stream.name}"
            self.log.append(event.what)

        event.record = record
        event.synchronize = lambda: self.log.append(f"host waits for {event.what}")
        return event

    def stream(self, stream):
        @contextlib.contextmanager
        def on():
            before, self.current = self.current, stream
            yield
            self.current = before

        return on()

    def current_stream(self, device):
        return self.current


@pytest.fixture
def streams(monkeypatch):
    found = Streams()
    monkeypatch.setattr(lane, "_pinned", lambda size: torch.empty(size, dtype=torch.uint8))
    used = lambda self, stream: found.log.append(f"used by {stream.name}")  # noqa: E731
    monkeypatch.setattr(torch.Tensor, "record_stream", used)
    return found


def test_a_copy_waits_for_the_work_and_the_work_for_the_copy(streams):
    one = Lane(CPU, streams)
    assert one.is_beside
    x = torch.randn(3, 4)
    out = one.out(x)
    # after the work that made it; its memory is not given away before
    assert streams.log == ["lane waits for work", "event 1 of lane", "used by lane"]
    assert torch.equal(out.here(), x)
    assert streams.log.pop() == "host waits for event 1 of lane"
    streams.log.clear()
    back = one.back(out.tensor)
    assert streams.log == ["event 2 of lane"]  # nobody waits yet
    assert torch.equal(back.here(), x)
    assert streams.log[1:] == ["work waits for event 2 of lane", "used by work"]


def test_without_streams_copies_are_plain():
    one = Lane(CPU)
    assert not one.is_beside
    x = torch.randn(3)
    assert one.out(x).here().data_ptr() == x.data_ptr()
    assert one.back(x).here().data_ptr() == x.data_ptr()


def test_pinned_memory_is_cut_from_large_pieces(streams, monkeypatch):
    sizes = []
    monkeypatch.setattr(
        lane, "_pinned", lambda n: sizes.append(n) or torch.empty(n, dtype=torch.uint8)
    )
    monkeypatch.setattr(lane, "PINNED", 4096)
    one = Lane(CPU, streams)
    parts = [one.empty(torch.Size((3, 5)), torch.float64) for _ in range(20)]
    assert sizes == [4096] * 2  # 16 of 256 bytes in each
    for number, part in enumerate(parts):
        part.fill_(number)
    assert [float(part.mean()) for part in parts] == list(range(20))
    assert one.empty(torch.Size((2000,)), torch.uint8).shape == (2000,)
    assert sizes[-1] == 2000
    assert one.empty(torch.Size((0, 4)), torch.bfloat16).shape == (0, 4)


# ------------------------------------------------------------------------------- ahead

FORWARD = [(b, k) for b in range(3) for k in range(4)]
ORDERS = {
    "batch by batch": FORWARD,
    "batch by batch, backwards": [(b, k) for b in range(3) for k in reversed(range(4))],
    "layer by layer": [(b, k) for k in range(4) for b in range(3)],
    "layer by layer, backwards": [(b, k) for k in reversed(range(4)) for b in range(3)],
    "one batch": [(0, k) for k in range(4)],
}


@pytest.mark.parametrize("name", ORDERS)
def test_the_next_one_is_fetched_ahead(name):
    order = ORDERS[name]
    begun, late = [], []

    def fetch(key):
        begun.append(key)
        return [Copy(torch.tensor(key))]

    ahead = Ahead(fetch, set(order))
    for key in order:
        if key not in begun:
            late.append(key)
        for _ in range(2):  # looked at twice, fetched once
            assert ahead.get(key)[0].tolist() == list(key)
    # the first two say which way it goes; then at most the first of a batch or a turn is late
    assert len(late) <= 4 if name != "one batch" else len(late) == 2
    assert len(begun) <= len(order) + 3
    assert late[:2] == order[:2]


def test_what_was_fetched_for_nothing_changes_nothing():
    order = [(0, 0), (0, 1), (2, 3), (1, 0), (0, 1), (0, 0), (2, 2)]
    ahead = Ahead(lambda key: [Copy(torch.tensor(key))], set(FORWARD))
    for key in order:
        assert ahead.get(key)[0].tolist() == list(key)


# ------------------------------------------------------------------------------- stores


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("place", ["device", "host", "file"])
def test_tensors_come_back_as_they_were(place, beside, streams, monkeypatch):
    if beside:
        monkeypatch.setattr(stores, "Lane", lambda device: Lane(device, streams))
    kept, given = stores.store(place), {}
    for key in FORWARD:
        given[key] = [torch.randn(2, 3, key[1], 4), torch.randn(2, 5).bfloat16()]
        kept.put(key, [tensor.clone() for tensor in given[key]])
        if key[1] > 1:
            kept.drop((key[0], key[1] - 2))
            del given[key[0], key[1] - 2]
    for key, tensors in given.items():
        for mine, theirs in zip(kept.get(key), tensors, strict=True):
            assert torch.equal(mine, theirs)
    for key in FORWARD:
        kept.drop(key)  # also what is gone
    kept.close()


def test_places_in_a_file_are_used_again():
    kept = stores.InFile()
    for depth in range(20):
        kept.put((0, depth), [torch.full((64,), float(depth))])
        kept.drop((0, depth - 2))
    assert kept._spool._file.seek(0, 2) == 3 * 64 * 4
    assert kept.get((0, 18))[0].unique().tolist() == [18.0]
    assert kept.get((0, 19))[0].unique().tolist() == [19.0]
    kept.close()


def test_a_file_that_is_cut_is_an_error():
    kept = stores.InFile()
    kept.put((0, 0), [torch.zeros(64)])
    kept._spool._file.truncate(100)
    with pytest.raises(OSError, match="a temporary file is cut: 100 of 256 bytes are there"):
        kept.get((0, 0))
    kept.close()


def test_what_is_written_to_a_file_waits_for_one_copy_only(streams, monkeypatch):
    """The copy before: the device goes on with the one that has just begun."""
    monkeypatch.setattr(stores, "Lane", lambda device: Lane(device, streams))
    kept = stores.InFile()
    for depth in range(3):
        streams.log.clear()
        kept.put((0, depth), [torch.zeros(4)])
        mine = next(line for line in streams.log if line.startswith("event"))
        assert f"host waits for {mine}" not in streams.log
        assert sum("host waits" in line for line in streams.log) == (depth > 0)
    kept.close()
