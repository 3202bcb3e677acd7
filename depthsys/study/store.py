"""The store of a study: a Zarr hierarchy of Datasets that `xarray.open_datatree` opens.

``model/task/seed_N/concept/stage`` is a Dataset. It appears whole, with what it is of in its attrs,
and counts as finished only as long as it holds what was written. One process writes it.
"""

import contextlib
import json
import os
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from depthsys._version import __version__
from depthsys.files import content_hash, renames
from depthsys.files.locks import locked
from depthsys.files.whole import full_disk_told
from depthsys.study.stages import STAGES
from depthsys.study.study_file import CellKey, Study

METADATA = "zarr.json"
KIND = "depthsys study"
IDENTITY, SHA256, SECONDS, NOTES = "stage_identity", "stage_sha256", "stage_seconds", "stage_notes"
FAILED, ASKED = "failed", "asked"
_NEW = "new"
# what differs between two runs that find the same
_TIMED_ATTRS = ("created", "history", "seconds")  # also behind a name, as in system_created
# where things are, not what they are
_PLACES = ("source", "texts", "model", "operating_source", "operating_model")
_TIMED = ("seconds", "prompt_seconds")


class Store:
    """A study on disk; make it with `Store.checked`."""

    def __init__(self, path: Path):
        self.path = path
        self._writing = threading.RLock()  # several cells may be on their way

    @classmethod
    def checked(cls, path: Path, study: Study) -> "Store":
        """The store of a study, which may have begun before. Nothing is written.

        Raises
        ------
        ValueError
            If something else is there, or another study's.
        """
        store = cls(path)
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            raise ValueError(
                f"`--out` must be a folder, or nothing yet; got {str(path)!r}, which is none. "
                "Choose another."
            )
        if not path.is_dir() or not os.listdir(path):
            return store
        attrs = store.attrs
        if not attrs and (path / METADATA).exists():
            whole = json.dumps({"attributes": {"kind": KIND, "study_name": study.name}})
            raise ValueError(
                f"`--out` must be the store of a study; got {str(path)!r}, whose {METADATA} is "
                f"damaged. If it is of this study, write {whole} into that file, and what is "
                "finished is kept; or choose another."
            )
        if attrs.get("kind") != KIND:
            raise ValueError(
                f"`--out` must be the store of a study; got {str(path)!r}, which holds "
                f"{', '.join(sorted(os.listdir(path))[:3])}. Choose another."
            )
        if attrs.get("study_name") != study.name:
            raise ValueError(
                f"`--out` must be the store of this study, {study.name!r}; {str(path)!r} is that "
                f"of {attrs.get('study_name')!r}. Choose another, or give the study its name."
            )
        return store

    @property
    def work(self) -> Path:
        """What is kept on the way: the lock, and parts of stages."""
        return self.path.with_name(f"{self.path.name}.partial")

    @property
    def log(self) -> Path:
        """The log file."""
        return self.path.with_name(f"{self.path.name}.log")

    @property
    def attrs(self) -> dict[str, Any]:
        """What is said of the whole study."""
        return _attrs(self.path)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs away; the system frees the lock when the process ends, however it ends.

        Raises
        ------
        ValueError
            If another run is at work there.
        """
        try:
            self.work.mkdir(parents=True, exist_ok=True)
            lock = locked(self.work)
        except OSError as error:
            raise ValueError(
                f"`--out` must lie in a writable folder; got {str(self.path)!r}: "
                f"{error.strerror}. Choose another."
            ) from error
        if lock is None:
            raise ValueError(
                f"`--out` must not be written by two runs at once; {str(self.path)!r} is in use. "
                "Wait for the other run, or choose another."
            )
        with lock:
            yield

    def begin(self, study: Study, command: str) -> None:
        """Say what the study is; what is there stays."""
        before = self.attrs
        said = {
            "kind": KIND,
            "study_name": study.name,
            "study_description": study.description,
            "study_toml": study.text,
            "study_cells": json.dumps([str(key) for key in study.cells]),
            "study_stages": json.dumps(study.stages),
            "depthsys_version": __version__,
            "created": before.get("created") or _now(),
            "command": command,
        }
        if before != said:
            self._write_group(self.path, said)
        for key in study.cells:
            self._make_groups(key)

    def _make_groups(self, key: CellKey) -> None:
        """The groups above the stages of a cell."""
        folder = self.path
        for name in str(key).split("/"):
            folder = folder / name
            if not _is_group(folder):
                self._write_group(folder, {})

    def _new(self) -> Path:
        """Where something is prepared: readers of the store see nothing half written."""
        new = self.work / _NEW
        self.work.mkdir(parents=True, exist_ok=True)
        _remove(new)
        return new

    def _give_place(self, new: Path, place: Path) -> None:
        """What was prepared takes its place, and that of what was there."""
        if not os.path.lexists(place):
            renames.move(new, place)
            return
        if not renames.exchange(new, place):  # a moment without either: then it is made again
            _remove(place)
            renames.move(new, place)
            return
        _remove(new)

    def _write_group(self, folder: Path, attrs: Mapping[str, Any]) -> None:
        """The metadata of a group, whole or not at all."""
        content = {"attributes": dict(attrs), "zarr_format": 3, "node_type": "group"}
        with self._writing, full_disk_told(self.path, "It was not written"):
            new = self._new()
            folder.mkdir(parents=True, exist_ok=True)
            new.write_text(json.dumps(content, indent=2), encoding="utf-8")
            renames.replace(new, folder / METADATA)

    def finish(self) -> None:
        """Remove what was kept on the way: all is in the store."""
        shutil.rmtree(self.work, ignore_errors=True)

    # ----------------------------------------------------------------------- stages

    def place(self, key: CellKey, stage: str) -> Path:
        """Where the Dataset of a stage is."""
        return self.path / str(key) / stage

    def identity(self, key: CellKey, stage: str) -> dict[str, Any] | None:
        """What the stage that is there is of; None if there is none."""
        return _parsed(_attrs(self.place(key, stage)).get(IDENTITY), None)

    def finished(self, key: CellKey, stage: str, identity: Mapping[str, Any]) -> xr.Dataset | None:
        """What was found before, if it is of this and whole; None if it must be made."""
        if self.identity(key, stage) != json.loads(_json(identity)):
            return None
        try:
            found = self.read(key, stage)
        except Exception:  # damaged in any way: Zarr and its codecs raise many types
            return None
        return found if dataset_sha256(found) == found.attrs.get(SHA256) else None

    def read(self, key: CellKey, stage: str) -> xr.Dataset:
        """The Dataset of a stage, in memory."""
        return read_group(self.place(key, stage))

    def write(
        self,
        key: CellKey,
        stage: str,
        found: xr.Dataset,
        identity: Mapping[str, Any],
        *,
        seconds: float,
        notes: Iterable[str] = (),
    ) -> xr.Dataset:
        """Write what a stage found; what is read from there again, which goes on."""
        bare = _bare(found)
        said = {
            IDENTITY: _json(identity),
            SHA256: dataset_sha256(bare),
            SECONDS: round(float(seconds), 3),
            NOTES: json.dumps(list(notes)),
        }
        with self._writing, full_disk_told(self.path, "The stage was not written"):
            new = self._new()
            bare.assign_attrs(said).to_zarr(
                new, consolidated=False, zarr_format=3, write_empty_chunks=True
            )
            self._give_place(new, self.place(key, stage))
        return self.read(key, stage)

    def ask(self, key: CellKey, asked: Mapping[str, str]) -> None:
        """Say what the stages of a cell are to be of, for those who read the store meanwhile."""
        self._note(key, ASKED, asked)

    def attrs_of(self, key: CellKey) -> dict[str, Any]:
        """What is said of a cell."""
        return _attrs(self.path / str(key))

    def stages(self, key: CellKey) -> dict[str, dict[str, Any]]:
        """The attrs of the stages of a cell that are there."""
        places = {stage: self.place(key, stage) for stage in STAGES}
        return {stage: _attrs(place) for stage, place in places.items() if _is_group(place)}

    # --------------------------------------------------------------------- failures

    def fail(self, key: CellKey, stage: str, reason: str) -> None:
        """Remember that a stage failed, and why."""
        failures = self.failures(key)
        self._note(key, FAILED, {**failures, stage: reason})

    def passed(self, key: CellKey, stage: str) -> None:
        """Forget that it failed before."""
        failures = self.failures(key)
        if failures.pop(stage, None) is not None:
            self._note(key, FAILED, failures)

    def failures(self, key: CellKey) -> dict[str, str]:
        """Stage -> reason, of those that failed."""
        found = _parsed(self.attrs_of(key).get(FAILED), {})
        return found if isinstance(found, dict) else {}

    def _note(self, key: CellKey, name: str, said: Mapping[str, str]) -> None:
        """Say something of a cell in the attrs of its group; nothing is not said."""
        folder = self.path / str(key)
        with self._writing:
            before = _attrs(folder)
            after = {n: v for n, v in before.items() if n != name}
            if said:
                after[name] = json.dumps(dict(sorted(said.items())))
            if after != before:
                self._write_group(folder, dict(sorted(after.items())))


def read_group(path: Path) -> xr.Dataset:
    """A Dataset of a store, in memory, with texts of a fixed length as steps make them."""
    with xr.open_zarr(path, consolidated=False) as found:
        loaded = found.load()
    texts = {
        name: (v.dims, _as_texts(v.values), v.attrs)
        for name, v in loaded.variables.items()
        if v.dtype.kind in "OT"
    }
    found = loaded.assign({n: v for n, v in texts.items() if n not in loaded.coords})
    return found.assign_coords({n: v for n, v in texts.items() if n in loaded.coords})


def _as_texts(values: np.ndarray) -> np.ndarray:
    """Strings of a fixed length, of any kind of array of texts."""
    # zero-dimensional ones and empty ones, too
    return np.array(values.astype(object).tolist(), dtype=str).reshape(values.shape)


def dataset_sha256(dataset: xr.Dataset) -> str:
    """A hash of what a Dataset holds, without the times that were spent on it and when."""
    parts: dict[str, Any] = {"attrs": _untimed(dataset.attrs)}
    for name, v in sorted(dataset.variables.items(), key=lambda item: str(item[0])):
        if name in _TIMED:
            continue
        values = _as_texts(v.values) if v.dtype.kind in "OTU" else v.values
        told = values.tolist() if values.dtype.kind == "U" else content_hash(values.tobytes())
        kind = "text" if values.dtype.kind == "U" else values.dtype.str
        parts[f"variable {name}"] = [list(map(str, v.dims)), list(v.shape), kind, told]
    return content_hash(json.loads(_json(parts)))


def _untimed(attrs: Mapping[Any, Any]) -> dict[str, Any]:
    left_out = (*_PLACES, IDENTITY, SHA256, NOTES)
    found = {str(name): value for name, value in attrs.items() if name not in left_out}
    return {name: value for name, value in found.items() if not is_time(name)}


def is_time(name: str) -> bool:
    """Whether an attr says when something was made, or how long that took."""
    return name.endswith(_TIMED_ATTRS)


def _bare(found: xr.Dataset) -> xr.Dataset:
    """As Zarr 3 specifies it: texts of any length, plain attrs, no encoding of other files."""
    bare = found.drop_encoding()
    texts = {
        name: (v.dims, v.values.astype(object), v.attrs)
        for name, v in bare.variables.items()
        if v.dtype.kind == "U"
    }
    bare = bare.assign(texts)
    bare.attrs = json.loads(_json(dict(bare.attrs)))
    for variable in bare.variables.values():
        variable.attrs = json.loads(_json(dict(variable.attrs)))
    return bare


def _json(content: Any) -> str:
    return json.dumps(content, sort_keys=True, default=_plain)


def _plain(value: Any) -> Any:
    """A number of numpy as one of Python; whatever else is not JSON as its text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _attrs(group: Path) -> dict[str, Any]:
    """The attrs of a group, {} where there is none."""
    try:
        return dict(json.loads((group / METADATA).read_text(encoding="utf-8"))["attributes"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _parsed(said: Any, default: Any) -> Any:
    """JSON of an attr; the default where there is none, or it is damaged."""
    try:
        return json.loads(said)
    except (ValueError, TypeError):
        return default


def _is_group(folder: Path) -> bool:
    """Whether the metadata of a group are there, and whole."""
    try:
        said = json.loads((folder / METADATA).read_text(encoding="utf-8"))
        return said["node_type"] == "group" and isinstance(said["attributes"], dict)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _remove(place: Path) -> None:
    """A folder, a file, or a link without what it leads to; or nothing."""
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
