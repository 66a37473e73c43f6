"""The example programs run, with few steps."""

import pytest

from examples import own_fit, regression, text


def test_own_fit(tmp_path):
    assert own_fit.main(epochs=1, path=str(tmp_path / "own.dcz")) > 0.5


def test_regression(tmp_path):
    before, after = regression.main(steps=60, path=str(tmp_path / "regression.dcz"))
    assert after < before + 0.6


@pytest.mark.slow
def test_text(tmp_path):
    assert text.main(steps=12, path=str(tmp_path / "text.keras")) > 0.4
    assert (tmp_path / "text.keras").is_file()
