"""The example programs run, with few steps."""

import pytest

from examples import own_fit, regression, text


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
