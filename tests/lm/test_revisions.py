"""``name@revision``: one commit of a name of the hub, for configuration, tokenizer and weights.

The cache is laid out by hand, as the hub's own client does, and nothing may be asked for.
"""

import json
import shutil
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub.errors import OfflineModeIsEnabled

from depthsys import demo, lm
from depthsys.lm.hf import source
from depthsys.lm.hf.contents import contents_of
from tests.conftest import tiny_llama
from tests.lm.test_adapters import expected_weights, write_adapter

OLD, NEW, TUNED = ("1" * 40, "2" * 40, "3" * 40)
TEXTS = ["the food was good"]


def put(cache, name, commit, refs, fill):
    """One snapshot of a repository; ``fill`` writes its files."""
    repo = cache / f"models--{name.replace('/', '--')}"
    snapshot = repo / "snapshots" / commit
    snapshot.mkdir(parents=True)
    fill(snapshot)
    (repo / "refs").mkdir(exist_ok=True)
    for ref in refs:
        (repo / "refs" / ref).write_text(commit)
    return snapshot


def model_of(seed, length):
    """A tiny Llama of its own, and a tokenizer that can be told from others."""

    def fill(folder):
        hf = tiny_llama(vocab_size=1024)
        torch.manual_seed(seed)
        for parameter in hf.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        hf.config.bos_token_id = seed
        hf.save_pretrained(folder)
        for file in demo.model_path("demo_48x4").glob("tokenizer*"):
            shutil.copy(file, folder)
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        settings["model_max_length"] = length
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))

    return fill


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache with two commits of one model, and no way to ask for more."""
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def offline(*_, **__):
        raise OfflineModeIsEnabled("offline")

    monkeypatch.setattr("huggingface_hub.model_info", offline)
    put(cache, "some/model", OLD, ["v1"], model_of(1, 71))
    put(cache, "some/model", NEW, ["main", "v2"], model_of(2, 72))
    return cache


def load(name, **options):
    return lm.DepthModel.load(name, device="cpu", **options)


# ------------------------------------------------------------------------------- what is read


def test_configuration_tokenizer_and_weights_are_of_one_commit(cache):
    found = {}
    for revision, commit, seed in (("v1", OLD, 1), ("v2", NEW, 2), (OLD, OLD, 1)):
        model = load(f"some/model@{revision}")
        snapshot = cache / "models--some--model" / "snapshots" / commit
        same = load(snapshot)
        assert model.fingerprint == same.fingerprint
        assert model.tokenizer.model_max_length == 70 + seed
        assert model.hf.config.bos_token_id == seed
        assert (model.name, model.source) == (f"some/model@{revision}", "hub")
        assert model.revision == commit
        found[revision] = model
    assert found["v1"].fingerprint == found[OLD].fingerprint != found["v2"].fingerprint
    assert load("some/model").fingerprint == found["v2"].fingerprint  # main


def test_results_say_which_commit(cache):
    attrs = lm.jacobians(load("some/model@v1"), TEXTS).attrs
    assert (attrs["model"], attrs["revision"], attrs["source"]) == ("some/model@v1", OLD, "hub")


def test_a_branch_may_have_slashes(cache):
    repo = cache / "models--some--model" / "refs"
    (repo / "refs" / "pr").mkdir(parents=True)
    (repo / "refs" / "pr" / "1").write_text(OLD)
    assert load("some/model@refs/pr/1").revision == OLD


def test_at_the_shell_the_commit_is_that_of_the_name(run, cache, tmp_path):
    texts = tmp_path / "texts.csv"
    lines = [f"the food was {w} {'and ' * n}good,{w}" for n in range(9) for w in ("good", "bad")]
    texts.write_text("\n".join(["text,label", *lines]))
    code, _, err = run(
        "identify", "some/model@v1", texts, "--split", "4/3/2", "--out", tmp_path / "out",
        "--order", "2",
    )  # fmt: skip
    assert code == 0, err
    import xarray as xr

    with xr.open_dataset(tmp_path / "out" / "system.nc") as system:
        assert (system.attrs["model"], system.attrs["revision"]) == ("some/model@v1", OLD)


# ------------------------------------------------------------------------------- adapters


def test_an_adapter_of_a_revision_is_merged_into_its_own_base(cache):
    """The revision after the @ is the adapter's; that of its base stands in its configuration."""
    pytest.importorskip("peft")
    added = {}

    def fill(folder):
        added.update(write_adapter(folder, "some/model", revision="v1"))

    put(cache, "me/tuned", TUNED, ["mine"], fill)
    model = load("me/tuned@mine")
    assert model.adapter == "LORA adapter 'me/tuned@mine', merged into 'some/model@v1'"
    base = load("some/model@v1").hf.state_dict()
    for name, weight in model.hf.state_dict().items():
        wanted = (base[name].double() + added.get(name, 0)).float()
        torch.testing.assert_close(weight, wanted, rtol=1e-6, atol=0, msg=name)
    assert model.revision == OLD
    assert model.tokenizer.model_max_length == 71


def test_an_adapter_of_the_hub_brings_its_tokenizer(cache):
    pytest.importorskip("peft")

    def fill(folder):
        model_of(1, 99)(folder)
        for file in folder.glob("*.safetensors"):
            file.unlink()
        (folder / "config.json").unlink()
        write_adapter(folder, "some/model")

    put(cache, "me/tuned", TUNED, ["main"], fill)
    model = load("me/tuned")
    assert model.tokenizer.model_max_length == 99
    assert model.hf.config.bos_token_id == 2


def test_an_adapter_beside_weights_of_a_revision(cache):
    pytest.importorskip("peft")

    def fill(folder):
        model_of(1, 70)(folder)
        write_adapter(folder, "somebody/else", revision="v9")

    put(cache, "me/both", TUNED, ["v3"], fill)
    model = load("me/both@v3")
    assert model.adapter == "LORA adapter 'me/both@v3', merged into the weights beside it"
    assert model.fingerprint != load("some/model@v1").fingerprint


def test_an_adapter_for_a_revision_that_is_not_there(cache):
    put(cache, "me/tuned", TUNED, ["main"], lambda f: write_adapter(f, "some/model", revision="v9"))
    with pytest.raises(ValueError, match=r"LORA adapter for 'some/model@v9', and `model` must"):
        load("me/tuned")


def test_an_adapter_for_a_gguf_file(tmp_path):
    """Merged into the weights that are read back from it."""
    pytest.importorskip("peft")
    from tests.lm.gguf_files import same_llama, written

    (tmp_path / "adapter").mkdir()
    readable = written(tmp_path / "base.gguf")
    added = write_adapter(tmp_path / "adapter", "../base.gguf", same_llama())
    model = load(tmp_path / "adapter")
    assert "merged into '" in model.adapter
    assert model.source == "GGUF file"
    assert len(added) == 4
    for name, weight in model.hf.state_dict().items():
        wanted = torch.as_tensor(readable[name]).double() + added.get(name, 0)
        torch.testing.assert_close(weight, wanted.float(), rtol=1e-6, atol=0, msg=name)


@pytest.mark.parametrize("place", ["file", "folder"])
def test_an_adapter_beside_a_gguf_file_is_neither_merged_nor_left_out(tmp_path, place):
    from tests.lm.gguf_files import written

    written(tmp_path / "base.gguf")
    write_adapter(tmp_path, "some/model")
    with pytest.raises(ValueError, match=r"without an adapter beside it; .*folder of its own"):
        load(tmp_path if place == "folder" else tmp_path / "base.gguf")


def test_an_adapter_is_merged_into_16_bits_by_one_rounding(tmp_path):
    pytest.importorskip("peft")
    from tests.lm.test_adapters import save_base

    base = save_base(tmp_path / "base")
    added = write_adapter(tmp_path / "adapter", str(base))
    model = load(tmp_path / "adapter", dtype="bfloat16")
    kept = {name: w.bfloat16() for name, w in expected_weights({}, torch.float32).items()}
    for name, weight in model.hf.state_dict().items():
        wanted = (kept[name].double() + added.get(name, 0)).bfloat16()
        assert weight.dtype == torch.bfloat16
        torch.testing.assert_close(weight, wanted, rtol=0, atol=0, msg=name)


# ------------------------------------------------------------------------------- refusals


def test_a_revision_that_is_not_in_the_cache(cache):
    with pytest.raises(ValueError, match=r"got 'some/model@v9'.*HF_HUB_OFFLINE forbids"):
        load("some/model@v9")


def test_a_commit_without_weights_is_no_model(cache):
    snapshot = put(cache, "some/model", "4" * 40, ["torn"], model_of(3, 73))
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"got 'some/model@torn', which is .*not in the cache"):
        load("some/model@torn")


def test_weights_that_are_cut_off_say_so(cache):
    snapshot = put(cache, "some/model", "4" * 40, ["torn"], model_of(3, 73))
    file = snapshot / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"safetensors weights; got 'some/model@torn': .*Save it"):
        load("some/model@torn")


def test_a_revision_that_the_hub_does_not_know(monkeypatch, cache):
    from tests.lm.test_causes import answered

    def info(*_, **__):
        raise answered(404, code="RevisionNotFound")

    monkeypatch.setattr(huggingface_hub, "model_info", info)
    with pytest.raises(ValueError, match=r"'some/model@v9'.* no such branch, tag or commit"):
        load("some/model@v9")


def test_without_a_network_the_command_names_the_revision(monkeypatch, cache):
    def info(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub, "model_info", info)
    with pytest.raises(ValueError, match="run `hf download some/model --revision v9` where"):
        load("some/model@v9")


def test_a_revision_of_a_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match=r"got 'mine@v1', and 'mine' is here. Give it without '@v"):
        load("mine@v1")


def test_a_folder_may_have_an_at_in_its_name(tmp_path):
    model_of(1, 70)(tmp_path)
    shutil.copytree(tmp_path, tmp_path.parent / "run@lr1")
    assert load(tmp_path.parent / "run@lr1").source == "folder"


@pytest.mark.parametrize("name", ["some/model@", "some/model@a b", "some/model@/x"])
def test_a_revision_must_be_one(name):
    with pytest.raises(ValueError, match=r"must name a branch, a tag or a commit after the @"):
        load(name)


def test_what_is_no_name_is_not_asked_for():
    with pytest.raises(ValueError, match=r"got 'a/b/c@v1', which is neither"):
        load("a/b/c@v1")


def test_a_repository_of_gguf_files_says_what_to_do(monkeypatch, cache):
    class Info:
        siblings = [type("File", (), {"rfilename": name}) for name in ("a.Q4.gguf", "README.md")]

    monkeypatch.setattr("huggingface_hub.model_info", lambda *_, **__: Info)
    with pytest.raises(ValueError, match=r"`hf download some/x-GGUF a.Q4.gguf --revision v1 --l"):
        source.find("some/x-GGUF@v1")
    with pytest.raises(ValueError, match=r"holds a.Q4.gguf. Download one: `hf download .*gguf --l"):
        source.find("some/x-GGUF")


def test_states_are_those_of_the_commit(cache):
    """An oracle without names: the folder of the snapshot."""
    folder = cache / "models--some--model" / "snapshots" / OLD
    x, y = (load(name).run(TEXTS).states.values for name in ("some/model@v1", folder))
    np.testing.assert_array_equal(x, y)


# ------------------------------------------------------------------------------ what it is of


def test_contents_are_known_by_the_commit_before_weights_are_there(cache, monkeypatch):
    whole = contents_of("some/model@v1")
    assert whole is not None
    there = SimpleNamespace(siblings=[SimpleNamespace(rfilename="model.safetensors")])
    monkeypatch.setattr("huggingface_hub.model_info", lambda *_, **__: there)
    for file in (cache / "models--some--model" / "snapshots" / OLD).glob("*.safetensors"):
        file.unlink()  # as after a check, which needs the configuration alone
    known = contents_of("some/model@v1")
    assert known is not None
    assert (known.files, known.commits) == ({}, {"some/model": OLD})
    assert known.sha256 == whole.sha256
    assert contents_of("some/model").commits == {"some/model": NEW}
    assert contents_of("some/model").sha256 != known.sha256
    assert contents_of("some/other") is None


def test_an_adapter_of_the_hub_is_a_commit_of_its_own(cache, tmp_path):
    def fill(folder):
        write_adapter(folder, "some/model", revision="v1")

    plain = contents_of("some/model@v1")
    put(cache, "some/tuned", TUNED, ["main"], fill)
    found = contents_of("some/tuned")
    assert found.commits == {"some/model": OLD, "adapter some/tuned": TUNED}
    assert found.sha256 != plain.sha256
