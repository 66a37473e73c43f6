"""Every kind of layer: in the file, in the engine and back in Keras, with the outputs of the model."""

import numpy as np
import pytest

from deepcomp import runtime
from deepcomp.dcz import container, conversion
from tests.zoo import ZOO, fill, inputs_for, kinds_of


@pytest.mark.parametrize("name", ZOO)
def test_a_layer_does_in_a_file_and_in_the_engine_what_it_does_in_keras(name):
    model = fill(ZOO[name]())
    network = conversion.from_keras(model)
    assert {*kinds_of(name)} <= {layer.kind for layer in network.layers}
    data = container.dumps(network)
    read = container.loads(data)
    assert container.dumps(read) == data

    inputs = inputs_for(model, 19)
    expected = model(inputs).numpy()
    rebuilt = conversion.to_keras(read)
    np.testing.assert_allclose(rebuilt(inputs), expected, rtol=1e-6, atol=1e-6)

    engine = runtime.prepare(read, threads=1)
    size = np.abs(expected).max()
    np.testing.assert_allclose(engine(inputs), expected, rtol=1e-4, atol=1e-5 * size)
    np.testing.assert_allclose(engine(inputs[:1]), expected[:1], rtol=1e-4, atol=1e-5 * size)
