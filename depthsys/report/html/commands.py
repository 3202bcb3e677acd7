"""The commands of `depthsys dynamics` that make the measures of a cell again."""

import json
import shlex
from collections.abc import Mapping
from typing import Any

from depthsys.prompting import Prompting
from depthsys.report.dynamics import SHOWN
from depthsys.report.html.results import CellResults

_OF_PROMPTS = {
    "max_tokens": "--max-tokens", "cut": "--cut", "template": "--template", "chat": "--chat",
    "system_message": "--system", "answer": "--answer", "read_at": "--read-at",
}  # fmt: skip
_ALWAYS = {"max_tokens"}
Options = dict[str, str]  # what is typed, by what it is about


def dynamics_commands(cell: CellResults) -> list[str]:
    """One command for all measures of the cell, or one for each where their settings differ."""
    of_stage = {
        name: _options({**stage.attrs, "model": cell.model})
        for name, stage in cell.stages.items()
        if name in SHOWN
    }
    merged: Options = {}
    for options in of_stage.values():
        if any(merged.get(about, typed) != typed for about, typed in options.items()):
            return [_command(name, options) for name, options in of_stage.items()]
        merged |= options
    return [_command(",".join(of_stage), merged)] if of_stage else []


def _command(measures: str, options: Options) -> str:
    first, *others = (options[about] for about in sorted(options))
    return f"depthsys dynamics {first} --measures {measures} {' '.join(others)} --out dynamics"


def _options(attrs: Mapping[str, Any]) -> Options:
    """All that the numbers of a measure depend on; in the order of their keys."""
    texts = [_quoted(attrs.get("model", "MODEL")), _quoted(attrs.get("texts", "TEXTS"))]
    found = {"0 texts": " ".join(texts), "1 parts": " ".join([*_parts(attrs), *_prompts(attrs)])}
    for name in ("concept", "readout"):
        if name in attrs:
            found[f"2 {name}"] = f"--{name} {attrs[name]}"
    if "n_jacobians" in attrs:
        found["3 jacobians"] = f"--jacobians {attrs['n_jacobians']}"
    if "given_definition" in attrs:
        found["4 lens"] = "--lens LENS"  # where its file was is not known
    return found


def _parts(attrs: Mapping[str, Any]) -> list[str]:
    """Which texts are taken of a file."""
    seed = f"--seed {attrs.get('seed', 'SEED')}"
    if "n_lines" in attrs:
        return [f"--lines {attrs['n_lines']}", seed]
    found = [f"--split {attrs.get('split', 'SPLIT')}", seed]
    layout = json.loads(attrs.get("texts_layout", "{}"))
    for name, value in layout.items():
        typed = "" if value is True else f" {_quoted(_joined(value))}"
        found.append(f"--{name.replace('_', '-')}{typed}")
    classes = json.loads(attrs.get("classes", "[]"))
    chosen = "against_rest" in layout or (classes and classes[1] != _last(classes))
    if chosen and "classes" not in layout and not attrs.get("paired"):
        found.append(f"--positive {_quoted(classes[1])}")
    return found


def _prompts(attrs: Mapping[str, Any]) -> list[str]:
    """What is put around texts, and in which numbers the model computes."""
    usual, found = Prompting(), []
    prompting = Prompting.stored(attrs)
    for name, typed in _OF_PROMPTS.items():
        value = getattr(prompting, name)
        if value is True:
            found.append(typed)
        elif name in _ALWAYS or value != getattr(usual, name):
            found.append(f"{typed} {_quoted(_escaped(value))}")
    if attrs.get("dtype", "float32") != "float32":
        found.append(f"--dtype {attrs['dtype']}")
    if attrs.get("products") == "tf32":
        found.append("--tf32")
    return found


def _last(classes: list[str]) -> str:
    """The label that the readout grows towards where none is said."""
    try:
        return max(classes, key=float)
    except ValueError:
        return max(classes)


def _joined(value: object) -> str:
    if not isinstance(value, list):
        return str(value)
    return ",".join(f'"{each}"' if "," in str(each) else str(each) for each in value)


def _escaped(value: object) -> str:
    r"""As it is typed: the command reads \n as a line break."""
    said = str(value).replace("\\", "\\\\")
    return said.replace("\n", "\\n").replace("\t", "\\t")


def _quoted(value: object) -> str:
    """For a shell; ``~`` in front stays what it stands for."""
    said = str(value)
    return f"~/{shlex.quote(said[2:])}" if said.startswith("~/") else shlex.quote(said)
