"""Every kind of layer: in the file, in the engine and back in Keras, with the outputs of the model."""

import keras
import numpy as np
import pytest
from keras import layers

from benchmarks.interpreter import interpret
from deepcomp import runtime
from deepcomp.dcz import container, conversion
from tests.zoo import SEVERAL, STAND_INS, TEXTS, WHOLE, ZOO, fill, inputs_for, kinds_of, several_inputs_for, texts_for


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


@pytest.mark.parametrize("name", STAND_INS)
def test_a_layer_that_does_in_inference_what_another_does_is_held_as_that(name):
    held_as_a_whole(STAND_INS[name])


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_network(name):
    held_as_a_whole(WHOLE[name])


def held_as_a_whole(make):
    model = fill(make())
    network = container.loads(container.dumps(conversion.from_keras(model)))
    inputs = inputs_for(model, 19)
    expected = model(inputs).numpy()
    assert np.array_equal(conversion.to_keras(network)(inputs), expected)
    size = np.abs(expected).max()
    np.testing.assert_allclose(runtime.prepare(network, threads=1)(inputs), expected, rtol=1e-4, atol=1e-5 * size)
    conversion.order_neurons(model)  # its variables are those of the model
    np.testing.assert_allclose(model(inputs), expected, rtol=1e-4, atol=1e-5 * size)


@pytest.mark.parametrize("name", SEVERAL)
def test_several_inputs_and_outputs_and_layers_that_are_called_again(name):
    model = fill(SEVERAL[name]())
    network = conversion.from_keras(model)
    data = container.dumps(network)
    read = container.loads(data)
    assert container.dumps(read) == data
    assert sum(map(len, (layer.weights for layer in network.layers if layer.same_as is None))) == len(model.weights)

    inputs = several_inputs_for(model, 19)
    expected = model.predict(inputs, verbose=0)
    rebuilt = conversion.to_keras(read)
    assert len(rebuilt.weights) == len(model.weights)
    engine = runtime.prepare(read, threads=1)
    few = keras.tree.map_structure(lambda array: array[:1], inputs)
    for outputs, count in ((rebuilt.predict(inputs, verbose=0), 19), (engine(inputs), 19), (engine(few), 1)):
        keras.tree.assert_same_structure(outputs, expected)
        for output, right in zip(keras.tree.flatten(outputs), keras.tree.flatten(expected), strict=True):
            np.testing.assert_allclose(output, right[:count], rtol=1e-4, atol=1e-5 * np.abs(right).max())


@pytest.mark.parametrize(
    ("shape", "layer"),
    [
        ((24_000,), lambda: layers.LayerNormalization()),
        ((24_000,), lambda: layers.RMSNormalization()),
        ((40, 50, 24), lambda: layers.GroupNormalization(2)),
        ((24_000,), lambda: layers.Softmax()),
        ((160, 150, 1), lambda: layers.GlobalAveragePooling2D()),
        ((160, 150, 1), lambda: layers.AveragePooling2D((160, 75))),
        ((24_000, 1), lambda: layers.AveragePooling1D(12_000)),
    ],
)
def test_long_sums_of_few_values_are_exact(shape, layer):
    """Rounding errors of equal numbers add up, one after the other: once, outputs were off by 2e-4 of their size."""
    model = fill(keras.Sequential([keras.Input(shape), layer()]))
    values = np.float32([0.1, 0.1, 0.1, 1.3, 0.7])[np.random.default_rng(0).integers(0, 5, (17, *shape))]
    network = conversion.from_keras(model)
    expected, found = interpret(network, values), runtime.prepare(network, threads=1)
    for count in (17, 1):
        off = np.abs(found(values[:count]) - expected[:count]).max()
        assert off < 2e-5 * np.abs(expected).max()


APPLICATIONS = {
    "VGG16": 32,
    "ResNet50": 32,
    "ResNet50V2": 32,
    "InceptionV3": 75,
    "InceptionResNetV2": 75,
    "Xception": 71,
    "MobileNet": 32,
    "MobileNetV2": 32,
    "MobileNetV3Small": 32,
    "DenseNet121": 32,
    "NASNetMobile": 32,
    "EfficientNetB0": 32,
    "EfficientNetV2B0": 32,
    "ConvNeXtTiny": 32,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", APPLICATIONS)
def test_a_family_of_keras_applications(name):
    shape = (APPLICATIONS[name],) * 2 + (3,)
    model = getattr(keras.applications, name)(weights=None, input_shape=shape, classes=10)
    generator = np.random.default_rng(0)
    for variable in model.weights:
        if not variable.name.endswith("kernel") and variable.dtype == "float32":
            most = 0.2 if variable.name in ("beta", "bias", "moving_mean", "mean") else 1.1
            variable.assign(generator.uniform(most - 0.2, most, variable.shape))
    read = container.loads(container.dumps(conversion.from_keras(model), "huffman"))
    inputs = generator.normal(size=(2, *shape)).astype(np.float32)
    expected = model(inputs).numpy()
    np.testing.assert_array_equal(conversion.to_keras(read)(inputs), expected)
    np.testing.assert_allclose(
        runtime.prepare(read, threads=1)(inputs), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max()
    )


@pytest.mark.filterwarnings("ignore:Layer .* was passed an input with a mask")
@pytest.mark.parametrize("name", TEXTS)
def test_networks_of_sequences_heed_masks_as_in_keras(name):
    model = fill(TEXTS[name]())
    network = conversion.from_keras(model)
    data = container.dumps(network)
    read = container.loads(data)
    assert container.dumps(read) == data

    inputs = texts_for(model, 19)
    expected = model(inputs)
    copied = keras.models.clone_model(model)
    copied.set_weights(model.get_weights())
    ours, theirs = (
        [(layer.kind, layer.inputs, layer.options) for layer in one.layers]
        for one in (network, conversion.from_keras(copied))
    )
    assert ours == theirs
    rebuilt = conversion.to_keras(read)
    for own, right in zip(rebuilt.weights, model.weights, strict=True):
        np.testing.assert_array_equal(own, right)
    engine = runtime.prepare(read, threads=1)
    few = keras.tree.map_structure(lambda array: array[:1], inputs)
    for outputs, count in ((rebuilt(inputs), 19), (engine(inputs), 19), (engine(few), 1)):
        for output, right in zip(keras.tree.flatten(outputs), keras.tree.flatten(expected), strict=True):
            size = np.nanmax(np.abs(right))
            np.testing.assert_allclose(output, right[:count], rtol=1e-4, atol=1e-5 * size)
