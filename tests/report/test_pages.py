"""Tables as text, on pages and on the console."""

import pytest

from depthsys.report import Report, Screen, Table, markdown
from depthsys.report.page import between, replaced, update
from depthsys.report.table import narrow

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


def test_the_console_cuts_no_word_of_a_heading(capsys):
    words = ("layer", *(f"right by reader {n}" for n in range(9)), "effectiveness of all")
    screen = Screen()
    screen.show(Report([Table(words, [("0", *["0.123"] * 10)])], []))
    shown = screen.text()
    assert shown.split().count("effectiveness") == 1
    assert shown.split().count("reader") == 9
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= 100


def test_a_table_that_no_console_holds_is_shown_in_parts():
    header = ("layer", *(f"agreement{n:02d}" for n in range(20)))
    table = Table(header, [("0", *map(str, range(20))), ("1", *["-"] * 20)], left=("layer",))
    parts = narrow(table)
    assert [part.header[0] for part in parts] == ["layer"] * len(parts)
    assert [name for part in parts for name in part.header[1:]] == list(header[1:])
    assert [cell for part in parts for cell in part.rows[0][1:]] == list(map(str, range(20)))
    assert all(part.rows[1][0] == "1" and part.left == ("layer",) for part in parts)
    screen = Screen()
    screen.show(Report(parts, []))
    assert screen.text().split().count("layer") == len(parts) > 1
    assert "…" not in screen.text()
    assert narrow(TABLE) == [TABLE]
    # room for seven in a part: of nine none is left alone
    header = header[:9]
    assert [len(part.header) for part in narrow(Table(header, []))] == [5, 5]


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
