"""`depthsys plan` and `depthsys verify` of plans, against the library."""

import csv
import json

import numpy as np
import pytest
import xarray as xr

from depthsys import lm, ltv, study
from depthsys.study import steps

MODEL = ("demo_48x4", "--split", "12/6/6", "--device", "cpu")


def load(path):
    return xr.load_dataset(path, engine="h5netcdf")


@pytest.fixture(scope="module")
def planned(texts, tmp_path_factory):
    """A folder with system.nc, plan.nc and what was said of the plan."""
    out = tmp_path_factory.mktemp("plan") / "run"
    code, shown, err = depthsys("plan", MODEL[0], texts, *MODEL[1:], "--target=2std", "--out", out)
    assert code == 0, err
    return out, shown


@pytest.fixture(scope="module")
def cell(planned, texts):
    settings = study.Settings.checked(split="12/6/6", device="cpu")
    return study.open_cell("demo_48x4", texts, settings)


def depthsys(*arguments):
    from tests.cli.test_compare import depthsys

    return depthsys(*arguments)


def test_the_plan_is_the_optimum_of_the_library_and_says_what_it_does(planned, cell):
    out, shown = planned
    system, plan = load(out / "system.nc"), load(out / "plan.nc")
    target = 2 * float(system.y_std)
    assert float(plan.target[0]) == pytest.approx(target, rel=1e-6)
    concept = steps.concept_of(system)
    linear = ltv.minimum_energy(system, target)
    best = lm.optimal_plan(cell.operating, concept, target, start=linear)
    np.testing.assert_allclose(plan.u, best.u, rtol=1e-6)
    np.testing.assert_allclose(plan.linear_push, linear.push, rtol=1e-6)
    played = lm.play(cell.operating, concept, plan[["u"]])
    assert float(played.response.mean()) == pytest.approx(target, rel=1e-2)
    np.testing.assert_allclose(plan.direction.isel(input=0), concept.direction)
    said = {"operation": "add", "positions": "last", "unit": "state", "target_asked": "2std",
            "target_unit": "readout", "energy": "relative", "sign": "u > 0 pushes towards '1'",
            "system": "system.nc"}  # fmt: skip
    assert said.items() <= plan.attrs.items()
    assert plan.attrs["model_fingerprint"] == system.attrs["model_fingerprint"]
    reached = float(best.predicted[0]) / target
    assert reached == pytest.approx(1, rel=2e-3)
    assert f"a shift of {target:.4g} (2std) is planned at relative energy" in shown
    assert f"{100 * float(plan.push[3]):#.3g}".rstrip(".") in shown.replace("-", "")
    figures = {"pushes.png", "pushes.svg", "push_energy.png", "push_energy.svg"}
    assert figures | {"plan.txt"} <= {p.name for p in out.iterdir()}


@pytest.mark.parametrize(
    ("options", "layers"),
    [
        (["--skip-layers", "0"], [1, 2, 3]),
        (["--layers", "1-2"], [1, 2]),
        (["--max-layers", "1"], 1),
    ],
)
def test_layers_that_may_not_push_do_not(run, planned, tmp_path, options, layers):
    folder, _ = planned
    code, _, err = run("plan", folder / "system.nc", *options, "--out", tmp_path)
    assert code == 0, err
    plan = load(tmp_path / "plan.nc")
    pushed = np.flatnonzero(plan.push.values)
    if layers == 1:
        assert len(pushed) == 1
    else:
        assert pushed.tolist() == layers == json.loads(plan.attrs["layers"])


def test_a_bound_is_kept_and_costs(run, planned, tmp_path):
    folder, _ = planned
    free = load(folder / "plan.nc")
    bound = 0.95 * float(free.push.max())
    options = ("--target", "2std", "--max-relative-push", bound)
    code, _, err = run("plan", folder / "system.nc", *options, "--out", tmp_path)
    assert code == 0, err
    plan = load(tmp_path / "plan.nc")
    assert float(plan.push.max()) <= bound * (1 + 1e-6)
    assert float(plan.energy) > float(free.energy)
    assert float(plan.predicted[0] / plan.target[0]) == pytest.approx(1, rel=2e-3)


def test_the_linear_plan_as_it_is(run, planned, tmp_path):
    folder, _ = planned
    options = ("--linear", "--target", "0.5", "--energy", "absolute")
    code, shown, err = run("plan", folder / "system.nc", *options, "--out", tmp_path)
    assert code == 0, err
    plan, system = load(tmp_path / "plan.nc"), load(folder / "system.nc")
    expected = ltv.minimum_energy(system, 0.5, energy="absolute")
    np.testing.assert_allclose(plan.u, expected.u, rtol=1e-9)
    assert "a shift of 0.5 is planned at absolute energy" in shown
    assert "linear plan" not in shown  # it has no column of its own


def test_a_target_in_log_odds_moves_the_discriminant_by_that_much(run, planned, tmp_path):
    folder, _ = planned
    code, _, err = run(
        "plan", folder / "system.nc", "--linear", "--target", "-0.5log-odds", "--out", tmp_path
    )
    assert code == 0, err
    system = load(folder / "system.nc")
    target = float(load(tmp_path / "plan.nc").target[0])
    assert target * float(system.log_odds_per_unit[-1]) == pytest.approx(-0.5, rel=1e-9)


def test_verify_plays_the_plan_on_held_out_prompts(run, planned, cell, tmp_path):
    folder, _ = planned
    code, shown, err = run("verify", folder / "plan.nc", "--out", tmp_path)
    assert code == 0, err
    found, plan = load(tmp_path / "verified.nc"), load(folder / "plan.nc")
    concept = steps.concept_of(load(folder / "system.nc"))
    amplitudes = found.amplitude.values
    played = lm.play(cell.held_out, concept, plan[["u"]], scale=amplitudes)
    achieved = found.achieved.sel(played="planned", bound="estimate")
    np.testing.assert_allclose(achieved, played.response.mean("prompt"), rtol=1e-3, atol=1e-4)
    # the energy that is needed is that of the plan, scaled until the target is reached
    scale = np.sqrt(float(found.energy.sel(schedule="planned") / plan.energy))
    again = lm.play(cell.held_out, concept, plan[["u"]], scale=[scale]).response.mean()
    assert float(again) == pytest.approx(float(plan.target[0]), rel=1e-3)
    assert float(found.multiple.sel(schedule="planned")) == 1
    with (tmp_path / "energy.csv").open() as file:
        rows = {row["schedule"]: row for row in csv.DictReader(file)}
    assert float(rows["planned"]["largest_push"]) == pytest.approx(scale * plan.push.max())
    assert "(2std) takes relative energy" in shown
    for name in ("energy.png", "achieved.svg", "verify.txt"):
        assert (tmp_path / name).is_file()


def test_layers_of_a_plan_go_by_label(planned, cell):
    folder, _ = planned
    plan, system = load(folder / "plan.nc"), load(folder / "system.nc")
    one, other = (
        steps.verify_plan(cell, system, p) for p in (plan, plan.isel(layer=slice(None, None, -1)))
    )
    for name in ("achieved", "predicted", "energy"):
        np.testing.assert_allclose(other[name], one[name], rtol=1e-9)


def test_verify_wants_the_system_that_the_plan_was_made_of(run, planned, tmp_path):
    folder, _ = planned
    lonely = tmp_path / "plan.nc"
    lonely.write_bytes((folder / "plan.nc").read_bytes())
    code, _, err = run("verify", lonely, "--out", tmp_path / "a")
    assert code == 2
    assert "`PLAN.nc` must be beside the system that it was made of, system.nc; got none" in err
    (tmp_path / "system.nc").write_bytes(b"another")
    code, _, err = run("verify", lonely, "--out", tmp_path / "a")
    assert "got another file by now" in err
    code, _, err = run("verify", folder / "system.nc", "--out", tmp_path / "a")
    assert (code, "`PLAN.nc` must hold 'u'" in err) == (2, True)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["MODEL"], "`MODEL` and `TEXTS` must be given together"),
        (["--strength", "2"], "`--strength` and `--concept` must be left out for a plan"),
        (["demo_48x4", "t.csv", "--model", "x"], "`--model` must be left out where MODEL is"),
    ],
)
def test_what_does_not_go_together(run, planned, tmp_path, arguments, message):
    folder, _ = planned
    code, _, err = run("verify", folder / "plan.nc", *arguments, "--out", tmp_path / "a")
    assert (code, message in err) == (2, True), err


def test_layers_are_checked_before_the_weights_are_read(run, texts, tmp_path, monkeypatch):
    monkeypatch.setattr(lm.DepthModel, "load", None)
    code, _, err = run(
        "plan", MODEL[0], texts, *MODEL[1:], "--skip-layers", "9", "--out", tmp_path / "a"
    )
    assert (code, "`--skip-layers` must be layers of the model, 0 to 3; got 9" in err) == (2, True)


def test_what_cannot_be_reached_within_the_bound_is_said(run, planned, tmp_path):
    folder, _ = planned
    options = ("--target", "5std", "--max-relative-push", "0.01")
    code, shown, err = run("plan", folder / "system.nc", *options, "--out", tmp_path)
    assert code == 0, err
    assert "- NOT MET: " in shown
    assert float(load(tmp_path / "plan.nc").push.max()) <= 0.01 * (1 + 1e-6)
    code, _, err = run("plan", folder / "system.nc", *options, "--linear", "--out", tmp_path / "b")
    assert code == 2
    assert "`--target` must be reachable" in err
    assert "of the way at most). Widen the bounds, or ask for that part." in err
