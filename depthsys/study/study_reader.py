"""From `study.toml` to a `Study`: read and checked whole, before any work.

All faults are found at once, each with its line.
"""

import difflib
import re
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any

from depthsys.study import toml_lines
from depthsys.study.faults import Faults, StudyFaults, as_key
from depthsys.study.lines import are_lines, check_lines
from depthsys.study.measures import MEASURES
from depthsys.study.names import CONCEPTS
from depthsys.study.settings import LAYOUT, Settings
from depthsys.study.sources import FETCHED, model_source, texts_source
from depthsys.study.stages import DEFAULT_STAGES, STAGES, with_needed
from depthsys.study.study_file import SHARD, ModelEntry, Study, TaskEntry, Writing

_OPTIONS = {each.name for each in fields(Settings)} - {"asked", "seed", "concept"}
_LOADING = {"device", "device_map", "dtype", "tf32"}
_TOP = {
    "name", "description", "stages", "seeds", "concepts", "shard", "settings", "models", "tasks",
    "texts",
}  # fmt: skip
_OF_TEXTS = {
    "split",
    "positive",
    "n_lines",
    *LAYOUT,
}  # the same for all models: texts are split once
_MODEL = {"name", "source"} | (_OPTIONS - _OF_TEXTS)
_TASK = {"name", "texts"} | (_OPTIONS - _LOADING)
_TEXTS = {"prompts", "strengths", "max_new_tokens", "positions"}
# what a setting may be in the file, and how that is said
_WHOLE = ("a whole number", int)
_NUMBER = ("a number", (int, float))
_TRUTH = ("true or false", bool)
_STRING = ("a string", str)
_LIST = ("a list or a string", (list, str))
_TYPES: dict[str, tuple[str, Any]] = {
    **dict.fromkeys(
        ("order", "max_tokens", "max_layers", "n_each", "n_jacobians", "n_lines"), _WHOLE
    ),
    **dict.fromkeys(("tolerance", "eps", "max_relative_push"), _NUMBER),
    **dict.fromkeys(("chat", "against_rest", "tf32", "linear"), _TRUTH),
    **dict.fromkeys(
        ("split", "methods", "orders", "layers", "skip_layers", "classes", "pairs"), _LIST
    ),
    **dict.fromkeys(("read_at", "target", "positive"), ("a string or a number", (str, int, float))),
}
_SEPARATED = {"split": "/"}  # lists are joined as they are typed; others by commas
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=-]{0,63}")


def read_study(path: Path, data: Path | None = None) -> Study:
    """The study of a file whose own faults are none, see `read_with_faults`."""
    study, faults = read_with_faults(path, data)
    faults.check()
    return study


def read_with_faults(path: Path, data: Path | None = None) -> tuple[Study, Faults]:
    """The study of a file, which may be the name of one in the package, and what is wrong with it.

    What is wrong is left out of the study, or the default stands in its place.

    Parameters
    ----------
    path
        The file; folders in it that are not absolute are seen from where it lies.
    data
        Where its texts are, if not there.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    StudyFaults
        If it is no text or no TOML. What the study names is looked at by `depthsys.study.checks`.
    """
    place = found_study(path)
    try:
        text = place.read_text(encoding="utf-8-sig")  # some editors begin with a mark
    except UnicodeDecodeError as error:
        raise StudyFaults(
            f"`STUDY` must be a text in UTF-8; got byte {error.start} of {str(place)!r}. Save it "
            "as UTF-8."
        ) from error
    try:
        given = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise StudyFaults(
            f"`STUDY` must be TOML; got {error} in {str(place)!r}. Strings stand in quotes, and "
            "tables begin with [settings], [[models]] or [[tasks]]."
        ) from error
    reader = _Reader(place, text, given, data)
    return reader.study(), reader.faults


def packaged() -> list[str]:
    """Names of the studies in the package."""
    return sorted(each.stem for each in (Path(__file__).parent / "studies").glob("*.toml"))


def read_heading(name: str) -> str:
    """What a study of the package is for."""
    given = tomllib.loads(found_study(Path(name)).read_text(encoding="utf-8"))
    return str(given.get("description", ""))


def found_study(path: Path) -> Path:
    """The file itself, or that of the package with this name; FileNotFoundError if neither is."""
    if path.is_file():
        return path
    if str(path) in packaged():
        return Path(__file__).parent / "studies" / f"{path}.toml"
    raise FileNotFoundError(
        f"`STUDY` must be a study file, or one of the package's, {', '.join(packaged())}; got "
        f"{str(path)!r}. Write one, or begin with a copy: `depthsys study show NAME > study.toml`."
    )


class _Reader:
    """A study file on the way from TOML to a `Study`."""

    def __init__(self, place: Path, text: str, given: dict[str, Any], data: Path | None):
        self.place, self.text, self.given = place, text, given
        self.home = place.resolve().parent
        self.data = data or self.home
        self.lines = toml_lines.key_lines(text)
        self.faults = Faults(place.name, self.lines)

    def study(self) -> Study:
        self._known((), self.given, _TOP)
        study = Study(
            name=self._string((), self.given, "name", self.place.stem),
            description=self._string((), self.given, "description", ""),
            text=self.text,
            stages=self._stages(),
            seeds=tuple(self._whole_numbers("seeds", [0])),
            concepts=tuple(self._choices("concepts", CONCEPTS, ["mean_difference"])),
            shard=self._shard(),
            settings=self._options(("settings",), self._table("settings"), _OPTIONS),
            models=tuple(self._models()),
            tasks=tuple(self._tasks()),
            writing=self._writing(),
            lines=self.lines,
        )
        if "texts" in study.stages and not study.writing.prompts:
            self.faults.add(("texts",), "`prompts` must be given for the stage texts; got none.")
        if not self.faults.found:  # else it may be a default that does not go with the others
            self._together(study)
        return study

    # ------------------------------------------------------------------------ parts

    def _models(self) -> Iterator[ModelEntry]:
        for path, table in self._entries("models", _MODEL):
            source = self._string(path, table, "source")
            plain = source.removeprefix(FETCHED)
            name = self._name(path, table, Path(plain).name.removesuffix(".gguf"))
            try:
                resolved = model_source(source, self.home)
            except OSError as error:
                self.faults.add((*path, "source"), error)
                resolved = source
            yield ModelEntry(name, resolved, self._options(path, table, _OPTIONS - _OF_TEXTS))

    def _tasks(self) -> Iterator[TaskEntry]:
        for path, table in self._entries("tasks", _TASK):
            texts = self._string(path, table, "texts")
            name = self._name(path, table, Path(texts.rpartition(":")[2]).stem)
            try:
                resolved = texts_source(texts, self.data)
            except (OSError, ValueError) as error:
                self.faults.add((*path, "texts"), error)
                resolved = texts
            yield TaskEntry(name, resolved, self._options(path, table, _OPTIONS - _LOADING))

    def _entries(self, name: str, allowed: set[str]) -> Iterator[tuple[toml_lines.Path, dict]]:
        entries = self.given.get(name, [])
        if not isinstance(entries, list) or not all(isinstance(each, dict) for each in entries):
            self.faults.add((name,), f"must be tables that begin with [[{name}]]. Write them so.")
            return
        if not entries:
            self.faults.add((name,), f"must hold at least one; got none. Add [[{name}]].")
        seen: dict[str, int] = {}
        for number, table in enumerate(entries):
            path = (name, number)
            self._known(path, table, allowed)
            yield path, table
            called = str(self.names.get(path, "")).casefold()
            if called and called in seen:
                self.faults.add(
                    path,
                    f"`name` must be its own, capitals aside; got {self.names[path]!r}, that of "
                    f"{name}[{seen[called]}], again. Write another `name = ...`.",
                )
            seen.setdefault(called, number)

    @cached_property
    def names(self) -> dict[toml_lines.Path, str]:
        """Names of models and tasks that were read."""
        return {}

    def _name(self, path: toml_lines.Path, table: dict, default: str) -> str:
        name = self._string(path, table, "name", default)
        if not _NAME.fullmatch(name) or name.casefold() == "zarr.json":  # a file of the store
            self.faults.add(
                (*path, "name"),
                f"must be at most 64 letters, digits and . _ = -, a letter or digit first; got "
                f"{name!r:.80}. Write another `name = ...`.",
            )
        self.names[path] = name
        return name

    def _writing(self) -> Writing:
        table = self._table("texts")
        self._known(("texts",), table, _TEXTS)
        made: dict[str, Any] = {}
        rules = {
            "prompts": (
                "must be a list of strings that are not empty",
                lambda x: isinstance(x, list) and all(isinstance(p, str) and p.strip() for p in x),
            ),
            "strengths": (
                "must be a list of different numbers",
                lambda x: (
                    isinstance(x, list) and bool(x) and all(_is_number(s) for s in x)
                    and len(set(x)) == len(x)
                ),
            ),
            "max_new_tokens": ("must be a whole number >= 1", lambda x: _is_whole(x) and x >= 1),
            "positions": (
                "must be generated, every or last",
                lambda x: x in ("generated", "every", "last"),
            ),
        }  # fmt: skip
        for name, value in table.items():
            if name in rules:
                rule, is_met = rules[name]
                if not is_met(value):
                    self.faults.add(("texts", name), f"{rule}; got {value!r:.80}.")
                else:
                    made[name] = tuple(value) if isinstance(value, list) else value
        return Writing(**made)

    def _stages(self) -> tuple[str, ...]:
        return with_needed(self._choices("stages", tuple(STAGES), list(DEFAULT_STAGES)))

    def _shard(self) -> int:
        shard = self.given.get("shard", SHARD)
        if not _is_whole(shard) or shard < 1:
            self.faults.add(("shard",), f"must be a whole number >= 1; got {shard!r}.")
            return SHARD
        return shard

    # ----------------------------------------------------------------------- values

    def _known(self, path: toml_lines.Path, table: dict, allowed: set[str]) -> None:
        for key in table:
            if key not in allowed:
                self.faults.add((*path, key), _unknown(key, allowed, path))

    def _table(self, name: str) -> dict:
        table = self.given.get(name, {})
        if not isinstance(table, dict):
            self.faults.add((name,), f"must be a table; got {table!r:.40}. Write [{name}].")
            return {}
        return table

    def _string(
        self, path: toml_lines.Path, table: dict, name: str, default: str | None = None
    ) -> str:
        value = table.get(name, default)
        if not isinstance(value, str) or (default is None and not value.strip()):
            got = "none" if value is None else repr(value)[:60]
            self.faults.add((*path, name), f"must be a string; got {got}. Give one.")
            return default or ""
        return value

    def _choices(self, name: str, allowed: tuple[str, ...], default: list[str]) -> list[str]:
        given = self.given.get(name, default)
        if not isinstance(given, list) or not given or len(set(map(str, given))) < len(given):
            self.faults.add(
                (name,), f"must be a list of different names; got {given!r:.60}. Give some."
            )
            return default
        wrong = [each for each in given if each not in allowed]
        for each in wrong:
            self.faults.add((name,), _unknown(str(each), set(allowed), (name,)))
        return default if wrong else given

    def _whole_numbers(self, name: str, default: list[int]) -> list[int]:
        given = self.given.get(name, default)
        good = isinstance(given, list) and given and all(_is_whole(n) and n >= 0 for n in given)
        if not good or len(set(given)) < len(given):
            self.faults.add(
                (name,),
                f"must be a list of different whole numbers >= 0; got {given!r:.60}. Give some.",
            )
            return default
        return given

    def _options(self, path: toml_lines.Path, table: dict, allowed: set[str]) -> dict[str, Any]:
        """Settings of a table, each good by itself."""
        if path == ("settings",):
            self._known(path, table, allowed)
        found = {}
        for name in table.keys() & allowed:
            said, kinds = _TYPES.get(name, _STRING)
            value = table[name]
            is_bool = isinstance(value, bool)
            if not isinstance(value, kinds) or (is_bool and kinds is not bool):
                self.faults.add((*path, name), f"must be {said}; got {value!r:.60}.")
                continue
            if isinstance(value, list):
                value = _SEPARATED.get(name, ",").join(map(_quoted, value))
            if name == "positive":
                value = str(value)
            try:
                # how many get systems of their own is limited by the split, looked at together
                beside = {"split": f"1/1/{value}"} if name == "n_each" and int(value) > 0 else {}
                Settings.checked(**{name: value}, **beside)
                found[name] = value
            except (ValueError, TypeError) as error:
                # what only goes with others is looked at together
                if not _needs_others(str(error), name):
                    self.faults.add((*path, name), as_key(str(error)))
                else:
                    found[name] = value
        return found

    def _together(self, study: Study) -> None:
        """Settings that do not go together, in the file, or with those of a model or a task."""
        for number, model in enumerate(study.models):
            for place, task in enumerate(study.tasks):
                try:
                    settings = study.settings_with(model.name, task.name)
                    lines = are_lines(task.texts, settings)
                    check_lines(settings, lines=lines)
                    if "texts" in study.stages:
                        _check_writing(settings)
                except (ValueError, TypeError) as error:
                    own = [("tasks", place)] if task.own else []
                    own += [("models", number)] if model.own else []
                    where = next((p for p in own if self._names_one(p, error)), ("settings",))
                    self.faults.add(where, as_key(str(error)))
                    continue
                if lines:
                    self._without_labels(place)

    def _without_labels(self, task: int) -> None:
        """What is asked of labels, where the texts of a task are lines."""
        texts = f"lines of text, as those of tasks[{task}]"
        asked = self.given.get("stages", DEFAULT_STAGES)
        wrong = [n for n in asked if n not in MEASURES or MEASURES[n].of_concept]
        if wrong:
            can = ", ".join(each.name for each in MEASURES.values() if not each.of_concept)
            self.faults.add(
                ("stages",) if "stages" in self.given else ("tasks", task, "texts"),
                f"`stages` must need no labels for {texts}; got {', '.join(wrong)}, about a "
                f"concept. Write some of {can}, or give texts with labels.",
            )
        if "concepts" in self.given:
            self.faults.add(
                ("concepts",),
                f"`concepts` must be left out for {texts}, which have no labels; got "
                f"{self.given['concepts']!r:.60}. Leave it out, or give labelled texts.",
            )

    def _names_one(self, path: toml_lines.Path, error: Exception) -> bool:
        name, place = path
        table = self.given[str(name)][place]
        return any(f"`{name}`" in as_key(str(error)) for name in table)


def _check_writing(settings: Settings) -> None:
    """ValueError where a model cannot write: tokens behind the one that is read are not fed."""
    if settings.read_at != "last":
        raise ValueError(
            f"`read_at` must be 'last' for the stage texts; got {settings.read_at!r}. Leave it "
            "out, or the stage."
        )


def _needs_others(said: str, name: str) -> bool:
    """Whether a setting alone was refused because of what it must come with."""
    return f"`{name}`" not in as_key(said).partition(" must")[0] or "come with" in said


def _unknown(key: str, allowed: set[str], path: toml_lines.Path) -> str:
    like = difflib.get_close_matches(key, allowed, n=1, cutoff=0.6)
    moved = {"seed": "seeds", "concept": "concepts", "device": "settings or models"}
    if like:
        return f"there is no {key!r}; did you mean {like[0]!r}?"
    if key in moved:
        return f"there is no {key!r} here; write {moved[key]} at the top of the file."
    if path == () and key in _OPTIONS:
        return f"{key!r} must stand under [settings]. Move it there."
    return f"there is no {key!r}; there are {', '.join(sorted(allowed))}."


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < float("inf")


def _quoted(value: object) -> str:
    text = str(value)
    return f'"{text}"' if "," in text else text
