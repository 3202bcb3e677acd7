import json

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch
import xarray as xr

from depthsys import lm
from depthsys.lm import concepts, separation
from tests.conftest import tiny_llama
from tests.lm import one_family, whole_sequence
from tests.lm.conftest import LabelledIds, labelled_ids, no_block_runs

tiny = one_family.tiny

METHODS = {
    "mean_difference": concepts.mean_difference,
    "whitened": concepts.whitened,
    "logistic": concepts.logistic,
    "pca": concepts.pca,
}
every_method = pytest.mark.parametrize("fit", METHODS.values(), ids=METHODS)
needs_two = pytest.mark.parametrize("fit", list(METHODS.values())[1:], ids=list(METHODS)[1:])


def all_states(model, tokens):
    return np.stack([whole_sequence.states(model.hf, ids) for ids in tokens.ids], axis=1)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def class_difference(x, labels):
    return x[:, labels == 1].mean(1) - x[:, labels == 0].mean(1)


@pytest.fixture(scope="module")
def planted():
    """A Llama whose embeddings of tokens 25..49 are shifted by 6 along a direction."""
    hf = tiny_llama().double()
    v = unit(np.random.default_rng(5).standard_normal(16))
    hf.get_input_embeddings().weight.data[25:] += 6 * torch.from_numpy(v)
    return lm.DepthModel(hf, name="planted"), v


def planted_ids(count, seed):
    """The last token tells the class: below 25, or not."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    ids = [[*rng.integers(0, 50, size=2).tolist(), int(rng.integers(25)) + 25 * y] for y in labels]
    return LabelledIds(ids, labels, sha256=f"planted {seed}")


# -------------------------------------------------------------------------------- directions


def test_direction_is_the_normalised_difference_of_class_means(tiny):
    tokens = labelled_ids(12, 3)
    difference = class_difference(all_states(tiny, tokens), tokens.labels)
    result = concepts.mean_difference(tiny, tokens)
    distance = np.linalg.norm(difference, axis=1)
    np.testing.assert_allclose(result.distance, distance, rtol=1e-6)
    np.testing.assert_allclose(result.direction, difference / distance[:, None], atol=1e-6)
    assert "auc" not in result


@pytest.mark.parametrize("count", [9, 61])  # fewer and more texts than features
def test_whitened_solves_the_shrunk_pooled_covariance(tiny, count):
    tokens = labelled_ids(count, 3)
    x = all_states(tiny, tokens)
    result = concepts.whitened(tiny, tokens)
    for depth, difference in enumerate(class_difference(x, tokens.labels)):
        means = [x[depth, tokens.labels == label].mean(0) for label in (0, 1)]
        inside = [
            state - means[label] for state, label in zip(x[depth], tokens.labels, strict=True)
        ]
        # equations 1-4 of Ledoit and Wolf, with the Frobenius norm divided by the dimension
        outer = np.array([np.outer(state, state) for state in inside])
        S, eye = outer.mean(0), np.eye(16)
        m = np.trace(S) / 16
        d2 = ((S - m * eye) ** 2).sum() / 16
        b2 = min(((outer - S) ** 2).sum() / 16 / count**2, d2)
        covariance = b2 / d2 * m * eye + (1 - b2 / d2) * S
        assert 0 < b2 / d2 <= 1
        np.testing.assert_allclose(result.shrinkage[depth], b2 / d2, rtol=1e-8)
        v = unit(np.linalg.inv(covariance) @ difference)
        np.testing.assert_allclose(result.direction[depth], v, atol=1e-7)


@pytest.mark.parametrize(("C", "count"), [(1.0, 13), (0.01, 40)])
def test_logistic_minimises_the_penalised_loss(tiny, C, count):
    tokens = labelled_ids(count, 3)
    x = all_states(tiny, tokens)
    result = concepts.logistic(tiny, tokens, C=C)
    sign = np.where(tokens.labels == 1, 1, -1)
    for depth in range(4):
        centred = x[depth] - x[depth].mean(0)
        scale = np.sqrt(np.trace(np.cov(centred.T, bias=True)) / 16)
        np.testing.assert_allclose(result.scale[depth], scale, rtol=1e-8)

        def loss(parameters, z=centred / scale):
            w, b = parameters[:-1], parameters[-1]
            return w @ w / 2 + C * np.logaddexp(0, -sign * (z @ w + b)).sum()

        w = scipy.optimize.minimize(loss, np.zeros(17), options={"gtol": 1e-6}).x[:-1]
        np.testing.assert_allclose(result.direction[depth], unit(w), atol=1e-4)


def test_logistic_with_a_strong_penalty_is_the_mean_difference(tiny):
    tokens = labelled_ids(13, 3)
    weak = concepts.logistic(tiny, tokens, C=1e-7).direction
    np.testing.assert_allclose(weak, concepts.mean_difference(tiny, tokens).direction, atol=1e-5)
    assert float(abs(concepts.logistic(tiny, tokens).direction - weak).max()) > 0.01


@pytest.mark.parametrize("centered", [False, True])
def test_pca_is_the_leading_eigenvector_of_the_paired_differences(tiny, centered):
    tokens = labelled_ids(13, 3)  # one text of class 0 has no partner
    x = all_states(tiny, tokens)
    result = concepts.pca(tiny, tokens, centered=centered, seed=2)
    zeros, ones = concepts._pairs(tokens.labels, 2)
    for depth in range(4):
        D = x[depth, ones] - x[depth, zeros]
        scatter = D.T @ D if not centered else np.cov(D.T)
        values, vectors = np.linalg.eigh(scatter)
        v = vectors[:, -1]
        v *= np.sign(v @ class_difference(x, tokens.labels)[depth])
        np.testing.assert_allclose(result.direction[depth], v, atol=1e-7)
        np.testing.assert_allclose(result.explained[depth], values[-1] / values.sum())
    assert result.attrs["n_pairs"] == 6
    assert result.attrs["centered"] == centered


def test_pairs_are_seeded_and_use_every_text_of_the_smaller_class_once():
    labels = np.array([0, 0, 0, 1, 1, 0, 1, 0])
    zeros, ones = concepts._pairs(labels, 0)
    assert sorted(ones) == [3, 4, 6]
    assert len(set(zeros)) == 3
    assert not labels[zeros].any()
    pairings = {tuple(np.concatenate(concepts._pairs(labels, seed))) for seed in range(8)}
    assert len(pairings) > 4
    np.testing.assert_array_equal(concepts._pairs(labels, 3), concepts._pairs(labels, 3))


@every_method
def test_a_planted_direction_is_found_with_its_sign(planted, fit):
    model, v = planted
    result = fit(model, planted_ids(60, 1), held_out=planted_ids(30, 2))
    assert result.direction.values[0] @ v > 0.9
    assert float(result.auc[0]) == 1
    np.testing.assert_allclose(np.linalg.norm(result.direction, axis=1), 1)
    assert result.direction.dims == ("depth", "feature")
    assert "warning" not in result.attrs


@every_method
def test_class_1_scores_higher_on_the_concept_texts(tiny, fit):
    tokens = labelled_ids(13, 3)
    flipped = LabelledIds(tokens.ids, 1 - tokens.labels)
    for texts in (tokens, flipped):
        difference = class_difference(all_states(tiny, texts), texts.labels)
        assert (np.einsum("kf,kf->k", fit(tiny, texts).direction, difference) > 0).all()


@every_method
def test_a_result_says_where_it_comes_from(tiny, fit):
    result = fit(tiny, labelled_ids(12, 3), held_out=labelled_ids(10, 4))
    found = result.attrs
    assert found["method"] == fit.__name__
    assert found["history"].endswith(f"depthsys.lm.{fit.__name__}")
    assert found["model_fingerprint"] == tiny.fingerprint
    assert found["classes"] == '["0", "1"]'
    assert (found["prompts_sha256"], found["auc_prompts_sha256"]) == ("ids 3", "ids 4")
    settings = {"logistic": {"C", "max_iterations"}, "pca": {"seed", "centered", "n_pairs"}}
    assert settings.get(fit.__name__, set()) <= found.keys()


@needs_two
def test_states_in_a_temporary_file_change_nothing(tiny, fit, monkeypatch):
    tokens = labelled_ids(12, 3)
    in_memory = fit(tiny, tokens)
    monkeypatch.setattr(concepts, "_IN_MEMORY", 0)
    assert isinstance(concepts._empty_states(tiny.run(tokens)).base, np.memmap)
    xr.testing.assert_equal(fit(tiny, tokens), in_memory)


@every_method
def test_a_model_in_float32_gives_the_directions_of_float64(demo_model, demo_texts, fit):
    exact = lm.DepthModel.load(demo_model.name, device="cpu", dtype="float64")
    found, expected = fit(demo_model, demo_texts.concept), fit(exact, demo_texts.concept)
    np.testing.assert_allclose(found.direction, expected.direction, atol=1e-3)
    assert found.direction.dtype == np.float64


@pytest.mark.parametrize("fit", [concepts.mean_difference, concepts.whitened, concepts.logistic])
def test_sentiment_is_found_in_the_demo_model(demo_model, demo_texts, fit):
    result = fit(demo_model, demo_texts.concept, held_out=demo_texts.held_out)
    assert float(result.auc[-1]) > 0.7


# -------------------------------------------------------------------------------- separation


@every_method
def test_auc_counts_ordered_pairs_of_held_out_texts(tiny, fit):
    tokens, held_out = labelled_ids(12, 3), labelled_ids(11, 4)
    result = fit(tiny, tokens, held_out=held_out)
    score = np.einsum("kpf,kf->kp", all_states(tiny, held_out), result.direction.values)
    positive, negative = score[:, held_out.labels == 1], score[:, held_out.labels == 0]
    pairs = positive[:, :, None] - negative[:, None, :]
    # equal token ids give equal states: ties count one half, and rounding must not break them
    tie = abs(pairs) < 1e-9
    auc = np.where(tie, 0.5, pairs > 0).mean(axis=(1, 2))
    clear = ~tie.any(axis=(1, 2))
    assert clear.any()
    np.testing.assert_allclose(result.auc[clear], auc[clear])
    assert ((result.auc_low <= result.auc) & (result.auc <= result.auc_high)).all()


def test_ties_count_one_half():
    scores = np.array([[0.0, 1, 1, 1, 2], [1, 1, 1, 1, 1]])
    auc, _, _ = separation.separation(scores, np.array([0, 0, 1, 0, 1]))
    np.testing.assert_allclose(auc, [(1 + 0.5 + 0.5 + 3) / 6, 0.5])


@pytest.mark.parametrize(("n0", "n1"), [(10, 10), (200, 50), (1, 1)])
def test_limits_solve_the_equation_of_the_score_interval(n0, n1):
    def distance(t, auc):
        # Hanley and McNeil's variance with q1, q2 of the exponential model and mean sizes
        q1, q2, mean = t / (2 - t), 2 * t * t / (1 + t), (n0 + n1) / 2
        V = (t * (1 - t) + (mean - 1) * (q1 + q2 - 2 * t * t)) / (n0 * n1)
        return (auc - t) ** 2 - 1.959964**2 * V

    for auc in (0.0, 0.3, 0.5, 0.97, 1.0):
        low, high = (separation.auc_limit(np.array([auc]), n0, n1, end)[0] for end in (0.0, 1.0))
        assert 0 <= low <= auc <= high <= 1
        assert (low == 0) == (auc == 0)
        assert (high == 1) == (auc == 1)
        for limit, outwards in ((low, -1e-6), (high, 1e-6)):
            if 0 < limit < 1:
                assert distance(limit - outwards, auc) < 0 < distance(limit + outwards, auc)


@pytest.mark.parametrize("auc", [0.5, 0.8, 0.98])
def test_the_interval_covers_the_true_auc_in_95_of_100_experiments(auc):
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2
    shift = np.sqrt(2) * scipy.stats.norm.ppf(auc)
    scores = rng.standard_normal((2000, 60)) + shift * labels
    found, low, high = separation.separation(scores, labels)
    assert abs(found.mean() - auc) < 0.01
    assert 0.93 < ((low <= auc) & (auc <= high)).mean() < 0.99


def test_log_odds_are_those_of_a_linear_discriminant():
    """scikit-learn divides the pooled variance by n, not by n - 2."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [30, 50])
    scores = rng.normal(size=(3, 80)) * [[0.1], [1.0], [30.0]] + labels * [[0.3], [-1.0], [10.0]]
    found = separation.log_odds_per_unit(scores, labels)
    for row, slope in zip(scores, found, strict=True):
        fitted = LinearDiscriminantAnalysis(solver="lsqr").fit(row[:, None], labels)
        assert slope == pytest.approx(fitted.coef_.item() * 78 / 80, rel=1e-9)
    assert np.isnan(separation.log_odds_per_unit(np.ones((1, 4)), np.array([0, 0, 1, 1])))


def test_a_direction_without_separation_is_noted_in_the_result(planted):
    model, _ = planted
    held_out = planted_ids(30, 2)
    shuffled = LabelledIds(held_out.ids, np.arange(30) // 2 % 2)
    result = concepts.mean_difference(model, planted_ids(60, 1), held_out=shuffled)
    auc, low, high = (f"{float(result[name][-1]):.2f}" for name in ("auc", "auc_low", "auc_high"))
    assert float(low) < 0.5 < float(high)
    assert result.attrs["warning"] == (
        f"the direction does not separate held-out texts at the last depth: AUC {auc} "
        f"[{low}, {high}]"
    )


def test_a_direction_that_points_the_wrong_way_is_noted_in_the_result(planted):
    model, _ = planted
    held_out = planted_ids(30, 2)
    swapped = LabelledIds(held_out.ids, 1 - held_out.labels)
    result = concepts.mean_difference(model, planted_ids(60, 1), held_out=swapped)
    assert float(result.auc_high[-1]) < 0.5
    assert result.attrs["warning"].startswith("the direction orders held-out texts wrongly at the")


@pytest.mark.parametrize(
    ("limits", "noted"),
    [
        ((0.45, 0.6), "does not separate held-out texts at"),
        ((0.5, 0.6), "does not separate held-out texts at"),
        ((0.4, 0.5), "does not separate held-out texts at"),
        ((0.4, 0.69), "does not separate held-out texts at"),
        ((0.4, 0.7), "cannot be told from chance with so few held-out texts at"),
        ((0.1, 0.8), "cannot be told from chance with so few held-out texts at"),
        ((0.5, 0.9), "cannot be told from chance with so few held-out texts at"),
        ((0.3, 0.49), "orders held-out texts wrongly at"),
        ((0.51, 0.6), ""),
    ],
)
def test_the_note_depends_on_the_interval(limits, noted):
    for auc in limits:  # wherever in it the AUC lies
        warning = separation.warning(auc, *limits)
        assert bool(warning) == bool(noted)
        if noted:
            assert f"the direction {noted} the last depth" in warning["warning"]


# -------------------------------------------------------------------------------- refusals


@pytest.fixture
def no_run(monkeypatch):
    """Fails the test if the model is run."""
    no_block_runs(monkeypatch)


@every_method
def test_texts_that_cannot_do_are_refused_before_the_model_runs(tiny, fit, no_run):
    same = LabelledIds([[3, 4]] * 4, np.arange(4) % 2)
    with pytest.raises(ValueError, match=r"different texts; got the same tokens 4 times \(0 tex"):
        fit(tiny, same)
    one = LabelledIds([[3, 4], [5]], np.zeros(2, dtype=int))
    with pytest.raises(
        ValueError, match=r"`concept` must hold texts of both classes; got \[2, 0\]"
    ):
        fit(tiny, one)
    with pytest.raises(ValueError, match="`held_out` must hold texts of both classes; got"):
        fit(tiny, labelled_ids(8, 0), held_out=one)


def test_texts_that_are_the_same_once_cut_are_refused():
    short = lm.DepthModel(tiny_llama().double(), max_tokens=1)
    tokens = LabelledIds([[3, 4], [3, 5], [3, 6], [3]], np.arange(4) % 2)
    with pytest.raises(ValueError, match=r"same tokens 4 times \(3 texts were cut\)"):
        concepts.mean_difference(short, tokens)


@needs_two
def test_fits_need_two_texts_per_class(tiny, fit, no_run):
    tokens = LabelledIds([[3], [4], [5]], np.array([0, 1, 0]))
    with pytest.raises(ValueError, match=r"at least 2 texts per class; got \[2, 1\]"):
        fit(tiny, tokens)


@every_method
def test_a_depth_with_one_state_for_all_texts_has_no_direction(tiny, fit):
    tokens = LabelledIds([[1, 9], [2, 9], [3, 9], [4, 9], [5, 9]], np.arange(5) % 2)
    found = fit(tiny, tokens)
    assert found.direction.isnull().all("feature").values.tolist() == [True] + [False] * 3


def test_a_single_state_per_class_gives_no_direction_where_variation_is_needed(tiny):
    tokens = LabelledIds([[1, 9], [2, 8], [3, 9], [4, 8]], np.arange(4) % 2)
    for found, reason in (
        (concepts.whitened(tiny, tokens), "depth 0: the states do not vary inside the classes"),
        (concepts.pca(tiny, tokens, centered=True), "depth 0: the differences of pairs have no"),
    ):
        assert found.direction.isnull().all("feature").values.tolist() == [True] + [False] * 3
        assert reason in found.attrs["direction_note"]
    assert float(concepts.pca(tiny, tokens).explained[0]) == pytest.approx(1)
    concepts.logistic(tiny, tokens)


@pytest.mark.parametrize("C", [0, -1.0, np.nan, np.inf, "1"])
def test_a_penalty_out_of_range_is_refused(tiny, tokens, C, no_run):
    with pytest.raises(ValueError, match="`C` must be a number above 0; got"):
        concepts.logistic(tiny, tokens, C=C)


def test_other_options_out_of_range_are_refused(tiny, tokens, no_run):
    with pytest.raises(ValueError, match="`max_iterations` must be >= 1; got 0"):
        concepts.logistic(tiny, tokens, max_iterations=0)
    for seed in (-1, 0.5):
        with pytest.raises(ValueError, match="`seed` must be a whole number >= 0; got"):
            concepts.pca(tiny, tokens, seed=seed)


def test_a_fit_that_does_not_converge_is_refused(tiny, tokens):
    with pytest.raises(ValueError, match="suffice for the fit at depth 0; got 1 with C = 1"):
        concepts.logistic(tiny, tokens, max_iterations=1)


@pytest.mark.parametrize("scale", [0.0, 1e-18])
def test_a_singular_covariance_gives_no_direction(scale):
    with pytest.raises(concepts._UndefinedError, match="covariance inside the classes is singular"):
        concepts._solve(np.diag([1.0, scale]), np.ones(2))


def test_a_component_without_a_unique_direction_or_sign_is_none():
    with pytest.raises(concepts._UndefinedError, match=r"no single first component .*1 and 1"):
        concepts._first_component(np.eye(2), np.ones(2))
    with pytest.raises(concepts._UndefinedError, match="do not differ along the first component"):
        concepts._first_component(np.diag([2.0, 1]), np.array([0.0, 1]))


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_a_direction_of_no_length_is_none(tiny, tokens, value):
    w = np.ones((4, 16))
    w[1] = value
    found = concepts._result(tiny.run(tokens), None, "some", w, {}, {})
    assert found.direction.isnull().all("feature").values.tolist() == [False, True, False, False]
    assert found.attrs["direction_note"].startswith("no direction at depth 1: some gives one of")


# -------------------------------------------------------------------------------- several


def given(direction, **attrs):
    return xr.Dataset({"direction": (("depth", "feature"), direction)}, attrs=attrs)


@pytest.fixture(scope="module")
def pair(planted):
    model, _ = planted
    held_out = planted_ids(30, 2)
    shuffled = LabelledIds(held_out.ids, np.arange(30) // 2 % 2)
    return {
        "mood": concepts.mean_difference(model, planted_ids(60, 1), held_out=held_out),
        "noise": concepts.pca(model, labelled_ids(12, 3), held_out=shuffled),
    }


def test_several_concepts_are_columns_of_one_dataset(pair):
    result = lm.several(pair)
    assert result.direction.dims == ("depth", "input", "feature")
    assert result.input.values.tolist() == ["mood", "noise"]
    for name, concept in pair.items():
        np.testing.assert_array_equal(result.direction.sel(input=name), concept.direction)
        for variable in ("auc", "auc_low", "auc_high"):
            assert result[variable].dims == ("depth", "input")
            np.testing.assert_array_equal(result[variable].sel(input=name), concept[variable])
    # only what all have
    assert set(result.data_vars) == {"direction", "auc", "auc_low", "auc_high", "log_odds_per_unit"}


def test_several_concepts_keep_their_provenance(pair, tmp_path):
    lm.several(pair).to_netcdf(tmp_path / "pair.nc")
    with xr.open_dataset(tmp_path / "pair.nc") as stored:
        attrs, names = stored.attrs, stored.input.values.tolist()
    assert names == ["mood", "noise"]
    assert json.loads(attrs["concepts"]) == {name: c.attrs for name, c in pair.items()}
    assert attrs["model_fingerprint"] == pair["mood"].attrs["model_fingerprint"]
    assert attrs["history"].endswith("depthsys.lm.several")
    assert "method" not in attrs  # they differ in it
    assert attrs["warning"] == f"noise: {pair['noise'].attrs['warning']}"
    assert "warning" not in lm.several({"mood": pair["mood"]}).attrs


def test_several_takes_concepts_that_were_stored(pair, tmp_path):
    pair["noise"].to_netcdf(tmp_path / "noise.nc")  # whole numbers come back as numpy scalars
    with xr.open_dataset(tmp_path / "noise.nc") as stored:
        stored.attrs["when"] = np.array([1, 2])
        result = lm.several({"mood": pair["mood"], "noise": stored})
    assert json.loads(result.attrs["concepts"])["noise"]["when"] == [1, 2]
    assert json.loads(result.attrs["concepts"])["noise"]["seed"] == 0


@pytest.mark.parametrize(("angle", "passes"), [(1e-5, True), (1e-7, False)])
def test_directions_must_be_independent_at_every_depth(angle, passes):
    first, second = np.eye(3)[[0, 0]], np.eye(3)[[1, 0]]
    second[1] = [np.cos(angle), np.sin(angle), 0]
    both = {"first": given(first), "second": given(second)}
    if passes:
        ratio = np.linalg.svd(lm.several(both).direction[1], compute_uv=False)
        assert ratio[1] / ratio[0] == pytest.approx(angle / 2, rel=1e-3)
    else:
        with pytest.raises(ValueError, match=r"independent directions; .*e-08 < 1e-06 at depth 1"):
            lm.several(both)
        lm.several(both, rtol=1e-9)


def test_several_refuses_what_does_not_fit_together():
    v = np.eye(3)[[0, 1]]
    with pytest.raises(ValueError, match="at least one concept; got none"):
        lm.several({})
    with pytest.raises(ValueError, match=r"one size \(depth, feature\); got .*\(2, 3\).*\(1, 3\)"):
        lm.several({"a": given(v), "b": given(v[:1])})
    with pytest.raises(ValueError, match=r"one model; got the fingerprints .'a': 'x', 'b': 'y'"):
        lm.several({"a": given(v, model_fingerprint="x"), "b": given(v, model_fingerprint="y")})
    with pytest.raises(ValueError, match=r"one model; got the fingerprints .*None"):
        lm.several({"a": given(v, model_fingerprint="x"), "b": given(v)})
    many = {str(i): given(unit(np.array([[1.0, i], [1, i]]))) for i in range(3)}
    with pytest.raises(ValueError, match="as many directions as the model has features, 2; got 3"):
        lm.several(many)
    partly = v.copy()
    partly[0, 0] = np.nan  # all of a direction is unknown, or none
    for wrong, length in ((2 * v, "2"), (0 * v, "0"), (partly, "nan")):
        with pytest.raises(ValueError, match=f"length 1; got length {length} at depth 0 of 'b'"):
            lm.several({"a": given(v), "b": given(wrong)})


def test_several_refuses_what_is_no_mapping_of_concepts():
    concept = given(np.eye(3)[[0, 1]])
    with pytest.raises(TypeError, match="mapping from names to concepts; got a list"):
        lm.several([concept])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="got DataArray with dims None for 'direction'"):
        lm.several(concept)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"got Dataset with dims \('layer', 'feature'\) for 'a'"):
        lm.several({"a": concept.rename(depth="layer")})
    with pytest.raises(TypeError, match="for 3"):
        lm.several({3: concept})  # type: ignore[dict-item]
