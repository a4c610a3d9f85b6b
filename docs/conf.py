"""Sphinx configuration. `make docs` builds with warnings as errors and reaches no network."""

import re
import shutil
from importlib.metadata import version as installed_version
from pathlib import Path

project = "ttnet"
author = "The ttnet developers"
project_copyright = "2026, The ttnet developers"
release = installed_version("ttnet")
version = release

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]

html_theme = "furo"
html_title = f"ttnet {release}"
html_show_sphinx = False

myst_enable_extensions = ["dollarmath", "deflist", "colon_fence"]
myst_heading_anchors = 3

nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_execution_excludepatterns = ["notebooks/*"]  # shown with the outputs they are committed with
nb_merge_streams = True

autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "ignore-module-all": True, "show-inheritance": True}
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

# A name in single backquotes in a docstring is code.
default_role = "code"

_SECTION = re.compile(r"(Args|Attributes|Examples?|Notes?|Raises|References|Returns|Warnings?|Yields):$")
_GLUED = re.compile(r"(?<!`)`([^`\n]+)`(?=\w)")  # `nn.Parameter`s, which docutils does not take for code
_BAR = re.compile(r"`[^`]*`|\|")  # |x| is a magnitude, not a substitution


def _prepare_docstring(_app, what: str, _name, _obj, _options, lines: list[str]) -> None:
    """Make a literal block of each network diagram or formula in the description of a docstring.

    A paragraph is one where it is indented, or where it draws a bond (`--`). The sections (`Args:` and so on)
    are left to napoleon, and so is whatever a directive, a list or a `::` introduces.
    """
    out: list[str] = []
    is_diagram = is_description = True
    for line in lines:
        text = line.strip()
        is_description = is_description and not _SECTION.match(line)
        if is_description and text and (not out or not out[-1].strip()):
            before = next((earlier.strip() for earlier in reversed(out) if earlier.strip()), "")
            is_introduced = before.endswith("::") or before.startswith(("- ", "* ", ".. ", ">>>"))
            continues = is_diagram and out and line.startswith(" ")
            is_diagram = (
                (line.startswith(" ") or "--" in line) and not is_introduced and not text.startswith(">>>")
            )
            if is_diagram and not continues:
                out.extend(["::", ""])
        if is_description and is_diagram and text:
            out.append(f"    {line}")
        elif text.startswith((">>>", "...")):
            out.append(line)
        else:
            line = _BAR.sub(lambda match: match[0] if match[0] != "|" else r"\|", line)
            out.append(_GLUED.sub(r"`\1`\\ ", line))
    if what in ("attribute", "data", "property") and out:
        # Napoleon takes what stands before a colon in the first line for a type: put it on the next line.
        head, colon, tail = out[0].partition(":")
        out[:1] = [f"{head}\\", colon + tail] if colon else [head]
    lines[:] = out


def _copy_notebooks(app, _config) -> None:
    """Bring the notebooks of `examples` into the sources, where Sphinx looks for pages."""
    folder = Path(app.srcdir) / "notebooks"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for notebook in Path(app.srcdir).parent.glob("examples/*.ipynb"):
        shutil.copy2(notebook, folder)


def setup(app) -> None:
    """Register the hooks of this project, ahead of napoleon's."""
    app.connect("config-inited", _copy_notebooks)
    app.connect("autodoc-process-docstring", _prepare_docstring, priority=400)
