"""Damaged copies of files of every format, the same at every run."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from depthsys import export
from tests.export.systems import random_system, with_companions

KINDS = ("nc", "mat5", "mat73", "npz", "json", "zarr")


def original(kind: str, folder: Path) -> Path:
    """A whole file of the kind."""
    system = with_companions(random_system())
    if kind.startswith("mat"):
        version = "5" if kind == "mat5" else "7.3"
        export.to_matlab(system, folder / kind, version=version)
        return folder / kind / "depth_system.mat"
    path = folder / f"s.{kind}"
    write = {"nc": "to_netcdf"}.get(kind, f"to_{kind}")
    getattr(export, write)(system, path)
    return path


def first_number(path: Path) -> float:
    """For a process of its own, which imports this file and no more."""
    return float(export.read(path)["A"][0, 0, 0])


def mutants(kind: str, folder: Path, seeds: range) -> Iterator[tuple[int, Path]]:
    """One damaged copy after the other, each with its seed."""
    whole = original(kind, folder)
    copy = folder / f"mutant{whole.suffix}"
    inside = sorted(p.relative_to(whole) for p in whole.rglob("*") if p.is_file())
    contents = {name: (whole / name).read_bytes() for name in inside or [Path()]}
    if inside:
        shutil.copytree(whole, copy)
    for seed in seeds:
        random = np.random.default_rng([seed, len(kind)])
        victim = list(contents)[random.integers(len(contents))]
        target = copy / victim if inside else copy
        target.write_bytes(damaged(contents[victim], random))
        yield seed, copy
        if inside:
            target.write_bytes(contents[victim])


def damaged(content: bytes, random: np.random.Generator) -> bytes:
    """Bytes turned, zeroed, raised to 255, cut out, doubled, moved; or a number of JSON changed."""
    wrong = bytearray(content or b" ")
    where = random.integers(len(wrong), size=random.integers(1, 4))
    kind = random.integers(8)
    for place in where:
        length = int(random.integers(1, 9))
        if kind == 0:
            wrong[place] ^= 1 << random.integers(8)
        elif kind == 1:
            wrong[place : place + length] = bytes(len(wrong[place : place + length]))
        elif kind == 2:
            wrong[place : place + length] = b"\xff" * len(wrong[place : place + length])
        elif kind == 3:
            del wrong[place : place + length]
        elif kind == 4:
            wrong[place:place] = wrong[place : place + length]
        elif kind == 5:
            wrong[place : place + length] = random.bytes(length)
        elif kind == 6:
            del wrong[place + 1 :]
            break
        else:
            wrong[place] = random.choice([0, 1, 0x7F, 0x80, 0xFE, ord("9"), ord("-"), ord("]")])
    return bytes(wrong)


def renamed(text: str, random: np.random.Generator) -> str:
    """JSON with one value replaced by another one that makes no sense."""
    content = json.loads(text)
    holder, key = content, None
    while isinstance(holder, (dict, list)) and holder:
        keys = list(holder) if isinstance(holder, dict) else range(len(holder))
        parent, key = holder, keys[random.integers(len(keys))]
        holder = parent[key]
        if random.random() < 0.3:
            break
    if key is not None:
        odd = [None, -1, 0, 2**62, "", "x" * 9999, [], {}, [[]], 1e308, True, {"a": {}}]
        parent[key] = odd[random.integers(len(odd))]
    return json.dumps(content)
