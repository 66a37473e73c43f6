"""The reference pages: every public name has a docstring, and the page of options is up to date."""

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import deepcomp
from deepcomp import options

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_of_options_is_up_to_date():
    page = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    assert page == options.reference_page(), "run make docs"


def summary(docstring: str | None) -> str:
    """The first line of a docstring, if it is a sentence with nothing but an empty line below it; else nothing."""
    first, *rest = (docstring or "").splitlines() or [""]
    return first if first.endswith((".", ":")) and (not rest or not rest[0].strip()) else ""


def without_summary(path: Path) -> Iterator[str]:
    """A module, or its public classes and functions, as far as they have no summary line."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name[0] != "_"]
    for node in (tree, *inside):
        if not summary(ast.get_docstring(node)):
            yield f"{path.relative_to(ROOT)}: {getattr(node, 'name', 'the module')}"


def test_names_of_the_package_and_their_methods_have_a_summary_line():
    found = {name: getattr(deepcomp, name) for name in deepcomp.__all__}
    for owner, kind in list(found.items()):
        if inspect.isclass(kind):
            methods = {name: one for name, one in vars(kind).items() if inspect.isfunction(one) and name[0] != "_"}
            found |= {f"{owner}.{name}": getattr(kind, name) for name in methods}
    assert len(found) > len(deepcomp.__all__)
    assert [name for name, one in found.items() if not summary(inspect.getdoc(one))] == []


def test_every_module_class_and_function_has_a_summary_line():
    missing = [name for path in sorted((ROOT / "deepcomp").rglob("*.py")) for name in without_summary(path)]
    assert missing == []
