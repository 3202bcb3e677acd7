"""Messages of what cannot be loaded name the cause, whatever library noticed it."""

import errno
import importlib
import json
import re
import resource
import shutil
import struct
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import errors
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GPT2Config
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from depthsys import lm
from depthsys.lm.hf import causes, checkpoint, source
from tests.conftest import tiny_gpt2, tiny_llama


@pytest.fixture
def saved(tmp_path):
    from depthsys.demo import model_path

    tiny_gpt2().save_pretrained(tmp_path)
    for file in model_path("demo_48x4").glob("tokenizer*"):
        shutil.copy(file, tmp_path)
    return tmp_path


def fails(monkeypatch, where, name, error):
    def call(*_, **__):
        raise error

    monkeypatch.setattr(where, name, call)


# ----------------------------------------------------------------------- memory


def hollow_model(folder):
    """A model of 1.5e6 tokens whose weights are a hole in a file."""
    config = GPT2Config(n_embd=64, n_layer=1, n_head=2, vocab_size=1_500_000)
    config.save_pretrained(folder)
    with torch.device("meta"):
        weights = AutoModelForCausalLM.from_config(config).state_dict()
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, weight in weights.items():
        if name != "lm_head.weight":
            begin, end = end, end + 4 * weight.numel()
            header[name] = {
                "dtype": "F32", "shape": list(weight.shape), "data_offsets": [begin, end]
            }  # fmt: skip
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a limit that is kept")
def test_a_limit_of_memory_is_named(tmp_path):
    hollow_model(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_AS)
    status = Path("/proc/self/status").read_text().split("VmSize:")[1]
    used = 1024 * int(status.split()[0])
    try:
        resource.setrlimit(resource.RLIMIT_AS, (used + 60 * 2**20, before[1]))
        with pytest.raises(ValueError, match="must fit into the memory that is left") as caught:
            lm.DepthModel.load(tmp_path, device="cpu")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert "whose weights are 0.38 GB" in str(caught.value)
    assert "ulimit -v" in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "no room"),
        RuntimeError("unable to mmap 8 bytes from file <model>: Cannot allocate memory (12)"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
        torch.OutOfMemoryError("CUDA out of memory."),
    ],
)
def test_every_way_to_be_short_of_memory(saved, monkeypatch, error):
    with monkeypatch.context() as patch:
        fails(patch, checkpoint.AutoModelForCausalLM, "from_pretrained", error)
        with pytest.raises(ValueError, match="must fit into the memory that is left"):
            lm.DepthModel.load(saved, device="cpu")
    with monkeypatch.context() as patch:
        fails(patch, lm.model.contract, "check", error)
        if not isinstance(error, OSError):
            with pytest.raises(ValueError, match="must fit into the memory that is left"):
                lm.DepthModel(tiny_gpt2())
    if isinstance(error, RuntimeError):
        fails(monkeypatch, torch.nn.Module, "to", error)
        with pytest.raises(ValueError, match="must fit into the memory that is left"):
            lm.DepthModel.load(saved, device="cpu")


def test_other_errors_are_not_called_memory():
    for error in (RuntimeError("size mismatch"), OSError(errno.ENOENT, "no file"), ValueError("x")):
        assert not causes.out_of_memory(error)


# ----------------------------------------------------------------------- the hub


httpx = importlib.import_module(errors.HTTPError.__module__.split(".")[0])


def answered(status, *, told=None, code=None):
    """What the hub's library raises for such an answer."""
    headers = {"X-Error-Message": told, "X-Error-Code": code, "x-request-id": "7" * 60}
    request = httpx.Request("GET", "https://huggingface.co/api/models/some/model")
    response = httpx.Response(
        status, headers={k: v for k, v in headers.items() if v}, request=request
    )
    with pytest.raises(errors.HfHubHTTPError) as caught:
        huggingface_hub.utils.hf_raise_for_status(response)
    return caught.value


def no_json():
    with pytest.raises(ValueError, match="Expecting value") as caught:
        json.loads("<html>")
    return caught.value


# what came, its kind, and the message with its cure
HUB = {
    "a typing error": (
        answered(404, code="RepoNotFound"),
        errors.RepositoryNotFoundError,
        "no folder here, and no public model on the hub. Check the spelling; for a private one log "
        "in with `hf auth login`.",
    ),
    "a private one, without a login": (
        answered(401),
        errors.RepositoryNotFoundError,
        "no folder here, and no public model on the hub. Check the spelling; for a private one log "
        "in with `hf auth login`.",
    ),
    "a gated one": (
        answered(403, code="GatedRepo"),
        errors.GatedRepoError,
        "gated: its owner wants to be asked. Accept the terms on its page and log in with `hf auth "
        "login`.",
    ),
    "a token that is out of date": (
        answered(401, told="Invalid credentials in Authorization header"),
        errors.HfHubHTTPError,
        "no folder here; the hub does not accept the token that is sent: .*401.*Unset HF_TOKEN, or "
        "log in with `hf auth login`.",
    ),
    "a token with other rights": (
        answered(403, told="no such right"),
        errors.HfHubHTTPError,
        "no folder here; the hub does not open it to this login: 403 Forbidden: no such right.*"
        "Give the token the right to read it, or log in with `hf auth login` as somebody who may.",
    ),
    "another revision": (
        answered(404, code="RevisionNotFound"),
        errors.RevisionNotFoundError,
        "known to the hub, but has no such branch, tag or commit. Look at its files and versions "
        "there, or leave the revision out.",
    ),
    "a disabled one": (
        answered(403, told="Access to this resource is disabled."),
        errors.DisabledRepoError,
        "no folder here; on the hub access to it is disabled. Choose another model, or give the "
        "folder of a copy.",
    ),
    "too many questions": (
        answered(429),
        errors.HfHubHTTPError,
        "no folder here; the hub was asked too often: 429 Too Many Requests.*Wait for some minutes",
    ),
    "a bad request": (
        answered(400, told="no such thing"),
        errors.BadRequestError,
        "no folder here; the hub answered: Bad request.*Try again later, or give the folder",
    ),
    "a hub that is down": (
        answered(503),
        errors.HfHubHTTPError,
        "no folder here; the hub answered: Server error '503 Service Unavailable'.*Try again later",
    ),
    "no network wanted": (
        errors.OfflineModeIsEnabled("x"),
        ConnectionError,
        "no folder here and not in the cache, and HF_HUB_OFFLINE forbids to ask for it. Unset it",
    ),
    "no login": (
        errors.LocalTokenNotFoundError("Token is required (`token=True`)"),
        OSError,
        "no folder here, and wants a login. Log in with `hf auth login`.",
    ),
    "no network": (
        httpx.ConnectError("[Errno -2] Name or service not known"),
        errors.HTTPError,
        "no folder here and not in the cache, and the hub cannot be reached: .*Name or service not "
        "known. Check the network, or run `hf download some/model` where there is one",
    ),
    "a slow network": (
        httpx.ConnectTimeout(""),
        errors.HTTPError,
        "the hub cannot be reached: ConnectTimeout. Check the network",
    ),
    "a proxy with its own certificate": (
        httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed"),
        errors.HTTPError,
        "the certificate of what answers is not trusted: .*Set SSL_CERT_FILE to",
    ),
    "the login page of a network": (
        no_json(),
        json.JSONDecodeError,
        "what answers is not the hub: Expecting value.*Log in to the network, check HF_ENDPOINT",
    ),
}


@pytest.mark.parametrize("case", HUB)
def test_why_the_hub_gave_no_model(monkeypatch, case):
    error, kind, message = HUB[case]
    assert isinstance(error, kind)
    fails(monkeypatch, source.huggingface_hub, "model_info", error)
    begin = "must be a local folder or a Hugging Face name; got 'some/model', which is "
    with pytest.raises(ValueError, match=f"{begin}.*{message}") as caught:
        lm.DepthModel.load("some/model")
    said = str(caught.value)
    assert "\n" not in said
    assert len(said) < 450
    assert said.endswith(".")


@pytest.mark.parametrize("what", ["config", "weights", "tokenizer"])
@pytest.mark.parametrize("case", ["a gated one", "no network", "a hub that is down"])
def test_why_the_hub_gave_no_file_of_a_model(saved, monkeypatch, what, case):
    """Of a gated model everybody may know the names of the files, and the network may fail late."""
    names = ["config.json", "model.safetensors"]
    info = SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in names])
    monkeypatch.setattr(source.huggingface_hub, "model_info", lambda *_, **__: info)
    error, _, message = HUB[case]
    transformers_hub = importlib.import_module("transformers.utils.hub")

    there = {"config": [], "weights": names[:1], "tokenizer": names}[what]

    def in_cache(source, name, *_):
        return str(saved / name) if name in there else None

    def download(source, name, **_):
        if name not in there:
            raise error

    monkeypatch.setattr(transformers_hub, "_get_cache_file_to_return", in_cache)
    monkeypatch.setattr(transformers_hub, "hf_hub_download", download)
    fails(monkeypatch, transformers_hub, "snapshot_download", error)
    base = importlib.import_module("transformers.tokenization_utils_base")
    fails(monkeypatch, base, "list_repo_templates", error)
    # it is asked again after 1, 2 and 4 seconds
    http = importlib.import_module("huggingface_hub.utils._http")
    monkeypatch.setattr(http, "time", SimpleNamespace(time=time.time, sleep=lambda _: None))
    # which asks the hub for a copy in the other format
    modeling = importlib.import_module("transformers.modeling_utils")
    fails(monkeypatch, modeling, "auto_conversion", error)
    with pytest.raises(ValueError, match=f"got 'some/model', which is .*{message}") as caught:
        lm.DepthModel.load("some/model", device="cpu")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_not_the_fault_of_the_hub(tmp_path):
    missing = answered(404, code="EntryNotFound")
    outer = OSError("no file named model.safetensors")
    outer.__cause__ = missing
    assert causes.hub_refusal("some/model", outer) is None
    outer.__cause__ = errors.LocalEntryNotFoundError("not in the cache")
    assert "cannot be reached: not in the cache" in str(causes.hub_refusal("some/model", outer))
    outer.__cause__.__cause__ = answered(503)
    assert "the hub answered: Server error" in str(causes.hub_refusal("some/model", outer))
    assert causes.hub_refusal(str(tmp_path), outer) is None


@pytest.mark.parametrize(
    ("typed", "cure"),
    [
        ("https://huggingface.co/some/model", "Write 'some/model'."),
        ("https://huggingface.co/some/model/tree/main", "Write 'some/model'."),
        ("hf://some/model", "Write 'some/model'."),
        ("some/model/", "Write 'some/model'."),
        ("some/model:v1.0", "Write 'some/model@v1.0'."),
        ("./my-modle", "Check the path."),
        ("some/other/model", "Check the path."),
    ],
)
def test_what_is_no_name_says_what_to_write(typed, cure):
    rule = "must be an existing folder or a Hugging Face name; got"
    with pytest.raises(ValueError, match=f"{rule} .*, which is neither. {re.escape(cure)}"):
        lm.DepthModel.load(typed)


def in_cache(monkeypatch, folder):
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache",
        lambda source, name: str(folder / name) if (folder / name).is_file() else None,
    )


def test_a_cache_without_weights_is_no_model(saved, monkeypatch):
    """Transformers would try for a minute, and then speak of pytorch_model.bin."""
    in_cache(monkeypatch, saved)
    (saved / "model.safetensors").unlink()
    fails(monkeypatch, source.huggingface_hub, "model_info", ConnectionError("no network"))
    with pytest.raises(ValueError, match="not in the cache, and the hub cannot be reached"):
        lm.DepthModel.load("some/model")


def test_a_whole_cache_needs_no_network(saved, monkeypatch):
    in_cache(monkeypatch, saved)
    fails(monkeypatch, source.huggingface_hub, "model_info", ConnectionError("no network"))
    assert checkpoint.find("some/model") == checkpoint.Found("some/model")


# ----------------------------------------------------------------------- configurations


def test_a_configuration_of_an_unknown_kind_is_no_wrong_path(saved):
    (saved / "config.json").write_text('{"model_type": "no_such_kind"}')
    with pytest.raises(
        ValueError, match=r"config.json that transformers .* `no_such_kind`"
    ) as found:
        lm.DepthModel.load(saved)
    assert "update transformers" in str(found.value)
    assert "spelling" not in str(found.value)


@pytest.mark.parametrize(
    ("method", "packages"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptqmodel optimum"),
        ({"quant_method": "awq", "bits": 4}, "gptqmodel"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"load_in_8bit": True}, "bitsandbytes"),
        ({"quant_method": "compressed-tensors"}, "compressed-tensors"),
        ({"quant_method": "torchao", "quant_type": "int8_weight_only"}, "torchao"),
        ({"quant_method": "hqq"}, "hqq"),
    ],
)
def test_a_quantised_model_names_the_packages_it_needs(saved, monkeypatch, method, packages):
    there = causes._is_there
    monkeypatch.setattr(causes, "_is_there", lambda m: m == "accelerate" and there(m))
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | {"quantization_config": method}))
    name = method.get("quant_method", "bitsandbytes")
    with pytest.raises(ValueError, match=f"quantised with {name}, .* Run `pip install {packages}`"):
        lm.DepthModel.load(saved)


KNOWN = {name.removesuffix("_4bit").removesuffix("_8bit") for name in
         AUTO_QUANTIZATION_CONFIG_MAPPING}  # fmt: skip


def test_the_ways_to_quantise_are_those_of_transformers():
    """Of all that this version knows; gemma needs no package, a GGUF file is no such checkpoint."""
    assert KNOWN <= {*causes._QUANTISED, "gguf", "gemma"}
    assert set(causes._QUANTISED) <= KNOWN


def quantised(folder, method):
    """The configuration of a checkpoint that is quantised so."""
    bits = {"bits": 4, "load_in_4bit": True, "quant_type": "int8_weight_only", "weights": "int8"}
    wanted = {"gptq": ("bits",), "awq": ("bits",), "bitsandbytes": ("load_in_4bit",),
              "torchao": ("quant_type",), "quanto": ("weights",)}.get(method, ())  # fmt: skip
    found = {"quant_method": method} | {key: bits[key] for key in wanted}
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": found}))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, by a quantiser
@pytest.mark.parametrize("method", sorted(causes._QUANTISED))
def test_what_is_to_be_installed_is_what_transformers_asks_for(saved, monkeypatch, method):
    """The oracle is each quantiser of transformers: what it misses here is in our list."""
    quantised(saved, method)
    monkeypatch.setattr(causes, "_is_there", lambda module: False)
    with pytest.raises(ValueError, match=f"quantised with {method}, which needs .* Run `pip inst"):
        lm.DepthModel.load(saved)
    monkeypatch.setattr(causes, "_is_there", lambda module: True)
    try:
        lm.DepthModel.load(saved, device="cpu")
    except ValueError as error:
        text = str(error)
    else:  # transformers can do without a package
        return
    if "lacks or misfits" in text:
        return
    assert f"quantised with {method}: " in text
    assert "\n" not in text
    if "pip install" in text:
        names = [name.strip("'").split("[")[0] for name in causes._QUANTISED[method].values()]
        assert any(name.lower() in text.lower() for name in names)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, by a quantiser
def test_a_quantised_checkpoint_that_does_not_fit_says_how_it_is_quantised(saved):
    """Not that safetensors weights are missing."""
    (saved / "config.json").write_text(tiny_llama().config.to_json_string())
    tiny_llama(vocab_size=1024).save_pretrained(saved)
    quantised(saved, "bitnet")
    with pytest.raises(ValueError, match=r"quantised with bitnet: .* Mend that, or use the checkp"):
        lm.DepthModel.load(saved, device="cpu")


def test_a_package_inside_another_that_is_not_there():
    assert not causes._is_there("no_such_package.inside")
    assert causes._is_there("json.decoder")


@pytest.mark.parametrize("what", ["model", "tokenizer"])
def test_a_missing_package_is_named(saved, monkeypatch, what):
    where = AutoModelForCausalLM if what == "model" else AutoTokenizer
    error = ModuleNotFoundError("No module named 'sentencepiece.x'", name="sentencepiece.x")
    fails(monkeypatch, where, "from_pretrained", error)
    with pytest.raises(ValueError, match=r"which needs another one: .*`pip install sentencepiece`"):
        lm.DepthModel.load(saved)


# ----------------------------------------------------------------------- files


def test_a_folder_of_models_names_them(saved, tmp_path_factory):
    """As a training leaves it behind."""
    outer = tmp_path_factory.mktemp("training")
    shutil.copytree(saved, outer / "checkpoint-500")
    with pytest.raises(ValueError, match=r"Perhaps one of its folders: checkpoint-500\."):
        lm.DepthModel.load(outer)


def test_a_file_is_no_folder(saved):
    with pytest.raises(
        ValueError, match=r"must be a folder or a GGUF file; got the file '.*model.safetensors'"
    ):
        lm.DepthModel.load(saved / "model.safetensors")


@pytest.mark.parametrize("dtype", [torch.float32, "float32", "torch.float32", "numpy"])
def test_a_dtype_may_be_given_as_people_have_it(saved, dtype):
    chosen = np.float32 if dtype == "numpy" else dtype
    for given in (chosen, np.dtype("float32")):
        model = lm.DepthModel.load(saved, dtype=given, device=torch.device("cpu"))
        assert model.dtype_name == "float32"
    assert lm.DepthModel.load(saved, dtype=torch.float64, device="cpu").dtype == torch.float64
    for wrong in (torch.float8_e5m2, np.int64, "half", "float128"):
        with pytest.raises(ValueError, match="`dtype` must be one of"):
            lm.DepthModel.load(saved, dtype=wrong)


def test_a_configuration_is_still_read(saved):
    assert type(checkpoint.read_config(saved)) is type(AutoConfig.from_pretrained(saved))
