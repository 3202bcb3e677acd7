"""`depthsys generate`: texts by strength, as the library writes them."""

import csv

import numpy as np
import pytest
import xarray as xr

from depthsys import export, lm
from depthsys.files import write_netcdf
from depthsys.study.generation import parsed_strengths
from tests.export.test_control_vectors import written

PROMPTS = ["the movie", "a long day"]
ASKED = ["--device", "cpu", "--max-new-tokens", "6"]


@pytest.fixture(scope="module")
def plan(demo_model, demo_texts) -> xr.Dataset:
    concept = lm.mean_difference(demo_model, demo_texts.concept)
    return lm.equal_push_plan(concept, size=8.0, positions="generated")


@pytest.fixture(scope="module")
def path(plan, tmp_path_factory):
    place = tmp_path_factory.mktemp("plans") / "plan.nc"
    write_netcdf(place, {None: plan})
    return place


def by_library(model, plan, positions, strengths, prompts=PROMPTS, **options):
    rows = []
    for strength in strengths:
        with lm.steering(model, plan, plan, positions=positions, strength=strength):
            rows.append(model.generate(prompts, max_new_tokens=6, **options))
    return {
        (prompt, strength): row[i]
        for strength, row in zip(strengths, rows, strict=True)
        for i, prompt in enumerate(prompts)
    }


def in_file(path):
    with path.open(newline="") as file:
        return {(r["prompt"], float(r["strength"])): r["text"] for r in csv.DictReader(file)}


def asked_for(prompts=PROMPTS):
    return [word for prompt in prompts for word in ("--prompt", prompt)]


@pytest.mark.parametrize(
    ("options", "positions"),
    [
        ([], "generated"),  # as the plan says
        (["--positions", "last"], "last"),
        (["--positions", "every"], "every"),
        (["--after", "the"], lm.After("the")),
    ],
)
def test_texts_are_those_of_the_library(run, path, plan, demo_model, tmp_path, options, positions):
    prompts = PROMPTS if not isinstance(positions, lm.After) else ["the movie", "over the hill"]
    out = tmp_path / "texts.csv"
    command = ["generate", "demo_48x4", "--plan", path, *asked_for(prompts), *ASKED]
    code, shown, err = run(*command, "--strength", "0,-1,2", *options, "--out", out)
    assert code == 0, err
    expected = by_library(demo_model, plan, positions, [0.0, -1.0, 2.0], prompts)
    assert in_file(out) == expected
    assert len(set(expected.values())) > len(prompts)
    for (prompt, _), text in expected.items():
        assert prompt in shown
        assert " ".join(text.split()) in " ".join(shown.split())
    assert shown.index("-1") > shown.index(prompts[0])
    assert "pushed: " in shown


def test_sampling_has_a_seed_that_all_strengths_share(run, path, tmp_path):
    found = []
    for seed in ("3", "3", "4"):
        out = tmp_path / "texts.csv"
        command = ["generate", "demo_48x4", "--plan", path, *asked_for(), *ASKED, "--out", out]
        code, _, err = run(*command, "--force", "--strength", "0,1e-9", "--sample", "--seed", seed)
        assert code == 0, err
        found.append(in_file(out))
    assert found[0] == found[1] != found[2]
    for prompt in PROMPTS:
        assert found[0][prompt, 0.0] == found[0][prompt, 1e-9]


def test_templates_are_put_around_prompts(run, path, plan, tmp_path, demo_model):
    out = tmp_path / "texts.csv"
    command = ["generate", "demo_48x4", "--plan", path, "--prompt", r"the\nmovie", *ASKED]
    code, _, err = run(*command, "--template", "{text} was", "--strength", "1", "--out", out)
    assert code == 0, err
    model = lm.DepthModel(demo_model.hf, demo_model.tokenizer, template="{text} was")
    assert in_file(out) == by_library(model, plan, "generated", [1.0], ["the\nmovie"])


def test_a_control_vector_acts_on_every_token(run, demo_model, tmp_path):
    rng = np.random.default_rng(0)
    vectors = {n: (3 * rng.standard_normal(48)).astype(np.float32) for n in (3, 2, 1)}
    gguf, imported = written(tmp_path / "v.gguf", vectors), tmp_path / "v.nc"
    assert run("import", gguf, "--out", imported)[0] == 0
    vector = export.read_control_vector(gguf, n_layers=4, n_features=48)
    expected = by_library(demo_model, vector, "every", [0.0, 1.0])
    for source in (gguf, imported):
        out = tmp_path / f"{source.suffix[1:]}.csv"
        command = ["generate", "demo_48x4", "--plan", source, *asked_for(), *ASKED, "--out", out]
        code, shown, err = run(*command, "--strength", "0,1")
        assert code == 0, err
        assert in_file(out) == expected
        assert "pushed: every token" in shown


def test_a_push_that_overflows_is_told(run, path, tmp_path):
    out = tmp_path / "texts.csv"
    command = ["generate", "demo_48x4", "--plan", path, "--prompt", "the movie", *ASKED]
    for strength, words in (
        ("0,1e40", "`--strength` must leave every push finite in float32; got 1e+40"),
        ("0,3e37", "`--strength` must leave the logits finite; got NaN or infinity in the text"),
    ):
        code, shown, err = run(*command, "--strength", strength, "--out", out)
        assert (code, shown) == (2, "")
        assert words in " ".join(err.split())
        assert not out.exists()


def test_what_a_plan_says_of_itself_is_told(run, plan, tmp_path):
    told = {"not_met": "the target is out of reach", "warning": "pushes are large"}
    path = tmp_path / "plan.nc"
    command = ["generate", "demo_48x4", "--plan", path, "--prompt", "the movie", *ASKED]
    for number, attrs in enumerate(({}, told)):
        path.unlink(missing_ok=True)
        write_netcdf(path, {None: plan.assign_attrs(attrs)})
        code, shown, err = run(*command)
        assert code == 0, err
        lines = shown.splitlines()
        assert lines.count("NOT MET: the target is out of reach") == number
        assert lines.count("WARNING: pushes are large") == number


def test_strengths_that_make_pushes_large_are_told(run, plan, tmp_path):
    path = tmp_path / "plan.nc"
    write_netcdf(path, {None: plan.assign(push=("layer", [0.0, 0.1, 0.2, 0.05]))})
    command = ["generate", "demo_48x4", "--plan", path, "--prompt", "the movie", *ASKED]
    code, shown, _ = run(*command, "--strength=-2,1")
    assert code == 0
    said = "WARNING: at strength 2: pushes of more than 0.3 of the state's norm at layer 2 (largest"
    assert said in " ".join(shown.split())
    code, shown, _ = run(*command, "--strength", "1")
    assert "WARNING" not in shown


def test_what_is_typed_wrongly_is_named_as_it_is_typed(run, path, plan, tmp_path):
    def refused(*options, plan=path, words):
        command = ["generate", "demo_48x4", "--plan", plan, "--prompt", "the movie", *ASKED]
        code, shown, err = run(*command, *options)
        assert (code, shown) == (2, "")
        assert words in " ".join(err.split())

    refused("--strength", "a", words="`--strength` must be finite numbers, each once; got 'a'")
    refused("--strength", "1,1", words="`--strength` must be finite numbers, each once")
    refused("--seed", "1", words="`--seed` must come with --sample; got 1")
    refused("--positions", "first", words="`--positions` must be one of")
    refused("--positions", "last", "--after", "x", words="`--positions` and `--after` must not")
    refused("--after", "xyzzy", words="`--after` must mark a place in every prompt")
    refused("--max-new-tokens", "0", words="`--max-new-tokens` must be a whole number >= 1")
    (tmp_path / "there.csv").touch()
    refused("--out", tmp_path / "there.csv", words="`--out` must not exist yet")
    refused(plan=tmp_path / "none.nc", words="`--plan` must")
    bare, narrow = tmp_path / "bare.nc", tmp_path / "narrow.nc"
    write_netcdf(bare, {None: plan.drop_vars("direction")})
    write_netcdf(narrow, {None: plan.isel(feature=slice(40))})
    refused(plan=bare, words="`--plan` must hold `u` and `direction`")
    refused(plan=narrow, words="`--plan` must be as wide as the states of the model, 48; got")


def test_strengths():
    assert parsed_strengths(" 0,-2, 1e-1") == [0.0, -2.0, 0.1]


def test_a_model_computes_as_it_did_when_the_plan_was_made(run, plan, tmp_path, monkeypatch):
    """Unless something else is asked for: weights rounded to 16 bits have another fingerprint."""
    load, seen = lm.DepthModel.load, []

    def recorded(source, **options):
        seen.append((options["dtype"], options["products"]))
        return load(source, **options | {"products": "float32"})  # there is no TF32 here

    monkeypatch.setattr(lm.DepthModel, "load", recorded)
    monkeypatch.setattr("depthsys.lm.switch.has_tf32", lambda device: True)
    path = tmp_path / "plan.nc"
    command = ["generate", "demo_48x4", "--plan", path, "--prompt", "the movie", *ASKED]
    plan.attrs.pop("model_fingerprint", None)

    def loaded(made_in, *options):
        write_netcdf(path, {None: plan.assign_attrs(made_in)})
        code, _, err = run(*command, *options, "--strength", "0")
        path.unlink()
        assert code == 0, err
        return seen.pop()

    assert loaded({"dtype": "bfloat16"}) == ("bfloat16", "float32")
    assert loaded({"dtype": "bfloat16"}, "--dtype", "float64") == ("float64", "float32")
    assert loaded({"dtype": "float32", "products": "tf32"}) == ("float32", "tf32")
    assert loaded({"dtype": "float32", "products": "tf32"}, "--no-tf32")[1] == "float32"
    other = {"dtype": "float32", "products": "tf32"}
    assert loaded(other, "--dtype", "bfloat16") == ("bfloat16", "float32")
    assert loaded({"dtype": "float32"}, "--tf32") == ("float32", "tf32")


def test_a_plan_in_sixteen_bits_steers_the_model_that_it_was_made_for(run, tmp_path, demo_texts):
    from depthsys.demo import model_path

    model = lm.DepthModel.load(model_path("demo_48x4"), device="cpu", dtype="bfloat16")
    concept = lm.mean_difference(model, demo_texts.concept)
    path = tmp_path / "plan.nc"
    write_netcdf(path, {None: lm.equal_push_plan(concept, size=8.0)})
    command = ["generate", "demo_48x4", "--plan", path, "--prompt", "the movie", *ASKED]
    code, _, err = run(*command, "--strength", "1")
    assert code == 0, err
    code, _, err = run(*command, "--strength", "1", "--dtype", "float32")
    assert (code, "It was made in bfloat16, and the model is in float32" in err) == (2, True)


@pytest.mark.parametrize(
    ("attrs", "words"),
    [
        ({"model_fingerprint": "0" * 64}, "the fingerprint of another version, of the model"),
        (
            {"dtype": "float8"},
            "`--plan` must be made in float32, float64, bfloat16 or float16; got",
        ),
        ({"dtype": "float32", "products": "tf32"}, "`--tf32` must be off on 'cpu', which has no"),
    ],
)
def test_what_a_plan_cannot_be_of_is_refused_before_the_model_is_loaded(
    run, plan, tmp_path, monkeypatch, attrs, words
):
    monkeypatch.setattr(lm.DepthModel, "load", lambda *a, **k: pytest.fail("a model was loaded"))
    write_netcdf(tmp_path / "plan.nc", {None: plan.assign_attrs(attrs)})
    command = ["generate", "demo_48x4", "--plan", tmp_path / "plan.nc", "--prompt", "a", *ASKED]
    code, _, err = run(*command)
    assert (code, words in " ".join(err.split())) == (2, True), err
