"""Formulas as MathML, made by docutils: browsers draw it themselves, and nothing is fetched."""

import re

from docutils import nodes
from docutils.utils.math import latex2mathml
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

_ACCENT = re.compile(r"\\(bar|hat|tilde|dot|widehat)\s*(\{[^{}]*\}|\\[A-Za-z]+|[A-Za-z])")


def mathml(tex: str, *, block: bool) -> str:
    """A formula; ExtensionError, with the formula, where docutils does not know a command."""
    # docutils sets the index of an accented letter below it, unless something is between them
    tex = _ACCENT.sub(r"\\\1{\2}{}", tex.strip())
    try:
        return latex2mathml.tex2mathml(tex, as_block=block)
    except Exception as error:  # docutils raises MathError, and what its parser runs into
        raise ExtensionError(f"no MathML for {tex!r}: {error}") from error


def inline(self, node: nodes.math) -> None:
    """Write a formula into a line of text."""
    self.body.append(mathml(node.astext(), block=False))
    raise nodes.SkipNode


def displayed(self, node: nodes.math_block) -> None:
    """Write a formula on a line of its own; a wide one scrolls."""
    self.body.append(f'<div class="math-block">{mathml(node.astext(), block=True)}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict:
    """Make it the renderer of formulas."""
    app.add_html_math_renderer("mathml", (inline, None), (displayed, None))
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
