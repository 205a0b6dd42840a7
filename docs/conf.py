"""Sphinx's settings: `sphinx-build -W docs build/docs` makes the site."""

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

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the signatures have them already
napoleon_google_docstring = True
napoleon_use_ivar = True
