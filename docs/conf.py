"""How Sphinx builds the pages: ``make docs``. The source folder is the repository, so that links work there too."""

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # for a checkout that is not installed

from docutils import nodes
from sphinx import addnodes
from sphinx.util.nodes import make_refnode

import gradsurgery

project = "gradsurgery"
author = "The gradsurgery developers"
copyright = author
version = release = gradsurgery.__version__

root_doc = "docs/index"
include_patterns = ["docs/**.md", "README.md", "benchmarks/README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
exclude_patterns = [".*", "build", "dist", "runs", "examples", "gradsurgery", "integrations", "tests", "*.egg-info"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.napoleon", "sphinx_copybutton"]
nitpicky = True

html_theme = "furo"
html_title = "gradsurgery"
html_static_path = ["_static"]
html_extra_path = ["_extra"]  # index.html, which leads to the first page
html_css_files = ["pages.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#1b5e8c", "color-brand-content": "#1b5e8c"},
    "dark_css_variables": {"color-brand-primary": "#7cb7e0", "color-brand-content": "#7cb7e0"},
}

# Formulas need no network: one script that draws them as SVG, from a package, goes beside the pages.
_mathjax = importlib.util.find_spec("sphinx-mathjax-offline")
if _mathjax is None or not _mathjax.submodule_search_locations:
    raise ImportError('conf.py: sphinx-mathjax-offline must be installed. Run: pip install "gradsurgery[docs]"')
html_static_path.append(str(Path(_mathjax.submodule_search_locations[0]) / "static" / "mathjax" / "tex-svg.js"))
mathjax_path = "tex-svg.js"
mathjax3_config = {"options": {"enableMenu": False}}

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4

autodoc_class_signature = "mixed"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Guarantees", "params_style"), "Shape", "Cost"]
copybutton_exclude = ".linenos, .gp, .go"

# What signatures mention and no page describes: types of other libraries, and names for types in the code.
nitpick_ignore_regex = [
    ("py:.*", r"(collections|pathlib|typing|torch|numpy|pandas|sklearn)(\..*)?"),
    ("py:.*", r"(lightning|accelerate|transformers|matplotlib)(\..*)?"),
    ("py:class", r"Tensor|nn\.Module|ProcessGroup|Figure|Path|(pd\.)?DataFrame|tuple\[str|dict\[str"),
    ("py:class", r"(.*\.)?(AnyModule|AnyOptimizer|LossValues|LossesOf|MethodLike|Inputs|Scope)"),
    ("py:class", r"(.*\.)?(func\.Parameters|Agreement|Pairs|best_epoch\.Epoch|objective\.Objective)"),
    ("py:exc", r"NotFittedError"),
]


def find(environment: Any, name: str) -> str | None:
    """The object that a name stands for: one that ends like it, or has the same last part. None unless one fits."""
    known = [found for found, entry in environment.get_domain("py").objects.items() if not entry.aliased]
    if name in known:
        return name
    for tail in (name, name.rpartition(".")[2]):
        found = [candidate for candidate in known if f".{candidate}".endswith(f".{tail}")]
        if len(found) == 1:
            return str(found[0])
    return None


def resolve(app: Any, environment: Any, node: nodes.Element, contents: nodes.Element) -> nodes.Element | None:
    """Finds what a docstring names in short, or a signature by the module that it is defined in."""
    name = find(environment, node["reftarget"]) if node.get("refdomain") == "py" else None
    return None if name is None else link(app, node["refdoc"], name, contents)


def link(app: Any, page: str, name: str, contents: nodes.Element) -> nodes.Element:
    """A link to the place where an object is described."""
    place = app.env.get_domain("py").objects[name]
    return make_refnode(app.builder, page, place.docname, place.node_id, contents, name)


def link_code(app: Any, document: nodes.document, page: str) -> None:
    """Makes links of ``gs.UPGrad()`` and ``UPGrad`` in running text, where exactly one object is meant."""
    if page.startswith("docs/api"):
        return
    ours = page not in ("docs/libraries", "docs/migrating")  # there, a bare name may be another library's
    for code in list(document.findall(nodes.literal)):
        called = re.fullmatch(r"(gs\.[\w.]+|(?:\w+\.)?[A-Z]\w+)(?:\(.*\))?", code.astext())
        if not called or isinstance(code.parent, (nodes.reference, nodes.title, addnodes.pending_xref)):
            continue
        full = re.sub(r"^gs\.", "gradsurgery.", called[1])
        if (ours or full != called[1]) and (name := find(app.env, full)):
            code.replace_self(link(app, page, name, code.deepcopy()))


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("missing-reference", resolve)
    app.connect("doctree-resolved", link_code)
