"""What uint8 inputs mean to an engine: 0..1, unless the network says otherwise."""

import keras
import numpy as np

from deepcomp import runtime
from deepcomp.dcz import conversion


def test_uint8_is_scaled_unless_the_network_rescales():
    """A network that says itself what its inputs mean takes uint8 as it is; so does one marked as unscaled."""
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    plain = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    rescaled = keras.Sequential([keras.Input((4,)), keras.layers.Rescaling(0.5), keras.layers.Dense(2)])
    for model, factor in ((plain, 1 / 255), (rescaled, 1)):
        engine = runtime.prepare(conversion.from_keras(model))
        assert np.allclose(engine(pixels), model(pixels.astype(np.float32) * np.float32(factor)), rtol=1e-5)
    unscaled = conversion.with_unscaled_inputs(conversion.from_keras(plain))
    assert np.allclose(runtime.prepare(unscaled)(pixels), plain(pixels.astype(np.float32)), rtol=1e-5)
    assert conversion.with_unscaled_inputs(unscaled) is unscaled
