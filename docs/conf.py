"""How Sphinx builds the site: `make docs`. It needs no GPU and no extra but `docs`."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]

import gpunn  # noqa: E402

project = "gpunn"
author = "The gpunn founders"
copyright = "the gpunn founders, MIT licence"
release = version = gpunn.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "api",
    "sources",
]
exclude_patterns = ["_build", "_ext"]
default_role = "py:obj"  # `names` in docstrings are links where there is something to link to

# ---- Markdown ------------------------------------------------------------------------------------

myst_enable_extensions = ["colon_fence", "deflist", "attrs_inline"]
myst_heading_anchors = 3

# ---- the reference -------------------------------------------------------------------------------

# Not scikit-learn: its base classes shape the signatures of the estimators.
autodoc_mock_imports = ["PIL", "onnx", "onnxruntime"]
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say what is taken, with shapes
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
# A thousand entries in the contents, copied for each page, would take longer than all the rest;
# each section of the reference begins with a table of its names.
toc_object_entries = False

# What a page or a docstring calls gpunn.… must exist; other names need not lead anywhere.
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(?!gpunn\.).*")]

# ---- how it looks --------------------------------------------------------------------------------

html_theme = "furo"
pygments_dark_style = "github-dark"
html_title = f"gpunn {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#3d6f00", "color-brand-content": "#3d6f00"},
    "dark_css_variables": {"color-brand-primary": "#a3d955", "color-brand-content": "#a3d955"},
}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
