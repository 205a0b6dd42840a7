"""Sphinx's settings: `sphinx-build -W docs build/docs` makes the site."""

from sphinx.application import Sphinx

import kdjax

project = "kdjax"
author = "the kdjax contributors"
version = release = kdjax.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["results", "examples"]

html_theme = "furo"
html_title = f"kdjax {release}"
html_static_path: list[str] = []
# Whoever reads a page without a network sees all of it: no fonts from elsewhere.
html_theme_options = {"top_of_page_buttons": []}

myst_enable_extensions = ["attrs_inline"]
myst_heading_anchors = 3  # links to headings work here as they do on GitHub

smartquotes_action = "D"  # dashes only: quotation marks are often Python's
default_role = "code"  # what stands between single backticks

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the signatures have them already
napoleon_google_docstring = True
napoleon_use_ivar = True


def show_examples(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Makes the indented lines of a module's docstring a block of code."""
    if what != "module":
        return
    for number in range(len(lines) - 1, 0, -1):
        indented, before = lines[number].startswith("    "), lines[number - 1]
        if indented and not before.strip():
            lines[number:number] = ["::", ""]


def setup(app: Sphinx) -> None:
    """Registers the function above."""
    app.connect("autodoc-process-docstring", show_examples)
