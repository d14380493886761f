"""Sphinx configuration: ``sphinx-build -W -b html docs docs/_build/html``."""

import configparser
import importlib
import inspect
import re
import shutil
import sys
from pathlib import Path

import manifold_resnet

DOCS = Path(__file__).parent
ROOT = DOCS.parent

project = "manifold-resnet"
author = "manifold-resnet contributors"
copyright = author
version = release = manifold_resnet.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.mathjax", "numpydoc", "myst_nb"]
exclude_patterns = ["_build", "_templates"]
templates_path = ["_templates"]
html_theme = "furo"
html_title = project
default_role = "autolink"
nitpicky = False

autosummary_generate = True
autodoc_typehints = "none"  # numpydoc's sections say more
numpydoc_show_class_members = False  # an nn.Module has a hundred inherited ones
numpydoc_xref_param_type = False
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the notebooks are committed with their outputs, and the tests run them


def write_api() -> None:
    """One page for each package with all of its public names, in ``docs/api``."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    folder = DOCS / "api"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    pages: list[str] = []
    seen: list[object] = []
    # the top last: what it has from a package below is described there
    packages = config["options"]["packages"].split()
    for name in reversed(packages):
        package = importlib.import_module(name)
        public = {n: getattr(package, n) for n in getattr(package, "__all__", ())}
        modules = [m.__name__ for m in public.values() if inspect.ismodule(m) and m.__name__ not in packages]
        names = [n for n, value in public.items() if not inspect.ismodule(value)]
        names = [n for n in names if not any(getattr(package, n) is value for value in seen)]
        seen += [getattr(package, n) for n in names]
        if not names:
            continue
        title = name.removeprefix("manifold_resnet.")
        # data has no docstring of its own: autosummary would show that of its type
        objects = [n for n in names if callable(getattr(package, n))]
        data = [n for n in names if n not in objects]
        lines = [title, "=" * len(title), "", f".. automodule:: {name}", "   :no-members:", ""]
        lines += [
            f".. currentmodule:: {name}",
            "",
            ".. autosummary::",
            "   :toctree: generated",
            "   :nosignatures:",
            "",
        ]
        lines += [f"   {n}" for n in objects]
        lines += [line for n in data for line in ("", f".. autodata:: {n}", "   :no-value:")]
        for module in modules:
            short = module.removeprefix("manifold_resnet.")
            lines += ["", short, "-" * len(short), "", f".. automodule:: {module}", "   :members:"]
        (folder / f"{title}.rst").write_text("\n".join(lines) + "\n", encoding="utf-8")
        pages.append(title)
    index = [
        "API reference",
        "=============",
        "",
        ".. toctree::",
        "   :maxdepth: 1",
        "",
        *(f"   {p}" for p in sorted(pages)),
    ]
    (folder / "index.rst").write_text("\n".join(index) + "\n", encoding="utf-8")


def copy_notebooks() -> None:
    """The notebooks, which lie beside the documentation, and a gallery of them, in ``docs/notebooks``."""
    folder = DOCS / "notebooks"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    notebooks = sorted((ROOT / "notebooks").glob("*.ipynb"))
    for notebook in notebooks:
        text = notebook.read_text(encoding="utf-8")
        (folder / notebook.name).write_text(text.replace("](../docs/", "](../"), encoding="utf-8")
    lines = ["# Notebooks", "", "Run by the tests, shown with the outputs they had.", ""]
    if notebooks:
        lines += ["```{toctree}", ":maxdepth: 1", "", *(n.stem for n in notebooks), "```"]
    (folder / "index.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def relink(app, docname, source) -> None:
    """Lead to the copies of the notebooks."""
    source[0] = source[0].replace("](../notebooks/", "](notebooks/")


def bring_references(app, what, name, obj, options, lines) -> None:
    """Give a docstring the references that it cites from its module's."""
    text = "\n".join(lines)
    cited = set(re.findall(r"\[(\d+)\]_", text))
    module = sys.modules.get(getattr(obj, "__module__", None) or "")
    if what == "module" or not cited or "References\n------" in text or module is None:
        return
    _, _, references = inspect.getdoc(module).partition("References\n----------\n")
    found = [r for r in re.split(r"\n(?=\.\. \[)", references.strip()) if re.match(r"\.\. \[(\d+)\]", r)[1] in cited]
    section = ["", "References", "----------", *"\n".join(found).splitlines(), ""]
    place = lines.index("Examples") if "Examples" in lines else len(lines)
    lines[place:place] = section


def setup(app) -> None:
    """Generate what is not written by hand."""
    write_api()
    copy_notebooks()
    app.connect("source-read", relink)
    app.connect("autodoc-process-docstring", bring_references, priority=1)
