"""Sphinx: `sphinx-build -W -b html docs docs/_build`. Nothing is downloaded, neither here nor by the pages."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_sphinx"), str(HERE.parent)]
# The kernel of the notebook finds this vae_lab, too.
os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])

from vae_lab import __version__

project, release = "vae_lab", __version__
copyright = author = "The vae_lab authors"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "sphinx_copybutton"]
extensions += ["docstrings", "experiments", "mathml"]  # those of _sphinx/
exclude_patterns = ["_build", "_sphinx"]
suppress_warnings = ["misc.highlighting_failure"]  # a listing that is no shell

html_theme = "furo"
html_title = "vae_lab"
html_static_path = ["_static"]
html_css_files = ["vae_lab.css"]
html_math_renderer = "mathml"
highlight_language = "bash"
default_role = "literal"
pygments_style, pygments_dark_style = "friendly", "monokai"

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "cache"  # a notebook is run again when its cells have changed
nb_execution_in_temp = True
nb_execution_timeout = 900
nb_execution_raise_on_error = True
nb_merge_streams = True

autodoc_default_options = {"members": True, "imported-members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # those of torch's classes are torch's
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
maximum_signature_line_length = 100
