import keras
import pytest

from benchmarks import callbacks


@pytest.mark.slow
def test_both_parts_run_on_little(capsys, monkeypatch, without_xla):
    def small():
        layers = [keras.layers.Conv2D(2, 3, strides=8), keras.layers.Flatten(), keras.layers.Dense(10, "softmax")]
        return keras.Sequential([keras.Input((32, 32, 3)), *layers])

    assert callbacks.resnet_8().count_params() == 78_666
    monkeypatch.setattr(callbacks, "resnet_8", small)
    callbacks.main(["--steps", "3", "--batch", "4", "--turns", "1"])
    callbacks.main(["--accuracy", "--steps", "4", "--seeds", "1"])
    shown = capsys.readouterr().out
    assert "sharing" in shown
    assert "mean difference" in shown
