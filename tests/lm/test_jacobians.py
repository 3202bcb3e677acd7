import importlib
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr

from depthsys import lm
from depthsys.files import renames
from depthsys.lm.frozen import FrozenBlock
from depthsys.lm.linearize import Linearised
from tests.conftest import TINY
from tests.lm import whole_sequence
from tests.lm.conftest import LabelledIds, batches_of_32, labelled_ids, no_block_runs

ROOT = Path(__file__).parents[2]
# the function hides its module among the attributes of depthsys.lm
module = importlib.import_module("depthsys.lm.jacobians")
both = pytest.mark.parametrize("per_prompt", [False, True], ids=["mean", "each"])


@pytest.fixture(scope="module")
def gpt2():
    return lm.DepthModel(TINY["gpt2"]().double(), name="gpt2")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "jacobians.zarr"


def partial(out):
    return out.with_name(out.name + ".partial")


def linearised_layers(monkeypatch, stop=None):
    """A list that fills with the layer of every block that is linearised.

    ``stop`` (layer, count) raises KeyboardInterrupt at that call at that layer.
    """
    layers = []
    original = FrozenBlock.__call__

    def watched(block, states):
        layers.append(block.layer)
        if stop is not None and (block.layer, layers.count(block.layer)) == stop:
            raise KeyboardInterrupt
        return original(block, states)

    monkeypatch.setattr(FrozenBlock, "__call__", watched)
    return layers


def interrupt(monkeypatch, stop, *args, **kwargs):
    with monkeypatch.context() as patch:
        linearised_layers(patch, stop)
        with pytest.raises(KeyboardInterrupt):
            lm.jacobians(*args, **kwargs)


def assert_same_bits(a, b):
    assert set(a.variables) == set(b.variables)
    for name in a.variables:
        assert a[name].dims == b[name].dims
        assert a[name].dtype == b[name].dtype
        assert a[name].values.tobytes() == b[name].values.tobytes(), name


# ------------------------------------------------------------------------------- numbers


def test_jacobians_equal_whole_sequence_autograd(tiny, tokens):
    """Prompts of lengths 1 to 6, in an order that no batch keeps."""
    A = np.stack([whole_sequence.jacobians(tiny.hf, ids) for ids in tokens.ids])
    x = np.stack([whole_sequence.states(tiny.hf, ids) for ids in tokens.ids])
    assert len({len(ids) for ids in tokens.ids}) > 2
    scale = (1e-10 if tiny.name == "gpt2" else 1e-6) * abs(A).max()  # Llama's norms are float32
    each = lm.jacobians(tiny, tokens, per_prompt=True)
    assert each.A.dims == ("prompt", "layer", "state_next", "state")
    assert each.x_ref.dims == ("prompt", "depth", "state")
    np.testing.assert_allclose(each.A, A, atol=scale)
    np.testing.assert_allclose(each.x_ref, x, atol=1e-6)
    mean = lm.jacobians(tiny, tokens)
    assert mean.A.dims == ("layer", "state_next", "state")
    assert mean.x_ref.dims == ("depth", "state")
    np.testing.assert_allclose(mean.A, A.mean(0), atol=scale)
    np.testing.assert_allclose(mean.x_ref, x.mean(0), atol=1e-6)
    for ds in (each, mean):
        np.testing.assert_array_equal(ds.layer, np.arange(3))
        np.testing.assert_array_equal(ds.depth, np.arange(4))
    np.testing.assert_array_equal(each.prompt, np.arange(8))


def test_the_mean_does_not_depend_on_batches_or_slices(gpt2, monkeypatch):
    tokens = labelled_ids(20, 5)
    whole = lm.jacobians(gpt2, tokens)
    monkeypatch.setattr(module, "ROWS", 7)
    monkeypatch.setattr(
        "depthsys.lm.run.length_batches", lambda lengths, **_: [np.array([i]) for i in range(20)]
    )
    single = lm.jacobians(gpt2, tokens)
    xr.testing.assert_allclose(single, whole, rtol=1e-10, atol=1e-12)


def test_dtypes(tokens):
    model = lm.DepthModel(TINY["gpt2"]())
    ds = lm.jacobians(model, tokens)
    assert ds.A.dtype == np.float32
    assert ds.x_ref.dtype == np.float64
    double = lm.jacobians(lm.DepthModel(TINY["gpt2"]().double()), tokens)
    np.testing.assert_allclose(ds.A, double.A, atol=2e-5 * float(abs(double.A).max()))
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        assert module._result_dtype(SimpleNamespace(dtype=dtype)) == torch.float32


def test_sums_over_prompts_are_made_in_float64(monkeypatch):
    """300 Jacobians of one, but two of plus and minus a billion, where float32 forgets the ones."""
    batches = []

    def rows(self, directions):
        sizes = torch.ones(len(self._x), 1, 1)
        sizes[0] = {0: 1e9, 9: -1e9}.get(len(batches), 1)
        batches.append(len(sizes))
        return sizes.expand(-1, *directions.shape)

    batches_of_32(monkeypatch)
    model = lm.DepthModel(TINY["gpt2"](n_layer=1))
    monkeypatch.setattr(Linearised, "vjp", rows)
    ds = lm.jacobians(model, [[3, 1, 4]] * 300)
    assert len(batches) == 10
    np.testing.assert_array_equal(ds.A, np.float32(298 / 300))


def test_every_block_is_linearised_once_per_batch(gpt2, tokens, monkeypatch):
    n_batches = len(gpt2.run(tokens).batches)
    assert 1 < n_batches < len(tokens)
    layers = linearised_layers(monkeypatch)
    lm.jacobians(gpt2, tokens)
    assert layers == sorted([0, 1, 2] * n_batches)


def test_live_memory_of_the_mean_does_not_grow_with_the_number_of_prompts(monkeypatch, live_bytes):
    """Bytes of all tensors alive when rows of Jacobians are there, and how many rows there are."""
    batches_of_32(monkeypatch)
    model = lm.DepthModel(TINY["gpt2"](n_layer=1))
    original, peaks, sizes = Linearised.vjp, [], []

    def weighing(self, directions):
        rows = original(self, directions)
        sizes.append(rows.shape[0] * rows.shape[1])
        if len(sizes) % 2 == 0:  # the second half of a batch
            peaks[-1] = max(peaks[-1], live_bytes())
        return rows

    monkeypatch.setattr(Linearised, "vjp", weighing)
    monkeypatch.setattr(module, "ROWS", 256)
    monkeypatch.setattr("depthsys.lm.sweep.CALLS_HELD", 1)  # a number that does not grow either
    for count in (32, 160):  # one and five batches of one length
        peaks.append(0)
        ids = [[i % 50, 7, 3, 4, 5, 6] for i in range(count)]
        # hidden states wait in memory as far as the budget allows: here not at all
        lm.jacobians(model.run(ids, budget=lm.Budget(host=0), contexts=False))
    assert peaks[1] - peaks[0] < 32 * 6 * 16 * 4  # less than one batch of hidden states
    assert sizes == [256] * 12  # 32 prompts have 512 rows


def test_a_jacobian_that_is_not_finite(gpt2, tokens, monkeypatch):
    def broken(self, directions):
        return directions.expand(len(self._x), *directions.shape) * torch.inf

    monkeypatch.setattr(Linearised, "vjp", broken)
    with pytest.raises(FloatingPointError, match=r"must have finite Jacobians; .* at layer 0"):
        lm.jacobians(gpt2, tokens)
    with pytest.raises(FloatingPointError, match=r"at layer 0, prompt \d"):
        lm.jacobians(gpt2, tokens, per_prompt=True)


# ------------------------------------------------------------------------------- on disk


@both
def test_disk_equals_memory(gpt2, tokens, out, per_prompt):
    memory = lm.jacobians(gpt2, tokens, per_prompt=per_prompt)
    disk = lm.jacobians(gpt2, tokens, per_prompt=per_prompt, out=out)
    assert not disk.A.variable._in_memory
    assert_same_bits(disk, memory)
    assert_same_bits(xr.open_zarr(out), memory)
    assert_same_bits(xr.open_zarr(out, chunks=None, consolidated=False), memory)
    changing = {"created", "history"}
    assert {k: v for k, v in disk.attrs.items() if k not in changing} == {
        k: v for k, v in memory.attrs.items() if k not in changing
    }
    assert [p.name for p in out.parent.iterdir()] == [out.name]


@both
def test_one_chunk_is_one_matrix_with_a_checksum(gpt2, tokens, out, per_prompt):
    ds = lm.jacobians(gpt2, tokens, per_prompt=per_prompt, out=out)
    assert ds.A.encoding["chunks"] == ((1, 1, 16, 16) if per_prompt else (1, 16, 16))
    chunk = out / "A/c" / ("5/1/0/0" if per_prompt else "1/0/0")
    first, second = ((5, 0), (5, 1)) if per_prompt else (0, 1)
    data = bytearray(chunk.read_bytes())
    data[100] ^= 1
    chunk.write_bytes(data)
    damaged = xr.open_zarr(out)
    assert np.isfinite(damaged.A[first].values).all()  # reads no other matrix
    with pytest.raises(ValueError, match="checksum do not match"):
        damaged.A[second].load()
    chunk.unlink()
    assert np.isnan(xr.open_zarr(out).A[second]).all()


@both
@pytest.mark.parametrize("layer", range(3))
def test_an_interrupted_run_goes_on_where_it_stopped(
    gpt2, tokens, out, monkeypatch, layer, per_prompt
):
    memory = lm.jacobians(gpt2, tokens, per_prompt=per_prompt)
    interrupt(monkeypatch, (layer, 3), gpt2, tokens, per_prompt=per_prompt, out=out)
    assert not out.exists()
    for path in (partial(out), partial(out) / "store"):
        with pytest.raises(FileNotFoundError):
            xr.open_zarr(path)
    layers = linearised_layers(monkeypatch)
    resumed = lm.jacobians(gpt2, tokens, per_prompt=per_prompt, out=out)
    assert set(layers) == set(range(layer, 3))
    assert_same_bits(resumed, memory)
    assert not partial(out).exists()


def test_an_interruption_says_where_the_work_is(gpt2, tokens, out, monkeypatch):
    linearised_layers(monkeypatch, (1, 1))
    with pytest.raises(KeyboardInterrupt) as caught:
        lm.jacobians(gpt2, tokens, out=out)
    assert caught.value.__notes__ == [
        f"The finished layers are kept in {str(partial(out))!r}: the same call goes on there."
    ]


KILLED = """
import os, signal, sys
from depthsys import lm
from depthsys.lm.frozen import FrozenBlock
from tests.conftest import TINY
from tests.lm.conftest import labelled_ids

seen, original = [], FrozenBlock.__call__

def deadly(block, states):
    seen.append(block.layer)
    if seen.count(1) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(block, states)

model = lm.DepthModel(TINY["gpt2"]().double(), name="gpt2")
FrozenBlock.__call__ = deadly
lm.jacobians(model, labelled_ids(8, 0), per_prompt=True, out=sys.argv[1])
"""


@pytest.mark.slow  # interrupted in this process: below; killed at every step: tests/files
def test_a_killed_process_leaves_what_it_finished(gpt2, tokens, out, monkeypatch):
    done = subprocess.run([sys.executable, "-c", KILLED, str(out)], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    assert json.loads((partial(out) / "progress.json").read_text())["layers_done"] == 1
    assert (partial(out) / "store/A/c/1/1/0/0").exists()  # a part of the next layer is there
    layers = linearised_layers(monkeypatch)
    resumed = lm.jacobians(gpt2, tokens, per_prompt=True, out=out)
    assert set(layers) == {1, 2}
    monkeypatch.undo()
    assert_same_bits(resumed, lm.jacobians(gpt2, tokens, per_prompt=True))


@pytest.mark.parametrize("step", ["first write", "exchange", "move 1", "move 2", "rmtree"])
def test_a_run_that_ends_while_it_begins_or_publishes(gpt2, tokens, out, monkeypatch, step):
    """An old store is there until the new one is whole; then one of them always is."""
    old = lm.jacobians(gpt2, [[1, 2]], out=out).load()
    new = lm.jacobians(gpt2, tokens)
    begins = step == "first write"
    with monkeypatch.context() as patch:
        if begins:
            patch.setattr(module, "_create", stopped_at(1, module._create))
        elif step == "rmtree":
            patch.setattr(shutil, "rmtree", stopped_at(3, shutil.rmtree))
        elif step == "exchange":
            patch.setattr(renames, step, stopped_at(1, renames.exchange))
        else:  # where the two cannot change places at once
            patch.setattr(renames, "exchange", lambda *_: False)
            patch.setattr(renames, "move", stopped_at(int(step[-1]), renames.move))
        with pytest.raises(KeyboardInterrupt):
            lm.jacobians(gpt2, tokens, out=out, overwrite=True)
    assert_same_bits(xr.open_zarr(out), new if step == "rmtree" else old)
    if step[:4] in ("exch", "move"):  # all is computed
        no_block_runs(monkeypatch)
    again = lm.jacobians(gpt2, tokens, out=out, overwrite=True)
    assert_same_bits(again, new)
    assert [p.name for p in out.parent.iterdir()] == [out.name]


def stopped_at(number, function):
    """The function, except that its n-th call is an interruption."""
    calls = []

    def stopping(*args, **kwargs):
        calls.append(1)
        if len(calls) == number:
            raise KeyboardInterrupt
        return function(*args, **kwargs)

    return stopping


@both
@pytest.mark.parametrize("damage", ["changed", "deleted"])
def test_a_finished_layer_that_is_damaged_is_computed_again(
    gpt2, tokens, out, monkeypatch, per_prompt, damage
):
    interrupt(monkeypatch, (2, 1), gpt2, tokens, per_prompt=per_prompt, out=out)
    chunk = partial(out) / "store/A/c" / ("4/1/0/0" if per_prompt else "1/0/0")
    if damage == "deleted":
        chunk.unlink()
    else:
        chunk.write_bytes(chunk.read_bytes()[:-8] + bytes(8))
    layers = linearised_layers(monkeypatch)
    resumed = lm.jacobians(gpt2, tokens, per_prompt=per_prompt, out=out)
    assert set(layers) == {1, 2}
    assert_same_bits(resumed, lm.jacobians(gpt2, tokens, per_prompt=per_prompt))


def test_an_interrupted_run_of_something_else_is_refused(gpt2, tokens, out, monkeypatch):
    interrupt(monkeypatch, (1, 1), gpt2, tokens, out=out)
    other = lm.DepthModel(TINY["gpt2"](n_inner=20).double())
    float32 = lm.DepthModel(TINY["gpt2"]())
    for change, args in {
        r"another model_fingerprint.*\. Go on": (other, tokens),
        r"another tokens_sha256.*\. Go on": (gpt2, labelled_ids(8, 1)),
        r".*dtype float64, now float32\. Go on": (float32, tokens),
        r"per_prompt 0, now 1\. Go on": (gpt2, tokens, True),
    }.items():
        with pytest.raises(ValueError, match=rf"`out` must be resumed with .* with {change}"):
            lm.jacobians(*args[:2], per_prompt=len(args) == 3, out=out, overwrite=True)
    assert_same_bits(lm.jacobians(gpt2, tokens, out=out), lm.jacobians(gpt2, tokens))


def test_overwriting_keeps_the_old_store_until_the_new_one_is_whole(gpt2, tokens, out, monkeypatch):
    old = lm.jacobians(gpt2, [[1, 2]], out=out).load()
    with pytest.raises(ValueError, match=r"`out` must not exist; .* pass `overwrite=True`"):
        lm.jacobians(gpt2, tokens, out=out)
    interrupt(monkeypatch, (2, 1), gpt2, tokens, out=out, overwrite=True)
    assert_same_bits(xr.open_zarr(out), old)
    new = lm.jacobians(gpt2, tokens, out=out, overwrite=True)
    assert_same_bits(new, lm.jacobians(gpt2, tokens))


def test_a_store_that_another_run_wrote_meanwhile_is_kept(gpt2, tokens, out, monkeypatch):
    other = lm.jacobians(gpt2, [[1, 2]], out=out.with_name("other")).load()
    original = module._mean

    def racing(run, kind, blocks, *others):
        yield from original(run, kind, blocks, *others)
        if blocks.layer == 2:
            out.with_name("other").rename(out)

    monkeypatch.setattr(module, "_mean", racing)
    with pytest.raises(ValueError, match="`out` must not exist"):
        lm.jacobians(gpt2, tokens, out=out)
    assert_same_bits(xr.open_zarr(out), other)


# ------------------------------------------------------------------------------- refusals


def test_a_result_too_large_for_the_memory(gpt2, tokens, monkeypatch):
    size = (3 * 16 + 4) * 16 * 8
    monkeypatch.setattr(module, "available_memory", lambda: 4 * size)
    lm.jacobians(gpt2, tokens)
    no_block_runs(monkeypatch)
    message = (
        r"`out` must be given for a result above `memory_share` of the memory; got None for "
        r"6.66 kB, where 0.24 of 26.6 kB available is 6.39 kB\. Give out='jacobians.zarr'"
    )
    with pytest.raises(ValueError, match=message):
        lm.jacobians(gpt2, tokens, memory_share=0.24)
    with pytest.raises(ValueError, match=r"got None for 53.2 kB, where 1 of 26.6 kB"):
        lm.jacobians(gpt2, tokens, per_prompt=True, memory_share=1)
    monkeypatch.setattr(module, "available_memory", lambda: None)
    with pytest.raises(ValueError, match=r"`out` must be given where .* is unknown"):
        lm.jacobians(gpt2, tokens)


def test_a_result_larger_than_the_memory_goes_to_disk(gpt2, tokens, out, monkeypatch):
    memory = lm.jacobians(gpt2, tokens)
    monkeypatch.setattr(module, "available_memory", lambda: 0)
    assert_same_bits(lm.jacobians(gpt2, tokens, out=str(out)), memory)


def test_a_disk_too_small(gpt2, tokens, out, monkeypatch):
    def disk(free):
        return lambda path: SimpleNamespace(free=free)

    interrupt(monkeypatch, (1, 1), gpt2, tokens, out=out)
    monkeypatch.setattr(shutil, "disk_usage", disk(4000))
    with pytest.raises(ValueError, match=r"`out` must be on a disk with 4.44 kB free; got 4 kB"):
        lm.jacobians(gpt2, tokens, out=out)  # two layers of three are left
    with pytest.raises(ValueError, match=r"with 6.66 kB free; got 4 kB free at '.*'\. Make room"):
        lm.jacobians(gpt2, tokens, out=out.with_name("other"))
    monkeypatch.setattr(shutil, "disk_usage", disk(5000))
    lm.jacobians(gpt2, tokens, out=out)


def test_bad_arguments(gpt2, tokens, tmp_path, monkeypatch):
    no_block_runs(monkeypatch)
    for share in (0, -0.1, 1.01, float("nan")):
        with pytest.raises(ValueError, match=r"`memory_share` must be in \(0, 1\]; got"):
            lm.jacobians(gpt2, tokens, memory_share=share)
    with pytest.raises(ValueError, match="must hold at least one"):
        lm.jacobians(gpt2, [])
    with pytest.raises(ValueError, match=r"`out` must lie in an existing folder; .* Make '"):
        lm.jacobians(gpt2, tokens, out=tmp_path / "missing" / "jacobians.zarr")
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ValueError, match="`out` must be a folder to write; got the file"):
        lm.jacobians(gpt2, tokens, out=file, overwrite=True)
    (tmp_path / "x.partial").touch()
    with pytest.raises(ValueError, match=r"got the file '.*x\.partial'"):
        lm.jacobians(gpt2, tokens, out=tmp_path / "x")
    with pytest.raises(ValueError, match=r"must be a Zarr store to be .*ten; .* other things"):
        lm.jacobians(gpt2, tokens, out=tmp_path, overwrite=True)
    assert file.exists()

    def forbidden(*_, **__):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", forbidden)
        with pytest.raises(ValueError, match=r"must lie in a writable .*: Permission denied\."):
            lm.jacobians(gpt2, tokens, out=tmp_path / "y")


def test_a_folder_that_is_not_ours(gpt2, tokens, out, monkeypatch):
    no_block_runs(monkeypatch)
    partial(out).mkdir()
    (partial(out) / "thesis.tex").touch()
    with pytest.raises(
        ValueError, match=r"must leave '.*' to this function; found thesis.tex there"
    ):
        lm.jacobians(gpt2, tokens, out=out)
    (partial(out) / "store").mkdir()
    with pytest.raises(ValueError, match="must have readable progress; got FileNotFoundError in"):
        lm.jacobians(gpt2, tokens, out=out)
    for text in ("{", "[]", "{}"):
        (partial(out) / "progress.json").write_text(text)
        with pytest.raises(ValueError, match="must have readable progress"):
            lm.jacobians(gpt2, tokens, out=out)
    assert (partial(out) / "thesis.tex").exists()


# ------------------------------------------------------------------------------- the rest


def test_available_memory(tmp_path):
    def write(path, text):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    assert module.available_memory() > 0
    assert module.available_memory(tmp_path) > 0  # a system without /proc: all there is
    write("proc/meminfo", "MemTotal: 9000 kB\nMemAvailable:    7000 kB\n")
    assert module.available_memory(tmp_path) == 7000 * 1024
    write("proc/self/cgroup", "4:cpu:/x\n0::/job/step\n")
    write("sys/fs/cgroup/job/step/memory.max", "max\n")
    assert module.available_memory(tmp_path) == 7000 * 1024
    for group, left in (("job", 5000), ("job/step", 900)):  # a group above may be the limit
        write(f"sys/fs/cgroup/{group}/memory.max", f"{left + 3000}\n")
        write(f"sys/fs/cgroup/{group}/memory.current", "4000\n")
        write(f"sys/fs/cgroup/{group}/memory.stat", "anon 1\ninactive_file 1000\n")
        assert module.available_memory(tmp_path) == left
    write("proc/self/cgroup", "4:cpu,memory:/\n0::/\n")
    write("sys/fs/cgroup/memory/memory.limit_in_bytes", "5000\n")
    write("sys/fs/cgroup/memory/memory.usage_in_bytes", "6000\n")
    write("sys/fs/cgroup/memory/memory.stat", "total_inactive_file 10\n")
    assert module.available_memory(tmp_path) == 0


def test_provenance(gpt2, tokens, tmp_path):
    ds = lm.jacobians(gpt2, tokens)
    assert ds.attrs["prompts_sha256"] == tokens.sha256
    assert ds.attrs["tokens_sha256"] == gpt2.tokens_sha256(tokens.ids)
    assert ds.attrs["model_fingerprint"] == gpt2.fingerprint
    assert ds.attrs["n_prompts"] == 8
    assert ds.attrs["per_prompt"] == 0
    assert ds.attrs["history"].endswith("depthsys.lm.jacobians")
    ds.to_netcdf(tmp_path / "small.nc", engine="h5netcdf")
    plain = lm.jacobians(gpt2, tokens.ids).attrs
    assert plain["prompts_sha256"] == plain["tokens_sha256"] == ds.attrs["tokens_sha256"]
    long = LabelledIds([[1] * 50, [2]], np.arange(2))
    assert lm.jacobians(gpt2, long).attrs["n_cut"] == 1


def test_texts(demo_model, demo_texts):
    texts = demo_texts.operating
    ds = lm.jacobians(demo_model, texts)
    expected = demo_model.run(texts).jacobian(2).double().mean(0)
    np.testing.assert_allclose(ds.A[2], expected, atol=1e-6 * float(abs(expected).max()))
