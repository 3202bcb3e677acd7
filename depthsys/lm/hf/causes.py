"""Why a checkpoint cannot be loaded, in words: the cause that is named is the cause."""

import errno
import importlib.util
import re
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

# how a quantised checkpoint says it -> the modules it needs, and what to install for them
_QUANTISED = {
    "aqlm": {"aqlm": "'aqlm[gpu,cpu]'", "accelerate": "accelerate"},
    "auto-round": {"auto_round": "auto-round"},
    "awq": {"gptqmodel": "gptqmodel", "accelerate": "accelerate"},
    "bitnet": {"accelerate": "accelerate"},
    "bitsandbytes": {"bitsandbytes": "bitsandbytes", "accelerate": "accelerate"},
    "compressed-tensors": {"compressed_tensors": "compressed-tensors"},
    "eetq": {"kernels": "kernels", "accelerate": "accelerate"},
    "fbgemm_fp8": {"fbgemm_gpu": "fbgemm-gpu", "accelerate": "accelerate"},
    "fouroversix": {"fouroversix": "fouroversix"},
    "fp8": {"accelerate": "accelerate"},
    "fp_quant": {"fp_quant": "fp_quant"},
    "gptq": {"gptqmodel": "gptqmodel", "optimum.gptq": "optimum"},
    "higgs": {
        "flute": "flute-kernel",
        "fast_hadamard_transform": "fast_hadamard_transform",
        "accelerate": "accelerate",
    },
    "hqq": {"hqq": "hqq"},
    "metal": {"kernels": "kernels"},
    "mxfp4": {"accelerate": "accelerate"},
    "mxfp8": {"accelerate": "accelerate"},
    "nvfp4": {"kernels": "kernels"},
    "quanto": {"optimum.quanto": "optimum-quanto", "accelerate": "accelerate"},
    "quark": {"quark": "amd-quark"},
    "sinq": {"sinq": "sinq"},
    "spqr": {"spqr_quant": "'spqr_quant[gpu]'", "accelerate": "accelerate"},
    "torchao": {"torchao": "torchao"},
    "vptq": {"vptq": "vptq", "accelerate": "accelerate"},
}


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its kind, as a sentence."""
    line = str(error).strip().split("\n")[0] or type(error).__name__
    return line if line.endswith((".", "!", "?")) else line + "."


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is short; libraries say it in many ways."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    text = str(error).lower()
    return isinstance(error, (RuntimeError, OSError)) and (
        "allocate memory" in text or "out of memory" in text
    )


def memory_error(source: str, error: BaseException) -> ValueError:
    """The refusal of a model that does not fit."""
    size = sum(file.stat().st_size for file in _weights_of(source))
    of = f", whose weights are {size / 1e9:.2g} GB" if size else ""
    return ValueError(
        f"`model` must fit into the memory that is left; got {source!r}{of}: {first_line(error)} "
        "Raise the limit (`ulimit -v`, or that of the job), or use a smaller dtype or model."
    )


def _weights_of(source: str) -> list[Path]:
    if Path(source).is_file():
        return [Path(source)]
    kinds = ("*.safetensors", "pytorch_model*.bin")
    return [file for kind in kinds for file in Path(source).glob(kind)]


def hub_error(source: str, error: BaseException) -> ValueError:
    """The refusal of a name that the hub did not give a model for."""
    begin = f"`model` must be a local folder or a Hugging Face name; got {source!r}, which is "
    why, cure = next(
        (told for kind, told in _HUB.items() if isinstance(error, kind)), _unnamed(error)
    )
    name, _, revision = source.partition("@")
    download = f"{name} --revision {revision}" if revision else name
    return ValueError(begin + f"{why} {cure}".format(download=download, said=_said(error)))


def _said(error: BaseException) -> str:
    """What the hub said, as a short sentence; the number of the request may stand before it."""
    lines = re.sub(r"\(Request ID:[^)]*\)", "", str(error)).split("\n")
    line = next((" ".join(line.split()) for line in lines if line.strip()), type(error).__name__)
    return shorten(line.rstrip(".:"), 200, placeholder=" ...") + "."


def _unnamed(error: BaseException) -> tuple[str, str]:
    """The same where the library has no name for it."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return _ANSWERS.get(status, _LATER)
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return _CERTIFICATE
    return _STRANGER if isinstance(error, ValueError) else _NO_ANSWER  # that is no JSON


def hub_refusal(source: str, error: BaseException) -> ValueError | None:
    """The same for an error on the way to a file of the model; None if the hub is not its cause.

    Of a gated model the hub tells the names of the files, and refuses the files.
    """
    if Path(source).exists():
        return None
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, RemoteEntryNotFoundError):  # one file is missing, that is all
            return None
        below = found.__cause__ or found.__context__
        if isinstance(found, LocalEntryNotFoundError) and below is not None:
            found = below  # why it is not there
        if isinstance(found, _OF_HUB):
            return hub_error(source, found)
        found = below
    return None


_OF_HUB = (HTTPError, OfflineModeIsEnabled, LocalTokenNotFoundError, LocalEntryNotFoundError)
_LOG_IN = "log in with `hf auth login`"
# what the hub answered -> what the name is then, and the cure
_HUB: dict[type[BaseException], tuple[str, str]] = {
    OfflineModeIsEnabled: (
        "no folder here and not in the cache, and HF_HUB_OFFLINE forbids to ask for it.",
        "Unset it, or give the folder of a model.",
    ),
    GatedRepoError: (
        "gated: its owner wants to be asked.",
        f"Accept the terms on its page and {_LOG_IN}.",
    ),
    RepositoryNotFoundError: (
        "no folder here, and no public model on the hub.",
        f"Check the spelling; for a private one {_LOG_IN}.",
    ),
    RevisionNotFoundError: (
        "known to the hub, but has no such branch, tag or commit.",
        "Look at its files and versions there, or leave the revision out.",
    ),
    DisabledRepoError: (
        "no folder here; on the hub access to it is disabled.",
        "Choose another model, or give the folder of a copy.",
    ),
    LocalTokenNotFoundError: ("no folder here, and wants a login.", f"{_LOG_IN.capitalize()}."),
}
# by the number of the answer
_ANSWERS = {
    401: (
        "no folder here; the hub does not accept the token that is sent: {said}",
        f"Unset HF_TOKEN, or {_LOG_IN}.",
    ),
    403: (
        "no folder here; the hub does not open it to this login: {said}",
        f"Give the token the right to read it, or {_LOG_IN} as somebody who may.",
    ),
    429: (
        "no folder here; the hub was asked too often: {said}",
        f"Wait for some minutes; those who {_LOG_IN} may ask more.",
    ),
}
_LATER = (
    "no folder here; the hub answered: {said}",
    "Try again later, or give the folder of a model.",
)
_NO_ANSWER = (
    "no folder here and not in the cache, and the hub cannot be reached: {said}",
    "Check the network, or run `hf download {download}` where there is one and give that folder.",
)
_STRANGER = (
    "no folder here and not in the cache, and what answers is not the hub: {said}",
    "Log in to the network, check HF_ENDPOINT, or give the folder of a model.",
)
_CERTIFICATE = (
    "no folder here and not in the cache, and the certificate of what answers is not trusted: "
    "{said}",
    "Set SSL_CERT_FILE to the certificates of your proxy, or give the folder of a model.",
)


def no_name(source: str) -> ValueError:
    """The refusal of what is neither a folder nor a name of the hub."""
    cure = "Check the path."
    link = re.fullmatch(
        r"(?:https?://(?:www\.)?(?:huggingface\.co|hf\.co)/|hf://(?:models/)?)"
        r"(?P<name>[\w.-]+/[\w.-]+).*",
        source,
    )
    at = re.fullmatch(r"(?P<name>[\w.-]+(?:/[\w.-]+)?):(?P<revision>[\w./-]+)", source)
    inside = re.fullmatch(r"(?P<name>[\w-][\w.-]*/[\w.-]+)/+", source)
    if link or inside:
        name = (link or inside)["name"]  # pyright: ignore[reportOptionalSubscript]
        cure = f"Write {name!r}."
    elif at:
        cure = f"Write {at['name'] + '@' + at['revision']!r}."
    return ValueError(
        f"`model` must be an existing folder or a Hugging Face name; got {source!r}, which is "
        f"neither. {cure}"
    )


def quantisation_of(config: Any) -> str | None:
    """How the weights are quantised; None if they are not."""
    text = config.get_text_config(decoder=True)
    found = getattr(config, "quantization_config", None) or getattr(
        text, "quantization_config", None
    )
    if not found:
        return None
    given = found if isinstance(found, dict) else found.to_dict()
    method = getattr(given.get("quant_method"), "value", given.get("quant_method"))
    if method is None and (given.get("load_in_4bit") or given.get("load_in_8bit")):
        method = "bitsandbytes"
    return str(method)


def check_quantisation(config: Any, source: str) -> None:
    """ValueError, with what to install, if the weights are quantised and a package is missing."""
    method = quantisation_of(config)
    needed = _QUANTISED.get(str(method), {})
    missing = [package for module, package in needed.items() if not _is_there(module)]
    if missing:
        raise ValueError(
            f"{_quantised(source, method)}, which needs {' and '.join(missing)}. Run `pip install "
            f"{' '.join(missing)}`, or use the checkpoint that is not quantised."
        )


def quantised_error(source: str, method: str, error: BaseException) -> ValueError:
    """The refusal of a quantised checkpoint that the packages that are here do not read."""
    return ValueError(
        f"{_quantised(source, method)}: {first_line(error)} Mend that, or use the "
        "checkpoint that is not quantised."
    )


def _quantised(source: str, method: str | None) -> str:
    return (
        f"`model` must be quantised in a way that can be read here; got {source!r}, quantised "
        f"with {method}"
    )


def missing_package(source: str, error: ImportError) -> ValueError:
    """The refusal of what needs a package that is not there."""
    package = f" Run `pip install {error.name.split('.')[0]}`." if error.name else ""
    return ValueError(
        f"`model` must load with the packages that are installed; got {source!r}, which needs "
        f"another one: {first_line(error)}{package}"
    )


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it
        return False
