"""What is typed wrongly is told in one style, by the name that was typed."""

import inspect
import re
from typing import Annotated

import pytest
import typer

from depthsys import lm
from depthsys.cli import typed
from depthsys.cli.app import COMMANDS

NUMBERS = {
    float: ("a number", "0.1"),
    int: ("a whole number", "4"),
}


def numeric_options():
    for name, command in COMMANDS.items():
        for each in typer.main.get_params_from_function(command).values():
            for number in NUMBERS:
                if each.annotation in (number, number | None):
                    yield pytest.param(name, each.name, number, id=f"{name} {each.name}")


@pytest.mark.parametrize(("command", "option", "number"), list(numeric_options()))
def test_a_number_that_is_none_is_told_in_our_style(run, command, option, number):
    code, shown, err = run(command, f"--{option.replace('_', '-')}", "abc")
    rule, example = NUMBERS[number]
    told = f"Error: `--{option.replace('_', '-')}` must be {rule}; got 'abc'. Write it as in "
    assert (code, shown, err) == (2, "", f"{told}{example}.\n")


def test_every_command_that_takes_numbers_was_tried():
    found = {param.values[0] for param in numeric_options()}
    commands = {"demo", "identify", "gains", "control", "compare", "import", "real", "verify"}
    commands |= {"plan", "generate", "dynamics"}
    assert found == commands


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("identify MODEL", "`TEXTS` must be given; got none. `depthsys identify --help` shows"),
        ("identify", "`MODEL` must be given; got none"),
        ("identify a b", "`--out` must be given; got none"),
        ("gains", "`MODEL|SYSTEM.nc` must be given; got none"),
        ("export s.nc --out x", "`--to` must be given; got none"),
        ("gains --targt 3", "`--targt` must be an option of `depthsys gains`; it has none."),
        ("control x --targett 3", "Did you mean --target? `depthsys control --help` shows"),
        ("gains x --out", "'--out' requires an argument. `depthsys gains --help` shows"),
        ("compare a b --force=yes", "'--force' does not take a value. `depthsys compare --help`"),
        ("gain x", "No such command 'gain'. Did you mean 'gains'? `depthsys --help` shows"),
        ("gains a b c --out q", "(c). `depthsys gains --help` shows what there is."),
    ],
)
def test_wrong_usage_is_one_line(run, words, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, shown, err = run(*words.split())
    assert (code, shown, err.count("\n")) == (2, "", 1)
    assert err.startswith("Error: ")
    assert told in err
    assert list(tmp_path.iterdir()) == []


def test_nothing_typed_shows_the_commands(run):
    code, shown, err = run()
    assert code == 2
    assert all(name in shown + err for name in COMMANDS)


def test_errors_name_what_was_typed():
    names = {"path": "--out", "system": "SYSTEM"}
    said = "`path` must not exist yet; replace it with `force=True` (`--force`), not `paths`."
    error = FileExistsError(said)
    error.add_note("a note")
    with pytest.raises(FileExistsError) as found, typed.named(names):
        raise error
    assert str(found.value) == "`--out` must not exist yet; replace it with --force, not `paths`."
    assert found.value.__notes__ == ["a note"]
    # errors of the system have numbers, which stay
    with pytest.raises(OSError) as found, typed.named(names):
        raise OSError(28, "No space left")
    assert found.value.errno == 28


def test_names_are_those_of_the_help():
    def command(model, texts, out, max_tokens, moved) -> None: ...

    about = [typer.Argument(metavar="MODEL"), typer.Argument(), typer.Option(), typer.Option()]
    about.append(typer.Option("--model"))
    parameters = [
        each.replace(annotation=Annotated[str, info])
        for each, info in zip(inspect.signature(command).parameters.values(), about, strict=True)
    ]
    assert typed.names_of(parameters) == {
        "model": "MODEL",
        "texts": "TEXTS",
        "out": "--out",
        "max_tokens": "--max-tokens",
        "moved": "--model",
    }


@pytest.mark.parametrize("command", ["identify", "gains", "control", "compare"])
def test_help_writes_arguments_in_capitals_and_names_the_default_readout(run, command):
    _, shown, _ = run(command, "--help")
    usage = next(line for line in shown.splitlines() if "Usage:" in line)
    assert re.search(r"\bTEXTS\b", usage)
    assert "texts" not in usage
    words = " ".join(re.sub("[│╭╮╰╯─]", " ", shown).split())
    readout = words[words.index("--readout") :]
    readout = readout[: readout.index(" --")]
    assert readout.count("[default:") == 1
    assert f"[default: {'profile' if command == 'compare' else 'concept'}]" in readout
    assert re.search(r"--order\w* +<", words)


# --------------------------------------------------------------- what is checked in which order


@pytest.fixture
def no_model(monkeypatch):
    monkeypatch.setattr(lm.DepthModel, "load", lambda *a, **k: pytest.fail("a model was loaded"))


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("words", "told"),
    [
        # what is typed first and cheapest to see comes first, whatever else is wrong
        ("gains demo_48x4 --out taken", "`TEXTS` must be given with a model; got none"),
        ("control demo_48x4 --target 0 --out taken", "`--target` must be finite and not zero"),
        ("gains file.npz --out q", "must be a model, or a system.nc; got the file 'file.npz'"),
        ("gains demo_48x4 absent.csv --out taken", "`--out` must not hold earlier results; found"),
        ("gains demo_48x4 absent.csv --out q", "`TEXTS` must be an existing file; got"),
        ("gains no-model/x/y absent.csv --out q", "`MODEL` must be an existing folder"),
        ("identify demo_48x4 t.csv --device quantum --out q", "`--device` must be 'auto'"),
        ("identify demo_48x4 t.csv --order 99 --out q", "`--order` must be in 1..48"),
        ("identify demo_48x4 t.csv --out q", "`TEXTS` must hold 800 distinct texts per class"),
        ("demo --model demo_48x4 --concept x --out q", "`--concept` must be one of sentiment"),
    ],
)
def test_bad_input_costs_no_model(run, words, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "gains.nc").touch()
    (tmp_path / "file.npz").touch()
    (tmp_path / "t.csv").write_text("text,label\na,0\nb,1\n")
    code, shown, err = run(*words.split())
    assert (code, shown, err.count("\n")) == (2, "", 1)
    assert told in err
    assert not (tmp_path / "q").exists()
