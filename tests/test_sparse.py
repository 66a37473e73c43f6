"""Convolution matrices against literal ones and against Keras's layers; sparse copies of whole networks."""

import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers

from deepcomp import sparse
from deepcomp.errors import RecipeError, UnsupportedLayerError

SAME_3X3_STRIDE_2_ON_5X5 = """
    5 0 0  0 0 0  0 0 0
    6 4 0  0 0 0  0 0 0
    0 5 0  0 0 0  0 0 0
    0 6 4  0 0 0  0 0 0
    0 0 5  0 0 0  0 0 0

    8 0 0  2 0 0  0 0 0
    9 7 0  3 1 0  0 0 0
    0 8 0  0 2 0  0 0 0
    0 9 7  0 3 1  0 0 0
    0 0 8  0 0 2  0 0 0

    0 0 0  5 0 0  0 0 0
    0 0 0  6 4 0  0 0 0
    0 0 0  0 5 0  0 0 0
    0 0 0  0 6 4  0 0 0
    0 0 0  0 0 5  0 0 0

    0 0 0  8 0 0  2 0 0
    0 0 0  9 7 0  3 1 0
    0 0 0  0 8 0  0 2 0
    0 0 0  0 9 7  0 3 1
    0 0 0  0 0 8  0 0 2

    0 0 0  0 0 0  5 0 0
    0 0 0  0 0 0  6 4 0
    0 0 0  0 0 0  0 5 0
    0 0 0  0 0 0  0 6 4
    0 0 0  0 0 0  0 0 5
"""


properties = settings(deadline=None, derandomize=True, max_examples=100)
few = settings(properties, max_examples=25)


@st.composite
def convolutions(draw, rank, *, square=False, causal=False, grouped=False):
    """Draw `(kernel, images, geometry)`; `square` gives all axes one stride and dilation, as TensorFlow demands."""

    def per_axis(low, high):
        values = draw(st.lists(st.integers(low, high), min_size=rank, max_size=rank))
        return tuple(values[:1] * rank if square else values)

    sizes = draw(st.tuples(*[st.integers(1, 4)] * rank))
    dilation, strides = (1,) * rank, (1,) * rank
    if draw(st.booleans()):  # Keras knows no stride with dilation.
        strides = per_axis(1, 3)
    else:
        dilation = per_axis(1, 3)
    padding = draw(st.sampled_from(["valid", "same", "causal"] if causal else ["valid", "same"]))
    spans = [(k - 1) * d + 1 if padding == "valid" else 1 for k, d in zip(sizes, dilation, strict=True)]
    image = [smallest + draw(st.integers(0, 6)) for smallest in spans]
    groups = draw(st.integers(2, 3)) if grouped else 1
    inputs, outputs = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    kernel = rng.normal(size=(*sizes, inputs, outputs * groups)).astype(np.float32)
    kernel *= rng.random(kernel.shape) < draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    images = rng.normal(size=(2, *image, inputs * groups)).astype(np.float32)
    geometry = {"strides": strides, "padding": padding, "dilation": dilation}
    return kernel, images, geometry | ({"groups": groups} if grouped else {})


def convolve(kind, kernel, images, geometry, **options):
    """What Keras's layer of class `kind` makes of `images`."""
    options |= {"dilation_rate" if name == "dilation" else name: value for name, value in geometry.items()}
    layer = kind(kernel_size=kernel.shape[:-2], use_bias=False, **options)
    layer.build(images.shape)
    layer.set_weights([kernel])
    return layer(images).numpy()


def check(matrix, kernel, images, expected):
    """The matrix gives Keras's result, and each entry is the weight that it says, each position but once."""
    assert matrix.output_shape == expected.shape[1:]
    assert matrix.shape == (images[0].size, expected[0].size)
    outputs = (images.reshape(len(images), -1) @ matrix.to_dense()).reshape(expected.shape)
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)
    assert matrix.rows.dtype == matrix.columns.dtype == matrix.weights.dtype == np.int64
    assert matrix.values.dtype == kernel.dtype
    np.testing.assert_array_equal(matrix.values, kernel.ravel()[matrix.weights])
    assert np.all(matrix.values != 0)
    assert np.all(np.diff(matrix.rows * matrix.shape[1] + matrix.columns) > 0)


def test_literal_matrix_of_stride_2():
    kernel = np.arange(1, 10).reshape(3, 3, 1, 1)
    matrix = sparse.convolution_matrix(kernel, (5, 5, 1), strides=2, padding="same")
    expected = np.array(SAME_3X3_STRIDE_2_ON_5X5.split(), int).reshape(25, 9)
    np.testing.assert_array_equal(matrix.to_dense(), expected)
    np.testing.assert_array_equal(matrix.weights + 1, matrix.values)
    assert (matrix.input_shape, matrix.output_shape) == ((5, 5, 1), (3, 3, 1))


@pytest.mark.parametrize(
    ("padding", "expected"),
    [
        ("valid", [[1, 0], [2, 1], [0, 2]]),
        ("same", [[1, 0, 0], [2, 1, 0], [0, 2, 1]]),  # an odd row of padding goes to the end
        ("causal", [[2, 1, 0], [0, 2, 1], [0, 0, 2]]),
    ],
)
def test_literal_matrices_of_paddings(padding, expected):
    matrix = sparse.convolution_matrix(np.array([1, 2]).reshape(2, 1, 1), (3, 1), padding=padding)
    np.testing.assert_array_equal(matrix.to_dense(), expected)


def test_literal_matrix_of_channels_and_groups():
    kernel = np.array([[[1, 2, 3, 4], [5, 6, 0, 8]]])  # (1, 2, 4): two inputs for each of two groups
    matrix = sparse.convolution_matrix(kernel, (2, 4), groups=2)
    block = [[1, 2, 0, 0], [5, 6, 0, 0], [0, 0, 3, 4], [0, 0, 0, 8]]
    np.testing.assert_array_equal(matrix.to_dense(), np.kron(np.eye(2), block))
    assert matrix.weights.tolist() == [0, 1, 4, 5, 2, 3, 7] * 2


def test_literal_dense_matrix():
    matrix = sparse.dense_matrix(np.array([[0, 3, 0], [4, 0, 5]]))
    assert matrix.rows.tolist() == [0, 1, 1]
    assert matrix.columns.tolist() == [1, 0, 2]
    assert matrix.values.tolist() == [3, 4, 5]
    assert matrix.weights.tolist() == [1, 3, 5]
    assert matrix.shape == (2, 3)


@properties
@given(convolutions(rank=1, causal=True))
def test_one_dimension(case):
    kernel, images, geometry = case
    matrix = sparse.convolution_matrix(kernel, images.shape[1:], **geometry)
    check(matrix, kernel, images, convolve(layers.Conv1D, kernel, images, geometry, filters=kernel.shape[-1]))


@properties
@given(convolutions(rank=2))
def test_two_dimensions(case):
    kernel, images, geometry = case
    matrix = sparse.convolution_matrix(kernel, images.shape[1:], **geometry)
    check(matrix, kernel, images, convolve(layers.Conv2D, kernel, images, geometry, filters=kernel.shape[-1]))


@few  # Keras compiles every grouped convolution anew.
@given(convolutions(rank=2, grouped=True))
def test_groups(case):
    kernel, images, geometry = case
    matrix = sparse.convolution_matrix(kernel, images.shape[1:], **geometry)
    check(matrix, kernel, images, convolve(layers.Conv2D, kernel, images, geometry, filters=kernel.shape[-1]))


@pytest.mark.parametrize(("kind", "rank"), [(layers.DepthwiseConv1D, 1), (layers.DepthwiseConv2D, 2)])
@few
@given(data=st.data())
def test_depthwise(kind, rank, data):
    kernel, images, geometry = data.draw(convolutions(rank, square=True))
    matrix = sparse.depthwise_matrix(kernel, images.shape[1:], **geometry)
    expected = convolve(kind, kernel, images, geometry, depth_multiplier=kernel.shape[-1])
    check(matrix, kernel, images, expected)


@pytest.mark.parametrize(
    ("kind", "image", "options"),
    [
        (layers.Conv1DTranspose, (5, 2), {"kernel_size": 3}),
        (layers.Conv1DTranspose, (5, 2), {"kernel_size": 2, "strides": 3}),
        (layers.Conv1DTranspose, (4, 1), {"kernel_size": 3, "strides": 2, "padding": "same"}),
        (layers.Conv2DTranspose, (4, 5, 2), {"kernel_size": (3, 2), "strides": (2, 1), "padding": "same"}),
        (layers.Conv2DTranspose, (3, 4, 2), {"kernel_size": 3, "strides": 2, "output_padding": 1}),
        (layers.Conv2DTranspose, (3, 4, 2), {"kernel_size": 3, "strides": 2, "padding": "same", "output_padding": 0}),
        (layers.Conv3DTranspose, (2, 3, 2, 2), {"kernel_size": 2, "strides": (1, 2, 2)}),
        (layers.Conv3D, (4, 3, 5, 2), {"kernel_size": (2, 1, 3), "padding": "same", "groups": 2}),
    ],
)
def test_transposed_convolutions_and_volumes_run_as_matrices(kind, image, options):
    rng = np.random.default_rng(0)
    model = keras.Sequential([keras.Input(image), kind(4, activation="relu", **options)])
    for variable in model.weights:
        values = rng.normal(size=variable.shape)
        variable.assign(values * (np.abs(values) > 0.5))
    copy = sparse.to_sparse(model)
    images = rng.normal(size=(3, *image)).astype(np.float32)
    assert isinstance(copy.layers[0], sparse.SparseLinear)
    np.testing.assert_allclose(copy(images), model(images), rtol=1e-4, atol=1e-5)


def test_a_transposed_matrix_is_that_of_the_convolution_back():
    kernel = np.random.default_rng(0).normal(size=(2, 3, 2, 4)).astype(np.float32)
    back = sparse.convolution_matrix(kernel, (6, 8, 2), strides=2)
    matrix = sparse.transposed_matrix(kernel, (3, 3, 4), (6, 8, 2), strides=2)
    np.testing.assert_array_equal(matrix.to_dense(), back.to_dense().T)
    np.testing.assert_array_equal(kernel.ravel()[matrix.weights], matrix.values)
    places = matrix.rows * matrix.shape[1] + matrix.columns
    assert np.all(np.diff(places) > 0)
    with pytest.raises(RecipeError, match=r"does not lead from \(3, 4, 4\) to \(6, 8, 2\)"):
        sparse.transposed_matrix(kernel, (3, 4, 4), (6, 8, 2), strides=2)


def test_layers_whose_kernels_act_in_loops_stay_as_they_are():
    inputs = keras.Input((6, 4))
    x = layers.Bidirectional(layers.LSTM(3, return_sequences=True), name="both")(inputs)
    x = layers.MultiHeadAttention(2, 3, name="attention")(x, x)
    x = layers.TimeDistributed(layers.Dense(5, name="inner"), name="each")(x)
    x = layers.GRU(4, name="memory")(layers.EinsumDense("abc,cd->abd", (None, 3), name="equation")(x))
    model = keras.Model(inputs, layers.Dense(2, name="last")(x))
    copy = sparse.to_sparse(model)
    sequences = np.random.default_rng(0).normal(size=(3, 6, 4)).astype(np.float32)
    np.testing.assert_allclose(copy(sequences), model(sequences), rtol=1e-5, atol=1e-6)
    assert isinstance(copy.get_layer("last"), sparse.SparseLinear)
    assert sparse.kept(model) == ["both", "attention", "each", "equation", "memory"]


def test_three_dimensions():
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(3, 2, 3, 2, 3)).astype(np.float32)
    images = rng.normal(size=(2, 4, 5, 6, 2)).astype(np.float32)
    geometry = {"strides": (2, 1, 2), "padding": "same", "dilation": 1}
    matrix = sparse.convolution_matrix(kernel, images.shape[1:], **geometry)
    check(matrix, kernel, images, convolve(layers.Conv3D, kernel, images, geometry, filters=3))


@pytest.mark.parametrize(
    ("kernel", "image", "options", "entries"),
    [
        ((3, 3, 1, 1), (1, 1, 1), {"padding": "same"}, 1),  # only the middle of the kernel meets one pixel
        ((5, 5, 1, 1), (2, 3, 1), {"padding": "same"}, 36),  # every pixel meets every output
        ((1, 1, 3, 2), (1, 1, 3), {}, 6),
        ((3, 1, 1), (3, 1), {}, 3),
    ],
)
def test_number_of_entries(kernel, image, options, entries):
    assert sparse.convolution_matrix(np.ones(kernel), image, **options).rows.size == entries


def test_zero_kernel_gives_an_empty_matrix_and_a_working_layer():
    matrix = sparse.convolution_matrix(np.zeros((3, 3, 2, 4), np.float32), (5, 5, 2))
    assert matrix.rows.size == matrix.values.size == 0
    outputs = sparse.SparseLinear(matrix, bias=np.arange(4))(np.ones((2, 5, 5, 2)))
    np.testing.assert_array_equal(outputs, np.broadcast_to(np.arange(4, dtype=np.float32), (2, 3, 3, 4)))


@pytest.mark.parametrize(
    ("kernel", "image", "options", "message"),
    [
        ((3, 3, 2, 4), (5, 5, 3), {}, "does not fit"),
        ((3, 3, 2, 4), (5, 2), {}, "does not fit"),
        ((3, 3, 1, 4), (5, 5, 3), {"groups": 3}, "groups=3 does not fit"),
        ((3, 3, 1, 1), (5, 5, 1), {"padding": "causal"}, "padding='causal' in 2-D"),
        ((3, 1, 1), (5, 1), {"padding": "full"}, "use 'valid', 'same'"),
        ((3, 1, 1), (4, 1), {"dilation": 2}, r"spans \[5\] is larger than the input \[4\]"),
    ],
)
def test_bad_arguments(kernel, image, options, message):
    with pytest.raises(RecipeError, match=message):
        sparse.convolution_matrix(np.ones(kernel), image, **options)


def test_matrix_of_the_reference_network_is_fast():
    kernel = np.random.default_rng(0).normal(size=(5, 5, 32, 64)).astype(np.float32)
    seconds = []
    for _ in range(3):  # The machine may be busy for a moment.
        start = time.perf_counter()
        matrix = sparse.convolution_matrix(kernel, (14, 14, 32), strides=2, padding="same")
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1
    # Along one axis 32 of the 5 x 7 pairs of tap and output are inside: 1 is before the image, 2 are after it.
    assert (matrix.shape, matrix.rows.size) == ((14 * 14 * 32, 7 * 7 * 64), 32 * 32 * 32 * 64)


def test_layer_keeps_leading_axes_and_handles_an_empty_batch():
    kernel = np.array([[1.0, 0.0, 2.0], [0.0, 3.0, 0.0]])
    layer = sparse.SparseLinear(sparse.dense_matrix(kernel), activation="relu")
    inputs = np.random.default_rng(0).normal(size=(2, 3, 4, 2)).astype(np.float32)
    np.testing.assert_allclose(layer(inputs), np.maximum(inputs @ kernel, 0), rtol=1e-6)
    assert layer(np.ones((0, 2))).shape == (0, 3)
    with pytest.raises(ValueError, match="axis -1"):
        layer(np.ones((2, 3)))


def test_layer_in_a_graph_of_unknown_batch():
    layer = sparse.SparseLinear(sparse.convolution_matrix(np.ones((2, 2, 1, 3)), (4, 4, 1)))
    graph = tf.function(layer, input_signature=[tf.TensorSpec((None, 4, 4, 1))]).get_concrete_function()
    assert graph.structured_outputs.shape.as_list() == [None, 3, 3, 3]
    np.testing.assert_array_equal(graph(tf.ones((2, 4, 4, 1))), np.full((2, 3, 3, 3), 4))


def randomize(model, seed=0):
    """Give every weight a random value, to kernels many zeros, and to variances positive ones."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        values = rng.normal(size=weight.shape)
        if weight.name == "moving_variance":
            values = np.abs(values) + 0.5
        elif weight.name.endswith("kernel"):
            values *= rng.random(weight.shape) < 0.4
        weight.assign(values)
    return model


def check_copy(model, inputs):
    """The sparse copy computes what the model does, and the model stays as it was."""
    weights = model.get_weights()
    nodes = [len(layer._inbound_nodes) for layer in model._flatten_layers()]
    copy = sparse.to_sparse(model)
    np.testing.assert_allclose(copy(inputs), model(inputs), rtol=1e-4, atol=1e-5)
    assert copy.output_shape == model.output_shape
    assert not any(weight.name.endswith("kernel") for weight in copy.weights)
    assert nodes == [len(layer._inbound_nodes) for layer in model._flatten_layers()]
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
    return copy


def sequential(shape, *stack, **options):
    return randomize(keras.Sequential([keras.Input(shape, **options), *stack], name="network"))


def images(*shape):
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def residual_network():
    """Branches, a layer called twice, nested models of both kinds, and every kind of supported layer."""
    x = image = keras.Input((9, 8, 3), name="image")
    x = layers.Conv2D(4, 3, strides=2, padding="same", use_bias=False, name="stem")(x)
    x = layers.BatchNormalization()(x)
    shared = layers.Conv2D(4, 3, padding="same", activation="relu", name="shared")
    x = shared(shared(x)) + x
    block = [
        layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2, name="depthwise"),
        layers.BatchNormalization(),
        layers.SeparableConv2D(4, 3, padding="same", depth_multiplier=2, activation="tanh", name="separable"),
    ]
    y = keras.Sequential(block, name="block")(x)
    x = layers.Concatenate()([layers.Add()([x, y]), layers.MaxPooling2D(3, strides=1, padding="same")(x)])
    inner = keras.Input(x.shape[1:])
    nested = keras.Model(inner, [layers.Conv2D(4, 1)(inner), layers.AveragePooling2D(2)(inner)], name="nested")
    x, y = nested(x)
    x = layers.Flatten()(x)
    y = layers.GlobalAveragePooling2D()(y)
    x = layers.Dropout(0.5)(layers.Concatenate()([x, y]))
    return keras.Model(image, layers.Dense(5, activation="softmax", name="classes")(x), name="residual")


def test_copy_of_a_residual_network():
    model = randomize(residual_network())
    copy = check_copy(model, images(3, 9, 8, 3))
    assert [layer.name for layer in copy.layers] == [layer.name for layer in model.layers]
    assert copy.name == "residual"
    assert type(copy.get_layer("shared")) is sparse.SparseLinear
    assert [part.name for part in copy.get_layer("block").get_layer("separable").layers] == [
        "separable_depthwise",
        "separable_pointwise",
    ]
    np.testing.assert_allclose(copy.predict(images(3, 9, 8, 3), verbose=0), copy(images(3, 9, 8, 3)), rtol=1e-5)


def test_copy_of_a_one_dimensional_network():
    model = sequential(
        (16, 3),
        layers.Conv1D(4, 3, padding="causal", dilation_rate=2, activation="relu"),
        layers.DepthwiseConv1D(3, strides=2, padding="same", depth_multiplier=2),
        layers.SeparableConv1D(5, 2, activation="elu"),
        layers.PReLU(),
        layers.Dense(3),
    )
    check_copy(model, images(2, 16, 3))


@few
@given(convolutions(rank=2, square=True))
def test_copy_of_a_separable_convolution(case):
    kernel, inputs, geometry = case
    size, multiplier = kernel.shape[:2], kernel.shape[-1]
    options = {"strides": geometry["strides"], "padding": geometry["padding"], "depth_multiplier": multiplier}
    layer = layers.SeparableConv2D(3, size, dilation_rate=geometry["dilation"], **options)
    check_copy(sequential(inputs.shape[1:], layer), inputs)


@pytest.mark.parametrize("shape", [(6,), (4, 6), (2, 4, 6)])
def test_copy_of_a_dense_layer_on_any_rank(shape):
    check_copy(sequential(shape, layers.Dense(3, activation="softmax")), images(2, *shape))


def test_copy_of_dense_layers_on_unknown_lengths_and_masks():
    model = sequential((None,), layers.Embedding(9, 4, mask_zero=True), layers.Dense(3), dtype="int32")
    model.add(layers.GlobalAveragePooling1D())  # averages only what the mask lets through
    check_copy(model, np.array([[1, 2, 3, 0, 0], [4, 5, 6, 7, 8]]))


def test_copy_of_a_compiled_and_adapted_network():
    def unregistered_loss(expected, received):
        return tf.reduce_mean(expected - received)

    normalization = layers.Normalization()
    model = sequential((4,), normalization, layers.Dense(2))
    normalization.adapt(images(8, 4))
    model.compile("adam", loss=unregistered_loss, jit_compile=True)
    copy = check_copy(model, images(2, 4))
    assert (model.compiled, copy.compiled) == (True, False)


def test_copy_of_a_network_with_several_inputs_and_outputs():
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    dense = layers.Dense(3)
    model = randomize(keras.Model({"a": a, "b": b}, {"sum": dense(a) + dense(b), "first": dense(a)}))
    copy, inputs = sparse.to_sparse(model), {"a": images(2, 4), "b": images(1, 4)}
    for name, expected in model(inputs).items():
        np.testing.assert_allclose(copy(inputs)[name], expected, rtol=1e-5)


class Subclassed(keras.Model):
    def __init__(self, **options):
        super().__init__(**options)
        self.dense = layers.Dense(2)

    def call(self, inputs):
        return self.dense(inputs)


class OwnMemory(layers.GRU):
    pass


class WithoutConfig(layers.Layer):
    def __init__(self, scale):
        super().__init__(name="without_config")
        self.scale = scale

    def call(self, inputs):
        return inputs * self.scale


@pytest.mark.parametrize(
    ("shape", "layer", "message"),
    [
        ((6, 3), lambda: OwnMemory(2, name="memory"), r"'memory' \(OwnMemory\) has a kernel but no sparse form"),
        ((6, 6, 3), lambda: layers.Conv2DTranspose(2, 3, data_format="channels_first", name="c"), "channels_first"),
        ((6, 6, 3), lambda: layers.Conv2D(2, 3, data_format="channels_first", name="c"), "'c' .*channels_first"),
        ((None, 6, 3), lambda: layers.Conv2D(2, 3, name="c"), r"'c' .*unknown size \(None, 6, 3\)"),
        ((4,), lambda: Subclassed(name="own"), r"'own' \(Subclassed\) is a subclassed model"),
        ((4,), lambda: WithoutConfig(np.ones(4)), "'without_config' .* get_config"),
    ],
)
def test_unsupported_layers(shape, layer, message):
    model = keras.Sequential([keras.Input(shape), layer()])
    with pytest.raises(UnsupportedLayerError, match=message) as raised:
        sparse.to_sparse(model)
    assert "Supported are" in str(raised.value)
    assert "Dense, Conv1D, Conv2D" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("model", [Subclassed, lambda: keras.Sequential([layers.Dense(2)])])
def test_unsupported_models(model):
    with pytest.raises(UnsupportedLayerError, match="is not a built Sequential or functional model"):
        sparse.to_sparse(model())


def test_convolution_shared_between_input_shapes_is_unsupported():
    image = keras.Input((8, 8, 3))
    shared = layers.Conv2D(3, 3, strides=2, name="shared")
    with pytest.raises(UnsupportedLayerError, match=r"'shared' .* 2 different input shapes"):
        sparse.to_sparse(keras.Model(image, shared(shared(image))))


def test_quantized_layer_is_unsupported():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2, dtype="int8_from_float32", name="small")])
    with pytest.raises(UnsupportedLayerError, match=r"'small' .* is quantized to int8"):
        sparse.to_sparse(model)
