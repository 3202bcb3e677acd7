import numpy as np
import pytest

from depthsys import lm
from tests.lm import whole_sequence
from tests.lm.conftest import LabelledIds, labelled_ids


def test_direction_is_the_normalised_difference_of_class_means(tiny):
    tokens = labelled_ids(12, 3)
    x = np.stack([whole_sequence.states(tiny.hf, ids) for ids in tokens.ids], axis=1)
    difference = x[:, tokens.labels == 1].mean(1) - x[:, tokens.labels == 0].mean(1)
    result = lm.mean_difference(tiny, tokens)
    distance = np.linalg.norm(difference, axis=1)
    np.testing.assert_allclose(result.distance, distance, rtol=1e-6)
    np.testing.assert_allclose(result.direction, difference / distance[:, None], atol=1e-6)
    assert "auc" not in result


def test_auc_counts_ordered_pairs_of_held_out_texts(tiny):
    tokens, held_out = labelled_ids(12, 3), labelled_ids(10, 4)
    result = lm.mean_difference(tiny, tokens, held_out=held_out)
    x = np.stack([whole_sequence.states(tiny.hf, ids) for ids in held_out.ids], axis=1)
    score = np.einsum("kpf,kf->kp", x, result.direction.values)
    positive, negative = score[:, held_out.labels == 1], score[:, held_out.labels == 0]
    pairs = positive[:, :, None] - negative[:, None, :]
    # equal token ids give equal states: ties count one half, and rounding must not break them
    tie = abs(pairs) < 1e-9
    auc = np.where(tie, 0.5, pairs > 0).mean(axis=(1, 2))
    clear = ~tie.any(axis=(1, 2))
    assert clear.any()
    np.testing.assert_allclose(result.auc[clear], auc[clear])


def test_sentiment_is_found_in_the_demo_model(demo_model, demo_texts):
    result = lm.mean_difference(demo_model, demo_texts.concept, held_out=demo_texts.held_out)
    assert float(result.auc[-1]) > 0.7
    assert result.attrs["classes"] == '["0", "1"]'


def test_classes_without_a_difference_or_without_texts_are_refused(tiny):
    same = LabelledIds([[3, 4]] * 4, np.arange(4) % 2)
    with pytest.raises(ValueError, match="must have different class means at every depth"):
        lm.mean_difference(tiny, same)
    one = LabelledIds([[3, 4], [5]], np.zeros(2, dtype=int))
    with pytest.raises(ValueError, match=r"texts of both classes; got \[2, 0\]"):
        lm.mean_difference(tiny, one)
