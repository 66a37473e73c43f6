import keras
import numpy as np
import pytest
from keras import layers

import deepcomp
from deepcomp import models
from deepcomp.dcz import architecture, container
from deepcomp.dcz import conversion as exchange
from deepcomp.dcz import network as network_of
from deepcomp.dcz.conversion import graph
from deepcomp.dcz.conversion import layer as reading
from deepcomp.dcz.kinds import ACTIVATIONS, KINDS, REQUIRED
from deepcomp.dcz.network import Layer, SharedWeight, output_shapes
from deepcomp.errors import FormatError, RecipeError, UnsupportedLayerError
from tests.zoo import ZOO, kinds_of


def fill(model, seed=3):
    """Random weights: kernels pruned and shared, but for the odd one; the rest at random, and positive."""
    generator = np.random.default_rng(seed)
    for variable in model.weights:
        if variable.name.endswith("kernel"):
            values = generator.choice(np.float32([0, 0, 0.1, -0.25, 0.5]), variable.shape)
        else:
            values = generator.random(variable.shape, np.float32) + np.float32(0.1)
        variable.assign(values)
    return model


def bits(array):
    return np.asarray(array).view(np.uint32).ravel()


def round_trip(model, seed=0):
    """Through a network, its file and back: equal outputs, weights equal to the bit, the same names and shapes."""
    network = exchange.from_keras(model)
    data = container.dumps(network)
    rebuilt = exchange.to_keras(container.loads(data))
    assert rebuilt.name == model.name
    assert rebuilt.input_shape == (None, *network.input_shape)
    assert output_shapes(network)[-1] == tuple(model.outputs[0].shape[1:])
    for layer, shape in zip(network.layers, output_shapes(network), strict=True):
        assert tuple(rebuilt.get_layer(layer.name).output.shape[1:]) == shape
    weights = {
        variable.path.rpartition("/")[0].rpartition("/")[2] + variable.name: variable for variable in model.weights
    }
    assert len(weights) == len(model.weights) == len(rebuilt.weights)
    for variable in rebuilt.weights:
        original = weights[variable.path.rpartition("/")[0].rpartition("/")[2] + variable.name]
        np.testing.assert_array_equal(bits(variable.numpy()), bits(original.numpy()))
    x = np.random.default_rng(seed).normal(size=(3, *network.input_shape)).astype(np.float32)
    np.testing.assert_array_equal(rebuilt(x), model(x))
    assert container.dumps(exchange.from_keras(rebuilt)) == data
    return network


def sequential(shape, *made):
    return fill(keras.Sequential([keras.Input(shape), *made]))


# Every kind of layer

CASES = {
    "Dense": ((7,), lambda: [layers.Dense(5, activation="relu"), layers.Dense(2, use_bias=False)]),
    "Dense on rows": ((3, 7), lambda: [layers.Dense(5)]),
    "Conv1D": (
        (9, 4),
        lambda: [layers.Conv1D(6, 3, padding="causal", dilation_rate=2), layers.Conv1D(2, 2, strides=3)],
    ),
    "Conv2D": (
        (9, 8, 2),
        lambda: [
            layers.Conv2D(4, (3, 2), strides=2, padding="same", activation="elu"),
            layers.Conv2D(3, 2, dilation_rate=(2, 1), use_bias=False),
        ],
    ),
    "Conv2D in groups": ((6, 6, 4), lambda: [layers.Conv2D(6, 3, groups=2)]),
    "DepthwiseConv1D": ((9, 4), lambda: [layers.DepthwiseConv1D(3, depth_multiplier=2, strides=2, padding="same")]),
    "DepthwiseConv2D": ((9, 8, 3), lambda: [layers.DepthwiseConv2D((3, 2), depth_multiplier=2, dilation_rate=2)]),
    "SeparableConv1D": ((9, 4), lambda: [layers.SeparableConv1D(5, 3, depth_multiplier=2, activation="tanh")]),
    "SeparableConv2D": ((9, 8, 3), lambda: [layers.SeparableConv2D(5, 3, strides=2, padding="same", use_bias=False)]),
    "BatchNormalization": (
        (4, 4, 3),
        lambda: [
            layers.BatchNormalization(),
            layers.BatchNormalization(axis=3, momentum=0.9, epsilon=1e-5, center=False, scale=False),
        ],
    ),
    "MaxPooling1D": ((9, 2), lambda: [layers.MaxPooling1D(), layers.MaxPooling1D(3, strides=1, padding="same")]),
    "MaxPooling2D": ((9, 8, 2), lambda: [layers.MaxPooling2D((3, 2), strides=(2, 1)), layers.MaxPooling2D()]),
    "AveragePooling1D": ((9, 2), lambda: [layers.AveragePooling1D(3, padding="same")]),
    "AveragePooling2D": ((9, 8, 2), lambda: [layers.AveragePooling2D(3, strides=2, padding="same")]),
    "GlobalMaxPooling1D": ((9, 2), lambda: [layers.GlobalMaxPooling1D()]),
    "GlobalMaxPooling2D": ((4, 5, 2), lambda: [layers.GlobalMaxPooling2D(keepdims=True)]),
    "GlobalAveragePooling1D": ((9, 2), lambda: [layers.GlobalAveragePooling1D(keepdims=True)]),
    "GlobalAveragePooling2D": ((4, 5, 2), lambda: [layers.GlobalAveragePooling2D()]),
    "Flatten": ((4, 5, 2), lambda: [layers.Flatten(), layers.Dense(3)]),
    "Reshape": ((4, 6), lambda: [layers.Reshape((2, -1, 3)), layers.Reshape((-1,))]),
    "Permute": ((4, 5, 2), lambda: [layers.Permute((3, 1, 2))]),
    "ZeroPadding1D": ((4, 2), lambda: [layers.ZeroPadding1D(2), layers.ZeroPadding1D((0, 1))]),
    "ZeroPadding2D": ((4, 5, 2), lambda: [layers.ZeroPadding2D((1, 2)), layers.ZeroPadding2D(((0, 1), (2, 0)))]),
    "Dropout": ((4,), lambda: [layers.Dropout(0.3, seed=1), layers.Dropout(0)]),
    "Rescaling": ((4,), lambda: [layers.Rescaling(1 / 255), layers.Rescaling(2, offset=-1)]),
    "ReLU": ((9,), lambda: [layers.ReLU(6, 0.1, 0.2), layers.ReLU()]),
    "LeakyReLU": ((9,), lambda: [layers.LeakyReLU(), layers.LeakyReLU(negative_slope=0.01)]),
    "ELU": ((9,), lambda: [layers.ELU(), layers.ELU(alpha=0.5)]),
    "Softmax": ((9,), lambda: [layers.Softmax()]),
    "Activation": ((9,), lambda: [layers.Activation("swish"), layers.Activation(keras.activations.hard_swish)]),
}


@pytest.mark.parametrize("case", CASES)
def test_round_trip(case):
    shape, made = CASES[case]
    network = round_trip(sequential(shape, *made()))
    assert case.partition(" ")[0] in {layer.kind for layer in network.layers}


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation):
    network = round_trip(sequential((4,), layers.Dense(5, activation=activation), layers.Activation(activation)))
    assert [layer.options["activation"] for layer in network.layers[1:]] == [activation, activation]


def test_merging():
    a = keras.Input((4, 6, 2), name="a")
    b = layers.Conv2D(2, 1, name="b")(a)
    c = layers.GlobalMaxPooling2D(keepdims=True, name="c")(b)
    d = layers.Multiply(name="d")([b, c])
    e = layers.Add(name="e")([a, b, d])
    f = layers.Concatenate(name="f")([e, a])
    g = layers.Concatenate(axis=3, name="g")([f, b])
    h = layers.Concatenate(axis=-3, name="h")([g, g])
    network = round_trip(fill(keras.Model(a, h, name="merging")))
    numbers = {layer.name: number for number, layer in enumerate(network.layers)}
    assert network.layers[numbers["e"]].inputs == (numbers["a"], numbers["b"], numbers["d"])
    assert [network.layers[numbers[name]].options["axis"] for name in "fgh"] == [-1, -1, 1]


def test_every_kind_is_covered():
    covered = {case.partition(" ")[0] for case in CASES} | {"Add", "Multiply", "Concatenate", "InputLayer", "Variable"}
    covered |= {kind for name in ZOO for kind in kinds_of(name)}
    assert covered == set(KINDS)


def test_options_are_complete_and_plain():
    _, conv, _ = exchange.from_keras(sequential((9, 8, 2), layers.Conv2D(4, 3), layers.MaxPooling2D())).layers
    assert conv.options == {
        "filters": 4,
        "kernel_size": (3, 3),
        "strides": (1, 1),
        "padding": "valid",
        "dilation_rate": (1, 1),
        "groups": 1,
        "activation": "linear",
        "use_bias": True,
    }
    assert list(conv.weights) == ["kernel", "bias"]


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind not in ("InputLayer", "Variable", "Bidirectional", "TimeDistributed")]
)
def test_defaults_are_keras_own(kind):
    """What a file leaves out is what Keras takes by default, and default names are Keras's."""
    rank = next((int(letter) for letter in kind if letter.isdigit()), 1)
    needed = {
        name: {
            "activation": "relu",
            "kernel_size": (2,) * rank,
            "output_size": (2,) * rank,
            "target_shape": (2,),
            "dims": (1,),
            "axis": (1,),
            "axes": (1, 1),
        }.get(name, 1)
        for name, option in KINDS[kind].options.items()
        if option.default is REQUIRED
    }
    if kind.startswith("AveragePooling"):  # has no default in Keras
        needed["pool_size"] = (2,) * int(kind[-2])
    keras.utils.clear_session(free_memory=False)
    more = {"Dropout": {"rate": 0.5}, "LayerScale": {"init_values": 1, "projection_dim": 1}}.get(kind, {})
    made = exchange.class_of(kind)(**more, **needed)
    ours = Layer(kind, "", (0,), needed).options
    config = made.get_config()
    for name in ours.keys() - needed.keys() - {"rate", "open_axis", *exchange.CALL_OPTIONS}:
        assert (reading._plain(config[name]) or None) == (ours[name] or None), name
    assert made.name == architecture._default_names([kind])[0]


def test_layers_inside_of_others_keep_options_and_names():
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(3, name="first"), layers.ReLU(name="active")], name="in")
    own = layers.GRU(2, go_backwards=True, name="mine")
    made = [
        layers.TimeDistributed(inner, name="outer"),
        layers.Bidirectional(layers.LSTM(3, return_sequences=True, dropout=0.5, name="lstm"), name="both"),
        layers.Bidirectional(layers.LSTM(3, return_sequences=True, name="named"), "sum"),
        layers.Bidirectional(layers.GRU(2, name="gru"), backward_layer=own),
    ]
    model = sequential((5, 4), *made)
    network = exchange.from_keras(model)
    assert [layer.name for layer in network.layers[1:4]] == ["first", "active", "both"]
    assert network.layers[1].options["layer"].options["units"] == 3
    assert [layer.options["layer"].name for layer in network.layers[3:]] == ["", "named", ""]
    rebuilt = exchange.to_keras(container.loads(container.dumps(network)))
    for own, variable in zip(rebuilt.weights, model.weights, strict=True):
        np.testing.assert_array_equal(own, variable)
    inside = [layer for layer in rebuilt.layers if isinstance(layer, layers.Bidirectional)]
    names = [(layer.forward_layer.name, layer.backward_layer.name) for layer in inside]
    assert names == [("forward_lstm", "backward_lstm"), ("forward_named", "backward_named"), ("forward_gru", "mine")]


# Whole networks


@pytest.mark.parametrize(("name", "most"), [("reference", 100), ("lenet-300-100", 80), ("lenet-5", 110)])
def test_our_networks(name, most):
    model = fill(models.build(name))
    network = round_trip(model)
    assert all(isinstance(layer.weights.get("kernel", SharedWeight([], [])), SharedWeight) for layer in network.layers)
    assert container.parts(network).overhead_bits <= 8 * most


def test_a_small_resnet():
    x = inputs = keras.Input((12, 12, 3))
    for filters, strides in ((4, 1), (8, 2)):
        y = layers.Conv2D(filters, 3, strides=strides, padding="same", use_bias=False)(x)
        y = layers.ReLU()(layers.BatchNormalization()(y))
        y = layers.BatchNormalization()(layers.Conv2D(filters, 3, padding="same", use_bias=False)(y))
        x = layers.Conv2D(filters, 1, strides=strides)(x)
        x = layers.Activation("relu")(layers.Add()([y, x]))
    outputs = layers.Dense(4, activation="softmax")(layers.GlobalAveragePooling2D()(x))
    round_trip(fill(keras.Model(inputs, outputs)))


def test_a_keras_application():
    model = keras.applications.MobileNetV2((32, 32, 3), alpha=0.35, weights=None, classes=5)
    network = round_trip(model)
    assert len(network.layers) == len(model.layers)


# Kernels


def kernel_of(values):
    model = keras.Sequential([keras.Input((values.shape[0],)), layers.Dense(values.shape[1], use_bias=False)])
    model.weights[0].assign(values)
    return exchange.from_keras(model).layers[1].weights["kernel"]


def test_a_pruned_kernel():
    shared = kernel_of(np.float32([[0.5, 0], [-0.0, -1], [0.5, 0]]))
    np.testing.assert_array_equal(shared.codebook, np.float32([-1, 0.5]))
    np.testing.assert_array_equal(shared.indices, [[2, 0], [0, 1], [2, 0]])
    assert shared.indices.dtype == np.uint8
    np.testing.assert_array_equal(network_of.values(shared), np.float32([[0.5, 0], [0, -1], [0.5, 0]]))


@pytest.mark.parametrize(("count", "is_shared"), [(65_535, True), (65_536, False)])
def test_how_many_values_are_shared(count, is_shared):
    values = np.arange(1, count + 1, dtype=np.float32).reshape(1, -1)
    kernel = kernel_of(np.tile(values, 4))
    assert isinstance(kernel, SharedWeight) == is_shared
    np.testing.assert_array_equal(network_of.values(kernel), np.tile(values, 4))


def test_a_network_that_diverged():
    model = sequential((2,), layers.Dense(2, name="fc"))
    model.layers[0].kernel.assign([[1, np.nan], [2, 3]])
    with pytest.raises(UnsupportedLayerError, match=r"'kernel' of the layer 'fc'.*\[nan\]"):
        container.dumps(exchange.from_keras(model))


# Graphs


def test_nested_models_are_inlined():
    inner = keras.Sequential([keras.Input((6,)), layers.Dense(5, name="a"), layers.Dense(4, name="b")], name="inner")
    deep_input = keras.Input((4,))
    deep = keras.Model(deep_input, layers.Dense(4, name="c")(deep_input), name="deep")
    middle_input = keras.Input((4,))
    middle = keras.Model(middle_input, layers.Dense(3, name="a")(deep(middle_input, training=False)), name="middle")
    inputs = keras.Input((6,), name="x")
    model = fill(keras.Model(inputs, layers.Dense(2, name="b")(middle(inner(inputs))), name="outer"))
    network = exchange.from_keras(model)
    assert [layer.name for layer in network.layers] == ["x", "a", "inner_b", "c", "middle_a", "b"]
    rebuilt = exchange.to_keras(network)
    x = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    np.testing.assert_array_equal(rebuilt(x), model(x))


def test_unique_names():
    paths = [("x",), ("m", "x"), ("n", "m", "x"), ("m", "x"), ("m_x",)]
    assert graph._unique_names(paths) == ["x", "m_x_1", "n_m_x", "m_x_2", "m_x"]


def test_a_layer_without_weights_may_be_used_twice():
    active = layers.ReLU(name="active")
    inputs = keras.Input((4,))
    outputs = active(layers.Dense(3)(active(layers.Dense(5)(inputs))))
    model = fill(keras.Model(inputs, outputs))
    network = exchange.from_keras(model)
    assert {layer.name for layer in network.layers} >= {"active", "active_1"}
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    np.testing.assert_array_equal(exchange.to_keras(network)(x), model(x))


def test_a_part_of_a_model():
    whole = sequential((4,), layers.Dense(5, name="a"), layers.Dense(3, name="b"))
    part = keras.Model(whole.inputs[0], whole.layers[0].output)
    assert [layer.name for layer in round_trip(part).layers][1:] == ["a"]


def test_files(tmp_path):
    model = fill(models.build("lenet-5"))
    path = tmp_path / "model.dcz"
    parts = exchange.save(model, path, "huffman")
    assert parts.bits == 8 * path.stat().st_size
    assert container.coder_of(container.read(path)) == "huffman"
    x = np.random.default_rng(0).random((2, 28, 28, 1), np.float32)
    np.testing.assert_array_equal(exchange.to_keras(path)(x), model(x))
    with pytest.raises(FormatError, match="none"):
        exchange.to_keras(tmp_path / "none.dcz")


def test_keras_settings_do_not_matter():
    network = exchange.from_keras(sequential((6, 6, 1), layers.Conv2D(2, 3), layers.Flatten(), layers.Dense(2)))
    expected = exchange.to_keras(network)
    try:
        keras.config.set_dtype_policy("mixed_float16")
        keras.config.set_image_data_format("channels_first")
        rebuilt = exchange.to_keras(network)
    finally:
        keras.config.set_dtype_policy("float32")
        keras.config.set_image_data_format("channels_last")
    x = np.random.default_rng(0).random((2, 6, 6, 1), np.float32)
    np.testing.assert_array_equal(rebuilt(x), expected(x))
    assert rebuilt(x).dtype == "float32"


# What is refused


class Doubled(layers.Dense):
    def call(self, inputs):
        return 2 * super().call(inputs)


def halved(x):
    return x / 2


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(2)

    def call(self, inputs):
        return self.dense(inputs)


def functional(build, shape=(4,), **options):
    inputs = keras.Input(shape, **options)
    return keras.Model(inputs, build(inputs))


def with_lora():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2, name="adapted")])
    model.layers[0].enable_lora(1)
    return model


def several_inputs():
    a, b = keras.Input((2,)), keras.Input((2,))
    return keras.Model([a, b], layers.Add()([a, b]))


def first(layer, shape=(4, 4, 2)):
    return keras.Sequential([keras.Input(shape), layer])


def joined():
    inputs = keras.Input((4,))
    return keras.Model(inputs, layers.Concatenate(name="joined")([inputs, layers.Dense(2)(inputs)]), name="own")


def relu(x):
    return keras.ops.maximum(x, -1)


REFUSED = {
    "other class": (
        lambda: first(layers.RNN(layers.StackedRNNCells([layers.LSTMCell(2)]), name="rnn"), (4, 2)),
        "'rnn' of class RNN is not supported: use other layers; supported are Dense, ",
    ),
    "derived class": (
        lambda: first(Doubled(2, name="d")),
        "'d' of class Doubled is not Keras's own class, but derived from Dense: use keras.layers.Dense itself",
    ),
    "text": (lambda: functional(layers.Identity(), dtype="string"), "takes string inputs"),
    "structure": (lambda: functional(lambda x: {"a": [layers.ReLU()(x)], "b": x}), "in a structure within another"),
    "operation": (lambda: functional(keras.ops.cumsum), "'cumsum' of class Cumsum is not one that a layer does"),
    "lambda": (lambda: first(layers.Lambda(lambda x: x)), "of class Lambda is not supported"),
    "mask of a softmax": (
        lambda: functional(lambda x: layers.Softmax(name="s")(layers.Masking()(x)), (4, 4)),
        "'s' of class Softmax gets a mask of a sequence, which the engine does not heed there: leave out Masking",
    ),
    "mask of an operation": (
        lambda: functional(lambda x: layers.Masking()(x) * 2, (4, 3)),
        "'multiply' gets a mask, which it does not pass on: use a layer, like keras.layers.Rescaling",
    ),
    "own mask": (
        lambda: functional(lambda x: layers.LSTM(2, name="rnn")(x, mask=keras.ops.any(x > 1, -1)), (4, 3)),
        "'rnn' of class LSTM is called with mask",
    ),
    "state": (
        lambda: functional(lambda x: layers.GRU(2, return_state=True, name="rnn")(x)[0], (4, 3)),
        "'rnn' of class GRU has return_state=True: use return_state=False",
    ),
    "stateful": (
        lambda: keras.Sequential([keras.Input(batch_shape=(2, 4, 3)), layers.SimpleRNN(2, stateful=True)]),
        "has stateful=True",
    ),
    "first state": (
        lambda: functional(lambda x: layers.GRU(3, name="rnn")(x, initial_state=x[:, 0]), (4, 3)),
        "'rnn' of class GRU is called with initial_state",
    ),
    "gates that are a softmax": (
        lambda: first(layers.LSTM(2, recurrent_activation="softmax"), (4, 3)),
        "recurrent_activation='softmax' is not one for each unit alone",
    ),
    "both directions apart": (
        lambda: functional(lambda x: layers.Bidirectional(layers.GRU(2), merge_mode=None, name="b")(x)[0], (4, 3)),
        "'b' of class Bidirectional cannot be stored: merge_mode: None is not one of concat",
    ),
    "cell inside": (
        lambda: first(layers.Bidirectional(layers.RNN(layers.GRUCell(2), name="rnn"), name="b"), (4, 3)),
        "'b/forward_rnn' of class RNN is not supported",
    ),
    "mask of attention": (
        lambda: functional(lambda x: layers.MultiHeadAttention(1, 2)(x, x, attention_mask=x > 0), (4, 4)),
        "is called with attention_mask",
    ),
    "attention scores": (
        lambda: functional(lambda x: layers.MultiHeadAttention(1, 2)(x, x, return_attention_scores=True)[0], (4, 3)),
        "is called with return_attention_scores",
    ),
    "axes of attention": (
        lambda: functional(lambda x: layers.MultiHeadAttention(1, 2, attention_axes=1)(x, x), (4, 3, 2)),
        r"has attention_axes=\(1,\): use attention_axes=None",
    ),
    "equation": (
        lambda: first(layers.EinsumDense("abc,bcd->abd", (4, 2), name="e"), (4, 3)),
        "'e' of class EinsumDense cannot be stored: the equation 'abc,bcd->abd' is no product of two matrices",
    ),
    "bias of positions": (
        lambda: first(layers.EinsumDense("abc,xb->acx", (4, 4), bias_axes="c", name="e"), (6, 4)),
        "'e' of class EinsumDense has a bias for axis 1, which Keras adds along axis 2: give axis 2 another size",
    ),
    "merge for each step": (
        lambda: first(layers.TimeDistributed(joined(), name="t"), (3, 4)),
        "'t/joined' of class Concatenate is in a model that a TimeDistributed layer calls",
    ),
    "unbuilt": (lambda: keras.Sequential([layers.Dense(2)], name="s"), "'s' is a Sequential without a graph"),
    "subclassed": (Subclassed, "is a Subclassed without a graph"),
    "no layer": (lambda: functional(lambda x: x), "has 0 layers after its input"),
    "slice of an open size": (
        lambda: functional(lambda x: layers.ReLU()(x[:, :100]), (None, 2)),
        r"'get_item\w*' of class GetItem is not one that a layer does",
    ),
    "end of an open size": (
        lambda: functional(lambda x: layers.ReLU()(x[:, -50:]), (None, 2)),
        r"'get_item(_\d)?' computes something else for each of the open sizes: build the model with keras.Input",
    ),
    "one step of an open size": (
        lambda: functional(lambda x: layers.ReLU()(x[:, 40]), (None, 2)),
        "computes something else for each of the open sizes",
    ),
    "sum over an open size": (
        lambda: functional(lambda x: keras.ops.sum(x, axis=1), (None, 2)),
        "'sum' computes something else for each of the open sizes: build the model with keras.Input of fixed sizes",
    ),
    "float16": (
        lambda: first(layers.Dense(2, dtype="mixed_float16", name="d")),
        "'d' of class Dense computes in float16",
    ),
    "training": (lambda: functional(lambda x: layers.Dropout(0.5)(x, training=True)), "is called with training"),
    "custom activation": (
        lambda: first(layers.Dense(2, activation=halved, name="d")),
        "'d' of class Dense has the activation",
    ),
    "activation of that name": (lambda: first(layers.Activation(relu)), "has the activation 'relu'"),
    "activation with other parameters": (lambda: first(layers.Activation(keras.ops.gelu)), "has the activation 'gelu'"),
    "activation of halves": (lambda: first(layers.Activation("glu")), "has the activation 'glu'"),
    "activation that joins": (lambda: first(layers.Activation(keras.ops.cumsum)), "has the activation 'cumsum'"),
    "activation layer of a recurrent layer": (
        lambda: first(layers.SimpleRNN(2, activation=layers.LeakyReLU()), (4, 2)),
        "has the activation 'LeakyReLU'",
    ),
    "activation layer within": (
        lambda: first(layers.TimeDistributed(layers.Dense(2, activation=layers.LeakyReLU())), (4, 2)),
        "has the activation 'LeakyReLU'",
    ),
    "rare activation": (lambda: first(layers.Dense(2, activation="log_softmax")), "has the activation 'log_softmax'"),
    "channels first": (
        lambda: first(layers.MaxPooling2D(data_format="channels_first", name="p")),
        "'p' of class MaxPooling2D has data_format='channels_first'",
    ),
    "axis": (lambda: first(layers.BatchNormalization(axis=1)), "has axis=1"),
    "axes": (lambda: first(layers.Softmax(axis=[1, 2])), r"has axis=\[1, 2\]"),
    "batch axis": (lambda: functional(lambda x: layers.Concatenate(axis=0)([x, x])), "axis=0 is neither"),
    "renormalization": (lambda: first(layers.BatchNormalization(renorm=True)), "has renorm=True"),
    "array": (lambda: first(layers.Rescaling([0.1, 0.2])), "scale: .* is not a finite number"),
    "lora": (with_lora, "'adapted' of class Dense has lora_rank=1"),
    "ranks": (lambda: functional(lambda x: layers.Add()([x, layers.Reshape((1, 4))(x)])), "differ in rank"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    build, message = REFUSED[case]
    with pytest.raises(UnsupportedLayerError, match=message):
        exchange.from_keras(build())


def test_training_leaves_no_trace():
    """Initializers, regularizers, constraints and what is frozen are left behind; outputs stay the same."""
    dense = layers.Dense(
        3,
        kernel_initializer="he_normal",
        kernel_regularizer="l2",
        bias_constraint="non_neg",
        activity_regularizer="l1",
    )
    dense.trainable = False
    model = sequential((4,), dense, layers.BatchNormalization(synchronized=False, gamma_initializer="zeros"))
    model.compile(loss="mse")
    round_trip(model)


def test_quantized_by_keras():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2, name="d")])
    model.layers[0].quantize("int8")
    with pytest.raises(UnsupportedLayerError, match="'d' of class Dense computes in"):
        exchange.from_keras(model)


def test_without_the_neurons_that_nobody_reads(digits):
    keras.utils.set_random_seed(0)
    layers = [
        keras.layers.Conv2D(6, 5, strides=4, activation="relu", name="conv"),
        keras.layers.BatchNormalization(name="norm"),
        keras.layers.Flatten(name="flatten"),
        keras.layers.Dense(9, activation="relu", name="hidden"),
        keras.layers.Dense(10, name="dense"),
    ]
    model = keras.Sequential([keras.Input((28, 28, 1), name="image"), *layers], name="small")
    hidden, dense = (model.get_layer(name).kernel for name in ("hidden", "dense"))
    dense.assign(dense.numpy() * np.array([1, 0, 1, 1, 1, 0, 1, 1, 1])[:, None])  # 1 and 5 are not read
    read = np.tile(np.array([1, 1, 0, 1, 1, 1]), 36)[:, None]  # channel 2 of the convolution is not
    hidden.assign(hidden.numpy() * read * (np.arange(9) != 7))
    hidden.assign(np.where(np.arange(216)[:, None] % 5 == 0, 0, hidden.numpy()))
    small, origins = exchange.without_unused_neurons(model)
    assert [(v.path, *v.shape) for v in small.trainable_variables] == [
        ("conv/kernel", 5, 5, 1, 5),
        ("conv/bias", 5),
        ("norm/gamma", 5),
        ("norm/beta", 5),
        ("hidden/kernel", 180, 7),
        ("hidden/bias", 7),
        ("dense/kernel", 7, 10),
        ("dense/bias", 10),
    ]
    images = digits.x_test[:20].astype(np.float32)
    assert np.allclose(small(images), model(images), atol=1e-4)
    for variable, (whole, places) in zip(small.trainable_variables, origins, strict=True):
        assert whole.path.endswith(variable.path)
        assert places.shape == variable.shape
        assert np.array_equal(np.where(places < 0, 0, whole.numpy().ravel()[places]), variable.numpy())
        assert np.all((places >= 0) | variable.path.endswith("kernel"))
    assert origins[1][1].tolist() == [0, 1, 3, 4, 5]
    assert origins[5][1].tolist() == [0, 2, 3, 4, 6, 7, 8]

    class Own(keras.layers.Layer):
        def call(self, x):
            return 2 * x

    odd = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), Own(), keras.layers.Dense(2)])
    same, origins = exchange.without_unused_neurons(odd)
    assert same is odd
    for variable, (whole, places) in zip(odd.trainable_variables, origins, strict=True):
        assert whole is variable
        assert np.array_equal(places, np.arange(places.size).reshape(variable.shape))

    noisy = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.GaussianNoise(1)])
    noisy.add(keras.layers.Dense(2))
    noisy.layers[-1].kernel.assign(np.zeros((3, 2)))
    assert exchange.without_unused_neurons(noisy)[0] is noisy  # It is to be trained, and the noise would be gone.


# Layers that act in training alone

ARGUMENTS = {
    "StochasticDepth": {"drop_path_rate": 0.5},
    "RandomBrightness": {"factor": 0.2},
    "RandomColorDegeneration": {"factor": 0.5},
    "RandomContrast": {"factor": 0.2},
    "RandomCrop": {"height": 8, "width": 8},
    "RandomHue": {"factor": 0.5},
    "RandomPosterization": {"factor": 4},
    "RandomRotation": {"factor": 0.5},
    "RandomSaturation": {"factor": 0.5},
    "RandomSharpness": {"factor": 0.5},
    "RandomTranslation": {"height_factor": 0.3, "width_factor": 0.3},
    "RandomZoom": {"height_factor": 0.3},
    "AlphaDropout": {"rate": 0.5},
    "GaussianDropout": {"rate": 0.5},
    "GaussianNoise": {"stddev": 0.5},
    "SpatialDropout1D": {"rate": 0.5},
    "SpatialDropout2D": {"rate": 0.5},
    "SpatialDropout3D": {"rate": 0.5},
}
SHAPES = {"SpatialDropout1D": (8, 3), "SpatialDropout3D": (2, 8, 8, 3)}


@pytest.mark.parametrize(
    "name",
    [*graph._TRAINING_ONLY_LAYERS, *(name for name in dir(layers) if name.startswith("Random"))],
)
def test_layers_that_act_in_training_alone_are_left_out(name):
    shape = SHAPES.get(name, (8, 8, 3))
    layer = exchange.class_of(name)(**ARGUMENTS.get(name, {}), name="acts")
    model = keras.Sequential([keras.Input(shape), layer, layers.Flatten(), layers.Dense(2, name="dense")])
    assert exchange.left_out(model) == ["acts"]
    network = exchange.from_keras(model)
    assert [layer.kind for layer in network.layers] == ["InputLayer", "Flatten", "Dense"]
    x = np.random.default_rng(0).normal(100, 120, (4, *shape)).astype(np.float32)
    np.testing.assert_array_equal(exchange.to_keras(network)(x), model(x, training=False))


def test_a_layer_of_training_in_a_branch_and_in_a_nested_model():
    inner = keras.Sequential([keras.Input((6,)), layers.GaussianNoise(0.1, name="noise"), layers.Dense(4)], name="in")
    model = fill(functional(lambda x: layers.Add()([layers.Identity(name="same")(x), inner(layers.Dense(6)(x))])))
    assert exchange.left_out(model) == ["same", "in/noise"]
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    np.testing.assert_array_equal(exchange.to_keras(exchange.from_keras(model))(x), model(x, training=False))


def test_a_layer_without_weights_on_two_inputs_may_be_called_again():
    dot = layers.Dot(1, name="dot")
    model = fill(functional(lambda x: layers.Concatenate()([dot([x, x]), dot([layers.Dense(4)(x), x])])))
    assert [layer.kind for layer in round_trip(model).layers].count("Dot") == 2


def test_a_layer_that_is_called_again_is_read_once():
    dense = layers.Dense(4)
    _, first, second = exchange.from_keras(fill(functional(lambda x: dense(dense(x))))).layers
    assert second.same_as == 1
    assert second.weights is first.weights


# All obstacles at once


def with_layers_of_its_own():
    class Model(keras.Model):
        def __init__(self):
            super().__init__(name="own")
            self.first = layers.Dense(3, name="first")
            self.second = keras.Sequential([keras.Input((3,)), layers.Lambda(lambda x: x, name="norm")], name="second")
            self.third = keras.Sequential(
                [layers.RNN(layers.StackedRNNCells([layers.LSTMCell(2)]), name="rnn")], name="third"
            )

        def call(self, inputs):
            return self.third(self.second(self.first(inputs)))

    return Model()


def mixed():
    made = [layers.Dense(3, name="a", dtype="mixed_float16"), layers.Dense(3, name="b")]
    return keras.Sequential([keras.Input((4,)), *made, layers.Dense(1, name="c", dtype="float64")])


def not_finite():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, name="d", activation="log_softmax")])
    model.layers[0].bias.assign([1, np.nan, 2])
    return model


def nested_with_two_inputs():
    a, b = keras.Input((4,)), keras.Input((4,))
    inner = keras.Model(
        [a, b], [layers.Dense(2, name="d")(a), layers.Lambda(lambda x: x, name="norm")(b)], name="inner"
    )
    return functional(lambda x: inner([x, x])[0])


def of_any_length():
    made = [
        layers.Conv1D(4, 3, activation="log_softmax", name="conv"),
        layers.RNN(layers.StackedRNNCells([layers.LSTMCell(3)]), name="rnn"),
        layers.Dense(2),
    ]
    return keras.Sequential([keras.Input((None, 3)), *made], name="text")


CHECKED = {
    "nothing": (lambda: first(layers.Dense(2)), []),
    "dictionary of one output": (lambda: functional(lambda x: {"y": layers.Dense(2)(x)}), []),
    "frozen statistics": (lambda: functional(lambda x: layers.BatchNormalization()(x, training=False)), []),
    "subclassed": (with_layers_of_its_own, ["own", "second/norm", "third", "third/rnn"]),
    "unbuilt": (
        lambda: keras.Sequential(
            [layers.Dense(2), layers.RNN(layers.StackedRNNCells([layers.LSTMCell(2)]), name="rnn")], name="s"
        ),
        ["s", "rnn"],
    ),
    "two inputs": (several_inputs, []),
    "dictionary of outputs": (lambda: functional(lambda x: {"a": layers.ReLU()(x), "b": layers.ELU()(x)}), []),
    "nested with two inputs": (nested_with_two_inputs, ["inner/norm"]),
    "lambda": (lambda: first(layers.Lambda(lambda x: 2 * x, name="double")), ["double"]),
    "operators": (lambda: functional(lambda x: keras.ops.cumsum(x + 1) * keras.ops.cos(x)), ["cumsum", "cos"]),
    "several outputs of a layer": (lambda: functional(lambda x: keras.ops.split(x, 2, axis=1)[1]), ["split"]),
    "open size": (of_any_length, ["conv", "rnn"]),
    "mixed precision": (mixed, ["a", "c"]),
    "several in one layer": (not_finite, ["d", "d"]),
    "weights three times": (lambda: functional(thrice), []),
    "names": (lambda: first(layers.Dense(2, name="a\x9b" * 99 + "\x1b")), ["a\x9b" * 99 + "\x1b"]),
    "array": (lambda: first(layers.Rescaling(np.array([0.1, 0.2]), name="r")), ["r"]),
}


def thrice(x):
    dense = layers.Dense(4, name="twice")
    return dense(dense(dense(x)))


@pytest.mark.parametrize("case", CHECKED)
def test_check_lists_every_obstacle(case):
    build, expected = CHECKED[case]
    keras.backend.clear_session()  # Names of operations are numbered over all models.
    model = build()
    found = deepcomp.check(model)
    assert [obstacle.layer for obstacle in found] == [name or model.name for name in expected]
    assert all("\n" not in str(obstacle) and str(obstacle).endswith(".") for obstacle in found)
    if found:
        with pytest.raises(UnsupportedLayerError) as caught:
            exchange.from_keras(model)
        more = f" ({len(found) - 1} more: see deepcomp.check)" if len(found) > 1 else ""
        assert str(caught.value) == str(found[0]) + more
    else:
        container.dumps(exchange.from_keras(model))


def test_an_obstacle_says_what_to_do():
    (obstacle,) = deepcomp.check(first(layers.MaxPooling2D(data_format="channels_first", name="p")))
    assert obstacle == exchange.Obstacle(
        "p",
        "The layer 'p' of class MaxPooling2D has data_format='channels_first'",
        "use data_format='channels_last'",
    )
    assert str(obstacle) == f"{obstacle.reason}: {obstacle.advice}."


def test_check_of_something_else_than_a_model():
    with pytest.raises(RecipeError, match="A Keras model is needed, not str"):
        deepcomp.check("model.keras")
