"""What the README and the pages of docs/ show and name must exist, and the README's code must run."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from deepcomp import options

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pictures_and_links_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    found = [target.partition("#")[0] for target in targets if not target.startswith("http")]
    assert [target for target in found if target and not (page.parent / target).exists()] == []


def test_commands_name_files_and_targets_that_exist():
    scripts = set(re.findall(r"python ((?:benchmarks/)?\w+\.py)", README))
    assert scripts >= {"train_full.py", "prune.py", "quantize.py", "deploy.py"}
    assert [script for script in scripts if not (ROOT / script).is_file()] == []
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^    make (\w+)", README, re.MULTILINE) + re.findall(r"`make (\w+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_nothing_is_left_to_fill_in_and_it_is_short():
    assert not re.search(r"@[A-Z_]+@|TODO|XXX", README)
    assert README.count("\n") <= 200


def test_the_reference_page_of_options_is_that_of_the_code():
    assert (ROOT / "docs" / "options.md").read_text(encoding="utf-8") == options.reference_page()


def test_five_commands_lead_from_nothing_to_a_c_program_and_a_page(tmp_path):
    """`make run` leaves `model.dcz`, which takes minutes; a file of `models/` stands for it here."""
    block = re.search(r"## Ship it\n\n((?:    .*\n)+)", README)[1]
    first, *others = [line.strip() for line in block.splitlines()]
    assert len(others) == 4
    dry = [*first.split(), "-n", "--no-print-directory"]
    planned = subprocess.run(dry, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert planned.splitlines()[-1].endswith("python deploy.py --run runs/auto")
    if not shutil.which("cc"):
        pytest.skip("there is no C compiler")
    (tmp_path / ".venv/bin").mkdir(parents=True)
    command = tmp_path / ".venv/bin/deepcomp"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m deepcomp "$@"\n')
    command.chmod(0o755)
    (tmp_path / "runs/auto/deployed").mkdir(parents=True)
    shutil.copy(ROOT / "models/lenet-5-small.dcz", tmp_path / "runs/auto/deployed/model.dcz")
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    outputs = [
        subprocess.run(
            one, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        ).stdout
        for one in others
    ]
    assert [line.split()[0] for line in outputs[2].splitlines() if "<-" in line] == ["7"]
    assert outputs[3].startswith("runs/demo.html: ")
    assert "1,542 bytes" in (tmp_path / "runs/demo.html").read_text(encoding="utf-8")


def test_the_code_of_the_readme_runs(digits, tmp_path, monkeypatch):
    """Every block, one after the other, with a small network and few steps."""
    import keras

    monkeypatch.chdir(tmp_path)
    x, y = digits.x_train.astype(np.float32) / 255, digits.y_train
    model = keras.Sequential([keras.Input((28, 28, 1)), keras.layers.Flatten(), keras.layers.Dense(10)])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    names = {"model": model, "x": x, "y": y, "images": x[:3]}
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 4
    code = "\n".join(blocks)
    for shown, short in (
        ("minutes=30", "steps=4"),
        ("steps=2000", "steps=4"),
        ("steps=500", "steps=4"),
        ("end=2000", "end=4"),
        ("epochs=", "epochs=1 or "),
    ):
        assert shown in code
        code = code.replace(shown, short)
    exec(code, names)
    assert names["outputs"].shape == (3, 10)
    assert np.allclose(names["outputs"], names["model"](x[:3]), atol=1e-4)
