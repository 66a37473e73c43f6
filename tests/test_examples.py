"""The example programs run, with few steps."""

import shutil
import subprocess
from pathlib import Path

import pytest

import deepcomp
from examples import own_fit, regression, text

ROOT = Path(__file__).resolve().parent.parent


def test_own_fit(tmp_path):
    assert own_fit.main(epochs=1, path=str(tmp_path / "own.dcz")) > 0.5


def test_regression(tmp_path):
    report = regression.main(epochs=3, steps=100, path=str(tmp_path / "regression.dcz")).report
    assert report.chosen.metric <= 1.05 * report.limit.full + 1e-6
    assert (tmp_path / "regression.dcz").stat().st_size < report.dense_bytes / 2


@pytest.mark.slow
def test_text(tmp_path):
    report = text.main(epochs=1, steps=60, path=str(tmp_path / "text.dcz")).report
    assert report.chosen.metric >= report.limit.full - 0.005 - 1e-9
    assert (tmp_path / "text.dcz").is_file()


def test_classify_in_c(tmp_path):
    compiler = shutil.which("gcc") or shutil.which("cc")
    if not compiler:
        pytest.skip("there is no C compiler")
    header, source, _ = deepcomp.export_c(ROOT / "models" / "lenet-5-small.dcz", tmp_path)
    program, flags = tmp_path / "classify", ("-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", f"-I{tmp_path}")
    sources = (ROOT / "examples" / "classify.c", source)
    subprocess.run([compiler, *flags, *sources, "-lm", "-o", program], check=True)
    done = subprocess.run([program, ROOT / "examples" / "seven.pgm"], capture_output=True, text=True, check=True)
    assert [line.split()[0] for line in done.stdout.splitlines() if "<-" in line] == ["7"]
    (tmp_path / "small.pgm").write_text("P2 2 2 255 0 0 0 0")
    for wrong in (header, tmp_path / "none.pgm", tmp_path / "small.pgm"):
        failed = subprocess.run([program, wrong], capture_output=True, text=True)
        assert (failed.returncode, failed.stderr.count("\n")) == (2, 1)
