"""Completion at the shell, by the lines of docs/shell.md."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/shell.md").read_text(encoding="utf-8")
# what a shell finds where the package is installed
COMMAND = """#!{python}
import sys
sys.path.insert(0, {root!r})
from depthsys.cli import main
main()
"""


def lines(shell):
    return re.findall(rf"^```{shell}\n(.*?)\n```$", PAGE, re.S | re.M)


@pytest.fixture
def shell(tmp_path):
    """Runs a script in a shell with a home of its own, and gives what it prints."""
    place = tmp_path / "bin" / "depthsys"
    place.parent.mkdir()
    place.write_text(COMMAND.format(python=sys.executable, root=str(ROOT)))
    place.chmod(0o755)
    home = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / ".config")}
    path = {"PATH": f"{place.parent}{os.pathsep}{os.environ['PATH']}"}

    def run(*command):
        done = subprocess.run(
            command, capture_output=True, text=True, env=os.environ | home | path, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return run


def pressed(*words):
    """What bash offers for the last of some words, which is not whole."""
    return (
        f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; "
        '_depthsys_completion depthsys; printf "%s\\n" "${COMPREPLY[@]}"'
    )


TYPED = {
    ("depthsys", "ge"): ["generate"],
    ("depthsys", "i"): ["identify", "import"],
    ("depthsys", "generate", "--stre"): ["--strength"],
    ("depthsys", "identify", "model", "texts.csv", "--max-"): ["--max-tokens", "--max-memory"],
}


def test_bash_completes_commands_and_options(shell):
    once, session = lines("bash")
    assert once == "depthsys --install-completion"
    for words, offered in TYPED.items():
        assert shell("bash", "-c", f"{session}; {pressed(*words)}") == offered
    (said,) = shell("bash", "-c", f"{session}; complete -p depthsys")
    assert "-o default" in said  # files, where nothing of ours fits


def test_bash_has_it_installed_in_later_shells(shell, tmp_path):
    (once, _) = lines("bash")
    said = shell("bash", "-c", f"{once}; true")
    assert "bash completion installed in" in said[0]
    named = re.findall(r"`~/([^`]*)`", PAGE)
    assert (tmp_path / named[0]).is_file()
    assert (tmp_path / named[1]).is_file()
    words = ("depthsys", "doc")
    assert shell("bash", "-c", f"source ~/.bashrc; {pressed(*words)}") == ["doctor"]


def test_bash_shows_it(shell):
    shown = shell("bash", "-c", "depthsys --show-completion; true")
    assert "complete -o default -F _depthsys_completion depthsys" in shown


@pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish")
def test_fish(shell):
    (session,) = lines("fish")
    (offered,) = shell("fish", "-c", f'{session}; complete -C "depthsys ge"')
    assert offered.startswith("generate\t")


def test_zsh_is_offered_it(shell):
    """What its function asks for and what it is answered; zsh itself is not everywhere."""
    (session,) = lines("zsh")
    (source,) = re.findall(r'eval "\$\((.*?)\)"', session)
    assert "compdef _depthsys_completion depthsys" in shell("sh", "-c", source)
    ask = "_TYPER_COMPLETE_ARGS='depthsys ge' _DEPTHSYS_COMPLETE=complete_zsh depthsys"
    (offered,) = shell("sh", "-c", ask)
    assert '"generate"' in offered


def test_a_tab_loads_no_library_of_numbers():
    code = "import sys; sys.argv = ['depthsys']; from depthsys.cli import main\n"
    code += "try:\n    main()\nfinally:\n    print(*sys.modules, file=sys.stderr)"
    asked = {"_DEPTHSYS_COMPLETE": "complete_bash", "COMP_WORDS": "depthsys ge", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | asked,
        check=False,
    )
    assert done.stdout == "generate\n"
    assert not {"numpy", "torch", "xarray", "transformers"} & set(done.stderr.split())
