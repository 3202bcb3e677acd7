"""Why a checkpoint cannot be loaded, in words: the cause that is named is the cause."""

import errno
import importlib.util
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
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
    if isinstance(error, OfflineModeIsEnabled):
        return ValueError(
            f"{begin}no folder here and not in the cache, and HF_HUB_OFFLINE forbids to ask for "
            "it. Unset it, or give the folder of a model."
        )
    if isinstance(error, GatedRepoError):
        return ValueError(
            f"{begin}gated: its owner wants to be asked. Accept the terms on its page and log in "
            "with `hf auth login`."
        )
    if isinstance(error, RevisionNotFoundError):
        return ValueError(
            f"{begin}known to the hub, but has no such branch, tag or commit. Look at its files "
            "and versions there, or leave the revision out."
        )
    if isinstance(error, RepositoryNotFoundError):
        return ValueError(
            f"{begin}no folder here, and no public model on the hub. Check the spelling; for a "
            "private one log in with `hf auth login`."
        )
    if isinstance(error, HfHubHTTPError):
        return ValueError(
            f"{begin}no folder here; the hub answered: {first_line(error)} Try again later, or "
            "give the folder of a model."
        )
    name, _, revision = source.partition("@")
    download = f"{name} --revision {revision}" if revision else name
    return ValueError(
        f"{begin}no folder here and not in the cache, and the hub cannot be reached: "
        f"{first_line(error)} Check the network, or run `hf download {download}` where there is "
        "one and give that folder."
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
