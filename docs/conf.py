"""The pages and the API reference: ``sphinx-build -W docs site``."""

import sys
from pathlib import Path

from mmcl.runtime.version import __version__

sys.path.insert(0, str(Path(__file__).parent))
from settings_page import settings_page

project, author, version, release = "mmcl", "The mmcl authors", __version__, __version__
copyright = "The mmcl authors, Apache-2.0"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["site"]
html_theme = "furo"
html_title = "mmcl"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
suppress_warnings = ["myst.xref_missing"]  # the README links to files that are no pages

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_type_aliases = {"Tensor": "Tensor"}
autodoc_inherit_docstrings = False  # of torch's modules
napoleon_google_docstring, napoleon_numpy_docstring = True, False
napoleon_use_ivar = True


def add_settings(app, page, source):
    """Append the settings to the introduction of their page."""
    if page == "settings":
        source[0] += settings_page()


def setup(app):
    app.connect("source-read", add_settings)
