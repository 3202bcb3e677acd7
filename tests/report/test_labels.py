"""Words beside marks."""

import pytest

from depthsys.report.html.labels import Box, Label, beside

FRAME = Box(0, 0, 300, 200)


def test_words_keep_clear_of_the_line_through_their_mark():
    """A line that rises to the right goes where words stand first."""
    (label,) = beside([("as it is", (100, 100))], [[(100, 100), (200, 60)]], FRAME)
    assert label.box.length_of((100, 100), (200, 60)) == 0
    assert label.box.inside(FRAME)
    (free,) = beside([("as it is", (100, 100))], [[(100, 100)]], FRAME)
    assert (free.x, free.y) == (107, 95)


def test_words_of_near_marks_do_not_lie_on_each_other():
    near = [("× 1", (100.0, 100.0)), ("× −1", (110.0, 98.0))]
    first, second = beside(near, [[at for _, at in near]], FRAME)
    assert not first.box.meets(second.box)


def test_words_for_which_there_is_no_room_are_left_out():
    crowd = [("the same place", (100.0, 100.0)) for _ in range(40)]
    found = beside(crowd, [], FRAME)
    assert 1 < len(found) <= 8
    assert not any(a.box.meets(b.box) for i, a in enumerate(found) for b in found[:i])


@pytest.mark.parametrize("corner", [(299, 1), (299, 199), (1, 199), (1, 1)])
def test_words_stay_in_the_frame(corner):
    (label,) = beside([("as it is", corner)], [[corner]], FRAME)
    assert label.box.inside(FRAME)


def test_how_much_of_a_line_lies_in_a_box():
    box = Box(0, 0, 10, 10)
    assert box.length_of((-5, 5), (15, 5)) == pytest.approx(10)
    assert box.length_of((5, 5), (5, 30)) == pytest.approx(5)
    assert box.length_of((-5, 12), (15, 12)) == 0
    assert box.length_of((11, -5), (11, 15)) == 0
    assert Label("abc", 10, 10, "end").box.right == 10
