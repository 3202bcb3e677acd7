"""Command lines that the README and the pages show run as they are written."""

import csv
import re
import shlex
import shutil
from pathlib import Path

import pytest
import typer

from depthsys.cli.app import COMMANDS, app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def command_lines():
    """Words after `depthsys` of every line of a shell block, and of whole commands in the text."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for kind, block in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.S | re.M):
            whole = block.replace("\\\n", " ")  # lines that go on in the next one
            for line in () if kind else re.findall(r"^depthsys (.*)$", whole, re.M):
                yield page.name, shlex.split(line, comments=True)
        for line in re.findall(r"`depthsys (\w+ [^`]*(?:--|\.nc)[^`]*)`", text):
            yield page.name, line.split()


LINES = [pytest.param(words, id=f"{page} {' '.join(words)}") for page, words in command_lines()]


@pytest.mark.parametrize("words", LINES)
def test_it_is_understood(words):
    """Names of commands, options and arguments, without running anything."""
    words = [word for word in words if word != "..."]
    groups = {group.name for group in app.registered_groups}
    assert words[0] in (*COMMANDS, *groups, "COMMAND")
    if words[0] == "COMMAND":
        return
    command = typer.main.get_command(app).commands[words[0]]  # pyright: ignore
    if words[0] in groups:
        words = words[1:]
        command = command.commands[words[0]]
    options = {name for param in command.params for name in param.opts}
    assert {word.split("=")[0] for word in words if word.startswith("--")} <= options
    if "--out" in words:  # a whole line, not one that is only hinted at
        command.make_context(words[0], words[1:])


@pytest.mark.slow
def test_the_readme_runs_line_by_line(run, tmp_path, monkeypatch):
    from depthsys.demo import grammar, model_path

    monkeypatch.chdir(tmp_path)
    shutil.copytree(model_path("demo_48x4"), "my-model")
    with Path("reviews.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *grammar.labelled(1000, seed=5)])
    lines_of_text = [text for text, _ in grammar.labelled(8, seed=6)]
    Path("stories.txt").write_text("\n".join(lines_of_text), "utf-8")
    block = re.search(r"## At the shell\n+```\n(.*?)```", PAGES[0].read_text("utf-8"), re.S)
    assert block is not None
    lines = [shlex.split(line, comments=True) for line in block[1].splitlines()]
    assert [words[1] for words in lines] == [
        "identify", "gains", "control", "plan", "verify", "generate", "compare", "dynamics",
        "export", "import",
    ]  # fmt: skip
    for words in lines:
        if words[1] == "import":  # what an engineer sends back
            (sent,) = Path("run/matlab").glob("*.mat")
            shutil.copy(sent, "reduced.mat")
        code, _, err = run(*words[1:])
        assert code == 0, (words, err)
    assert run("gains", "reduced.nc", "--out", "reduced")[0] == 0
    assert run("compare", "./my-model", "reviews.csv", "--dry-run", "--out", "dry")[0] == 0
    assert not Path("dry").exists()
