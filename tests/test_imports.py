"""Imports run one way, what runs a file imports no framework, and public functions take few arguments."""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import deepcomp

PACKAGE = Path(deepcomp.__file__).parent
# Modules and rooms of the package. Each imports its own level and those above it, never one below it.
LEVELS = [
    {"errors", "files", "tables", "drawing", "compiled"},
    {"options", "deepcomp"},
    {"pruning", "quantization"},
    {"keras_private"},
    {"dcz"},
    {"runtime"},
    {"export"},
    {"keras2", "opening", "models", "data", "sparse", "training", "second_order"},
    {"work"},
    {"compression", "callbacks", "search", "converters"},
    {"experiment"},
    {"__main__"},
]
KERAS_LEVEL = next(number for number, names in enumerate(LEVELS) if "models" in names)
FRAMEWORKS = {"keras", "tensorflow"}
# Compiled code calls these: they take arrays and numbers one by one.
KERNELS = {"deepcomp.runtime.kernels", "deepcomp.runtime.vectors"}


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TREES = {module_name(path): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}


def room(module: str) -> str:
    """The first name below the package, `dcz` for `deepcomp.dcz.coding`; the package itself is `deepcomp`."""
    return module.split(".")[:2][-1]


def level(module: str) -> int:
    """The place of a module's room in the table; a module without one is at the top."""
    return next((number for number, names in enumerate(LEVELS) if room(module) in names), 0)


def executed(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below `node`, without those that only a type checker reads."""
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)):
            yield child
            yield from executed(child)


def imported(tree: ast.AST) -> Iterator[str]:
    """The modules that a module imports, at its top or inside functions."""
    for node in executed(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in TREES else node.module


def test_every_module_has_its_level():
    rooms = {room(module) for module in TREES}
    assert rooms - set().union(*LEVELS) == set()


def test_no_import_runs_upwards():
    upwards = [
        f"{module} imports {name}"
        for module, tree in TREES.items()
        for name in imported(tree)
        if name in TREES and level(name) > level(module)
    ]
    assert upwards == []


def test_no_modules_import_each_other():
    graph = {module: {name for name in imported(tree) if name in TREES} for module, tree in TREES.items()}
    graphlib.TopologicalSorter(graph).prepare()  # It raises CycleError with the modules of a circle.


def test_below_the_keras_level_conversion_alone_imports_a_framework():
    found = {
        module
        for module, tree in TREES.items()
        if level(module) < KERAS_LEVEL and FRAMEWORKS & {name.split(".")[0] for name in imported(tree)}
    }
    found = {module for module in found if not module.startswith("deepcomp.dcz.conversion.")}
    assert found == {"deepcomp.dcz.conversion", "deepcomp.keras_private"}
    importers = {module for module, tree in TREES.items() if "deepcomp.keras_private" in imported(tree)}
    below = {module.split(".")[2] for module in importers if level(module) < KERAS_LEVEL}
    assert below == {"conversion"}


def test_a_file_runs_without_a_framework(network, tmp_path):
    kernel = network.get_layer("dense").kernel
    kernel.assign(np.sign(kernel.numpy()) / 4)
    deepcomp.save(network, tmp_path / "small.dcz")
    program = (
        "import sys, numpy as np, deepcomp, deepcomp.data, deepcomp.pruning, deepcomp.experiment.run_folder\n"
        "outputs = deepcomp.load(sys.argv[1])(np.zeros((2, 28, 28, 1), np.float32))\n"
        "print(outputs.shape, {'tensorflow', 'keras', 'sklearn', 'matplotlib', 'mlxtend'} & set(sys.modules))\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "small.dcz")]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "(2, 10) set()\n"


def public_functions(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, ast.arguments]]:
    for node in body:
        if isinstance(node, ast.FunctionDef) and (node.name in ("__init__", "__call__") or node.name[0] != "_"):
            yield f"{prefix}.{node.name}", node.args
        elif isinstance(node, ast.ClassDef) and node.name[0] != "_":
            yield from public_functions(node.body, f"{prefix}.{node.name}")


def test_public_functions_take_at_most_eight_named_parameters():
    too_many, unnamed = {}, []
    for module, tree in TREES.items():
        if module in KERNELS or module.split(".")[-1][0] == "_":
            continue
        for name, arguments in public_functions(tree.body, module):
            own = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
            count = sum(argument.arg not in ("self", "cls") for argument in own)
            if count > 8:
                too_many[name] = count
            if arguments.kwarg:
                unnamed.append(f"{name}(**{arguments.kwarg.arg})")
    assert (too_many, unnamed) == ({}, [])
