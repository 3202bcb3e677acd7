"""A study file is read whole: all that is wrong with it at once, each with its line."""

import re
from pathlib import Path

import pytest

from depthsys.study.faults import StudyFaults
from depthsys.study.study_file import SHARD, CellKey, Study
from depthsys.study.study_reader import packaged, read_study, read_with_faults
from tests.study.conftest import SMALL


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "study.toml"
    path.write_text(text, encoding="utf-8")
    return path


def faults(tmp_path: Path, text: str, data: Path | None = None) -> list[str]:
    with pytest.raises(StudyFaults) as error:
        read_study(written(tmp_path, text), data)
    first, *rest = str(error.value).split("\n")
    assert f"study.toml has {len(rest)} fault" in first
    return [line.strip() for line in rest]


def test_a_study_says_what_is_crossed_in_the_order_that_shares_work(tmp_path):
    text = SMALL + '[[tasks]]\nname = "place"\ntexts = "demo:domain"\ntarget = "2std"\n'
    text = text.replace('name = "small"', 'name = "small"\nseeds = [0, 1]')
    text = text.replace("shard = 1024", 'concepts = ["pca", "logistic"]')
    study = read_study(written(tmp_path, text))
    models, tasks = ["little"], ["mood", "place"]
    crossed = [
        CellKey(m, t, s, c) for m in models for t in tasks for s in (0, 1)
        for c in ("pca", "logistic")
    ]  # fmt: skip
    assert list(study.cells) == crossed
    assert study.shard == SHARD
    assert str(study.cells[0]) == "little/mood/seed_0/pca"
    assert study.settings_of(study.cells[-1]).target.size == 2
    assert study.settings_of(study.cells[0]).target is None
    assert study.settings_of(study.cells[-1]).seed == 1
    # what gains and energies need, too
    assert study.stages == ("concept", "system", "gains", "energies")


def test_lists_and_texts_mean_the_same(tmp_path):
    as_lists = SMALL.replace(
        'split = "8/4/4"', 'split = [8, 4, 4]\norders = [1, 2]\nmethods = ["pod", "krylov"]\n'
        "layers = [0, 2]"
    )  # fmt: skip
    as_texts = SMALL.replace(
        'split = "8/4/4"', 'split = "8/4/4"\norders = "1,2"\nmethods = "pod,krylov"\nlayers = "0,2"'
    )
    found = [read_study(written(tmp_path, text)) for text in (as_lists, as_texts)]
    ones, others = (study.settings_of(study.cells[0]) for study in found)
    assert ones == others
    assert (ones.split, ones.orders, ones.layers) == ((8, 4, 4), (1, 2), (0, 2))


def test_all_faults_are_told_at_once_with_their_lines(tmp_path):
    text = """stagse = ["gains"]
seed = 3
stages = ["gans"]
[settings]
split = "20/10"
order = "four"
orders = [
  4,
  2,
]
device = true
order_ = 1
[[models]]
source = "demo_48x4"
split = "1/1/1"
[[models]]
source = "./nothing"
[[models]]
source = "DEMO_48x4"
name = "Demo_48x4"
[[tasks]]
name = "senti ment"
texts = "demo:sentimental"
dtype = "float64"
[[tasks]]
texts = "missing.csv"
[texts]
strengths = [0, 0]
prompt = ["a"]
"""
    found = faults(tmp_path, text)
    told = [
        r"line 1, stagse: there is no 'stagse'; did you mean 'stages'\?",
        "line 2, seed: there is no 'seed'; did you mean 'seeds'",
        "line 3, stages: there is no 'gans'; did you mean 'gains'",
        "line 5, settings.split: `split` must be three positive numbers",
        "line 6, settings.order: must be a whole number; got 'four'",
        "line 7, settings.orders: `orders` must be rising whole numbers",
        "line 11, settings.device: must be a string; got True",
        "line 12, settings.order_: there is no 'order_'; did you mean 'order'",
        r"line 15, models\[0\].split: there is no 'split'",
        r"line 17, models\[1\].source: `source` must be an existing folder",
        r"line 18, models\[2\]: `name` must be its own, capitals aside; got 'Demo_48x4', that of",
        r"line 22, tasks\[0\].name: must be at most 64 letters",
        r"line 23, tasks\[0\].texts: `texts` must be one of demo:sentiment",
        r"line 24, tasks\[0\].dtype: there is no 'dtype'",
        r"line 26, tasks\[1\].texts: `texts` must exist; got 'missing.csv'",
        "line 28, texts.strengths: must be a list of different numbers",
        "line 29, texts.prompt: there is no 'prompt'; did you mean 'prompts'",
    ]
    assert len(found) == len(told)
    for line, pattern in zip(found, told, strict=True):
        assert re.match(pattern, line), (line, pattern)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("stages =", "stages = 3 #"), "line 2, stages: must be a list of different names; got 3"),
        (('["gains", "energies"]', '["texts"]'), "texts: `prompts` must be given for the stage"),
        (("shard = 1024", "shard = 0"), "line 3, shard: must be a whole number >= 1; got 0"),
        (("shard = 1024", "seeds = [0, 0]"), "line 3, seeds: must be a list of different whole"),
        (("shard = 1024", "order = 3"), "'order' must stand under"),
        (("shard = 1024", "colour = 3"), "there is no 'colour'; there are concepts"),
        (("[settings]", "settings = 3\n[other]"), "settings: must be a table; got 3"),
        (("[[models]]", "[models]"), "models: must be tables that begin with"),
        (("[[models]]", "[[model]]"), "must hold at least one; got none"),
        (("source =", "#"), r"models[0].source: must be a string; got none. Give one"),
        (("source =", "order = 3\ntolerance = 0.1\nsource ="), "must not both be given"),
        (("device =", "order = 3\ntolerance = 0.1\ndevice ="), "must not both be given"),
        (('"demo_48x4"', '"fetched:GPT-9"'), "must be fetched:SmolLM2-135M-Instruct where it"),
        (
            (
                'stages = ["gains", "energies"]\nshard = 1024\n\n[settings]',
                'stages = ["texts"]\ntexts = {prompts = ["a"]}\n[settings]\nread_at = "text"',
            ),
            "`read_at` must be 'last' for the stage texts; got 'text'. Leave it out",
        ),
        (('"demo:sentiment"', '"fetched:news"'), "must be one of fetched:movies, "),
        (("shard = 1024", 'texts = {prompts = [""]}'), "must be a list of strings that are not"),
        (("shard = 1024", "texts = {max_new_tokens = 0}"), "must be a whole number >= 1; got 0"),
        (("shard = 1024", 'texts = {positions = "all"}'), "must be generated, every or last"),
        (("shard = 1024", 'name2 = "a"'), "there is no 'name2'; did you mean 'name'"),
        (('"demo_48x4"', '"~nobody-here/m"'), "must be an existing folder or GGUF file; got '~nob"),
        (('"demo:sentiment"', '"~nobody-here/t.csv"'), "`texts` must exist; got '~nobody-here"),
        (("device =", 'classes = ["a\\nb", "c"]\ndevice ='), "`classes` must be two names; got"),
        (("device =", 'classes = ""\ndevice ='), "`classes` must be two names; got"),
    ],
)
def test_one_fault(tmp_path, change, said):
    text = SMALL.lstrip().replace(*change)
    assert text != SMALL.lstrip()
    assert any(said in line for line in faults(tmp_path, text))


def test_what_is_no_toml_and_no_text_is_refused(tmp_path):
    with pytest.raises(StudyFaults, match=r"must be TOML; got .*line 1"):
        read_study(written(tmp_path, "name = small"))
    (tmp_path / "latin.toml").write_bytes(b'name = "\xe9"')
    with pytest.raises(StudyFaults, match="must be a text in UTF-8; got byte 8"):
        read_study(tmp_path / "latin.toml")
    with pytest.raises(FileNotFoundError, match=r"must be a study file, or one of .*embedded"):
        read_study(tmp_path / "none.toml")


def test_texts_are_seen_from_the_file_or_from_data(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "mood.csv").write_text("text,label\na,0\n", encoding="utf-8")
    text = SMALL.replace("demo:sentiment", "mood.csv")
    assert "must exist; got 'mood.csv'" in faults(tmp_path, text)[0]
    study = read_study(written(tmp_path, text), data)
    assert study.tasks[0].texts == str(data / "mood.csv")
    (tmp_path / "mood.csv").write_text("text,label\na,0\n", encoding="utf-8")
    assert read_study(written(tmp_path, text)).tasks[0].texts == str(tmp_path / "mood.csv")


def test_the_fetched_model_has_a_name_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("DEPTHSYS_REAL", str(tmp_path))
    text = SMALL.replace('name = "little"\n', "")
    text = text.replace("demo_48x4", "fetched:SmolLM2-135M-Instruct")
    folder = tmp_path / "SmolLM2-135M-Instruct"
    monkeypatch.setattr("depthsys.demo.real.path_of", lambda name: folder)
    (model,) = read_study(written(tmp_path, text)).models
    assert (model.name, model.source) == ("SmolLM2-135M-Instruct", str(folder))


def test_the_studies_of_the_package_are_studies():
    assert {"embedded", "paper", "small_models"} <= set(packaged())
    study = read_study(Path("embedded"))
    assert len(study.models) * len(study.tasks) == len(study.cells) == 6


def test_a_mark_at_the_beginning_of_the_file_is_none_of_it(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(SMALL, encoding="utf-8-sig")
    assert read_study(path).name == "small"


def test_how_many_get_their_own_system_is_limited_by_the_split_of_the_file(tmp_path):
    text = SMALL.replace('"8/4/4"', '"8/4/400"\nn_each = 700')
    assert read_study(written(tmp_path, text)).settings["n_each"] == 700
    (fault,) = faults(tmp_path, text.replace("700", "801"))
    assert "must be in 0..800, the number of held-out prompts; got 801" in fault
    (fault,) = faults(tmp_path, text.replace("700", "-1"))
    assert "got -1" in fault


def test_a_name_is_none_of_the_files_of_a_store(tmp_path):
    (fault,) = faults(tmp_path, SMALL.replace('"mood"', '"zarr.json"'))
    assert fault.startswith("line 15, tasks[0].name: must be at most 64 letters")


def test_texts_of_the_package_are_no_pairs(tmp_path):
    from depthsys.study.checks import checked

    text = SMALL.replace("shard = 1024", 'concepts = ["paired_difference"]')
    study = read_with_faults(written(tmp_path, text))
    with pytest.raises(StudyFaults, match=r"'demo:sentiment', which holds no pairs"):
        checked(*study)


def test_what_a_study_names_is_looked_at_beside_faults_of_the_file(tmp_path):
    (tmp_path / "texts.csv").write_text("text,label\na,0\nb,1\n")
    (tmp_path / "empty").mkdir()
    text = SMALL.replace("shard = 1024", "shrad = 1024").replace("demo_48x4", "./empty")
    found = told(tmp_path, text + '[[tasks]]\ntexts = "texts.csv"\n')
    assert [line.partition(":")[0] for line in found] == [
        "line 4, shrad", "line 10, models[0]", "line 18, tasks[1].texts",
    ]  # fmt: skip
    # how texts are split is not known: only models are looked at
    found = told(tmp_path, text.replace("8/4/4", "8/4") + '[[tasks]]\ntexts = "texts.csv"\n')
    assert [line.partition(":")[0] for line in found] == [
        "line 4, shrad", "line 7, settings.split", "line 10, models[0]",
    ]  # fmt: skip


def test_settings_that_only_miss_what_was_wrong_are_no_faults(tmp_path):
    text = SMALL.replace("[settings]", "[settings]\neps = 0\norders = [2]\nmethods = 3")
    found = told(tmp_path, text)
    assert [line.partition(":")[0] for line in found] == [
        "line 7, settings.eps", "line 9, settings.methods",
    ]  # fmt: skip


def test_settings_that_a_cell_alone_refuses_are_faults_with_a_line(tmp_path, monkeypatch):
    def refused(study, key):
        raise ValueError("`split` is not for this seed")

    monkeypatch.setattr(Study, "settings_of", refused)
    assert told(tmp_path, SMALL) == [
        "line 7, settings.split: `split` is not for this seed",
    ]


def told(tmp_path, text):
    """All faults of a file and of what it names, line by line."""
    from depthsys.study.checks import checked

    with pytest.raises(StudyFaults) as caught:
        checked(*read_with_faults(written(tmp_path, text)))
    return [line.strip() for line in str(caught.value).splitlines()[1:]]
