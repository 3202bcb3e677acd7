"""Sphinx configuration of the documentation site: `make docs` writes it to out/site.

Nothing is fetched while it is built or read: no intersphinx, no web fonts, formulas as MathML.
"""

import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS.parent), str(DOCS / "_extensions")]

from depthsys import __version__  # noqa: E402

project = "depthsys"
author = "The depthsys developers"
copyright = "The depthsys developers, BSD-3-Clause"
release = version = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "doctest_pages",
    "mathml",
    "shared_lines",
]
exclude_patterns = ["_extensions", "_templates", "conftest.py"]
templates_path = ["_templates"]
nitpicky = True

# ------------------------------------------------------------------------------ pages
myst_enable_extensions = ["amsmath", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4
highlight_language = "text"
suppress_warnings = ["ref.footnote"]  # the References of numpydoc are not referred to

# The notebook's outputs are stored, with the real model that made them; the gallery is drawn here.
nb_execution_mode = "off"
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_output_stderr = "remove"
nb_merge_streams = True

# ------------------------------------------------------------------------------ docstrings
# names in single backticks become links where there is something to link to
default_role = "py:obj"
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autosummary_generate = True
autosummary_imported_members = True
napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False
napoleon_use_rtype = False
python_use_unqualified_type_names = True
add_module_names = False
nitpick_ignore_regex = [
    ("py:obj", r".*"),  # single backticks: often arguments, files, commands
    ("py:class", r"(?!depthsys\.).*"),  # types of other packages: nothing is fetched to find them
    ("py:exc", r".*"),
]

# ------------------------------------------------------------------------------ looks
html_theme = "furo"
html_math_renderer = "mathml"
html_title = f"depthsys {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_theme_options = {
    "light_css_variables": {
        "color-brand-primary": "#0072B2",
        "color-brand-content": "#0072B2",
    },
    "dark_css_variables": {
        "color-brand-primary": "#56B4E9",
        "color-brand-content": "#56B4E9",
    },
}
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True
