"""GGUF files: what can be said of one before it is read, and why it cannot be.

Transformers reads the weights back with the package gguf, as the float32 numbers that they stand
for; the quantised ones are not kept.
"""

import importlib.util
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import transformers

from depthsys.lm.hf.causes import first_line

_PART = re.compile(r"-\d+-of-\d+\.gguf$", re.IGNORECASE)
_BLOCK = re.compile(r"blk\.(\d+)\.")
_NEEDED = ("gguf", "accelerate")  # transformers asks for both


def is_gguf(path: Path) -> bool:
    """Whether a path names such a file."""
    return path.suffix.lower() == ".gguf"


def gguf_in(folder: Path) -> list[Path]:
    """The GGUF files of a folder."""
    return sorted(path for path in folder.iterdir() if is_gguf(path))


def check_gguf(path: Path) -> None:
    """ValueError unless this is a GGUF file, as far as its name and first bytes tell."""
    begin = f"`model` must be a whole GGUF file; got {str(path)!r}, which "
    if not path.is_file():
        raise ValueError(f"{begin}does not exist. Check the path.")
    if _PART.search(path.name):
        raise ValueError(
            f"{begin}is one part of several. Join them with llama.cpp: `llama-gguf-split --merge "
            "FIRST_PART WHOLE.gguf`, and give that."
        )
    with path.open("rb") as file:
        head = file.read(16)
    if not head.startswith(b"GGUF"):
        if head.startswith(b"version https://"):
            raise ValueError(f"{begin}is the pointer of Git LFS to it. Run `git lfs pull` there.")
        what = f"begins with {head[:8]!r}" if head else "is empty"
        raise ValueError(f"{begin}{what}. Download it again.")
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"{begin}transformers cannot read without {' and '.join(missing)}. Run `pip install "
            f"{' '.join(missing)}`."
        )


def unreadable(path: Path, error: Exception) -> ValueError:
    """The refusal of a GGUF file that transformers did not read, with the cause."""
    if why := _damage(path):
        return ValueError(
            f"`model` must be a whole GGUF file; got {str(path)!r} ({path.stat().st_size} bytes), "
            f"which is cut off or damaged: {why} Download it again."
        )
    if isinstance(error, NotImplementedError) and "dequantiz" in str(error).lower():
        return ValueError(
            f"`model` must hold weights that the package gguf can read back; got {str(path)!r}: "
            f"{first_line(error)} Give another quantisation of it, such as Q8_0."
        )
    return ValueError(
        f"`model` must be a GGUF file of a language model that transformers "
        f"{transformers.__version__} can read; got {str(path)!r}: {first_line(error)} Give the "
        "model it was made of, or another kind of file."
    )


def misfitting(path: Path, keys: Iterable[tuple[str, Any, Any]]) -> ValueError:
    """The refusal of a GGUF file with weights of other shapes than its header says."""
    found = sorted(f"{name} is {tuple(has)} and not {tuple(wanted)}" for name, has, wanted in keys)
    return ValueError(
        f"`model` must be a GGUF file whose tensors fit its own header; in {str(path)!r} "
        f"{', '.join(found[:3])} ({len(found)} in all). Convert the model again."
    )


def _damage(path: Path) -> str:
    """What is wrong with the file itself; nothing if its tables and sizes agree."""
    import gguf

    try:
        gguf.GGUFReader(path)
    except Exception as error:  # whatever numpy and gguf say of bytes that are not there
        return first_line(error)
    return ""


def check_blocks(path: Path, n_blocks: int) -> None:
    """ValueError if the file holds blocks behind those that it says it has."""
    import gguf

    names = [tensor.name for tensor in gguf.GGUFReader(path).tensors]
    blocks = ((name, _BLOCK.match(name)) for name in names)
    surplus = sorted(name for name, block in blocks if block and int(block[1]) >= n_blocks)
    if surplus:
        raise ValueError(
            f"`model` must have a block_count that names all its blocks; {str(path)!r} says "
            f"{n_blocks}, and holds {surplus[:2]} ({len(surplus)} such weights) that it does not "
            "use. Convert it again."
        )


def reading_whole(path: Path) -> dict[str, Any]:
    """What transformers is asked for: newer ones may keep the weights in their blocks."""
    kept = getattr(transformers, "GgufConfig", None)
    whole = {} if kept is None else {"quantization_config": kept(dequantize=True)}
    return {"gguf_file": path.name, **whole}


def forget(config: Any) -> None:
    """Take out of a configuration what only says where its weights were read from."""
    for name in ("quantization_config", "_model_name_or_path"):
        if hasattr(config, name):
            delattr(config, name)
