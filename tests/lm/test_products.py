"""TF32 is a choice of a model, and what the process has chosen changes no number."""

import threading
from functools import cache

import numpy as np
import pytest
import torch
import xarray as xr

from depthsys import lm
from depthsys.lm import contract, precision, switch
from depthsys.lm.frozen import FrozenBlock
from depthsys.lm.precision import Arithmetic
from tests import tf32
from tests.conftest import TINY
from tests.lm.conftest import labelled_ids

IDS = labelled_ids(8, 0)
SETTINGS = ("highest", "high", "medium")
TF32 = Arithmetic(torch.float32, "tf32")


@pytest.fixture(autouse=True)
def as_it_was():
    yield
    torch.set_float32_matmul_precision("highest")
    torch.backends.fp32_precision = "none"


@pytest.fixture
def tf32_here(monkeypatch):
    """A CPU that has TF32, and the imitation of it."""
    monkeypatch.setattr(switch, "has_tf32", lambda device: True)
    with tf32.Imitated() as imitated:
        yield imitated


@cache
def pair_of(family: str) -> tuple[lm.DepthModel, lm.DepthModel]:
    hf = TINY[family]()
    return lm.DepthModel(hf, products="tf32"), lm.DepthModel(hf)


@pytest.fixture(params=TINY)
def pair(request, tf32_here):
    """A model with TF32 products, and the same in float32."""
    return pair_of(request.param)


def test_a_model_says_how_it_multiplies(pair):
    rounded, exact = pair
    assert "float32 with TF32 products" in repr(rounded)
    assert "TF32" not in repr(exact)


def state() -> tuple:
    return torch.get_float32_matmul_precision(), switch._now()


# ------------------------------------------------------------------------------- the process


def everything(model, concept):
    run = model.run(IDS.ids)
    plan = xr.DataArray(np.ones(3), dims="layer")
    return {
        "states": run.states,
        "linear": lm.linear_gains(run, concept).gain,
        "measured": lm.measure_gains(run, concept).gain,
        "system": lm.identify(run, concept, lm.Krylov(3)).A,
        "played": lm.play(run, concept, plan).response,
        "jacobians": lm.jacobians(run).A,
        "jvp": run.jvp(1, np.eye(16)).numpy(),
        "head": model.head(torch.arange(16.0)[None]).detach().numpy(),
        "texts": np.array(model.new_tokens([[3, 1, 4]], max_new_tokens=4)),
    }


@pytest.fixture(scope="module")
def as_torch_is_by_default(concept):
    """A model, its products, and everything that is found with it."""
    assert torch.get_float32_matmul_precision() == "highest"
    hf = TINY["gpt2"]()
    with tf32.Imitated() as plain:
        return hf, plain, everything(lm.DepthModel(hf), concept)


@pytest.mark.parametrize("setting", SETTINGS[1:])
def test_what_the_process_has_chosen_changes_no_number(setting, concept, as_torch_is_by_default):
    hf, plain, expected = as_torch_is_by_default
    torch.set_float32_matmul_precision(setting)
    before = state()
    with tf32.Imitated() as imitated:
        found = everything(lm.DepthModel(hf), concept)
    assert state() == before
    assert imitated.n_rounded == plain.n_rounded == 0 < imitated.n_plain
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def _generic(value):
    torch.backends.fp32_precision = value


def _cuda(value):
    torch.backends.cuda.matmul.fp32_precision = value


def _mkldnn(value):
    torch.backends.mkldnn.matmul.fp32_precision = value


CHOICES = {
    "highest": lambda: torch.set_float32_matmul_precision("highest"),
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "allow_tf32": lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
    "newer, cuda": lambda: _cuda("tf32"),
    "newer, mkldnn": lambda: _mkldnn("bf16"),
    "newer, all": lambda: _generic("tf32"),
    "both": lambda: (torch.set_float32_matmul_precision("high"), _cuda("ieee")),
}
needs_newer = pytest.mark.skipif(switch._GET is None, reason="torch has the older names alone")


@needs_newer
@pytest.mark.parametrize("choose", CHOICES.values(), ids=CHOICES.keys())
@pytest.mark.parametrize(
    ("products", "wanted"), [("float32", {"none", "ieee"}), ("tf32", {"tf32", "bf16"})]
)
def test_the_switch_is_set_and_put_back_whoever_set_it_by_whatever_names(choose, products, wanted):
    choose()
    before = switch._read()
    with switch.products_in(products):
        assert switch._now()[0] in wanted
        if products == "float32":
            assert set(switch._now()) <= wanted
    assert switch._read() == before
    with pytest.raises(KeyError), switch.products_in(products):
        raise KeyError
    assert switch._read() == before


def test_older_torch_knows_the_older_names_alone(monkeypatch):
    monkeypatch.setattr(switch, "_GET", None)
    torch.set_float32_matmul_precision("medium")
    with switch.products_in("float32"):
        assert torch.get_float32_matmul_precision() == "highest"
    assert torch.get_float32_matmul_precision() == "medium"


def test_the_innermost_counts():
    with switch.products_in("float32"):
        with switch.products_in("tf32"):
            assert torch.get_float32_matmul_precision() == "high"
        assert torch.get_float32_matmul_precision() == "highest"


def test_a_switch_that_cannot_be_turned_locks_nobody_out(monkeypatch):
    def fails(name):
        raise RuntimeError("no such setting")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "set_float32_matmul_precision", fails)
        with pytest.raises(RuntimeError, match="no such setting"), switch.products_in("tf32"):
            pass
    reached: list[str] = []

    def work():
        with switch.products_in("float32"):
            reached.append("float32")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert reached == ["float32"]


def test_threads_share_one_setting_and_do_not_fight_about_two():
    refused = []

    def other(products):
        try:
            with switch.products_in(products):
                pass
        except RuntimeError as error:
            refused.append(str(error))

    with switch.products_in("tf32"):
        for products in ("tf32", "float32"):
            thread = threading.Thread(target=other, args=[products])
            thread.start()
            thread.join()
        assert torch.get_float32_matmul_precision() == "high"
    assert len(refused) == 1
    assert "models with TF32 products must not work while another thread works" in refused[0]
    assert torch.get_float32_matmul_precision() == "highest"


# ------------------------------------------------------------------------------- the choice


def test_blocks_head_and_derivatives_are_rounded_and_nothing_else(pair, tf32_here, concept):
    model, plain = pair
    before = tf32_here.n_rounded
    run = model.run(IDS.ids)
    expected = plain.run(IDS.ids)
    assert tf32_here.n_rounded > before
    gap = lambda a, b: np.linalg.norm(a - b) / np.linalg.norm(b)  # noqa: E731
    pairs = {
        "states": (run.states, expected.states),
        "jvp": (run.jvp(1, np.eye(16)), expected.jvp(1, np.eye(16))),
        "vjp": (run.vjp(1, np.eye(16)), expected.vjp(1, np.eye(16))),
        "gains": [lm.linear_gains(r, concept).gain for r in (run, expected)],
        "head": [m.head(torch.arange(16.0)[None] ** 2).detach() for m in (model, plain)],
    }
    for name, (ours, theirs) in pairs.items():
        error = gap(np.asarray(ours), np.asarray(theirs)) / precision.TF32_EPS
        assert 0.01 < error < 8, name
    assert torch.get_float32_matmul_precision() == "highest"


def test_results_say_so(pair, concept):
    model, plain = pair
    tf, own = (lm.linear_gains(m, IDS.ids, concept).attrs for m in (model, plain))
    assert tf["products"] == "tf32"
    assert "products" not in own
    assert tf["dtype"] == own["dtype"] == "float32"
    assert tf["model_fingerprint"] == own["model_fingerprint"]


def test_jacobians_of_the_two_are_not_mixed(pair, tmp_path, monkeypatch):
    model, plain = pair
    out = tmp_path / "jacobians.zarr"
    linearised = FrozenBlock.linearised

    def once(self, *args):
        if self.layer == 1:
            raise KeyboardInterrupt
        return linearised(self, *args)

    monkeypatch.setattr(FrozenBlock, "linearised", once)
    with pytest.raises(KeyboardInterrupt):
        lm.jacobians(model, IDS.ids, out=out)
    monkeypatch.setattr(FrozenBlock, "linearised", linearised)
    with pytest.raises(ValueError, match="products"):
        lm.jacobians(plain, IDS.ids, out=out)
    assert lm.jacobians(model, IDS.ids, out=out).attrs["products"] == "tf32"


def test_the_limits_of_the_contract_are_those_of_float16():
    assert contract.limits_of(TF32) == contract.limits_of(Arithmetic(torch.float16))


def test_the_contract_states_the_error(pair):
    model, plain = pair
    limits = contract.limits_of(TF32)
    for name, error in model.contract.items():
        assert error < limits[name] / 2, name
    # the replay makes other products than the whole sequence, which round in another way
    assert model.contract["states"] >= plain.contract["states"]


def test_steps_that_drown_are_refused_with_the_cure(pair, concept):
    model, _ = pair
    message = (
        r"got 1.0e-02 where 9.8e-02 is the least in float32 with TF32 products. Use a larger step "
        "or products in float32"
    )
    calls = [
        lambda: lm.measure_gains(model, IDS.ids, concept),
        lambda: lm.check_step(lm.Step(), model),
        lambda: lm.identify(model, IDS.ids, concept, lm.Pod(order=2)),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call()
    found = lm.measure_gains(model, IDS.ids, concept, eps=0.2)
    assert found.attrs["least_step"] == 100 * precision.TF32_EPS
    system = lm.identify(model, IDS.ids, concept)
    with pytest.raises(ValueError, match=r"least in float32 with TF32 products\. Ask for more"):
        lm.compare_energies(model, labelled_ids(8, 3).ids, concept, system, target=1e-4)


def test_what_counts_as_dependent_is_rounded_too(pair, concept):
    model, _ = pair
    found = lm.channels.Channels.checked(model, concept, "concept", "concept", None)
    assert found.rtol == precision.TF32_EPS


def test_texts_are_written_in_it(pair, tf32_here):
    model, _ = pair
    before = tf32_here.n_rounded, tf32_here.n_plain
    model.new_tokens([[3, 1, 4]], max_new_tokens=3)
    assert tf32_here.n_rounded > before[0]
    assert tf32_here.n_plain == before[1]


# ------------------------------------------------------------------------------- refusals


def test_a_device_without_it():
    with pytest.raises(ValueError, match=r"must be 'float32' on 'cpu', which has no TF32"):
        lm.DepthModel(TINY["gpt2"](), products="tf32")


@pytest.mark.parametrize(("capability", "has"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_gpus_have_it_from_ampere_on(monkeypatch, capability, has):
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert switch.has_tf32(torch.device("cuda", 0)) == has
    assert not switch.has_tf32(torch.device("cpu"))


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_other_dtypes(dtype, tf32_here):
    with pytest.raises(ValueError, match=rf"must be 'float32' for a model in {dtype}; got 'tf32'"):
        lm.DepthModel(TINY["gpt2"]().to(getattr(torch, dtype)), products="tf32")


@pytest.mark.parametrize("value", ["TF32", 32, None])
def test_no_choice(value):
    with pytest.raises(ValueError, match=r"`products` must be one of \('float32', 'tf32'\)"):
        lm.DepthModel(TINY["gpt2"](), products=value)


def test_refused_before_the_weights_are_read(monkeypatch):
    monkeypatch.setattr("depthsys.lm.model.load_checkpoint", lambda *a, **k: pytest.fail("read"))
    with pytest.raises(ValueError, match="has no TF32"):
        lm.DepthModel.load("some/model", device="cpu", products="tf32")


# ------------------------------------------------------------------------------- at the shell


@pytest.mark.slow  # what it sets is tested above
def test_the_flag(run, tmp_path, monkeypatch):
    texts = tmp_path / "texts.csv"
    lines = [f"the food was {w} {'and ' * n}good,{w}" for n in range(9) for w in ("good", "bad")]
    texts.write_text("\n".join(["text,label", *lines]))
    options = ("--split", "4/3/2", "--device", "cpu", "--order", "2")
    code, _, err = run("identify", "demo_48x4", texts, *options, "--tf32", "--out", tmp_path / "a")
    assert code == 2
    assert "has no TF32" in " ".join(err.split())
    monkeypatch.setattr(switch, "has_tf32", lambda device: True)
    out = tmp_path / "out"
    code, _, err = run("identify", "demo_48x4", texts, *options, "--tf32", "--out", out)
    assert code == 0, err
    with xr.open_dataset(out / "system.nc") as system:
        assert system.attrs["products"] == "tf32"
    # a stored system goes on in it
    code, _, err = run("gains", out / "system.nc", "--device", "cpu", "--out", tmp_path / "gains")
    assert code == 2
    assert "is the least in float32 with TF32 products" in " ".join(err.split())
    options = ("--device", "cpu", "--no-tf32", "--out", tmp_path / "gains")
    code, _, err = run("gains", out / "system.nc", *options)
    assert code == 0, err
    with xr.open_dataset(tmp_path / "gains/gains.nc") as gains:
        assert "products" not in gains.attrs
