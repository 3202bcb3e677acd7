"""Logits of the last token by llama.cpp itself, with and without a control vector.

``python run_llama_cpp.py request.json``: ``model`` (GGUF), ``prompts`` (token ids), ``runs``, each
``vector`` (GGUF) or null, ``strength``, ``first`` and ``last`` layer; and ``out`` (.npy), which
becomes (run, prompt, token). Where llama.cpp refuses a vector all its logits are NaN.

The library is that inside xllamacpp, called as llama.cpp's own command does: the file goes through
``common_control_vector_load`` and ``llama_set_adapter_cvec``. Options stay as they are by default,
so their structs are only passed on, as blobs that are long enough (x86-64).
"""

import ctypes
import json
import sys
from pathlib import Path

import numpy as np
import xllamacpp

(LIBRARY,) = Path(xllamacpp.__file__).parent.glob("*.so")
LOAD = "_Z26common_control_vector_loadRKSt6vectorI31common_control_vector_load_infoSaIS0_EE"


class Blob(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_char * 4096)]


class Batch(ctypes.Structure):
    _fields_ = [
        ("n_tokens", ctypes.c_int32),
        *((name, ctypes.c_void_p) for name in ("token", "embd", "pos", "n_seq_id", "seq_id")),
        ("logits", ctypes.c_void_p),
    ]


class Info(ctypes.Structure):
    """A strength and a name; the wheel is for old systems, whose std::string is one pointer."""

    _fields_ = [("strength", ctypes.c_float), ("fname", ctypes.c_char_p)]


class Vector(ctypes.Structure):
    """A std::vector."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("begin", "end", "room")]


class Data(ctypes.Structure):
    _fields_ = [("n_embd", ctypes.c_int32), ("data", Vector)]


def library():
    lib = ctypes.CDLL(str(LIBRARY))
    lib.llama_model_default_params.restype = Blob
    lib.llama_context_default_params.restype = Blob
    lib.llama_batch_get_one.restype = Batch
    for name, arguments, result in (
        ("llama_model_load_from_file", [ctypes.c_char_p, Blob], ctypes.c_void_p),
        ("llama_init_from_model", [ctypes.c_void_p, Blob], ctypes.c_void_p),
        ("llama_batch_get_one", [ctypes.c_void_p, ctypes.c_int32], Batch),
        ("llama_decode", [ctypes.c_void_p, Batch], ctypes.c_int32),
        ("llama_get_logits_ith", [ctypes.c_void_p, ctypes.c_int32], ctypes.c_void_p),
        ("llama_free", [ctypes.c_void_p], None),
        (
            "llama_set_adapter_cvec",
            [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int32] * 3],
            ctypes.c_int32,
        ),
    ):
        getattr(lib, name).argtypes = arguments
        getattr(lib, name).restype = result
    return lib


def loaded(lib, path: str, strength: float) -> np.ndarray | None:
    """(layer from 1, feature), as llama.cpp reads the file; None if it refuses it."""
    name = path.encode()
    info = Info(strength, name)
    begin = ctypes.addressof(info)
    infos = Vector(begin, begin + ctypes.sizeof(info), begin + ctypes.sizeof(info))
    found = Data()
    getattr(lib, LOAD)(ctypes.byref(found), ctypes.byref(infos))
    if found.n_embd < 0:
        return None
    count = (found.data.end - found.data.begin) // 4
    values = (ctypes.c_float * count).from_address(found.data.begin)
    return np.array(values, np.float32).reshape(-1, found.n_embd)


def logits(lib, model, request, run) -> np.ndarray:
    found = []
    vector = None
    if run["vector"] is not None:
        vector = loaded(lib, run["vector"], run["strength"])
        if vector is None:
            return np.full((len(request["prompts"]), request["n_tokens"]), np.nan, np.float32)
    for prompt in request["prompts"]:
        context = lib.llama_init_from_model(model, lib.llama_context_default_params())
        if vector is not None:
            values = np.ascontiguousarray(vector)
            first, last = run["first"], run["last"]
            assert not lib.llama_set_adapter_cvec(
                context, values.ctypes.data, values.size, values.shape[1], first, last
            )
        tokens = (ctypes.c_int32 * len(prompt))(*prompt)
        assert not lib.llama_decode(context, lib.llama_batch_get_one(tokens, len(prompt)))
        address = lib.llama_get_logits_ith(context, -1)
        found.append(np.array((ctypes.c_float * request["n_tokens"]).from_address(address)))
        lib.llama_free(context)
    return np.array(found)


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    lib = library()
    lib.llama_backend_init()
    options = lib.llama_model_default_params()
    model = lib.llama_model_load_from_file(request["model"].encode(), options)
    np.save(request["out"], np.array([logits(lib, model, request, run) for run in request["runs"]]))


if __name__ == "__main__":
    main()
