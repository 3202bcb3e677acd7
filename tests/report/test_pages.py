"""Tables as text, on pages and on the console."""

import pytest

from depthsys.report import Report, Screen, Table, markdown
from depthsys.report.page import between, replaced, update

TABLE = Table(
    ("name", "value"),
    [("a", "1"), ("b",)],
    title="Two rows",
    caption="said below",
    left=("name",),
    last=frozenset({0}),
)


def test_markdown():
    table = Table(("name", "value"), [("a", "1"), ("b", "22")])
    assert markdown(table) == "| name | value |\n| --- | --- |\n| a | 1 |\n| b | 22 |"


def test_the_console_shows_title_cells_and_caption_and_remembers_them(capsys):
    screen = Screen()
    with screen.step("work [of one kind]"):
        pass
    screen.show(Report([TABLE], ["not shown"]))
    screen.say("[a line] " + 30 * "words ")
    lines = screen.text().splitlines()
    assert capsys.readouterr().out.splitlines() == lines
    assert lines[0].endswith("(0.0 s)")
    rows = [line.split() for line in lines]
    for row in (["Two", "rows"], ["name", "value"], ["a", "1"], ["b"], ["said", "below"]):
        assert row in rows
    assert rows.index(["b"]) == rows.index(["a", "1"]) + 2  # a line between the groups
    assert lines[-1] == "[a line] " + 30 * "words "
    assert "not shown" not in screen.text()


def test_parts_of_a_page_are_replaced_between_their_markers(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- a -->\nold\nlines\n<!-- end of a -->\nafter\n")
    update(page, {("<!-- a -->", "<!-- end of a -->"): "new\né"})
    text = page.read_text(encoding="utf-8")
    assert text == "before\n<!-- a -->\nnew\né\n<!-- end of a -->\nafter\n"
    assert between(text, "<!-- a -->", "<!-- end of a -->") == "new\né"


@pytest.mark.parametrize("text", ["<!-- a -->", "<!-- a --><!-- a --><!-- b -->"])
def test_a_marker_that_is_not_there_once_is_refused(text):
    with pytest.raises(ValueError, match=r"must hold '<!-- . -->' once; got"):
        replaced(text, "<!-- a -->", "<!-- b -->", "new")
