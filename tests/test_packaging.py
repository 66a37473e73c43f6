"""The package as it is installed: nothing is forgotten, and the wheel works by itself."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deepcomp.experiment import recipe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
# What the base installation brings: the dependencies, and what these import.
BASE = ["numpy", "numba", "llvmlite"]
USE = """
import runpy, sys
wheel, base, file = sys.argv[1:]
sys.path += [wheel, base]

import deepcomp
import numpy as np
from deepcomp.experiment import recipe

assert deepcomp.__file__.startswith(wheel), deepcomp.__file__
outputs = deepcomp.load(file)(np.zeros((3, 28, 28, 1), np.float32))
print(outputs.shape, outputs.dtype, np.isfinite(outputs).all())
print(recipe.load(recipe.find("reference")).name, recipe.FOLDER.is_relative_to(wheel))
print({"tensorflow", "keras", "sklearn", "matplotlib"} & set(sys.modules))
sys.argv = ["deepcomp", "inspect", file]
runpy.run_path(wheel + "/bin/deepcomp", run_name="__main__")
"""


def test_every_package_is_listed():
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "deepcomp").rglob("*.py")}
    packages = {".".join(folder.parts) for folder in folders} | {"deepcomp.recipes"}
    listed = PROJECT["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(packages)


def test_the_base_dependencies_are_those_that_run_a_file():
    assert [line.split(">=")[0] for line in PROJECT["project"]["dependencies"]] == ["numpy", "numba"]


def run(*command):
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A folder where the wheel alone is installed. It is built from a copy, for setuptools writes into its source."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("deepcomp", "recipes"):
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    options = ["--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    run("-m", "pip", "wheel", *options, "--no-build-isolation", "--wheel-dir", folder, folder / "source")
    (file,) = folder.glob("*.whl")
    run("-m", "pip", "install", *options, "--target", folder / "installed", file)
    return folder / "installed"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with links to the base dependencies, and to nothing else that this environment has."""
    folder = tmp_path_factory.mktemp("base")
    names = BASE if sys.version_info >= (3, 11) else [*BASE, "tomli"]
    for name in names:
        package = Path(importlib.util.find_spec(name).origin).parent
        (folder / name).symlink_to(package)
        libraries = package.with_name(f"{name}.libs")
        if libraries.is_dir():
            (folder / libraries.name).symlink_to(libraries)
    return folder


def test_the_wheel_has_every_module_and_recipe(wheel):
    def names(folder, *patterns):
        return sorted(path.relative_to(folder) for pattern in patterns for path in folder.rglob(pattern))

    patterns = ("*.py", "py.typed", "*.c", "*.mjs", "*.html", "*.css")
    assert names(wheel / "deepcomp", *patterns) == names(ROOT / "deepcomp", *patterns)
    assert names(wheel / "deepcomp" / "recipes", "*.toml") == names(recipe.FOLDER, "*.toml")
    assert not (wheel / "recipes").exists()


@pytest.mark.slow  # All kernels are compiled anew.
def test_the_wheel_runs_a_file_with_its_base_dependencies_alone(wheel, base):
    # Without -S the environment's packages would be found, without -I those of PYTHONPATH.
    output = run("-I", "-S", "-c", USE, wheel, base, ROOT / "models" / "lenet-300-100.dcz")
    first, second, third, *inspected = output.splitlines()
    assert first == "(3, 10) float32 True"
    assert second == "reference True"
    assert third == "set()"
    assert any("overhead" in line for line in inspected)
