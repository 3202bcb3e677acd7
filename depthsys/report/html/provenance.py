"""Where everything comes from, and the commands that make it again."""

import json

from depthsys.report.html.commands import dynamics_commands
from depthsys.report.html.facts import Facts
from depthsys.report.html.parts import Section, described, joined, paragraph
from depthsys.report.html.results import STAGES, CellResults, Results
from depthsys.report.html.svg import Markup, tag, verbatim
from depthsys.wording import number

_NAMES = {
    "model_fingerprint": "fingerprint of the weights",
    "revision": "revision",
    "source": "source",
    "adapter": "adapter",
    "dtype": "numbers",
    "device": "device",
    "texts": "texts",
    "classes": "classes",
    "split": "texts per class: concept/operating/held-out",
    "n_lines": "lines",
    "seed": "seed",
    "concept_sha256": "concept texts, SHA-256",
    "prompts_sha256": "prompts, SHA-256",
    "held_out_sha256": "held-out texts, SHA-256",
    "lines_sha256": "lines, SHA-256",
    "tokens_sha256": "tokens, SHA-256",
    "read_at": "token that is read",
    "max_tokens": "longest text, in tokens",
    "template": "template",
    "readout": "readout",
    "concept": "concept",
    "eps": "step",
    "n_bootstrap": "resamples of intervals",
    "level": "level of intervals",
    "depthsys_version": "depthsys",
    "created": "created",
}


def origin_of(cell: CellResults) -> list[tuple[str, object]]:
    """What the attrs of a cell's results say of where they come from."""
    pairs: list[tuple[str, object]] = [
        (said, _shown(cell.any_of(name))) for name, said in _NAMES.items()
    ]
    for name, stage in cell.stages.items():
        about = []
        if "stage_seconds" in stage.attrs:
            about.append(f"{number(float(stage.attrs['stage_seconds']))} s")
        if "stage_sha256" in stage.attrs:
            about.append(f"identity {str(stage.attrs['stage_sha256'])[:16]}…")
        about += _noted(stage.attrs.get("stage_notes", ""))
        if about:
            pairs.append((STAGES.get(name, name), ", ".join(about)))
    return pairs


def _shown(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def _noted(said: object) -> list[str]:
    try:
        found = json.loads(str(said)) if said else []
    except ValueError:
        return [str(said)]
    return [str(each) for each in found] if isinstance(found, list) else [str(found)]


def section(results: Results, facts: list[Facts]) -> Section:
    """Of the study; each cell has its own part."""
    cells = [each.cell for each in facts]
    known = [
        ("read from", results.source),
        *((name.replace("_", " "), results.attrs.get(name)) for name in ("created", "machine")),
        (
            "made by depthsys",
            results.attrs.get("depthsys_version") or _all(cells, "depthsys_version"),
        ),
        ("models", _all(cells, "model_fingerprint", "model")),
        ("texts", _all(cells, "concept_sha256", "task")),
        ("lines", _all(cells, "lines_sha256", "task")),
        ("seeds", ", ".join(dict.fromkeys(cell.seed for cell in cells if cell.seed))),
    ]
    parts = [described(known), tag("h3", "Commands"), *_commands(results)]
    if results.settings:
        shown = tag("pre", tag("code", verbatim(results.settings)))
        parts.append(tag("details", tag("summary", "study.toml"), shown, class_="settings"))
    return Section("provenance", "Provenance", joined(*parts))


def _all(cells: list[CellResults], name: str, by: str = "") -> Markup | None:
    """The different values of an attribute, each after what it is of."""
    found: dict[str, str] = {}
    for cell in cells:
        value = cell.any_of(name)
        if value is not None:
            found.setdefault(str(value), getattr(cell, by) if by else "")
    lines = [
        tag("div", f"{of} " if of else None, tag("code", value)) for value, of in found.items()
    ]
    return joined(*lines) if lines else None


def _commands(results: Results) -> list[Markup]:
    command = results.attrs.get("command")
    if command:
        return [tag("pre", tag("code", verbatim(str(command))))]
    return [
        paragraph("What a file was made with is in its attributes; the commands are those of"),
        tag("pre", tag("code", verbatim(_of_run(results)))),
    ]


def _of_run(results: Results) -> str:
    """The commands that leave such a folder."""
    lines = {
        "system": "depthsys identify MODEL {texts} --split {split} --seed {seed} "
        "--readout {readout} --out run",
        "gains": "depthsys gains run/system.nc --out run",
        "energies": "depthsys control run/system.nc --target {target_asked} --out run",
        "plan": "depthsys plan run/system.nc --target {target_asked} --out run",
        "verified": "depthsys verify run/plan.nc --out check",
        "comparison": "depthsys compare MODEL {texts} --split {split} --seed {seed} --out cmp",
        "effect": "depthsys verify vector.gguf MODEL {texts} --out effect",
        "texts": "depthsys generate MODEL --plan run/plan.nc --prompt TEXT --out written.csv",
    }  # fmt: skip
    said: dict[str, None] = {}
    for cell in results.cells:
        for name, stage in cell.stages.items():
            if name in lines:
                told = _Told({**stage.attrs, "model": cell.model})
                said.setdefault(lines[name].replace("MODEL", "{model}").format_map(told))
        said |= dict.fromkeys(dynamics_commands(cell))
    return "\n".join(said) or "none"


class _Told(dict):
    """Attributes in a command; what is not known is left as a place to fill."""

    def __missing__(self, key: str) -> str:
        return key.upper()
