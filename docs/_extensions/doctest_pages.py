"""Pages as they are in the repository, for Sphinx.

What is written there as GitHub and pytest want it differs here: an example that stands bare between
paragraphs becomes a block of code; a link out of docs becomes plain words (the site holds the docs
alone); the page `readme` is README.md. A line `name?` of a table of contents counts if there is
such a page.
"""

import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from sphinx.application import Sphinx

README = Path(__file__).parents[2] / "README.md"
# a line that begins an example, up to the next empty line; pages without fences around them
_EXAMPLE = re.compile(r"(?m)^>>> .*(?:\n.+)*")
_FENCE = re.compile(r"(?ms)^(```+|~~~+).*?^\1[ \t]*$")
_OPTIONAL = re.compile(r"(?m)^(\S+)\?\n")
_LINK = re.compile(r"(!?)\[([^\]\n]*)\]\(([^)\s#:]+)(#[^)\s]*)?\)")


def outside_fences(text: str, change: Callable[[str], str]) -> str:
    """The text, changed where it is not in a fence."""
    parts, end = [], 0
    for fence in _FENCE.finditer(text):
        parts += [change(text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, change(text[end:])])


def fenced(text: str) -> str:
    """Bare examples in fences."""
    return _EXAMPLE.sub(lambda example: f"```pycon\n{example[0]}\n```", text)


def linked(text: str, place: str) -> str:
    """Links from a page in ``place``, a folder of the repository, to files of the site.

    To README.md they lead to its page; to what lies outside docs they become words.
    """

    def rewritten(link: re.Match) -> str:
        image, words, path, anchor = link[1], link[2], link[3], link[4] or ""
        steps: list[str] = []
        for step in PurePosixPath(place, path).parts:
            steps = steps[:-1] if step == ".." else [*steps, step]
        target = "/".join(steps)
        if target.startswith("docs/"):
            return f"{image}[{words}]({target.removeprefix('docs/')}{anchor})"
        if target == README.name:
            return f"[{words}](readme.md{anchor})"
        return f"`{target}`" if words.strip("`") == target else f"{words} (`{target}`)"

    return _LINK.sub(rewritten, text)


def read(app: Sphinx, page: str, source: list[str]) -> None:
    """What Sphinx reads of a Markdown page."""
    path = app.env.doc2path(page)
    if path.suffix != ".md":
        return

    def if_there(line: re.Match) -> str:
        return f"{line[1]}\n" if (path.parent / f"{line[1]}.md").exists() else ""

    source[0] = _OPTIONAL.sub(if_there, source[0])
    if "/" in page:
        return
    if page == "readme":
        app.env.note_dependency(str(README))
        text, place = README.read_text("utf-8"), ""
    else:
        text, place = outside_fences(source[0], fenced), "docs"
    source[0] = outside_fences(text, lambda part: linked(part, place))


def setup(app: Sphinx) -> dict:
    """Listen to every page that is read."""
    app.connect("source-read", read)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
