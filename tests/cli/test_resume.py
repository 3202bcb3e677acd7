"""`depthsys compare` after an interruption: what is kept, told, refused and dropped."""

import csv
import re
import shutil
import sys
from pathlib import Path

import pytest
import xarray as xr

from depthsys import lm
from depthsys.cli import app

COMPARE = sys.modules["depthsys.lm.compare"]
SETTINGS = ["--split", "8/4/4", "--device", "cpu", "--methods", "krylov,ensemble", "--each", "2"]
KEPT = [
    "measured gains", "measured gains, operating", "linear gains",
    "linear gains, operating", "mean system", "mean response",
]  # fmt: skip


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    from depthsys.demo import grammar

    path = tmp_path_factory.mktemp("texts") / "texts.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *grammar.labelled(40, seed=5)])
    return path


@pytest.fixture(scope="module")
def interrupted(texts, tmp_path_factory):
    """A folder with ``cmp.partial``, and what the interrupted command said on stderr."""
    import io

    folder, err = tmp_path_factory.mktemp("compare") / "deep", io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(COMPARE, "linear_range", _raising(KeyboardInterrupt))
        command = ["compare", "demo_48x4", texts, *SETTINGS, "--orders", "1,2"]
        command += ["--out", folder / "cmp"]
        patch.setattr(sys, "argv", ["depthsys", *map(str, command)])
        patch.setattr(sys, "stderr", err)
        with pytest.raises(SystemExit) as exit_:
            app.main()
    assert exit_.value.code == 130
    return folder, err.getvalue()


@pytest.fixture
def kept(interrupted, tmp_path):
    """A copy of it."""
    return Path(shutil.copytree(interrupted[0], tmp_path / "copy"))


@pytest.fixture
def compare(run, texts):
    def call(out, *options):
        return run("compare", "demo_48x4", texts, *SETTINGS, "--out", out, *options)

    return call


def _raising(error):
    def function(*args, **kwargs):
        raise error

    return function


def listed(parts) -> str:
    return "; ".join(parts)


def test_an_interruption_says_what_is_kept(interrupted):
    folder, err = interrupted
    assert f"Interrupted. What is finished is kept in '{folder}/cmp.partial'" in err
    assert f"({listed(KEPT)}): the same call goes on there." in err
    assert [path.name for path in folder.iterdir()] == ["cmp.partial"]


def test_the_same_command_goes_on_and_says_what_it_takes(compare, kept, monkeypatch):
    unused = _raising(RuntimeError("this is kept"))
    for name in ("measure_gains_at", "linear_gains"):
        monkeypatch.setattr(COMPARE, name, unused)
    prefilled = []
    prefill = lm.Run.prefill
    monkeypatch.setattr(lm.Run, "prefill", lambda r: prefilled.append(len(r)) or prefill(r))
    code, shown, err = compare(kept / "cmp", "--orders", "1,2")
    assert code == 0, err
    assert f"taken from {kept}/cmp.partial: {listed(KEPT)}" in shown.splitlines()
    assert [path.name for path in kept.iterdir()] == ["cmp"]
    assert prefilled == [8]  # held-out prompts; nothing is left to do of operating ones
    assert re.search(r"Results after \d+ s, start and imports included: ", shown)


OTHER = {
    "orders 1,2, now 1,4": ["--orders", "1,4"],
    "methods krylov,ensemble, now pod": ["--methods", "pod"],
    "eps 0.01, now 0.2": ["--eps", "0.2"],
    "readout profile, now concept": ["--readout", "concept"],
    "concept mean_difference, now pca": ["--concept", "pca"],
    "max_tokens 128, now 9": ["--max-tokens", "9"],
    "cut right, now left": ["--cut", "left"],
    "template None, now a {text}": ["--template", "a {text}"],
    "read_at last, now text": ["--read-at", "text"],
    "dtype float32, now float64": ["--dtype", "float64"],
    "seed 0, now 1; another texts of concept": ["--seed", "1"],
}


@pytest.mark.parametrize("told", OTHER)
def test_other_settings_are_refused_before_the_model_is_loaded(compare, kept, told, monkeypatch):
    monkeypatch.setattr(lm.DepthModel, "load", lambda *a, **k: pytest.fail("a model was loaded"))
    code, shown, err = compare(kept / "cmp", "--orders", "1,2", *OTHER[told])
    assert (code, shown, len(err.splitlines())) == (2, "", 1)
    assert f"{kept}/cmp.partial' was begun with {told}" in err
    assert err.startswith("Error: `--out` must be gone on with as it was begun; ")
    assert "Go on with those, add --force to drop it, or choose another `--out`." in err
    assert (kept / "cmp.partial").is_dir()


def test_another_model_of_another_width_is_refused_before_it_is_loaded(
    run, texts, kept, monkeypatch
):
    monkeypatch.setattr(lm.DepthModel, "load", lambda *a, **k: pytest.fail("a model was loaded"))
    command = ["compare", "demo_96x8", texts, *SETTINGS, "--orders", "1,2", "--out", kept / "cmp"]
    code, _, err = run(*command)
    assert code == 2
    assert "was begun with model_width 48, now 96." in err


def test_other_weights_are_refused_before_anything_is_prefilled(
    run, texts, kept, tmp_path, monkeypatch
):
    from safetensors.torch import load_file, save_file

    from depthsys.demo import model_path

    model = shutil.copytree(model_path("demo_48x4"), tmp_path / "other")
    (file,) = model.glob("*.safetensors")
    weights = load_file(file)
    first = next(iter(weights))
    save_file(weights | {first: 1.01 * weights[first]}, file, metadata={"format": "pt"})
    monkeypatch.setattr(lm, "mean_difference", lambda *a, **k: pytest.fail("it was prefilled"))
    code, _, err = run(
        "compare", model, texts, *SETTINGS, "--orders", "1,2", "--out", kept / "cmp"
    )  # fmt: skip
    assert code == 2
    assert "was begun with another model_fingerprint." in err


@pytest.mark.slow  # of the main job: test_kept
def test_force_drops_what_was_begun_with_other_settings_and_says_so(compare, kept):
    code, shown, err = compare(kept / "cmp", "--orders", "1,3", "--force")
    assert code == 0, err
    partial = kept / "cmp.partial"
    assert f"{partial} was begun with orders 1,2, now 1,3: it is dropped, as --force says" in shown
    assert "taken from" not in shown
    assert [path.name for path in kept.iterdir()] == ["cmp"]
    table = xr.load_dataset(kept / "cmp" / "comparison.nc", engine="h5netcdf")
    assert table["order"].values.tolist() == [1, 3]


def test_force_loses_nothing_to_a_command_that_fails_first(compare, kept):
    assert compare(kept / "cmp", "--orders", "1,99", "--force")[0] == 2
    assert compare(kept / "cmp", "--orders", "1,3", "--force", "--split", "9/9")[0] == 2
    assert (kept / "cmp.partial").is_dir()


def test_a_folder_of_somebody_else_is_not_dropped(compare, tmp_path):
    (tmp_path / "cmp.partial").mkdir()
    (tmp_path / "cmp.partial" / "thesis.tex").touch()
    code, _, err = compare(tmp_path / "cmp", "--orders", "1", "--force")
    assert code == 2
    assert "Error: `--out` must leave" in err
    assert "found thesis.tex there. Choose another name." in err
    assert (tmp_path / "cmp.partial" / "thesis.tex").exists()


def test_a_dry_run_counts_what_is_left(compare, kept, tmp_path):
    def seconds(shown) -> dict[str, str]:
        rows = re.findall(
            r"^ ([a-z][a-z ,]*?)  +.*?(kept|[\d.e+-]+) *(?:[\d.]+ [kMG]?B)? *$", shown, re.M
        )
        return dict(rows)

    code, shown, err = compare(kept / "cmp", "--orders", "1,2", "--dry-run")
    assert code == 0, err
    left = seconds(shown)
    assert [stage for stage, value in left.items() if value == "kept"] == KEPT
    assert {"start and load", "prefill concept", "linear range", "in all"} <= left.keys()
    assert float(left["in all"]) >= float(left["start and load"]) > 0
    assert f"- taken from {kept}/cmp.partial: {listed(KEPT)}" in shown
    assert "- at least " in shown
    assert "figures and files are not counted" in shown
    assert [path.name for path in kept.iterdir()] == ["cmp.partial"]
    # without anything kept all is to be done
    code, shown, err = compare(tmp_path / "new" / "cmp", "--orders", "1,2", "--dry-run")
    assert code == 0, err
    assert "kept" not in shown
    assert not (tmp_path / "new").exists()


def test_a_dry_run_says_that_what_is_kept_is_of_another_comparison(compare, kept):
    code, shown, err = compare(kept / "cmp", "--orders", "1,4", "--dry-run")
    assert code == 0, err
    partial = kept / "cmp.partial"
    told = "it is not counted here, and --force would drop it"
    assert f"- {partial} was begun with orders 1,2, now 1,4: {told}" in shown
    assert not re.search(r" kept *$", shown, re.M)
    assert partial.is_dir()


def test_a_failure_on_the_way_says_what_is_kept(compare, tmp_path, monkeypatch):
    monkeypatch.setattr(COMPARE, "linear_range", _raising(FloatingPointError("`model` must be x.")))
    code, _, err = compare(tmp_path / "cmp", "--orders", "1,2")
    assert code == 2
    first, second = err.splitlines()
    assert first == "Error: `MODEL` must be x."
    assert second.startswith(f"What is finished is kept in '{tmp_path}/cmp.partial' (measured")
    assert second.endswith("the same call goes on there.")


def test_a_failed_command_leaves_no_folder(compare, tmp_path, monkeypatch):
    monkeypatch.setattr(COMPARE, "measure_gains_at", _raising(FloatingPointError("`model` is bad")))
    assert compare(tmp_path / "new" / "cmp", "--orders", "1,2")[0] == 2
    assert list(tmp_path.iterdir()) == []
