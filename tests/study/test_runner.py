"""A study goes on: what is finished is recognised by what it is of, what changed is made anew."""

import json
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr

from depthsys import demo, lm
from depthsys.demo import grammar
from depthsys.files.locks import locked
from depthsys.study import steps, work
from depthsys.study.reported import read_results
from depthsys.study.store import Store, dataset_sha256, read_group
from depthsys.study.study_reader import read_study
from tests.study.conftest import SMALL, write_texts

STAGES = ["concept", "system", "gains", "energies"]


def test_a_study_is_what_the_steps_find(runs):
    outcome = runs()
    assert (outcome.made, outcome.kept, outcome.failed) == (4, 0, [])
    tree = xr.open_datatree(runs.out, engine="zarr", consolidated=False)
    node = tree["little/mood/seed_0/mean_difference"]
    assert set(node.children) == set(STAGES)
    study = read_study(runs.folder / "study.toml")
    model = lm.DepthModel.load(demo.model_path("demo_48x4"), device="cpu")
    from depthsys.study import Cell
    from depthsys.study.sources import read_splits_of

    settings = study.settings_of(study.cells[0])
    cell = Cell(settings, model, read_splits_of("demo:sentiment", settings))
    system = steps.identify(cell, steps.find_concept(cell))
    np.testing.assert_array_equal(node["system"]["A"], system["A"])
    gains = steps.gains(cell, system)
    np.testing.assert_array_equal(node["gains"]["measured_gain"], gains["measured_gain"])
    energies = steps.control(cell, system)
    np.testing.assert_array_equal(node["energies"]["energy"], energies["energy"])
    assert tree.attrs["study_toml"] == SMALL
    assert json.loads(tree.attrs["study_cells"]) == ["little/mood/seed_0/mean_difference"]


def test_what_is_finished_is_not_made_again_and_no_model_is_loaded(made, monkeypatch):
    runs = made
    before = {p: p.stat().st_mtime_ns for p in runs.out.rglob("*") if p.is_file()}
    monkeypatch.setattr(work.Opened, "model", _raising(RuntimeError("loaded")))
    outcome = runs()
    assert (outcome.made, outcome.kept) == (0, 4)
    assert {p: p.stat().st_mtime_ns for p in runs.out.rglob("*") if p.is_file()} == before
    assert not runs.store.work.exists()


@pytest.mark.parametrize(
    ("change", "anew"),
    [
        (('device = "cpu"', 'device = "cpu"\ntarget = "2std"'), ["energies"]),
        (('device = "cpu"', 'device = "cpu"\neps = 0.02'), ["gains"]),
        (('device = "cpu"', 'device = "cpu"\norder = 2'), ["system", "gains", "energies"]),
        (("8/4/4", "8/4/5"), STAGES),
        pytest.param(("shard = 1024", "shard = 1023"), STAGES, marks=pytest.mark.slow),
        (('device = "cpu"', 'device = "cpu"\nmethods = "pod"'), []),
        pytest.param(
            ('device = "cpu"', 'device = "cpu"\nmax_tokens = 100'), STAGES, marks=pytest.mark.slow
        ),
        pytest.param(
            ('device = "cpu"', 'device = "cpu"\ndtype = "float64"'), STAGES, marks=pytest.mark.slow
        ),
    ],
)
def test_a_changed_setting_makes_anew_what_depends_on_it(made, change, anew):
    made(SMALL.replace(*change))
    assert made.watch.of("made") == anew
    assert made.watch.of("kept") == [stage for stage in STAGES if stage not in anew]


@pytest.mark.slow  # other settings: above
def test_other_texts_and_other_weights_make_all_anew(runs, tmp_path):
    texts, folder = tmp_path / "mood.csv", tmp_path / "model"
    write_texts(texts)
    shutil.copytree(demo.model_path("demo_48x4"), folder)
    text = SMALL.replace("demo:sentiment", "mood.csv").replace("demo_48x4", "./model")
    runs(text)
    assert runs(text).kept == 4
    # the same content elsewhere is the same
    texts.rename(tmp_path / "other.csv")
    folder.rename(tmp_path / "elsewhere")
    moved = text.replace("mood.csv", "other.csv").replace("./model", "./elsewhere")
    assert runs(moved).kept == 4
    write_texts(tmp_path / "other.csv", [("Different words", 0), *grammar.labelled(40, seed=5)])
    assert runs(moved).made == 4
    from safetensors.torch import load_file, save_file

    weights = load_file(tmp_path / "elsewhere" / "model.safetensors")
    name = next(iter(weights))
    weights[name] = weights[name] + 1e-3
    save_file(weights, tmp_path / "elsewhere" / "model.safetensors", metadata={"format": "pt"})
    assert runs(moved).made == 4


def test_what_is_damaged_is_made_again(made):
    runs = made
    sums = {s: read_group(runs.cell / s).attrs["stage_sha256"] for s in STAGES}
    chunk = next(
        p
        for p in (runs.cell / "gains" / "measured_gain").rglob("*")
        if p.name == "0" and p.is_file()
    )
    chunk.write_bytes(chunk.read_bytes()[:-7] + b"damaged")
    shutil.rmtree(runs.cell / "system" / "A")
    assert runs().made == 2
    assert runs.watch.of("made") == ["system", "gains"]
    assert {s: read_group(runs.cell / s).attrs["stage_sha256"] for s in STAGES} == sums


@pytest.mark.slow  # one that fails at its model: below
def test_a_failure_is_the_cell_s_and_the_rest_goes_on(runs, monkeypatch):
    monkeypatch.setattr(steps, "gains", _raising(ValueError("`eps` must not be this")))
    two = SMALL + '[[tasks]]\nname = "place"\ntexts = "demo:domain"\n'
    outcome = runs(two)
    assert [(str(key), stage) for key, stage, _ in outcome.failed] == [
        ("little/mood/seed_0/mean_difference", "gains"),
        ("little/place/seed_0/mean_difference", "gains"),
    ]
    assert outcome.made == 6
    assert runs.watch.of("made") == 2 * ["concept", "system", "energies"]
    (key, *_) = outcome.failed[0]
    assert runs.store.failures(key) == {"gains": "`eps` must not be this"}
    log = runs.store.log.read_text()
    assert "gains: failed: `eps` must not be this" in log
    assert "Traceback" in log
    monkeypatch.undo()
    outcome = runs(two)
    assert (outcome.made, outcome.kept, runs.store.failures(key)) == (2, 6, {})


def test_what_needs_a_failed_stage_is_left_out(runs, monkeypatch):
    monkeypatch.setattr(steps, "identify", _raising(ArithmeticError("no system")))
    outcome = runs()
    assert [stage for _, stage, _ in outcome.failed] == ["system"]
    assert [stage for _, stage in outcome.left_out] == ["gains", "energies"]


def test_a_failure_is_forgotten_once_what_was_there_is_asked_for_again(made, monkeypatch):
    runs = made
    key = "little/mood/seed_0/mean_difference"
    monkeypatch.setattr(steps, "gains", _raising(ValueError("too far")))
    changed = SMALL.replace('device = "cpu"', 'device = "cpu"\neps = 0.02')
    assert [stage for _, stage, _ in runs(changed).failed] == ["gains"]
    monkeypatch.undo()
    outcome = runs()
    assert (outcome.made, outcome.kept) == (0, 4)
    (cell,) = read_results(runs.out).cells
    assert (cell.state, list(cell.stages)) == ("complete", STAGES)
    assert xr.open_datatree(runs.out, engine="zarr", consolidated=False)[key].attrs.keys() == {
        "asked"
    }


def test_a_failure_of_a_stage_that_is_not_asked_for_any_more_is_forgotten(runs, monkeypatch):
    monkeypatch.setattr(steps, "control", _raising(ValueError("no schedule")))
    assert runs().failed
    assert runs(SMALL.replace('"gains", "energies"', '"gains"')).failed == []
    (cell,) = read_results(runs.out).cells
    assert (cell.state, list(cell.stages)) == ("complete", STAGES[:3])


def test_a_model_that_cannot_be_loaded_fails_once_and_the_others_go_on(runs, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(demo.model_path("demo_48x4"), broken)
    (broken / "model.safetensors").write_bytes(b"nothing of use")
    text = SMALL.replace("[[models]]", '[[models]]\nsource = "./broken"\n[[models]]')
    text += '[[tasks]]\nname = "place"\ntexts = "demo:domain"\n'
    loads = []
    load = lm.DepthModel.load

    def counted(source, **options):
        loads.append(os.path.basename(source))
        return load(source, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lm.DepthModel, "load", counted)
        outcome = runs(text)
    assert [(key.model, key.task, stage) for key, stage, _ in outcome.failed] == [
        ("broken", "mood", "concept"), ("broken", "place", "concept"),
    ]  # fmt: skip
    assert outcome.made == 8
    assert loads == ["broken", "demo_48x4"]


@pytest.mark.slow  # eight stages; that nothing is loaded again: above
def test_a_model_is_loaded_once_and_texts_are_run_once(runs, monkeypatch):
    prefills, loads = [], []
    make, load = lm.Run.prefill, lm.DepthModel.load
    monkeypatch.setattr(lm.Run, "prefill", lambda run: (prefills.append(len(run)), make(run))[1])
    monkeypatch.setattr(lm.DepthModel, "load", lambda *a, **k: (loads.append(1), load(*a, **k))[1])
    text = SMALL.replace('["gains", "energies"]', '["gains", "comparison", "energies", "plan"]')
    text = text.replace("shard = 1024", 'concepts = ["mean_difference", "pca"]')
    text = text.replace("[settings]", '[settings]\nmethods = ["ensemble"]\norders = [1]\nn_each=0')
    assert runs(text + '[[tasks]]\nname = "b"\ntexts = "demo:domain"\n').failed == []
    assert len(loads) == 1
    assert prefills == 2 * [8, 8]  # held-out and operating texts of each of the two tasks


def test_texts_that_change_meanwhile_fail_their_cells(runs, tmp_path, monkeypatch):
    text = SMALL + '[[tasks]]\nname = "place"\ntexts = "place.csv"\n'
    place = tmp_path / "place.csv"
    write_texts(place)
    find = steps.find_concept

    def changing(cell):
        place.write_text(place.read_text().replace("film", "play").replace("the", "that"))
        return find(cell)

    monkeypatch.setattr(steps, "find_concept", changing)
    outcome = runs(text)
    ((key, _, reason),) = outcome.failed
    assert key.task == "place"
    assert "must stay as they are while a study runs" in reason
    assert outcome.made == 4


def test_memory_that_is_short_halves_batches_and_is_noted(runs, monkeypatch):
    from depthsys.lm import at_once

    parts = []
    find = steps.find_concept

    def short(cell):
        parts.append(at_once._part.get())
        if len(parts) < 3:
            raise MemoryError("no room for it")
        return find(cell)

    monkeypatch.setattr(steps, "find_concept", short)
    assert runs().failed == []
    assert parts == [1.0, 0.5, 0.25]
    notes = json.loads(read_group(runs.cell / "concept").attrs["stage_notes"])
    assert len(notes) == 2
    assert "no room for it" in notes[0]
    assert "no room for it" in runs.store.log.read_text()


def test_memory_that_is_never_enough_fails_the_cell(runs, monkeypatch):
    monkeypatch.setattr(steps, "find_concept", _raising(MemoryError("no room at all")))
    outcome = runs()
    assert [reason for *_, reason in outcome.failed] == ["no room at all"]


def test_a_full_disk_ends_the_study(runs, monkeypatch):
    import errno

    monkeypatch.setattr(steps, "gains", _raising(OSError(errno.ENOSPC, "no space left")))
    with pytest.raises(OSError, match="no space left"):
        runs()
    monkeypatch.undo()
    assert runs().kept == 2


def test_two_runs_on_one_store_are_refused(runs):
    runs.store = Store(runs.out)
    runs.store.work.mkdir(parents=True)
    with locked(runs.store.work), pytest.raises(ValueError, match="by two runs at once"):
        runs()
    assert runs().made == 4


def test_other_things_at_the_place_are_refused(made, tmp_path):
    runs = made
    with pytest.raises(ValueError, match="is that of 'small'"):
        runs(SMALL.replace('name = "small"', 'name = "other"'))
    runs.out = tmp_path / "folder"
    runs.out.mkdir()
    (runs.out / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"must be the store of a study; got .*mine.txt"):
        runs()
    runs.out = tmp_path / "folder" / "mine.txt"
    with pytest.raises(ValueError, match="must be a folder, or nothing yet"):
        runs()
    assert os.listdir(tmp_path / "folder") == ["mine.txt"]


def test_an_interrupt_ends_the_study_and_the_next_goes_on(runs, monkeypatch):
    monkeypatch.setattr(steps, "gains", _raising(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        runs()
    assert "ended by KeyboardInterrupt" in runs.store.log.read_text()
    monkeypatch.undo()
    outcome = runs()
    assert (outcome.made, outcome.kept) == (2, 2)


@pytest.mark.slow
def test_cells_of_earlier_versions_of_the_study_stay_and_are_not_its_own(runs):
    runs(SMALL + '[[tasks]]\nname = "place"\ntexts = "demo:domain"\n')
    runs()
    assert (runs.out / "little" / "place").is_dir()
    cells = json.loads(runs.store.attrs["study_cells"])
    assert cells == ["little/mood/seed_0/mean_difference"]


@pytest.mark.slow
def test_a_model_that_changes_after_it_was_loaded_is_loaded_again(runs, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    shutil.copytree(demo.model_path("demo_48x4"), folder)
    from safetensors.torch import load_file, save_file

    find, weights = steps.gains, load_file(folder / "model.safetensors")

    def changing(cell, system):
        found = find(cell, system)
        changed = {name: 1.5 * w if "mlp" in name else w for name, w in weights.items()}
        save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
        return found

    text = SMALL.replace("demo_48x4", "./model").replace('["gains", "energies"]', '["gains"]')
    text += '[[tasks]]\nname = "place"\ntexts = "demo:domain"\n'
    monkeypatch.setattr(steps, "gains", changing)
    runs(text)
    second = runs.out / "little" / "place" / "seed_0" / "mean_difference" / "gains"
    kept = read_group(second)["measured_gain"].values
    monkeypatch.undo()
    assert runs(text).kept == 3  # the second cell is of the changed model, by its identity
    shutil.rmtree(runs.out)
    runs(text)
    np.testing.assert_array_equal(read_group(second)["measured_gain"].values, kept)


def test_the_same_texts_with_other_names_of_classes_keep_theirs(runs, tmp_path):
    rows = grammar.labelled(40, seed=5)
    for file, names in {"one.csv": ("bad", "good"), "two.csv": ("low", "top")}.items():
        write_texts(tmp_path / file, [(text, names[int(label)]) for text, label in rows])
    text = SMALL.replace('["gains", "energies"]', '["system"]').replace("demo:sentiment", "one.csv")
    runs(text + '[[tasks]]\nname = "two"\ntexts = "two.csv"\n')
    system = read_group(runs.out / "little" / "two" / "seed_0" / "mean_difference" / "system")
    assert json.loads(system.attrs["classes"]) == ["low", "top"]
    assert system.attrs["texts"].endswith("two.csv")


@pytest.mark.slow
def test_a_readout_that_is_asked_for_is_another_than_the_default_of_comparisons(runs):
    options = 'device = "cpu"\nmethods = ["ensemble"]\norders = [1]\nn_each = 0'
    text = SMALL.replace('["gains", "energies"]', '["comparison"]')
    text = text.replace('device = "cpu"', options)
    runs(text)
    asked = text.replace("n_each = 0", 'n_each = 0\nreadout = "concept"')
    assert runs(asked).made == 1
    assert read_group(runs.cell / "comparison").attrs["readout"] == "concept"
    assert runs(asked.replace('"concept"', '"profile"')).made >= 1
    assert runs(text).kept >= 1


@pytest.mark.parametrize("error", [IndexError("out"), AssertionError("no"), Exception("bare")])
def test_an_error_of_any_kind_is_the_cell_s(runs, monkeypatch, error):
    monkeypatch.setattr(steps, "gains", _raising(error))
    outcome = runs()
    assert [reason for *_, reason in outcome.failed] == [str(error)]
    assert runs.watch.of("made") == ["concept", "system", "energies"]


def test_foreign_files_links_and_broken_metadata_are_put_right(made, tmp_path):
    mine = tmp_path / "mine"
    shutil.move(made.cell / "energies", mine)
    (made.cell / "energies").symlink_to(mine)
    shutil.rmtree(made.cell / "gains")
    (made.cell / "gains").write_text("not a stage")
    (made.cell / "zarr.json").write_text("{")
    changed = SMALL.replace('device = "cpu"', 'device = "cpu"\ntarget = "2std"')
    assert made(changed).made == 2
    assert not (made.cell / "energies").is_symlink()
    assert mine.is_dir()
    xr.open_datatree(made.out, engine="zarr", consolidated=False).load()
    stage = made.cell / "gains" / "zarr.json"
    said = json.loads(stage.read_text())
    said["attributes"]["stage_identity"] = "{"
    stage.write_text(json.dumps(said))
    cell = {"attributes": {"failed": "[}"}, "zarr_format": 3, "node_type": "group"}
    (made.cell / "zarr.json").write_text(json.dumps(cell))
    assert made(changed).made == 1


def test_a_hash_knows_contents_and_no_times():
    base = xr.Dataset(
        {"a": ("x", [1.0, np.nan]), "name": ("x", ["b", "cc"])},
        coords={"x": [0, 1]},
        attrs={"created": "today", "n": 1},
    )
    found = dataset_sha256(base)
    assert dataset_sha256(base.assign_attrs(created="now", source="/else")) == found
    assert dataset_sha256(base.assign(seconds=3.0)) == found
    for other in (
        base.assign_attrs(n=2),
        base.assign(a=("x", [1.0, 2.0])),
        base.assign(a=("x", np.float32([1.0, np.nan]))),
        base.assign(name=("x", ["b", "c"])),
        base.assign_coords(x=[0, 2]),
        base.rename(a="b"),
        base.rename(x="y"),
    ):
        assert dataset_sha256(other) != found


def _raising(error):
    def raising(*args, **options):
        raise error

    return raising


def test_a_model_that_was_not_here_is_looked_at_once_it_is(monkeypatch):
    found = SimpleNamespace(source="some/model", load_model=lambda: "loaded")
    asked = work.CellWork(found, None, None, 1, files_sha256="a")
    for first, then in (("b", None), (None, "b")):  # before it is loaded, and after
        answers = iter([first, then])
        monkeypatch.setattr(work, "files_sha256", lambda source, a=answers: next(a))
        with pytest.raises(ValueError, match="`source` must hold the same files"):
            work.ModelOfStudy((), asked).load_model()
    answers = iter([None, "a"])
    monkeypatch.setattr(work, "files_sha256", lambda source: next(answers))
    assert work.ModelOfStudy((), asked).load_model() == "loaded"
