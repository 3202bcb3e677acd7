"""Arrays of a stage by name and label."""

import numpy as np
import pytest

from depthsys.report.stage import Stage

STAGE = Stage({"a": (("x", "y"), np.eye(2)), "y": (("y",), np.array(["left", "right"]))})


def test_values_at_labels_over_the_dims_that_are_left():
    np.testing.assert_array_equal(STAGE.value("a", y="right"), [0.0, 1.0])
    np.testing.assert_array_equal(STAGE.value("a"), np.eye(2))


@pytest.mark.parametrize(
    ("name", "labels", "words"),
    [("b", {}, "b"), ("a", {"z": 1}, "a has no dim z"), ("a", {"y": "up"}, "up")],
)
def test_what_is_not_there_is_an_error(name, labels, words):
    with pytest.raises(KeyError, match=words):
        STAGE.value(name, **labels)
