"""The benchmark of the defaults: what it measures, its medians and its exit status."""

import keras
import numpy as np
import pytest

from benchmarks import defaults
from deepcomp import data


@pytest.fixture
def files(tmp_path):
    """A network that tells bright bytes from dark ones, and data of which it gets every tenth example wrong."""
    x = np.random.default_rng(0).integers(0, 256, (200, 6)).astype(np.uint8)
    y = (x[:, 0] > 127).astype(int)
    y[::10] = 1 - y[::10]
    np.savez(tmp_path / "data.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(2)], name="bright")
    model.set_weights([np.eye(6, 1) * [0, 20 / 255], np.array([0, -10])])
    model.save(tmp_path / "model.keras")
    return str(tmp_path / "model.keras"), str(tmp_path / "data.npz")


def test_errors_are_those_of_inputs_as_the_network_learned_them(files):
    model = defaults.opening.load(files[0])
    assert defaults.error_of(model, data.load(files[1])) == pytest.approx(10.0)


def test_a_median_below_the_seeds_and_a_status(files, monkeypatch, capsys):
    errors = {0: (10.0, 9.0, 11.0), 1: (10.0, 10.0, 10.5), 2: (10.0, 9.5, 9.0)}

    def row(name, source, seed):
        full, pruned, shared = errors[seed]
        figures = {"full": full, "pruned": pruned, "shared": shared, "lost": shared - full, "seconds": 3.0}
        return {"model": name, "seed": str(seed), **figures}

    monkeypatch.setattr(defaults, "row_of", row)
    monkeypatch.setattr("sys.argv", ["defaults.py", "a", "b"])
    assert defaults.main() == 1
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[-2] == ["a", "median", "10.00", "9.50", "10.50", "0.50", "3"]
    errors[1] = (10.0, 10.0, 10.0)
    assert defaults.main() == 0


def test_mistakes_are_one_line(files, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["defaults.py", files[0]])
    with pytest.raises(SystemExit, match="2"):
        defaults.main()
    assert "give each model its data" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["defaults.py", "nonesuch", files[1]])
    assert defaults.main() == 2
    assert capsys.readouterr().err.startswith("defaults.py: No network 'nonesuch'")
