"""Files of Keras 2 are built here by hand, as it wrote them; what they compute is computed with NumPy or Keras 3."""

import base64
import json
import marshal
import subprocess
import sys
import zipfile

import h5py
import keras
import numpy as np
import pytest

from deepcomp import opening
from deepcomp.errors import FormatError, UnsupportedLayerError

GLOROT = {"class_name": "GlorotUniform", "config": {"seed": None, "dtype": "float32"}}
ZEROS = {"class_name": "Zeros", "config": {"dtype": "float32"}}
USE = "give the network as Keras saved it, a .keras or .h5 file."


def layer(kind, name, node=None, **config):
    made = {"class_name": kind, "config": {"name": name, "trainable": True, "dtype": "float32", **config}}
    return made if node is None else {**made, "name": name, "inbound_nodes": node}


def entry(name, *shape, node=None):
    made = {"batch_input_shape": [None, *shape], "dtype": "float32", "sparse": False, "ragged": False, "name": name}
    return {"class_name": "InputLayer", "config": made, **({} if node is None else {"name": name, "inbound_nodes": []})}


def sequential(*layers, name="net"):
    return {"class_name": "Sequential", "config": {"name": name, "layers": list(layers)}}


def functional(layers, inputs, outputs, name="net", kind="Functional"):
    ends = {"input_layers": [[i, 0, 0] for i in inputs], "output_layers": [[o, n, 0] for o, n in outputs]}
    return {"class_name": kind, "config": {"name": name, "layers": layers, **ends}}


def dense(name, units, node=None, **config):
    more = {"activation": "linear", "use_bias": True, "kernel_initializer": GLOROT, "bias_initializer": ZEROS}
    return layer("Dense", name, node, units=units, **{**more, "kernel_regularizer": None, **config})


def recurrent(kind, name, units, **config):
    more = {"return_sequences": False, "return_state": False, "go_backwards": False, "stateful": False}
    gates = {"recurrent_activation": "hard_sigmoid", "activation": "tanh", "implementation": 1, "dropout": 0.0}
    return layer(kind, name, units=units, time_major=False, unroll=False, **{**more, **gates, **config})


def keras2_file(path, config, weights, version="2.4.0", training=None):
    """`weights`: for each layer of the file its weights by name."""
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"], file.attrs["backend"] = version.encode(), b"tensorflow"
        file.attrs["model_config"] = json.dumps(config).encode()
        if training:
            file.attrs["training_config"] = json.dumps(training).encode()
        write_weights(file.create_group("model_weights"), weights)
    return path


def write_weights(group, weights):
    group.attrs["layer_names"] = [name.encode() for name in weights]
    for name, values in weights.items():
        own = group.create_group(name)
        own.attrs["weight_names"] = [f"{inner}:0".encode() for inner in values]
        for inner, value in values.items():
            own[f"{inner}:0"] = value


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).uniform(0.1, 0.9, shape).astype(np.float32)


def agrees(model, expected, inputs):
    np.testing.assert_allclose(model(inputs, training=False), expected, rtol=1e-5, atol=1e-6)


def test_a_convolutional_network_of_keras_2_whose_first_layer_has_the_shape_of_the_batch(tmp_path):
    convolution = {"kernel_size": [3, 3], "strides": [1, 1], "padding": "valid", "data_format": "channels_last"}
    config = sequential(
        layer(
            "Conv2D", "conv", filters=2, batch_input_shape=[None, 5, 5, 1], groups=1, activation="relu", **convolution
        ),
        layer("BatchNormalization", "norm", axis=[3], epsilon=0.001),
        layer("LeakyReLU", "leaky", alpha=0.25),
        layer("Flatten", "flat", data_format="channels_last"),
        dense("out", 3, kernel_regularizer={"class_name": "L1L2", "config": {"l1": 0.0, "l2": 0.5}}),
    )
    values = [numbers(3, 3, 1, 2), numbers(2), *(numbers(2, seed=i) for i in range(1, 5)), numbers(18, 3), numbers(3)]
    names = ["conv/kernel", "conv/bias", *(f"norm/{n}" for n in ("gamma", "beta", "moving_mean", "moving_variance"))]
    named = dict(zip([*names, "out/kernel", "out/bias"], values, strict=True))
    weights = {top: {n: v for n, v in named.items() if n.startswith(top)} for top in ("conv", "norm", "flat", "out")}
    model = opening.load(keras2_file(tmp_path / "net.h5", config, weights))
    same = keras.Sequential(
        [
            keras.Input((5, 5, 1)),
            keras.layers.Conv2D(2, 3, activation="relu"),
            keras.layers.BatchNormalization(epsilon=0.001),
            keras.layers.LeakyReLU(0.25),
            keras.layers.Flatten(),
            keras.layers.Dense(3),
        ]
    )
    same.set_weights(values)
    agrees(model, same(numbers(2, 5, 5, 1), training=False), numbers(2, 5, 5, 1))
    assert [one.name for one in model.layers] == ["conv", "norm", "leaky", "flat", "out"]
    assert float(model.get_layer("out").kernel_regularizer.l2) == 0.5
    assert not model.compiled


def test_a_depthwise_block_with_groups_and_an_old_list_of_layers(tmp_path):
    layers = [
        entry("image", 6, 6, 2),
        layer(
            "DepthwiseConv2D", "deep", kernel_size=[3, 3], strides=[2, 2], padding="same", groups=1, depth_multiplier=1
        ),
        layer("ThresholdedReLU", "over", theta=0.5),
        layer("GlobalAveragePooling2D", "pool", data_format="channels_last"),
    ]
    layers[1]["config"] |= {"kernel_initializer": GLOROT, "depthwise_initializer": GLOROT, "kernel_regularizer": None}
    config = {"class_name": "Sequential", "config": layers}  # before Keras 2.2.3 there was no name
    kernel, bias = numbers(3, 3, 2, 1), numbers(2)
    weights = {"deep": {"deep/depthwise_kernel": kernel, "deep/bias": bias}}
    model = opening.load(keras2_file(tmp_path / "net.h5", config, weights, "2.2.0"))
    same = keras.Sequential([keras.Input((6, 6, 2)), keras.layers.DepthwiseConv2D(3, strides=2, padding="same")])
    same.set_weights([kernel, bias])
    inner = same(numbers(2, 6, 6, 2)).numpy()
    agrees(model, np.where(inner > 0.5, inner, 0).mean(axis=(1, 2)), numbers(2, 6, 6, 2))


def hard(x):
    return np.clip(0.2 * x + 0.5, 0, 1)


def test_an_lstm_with_the_hard_sigmoid_of_keras_2(tmp_path):
    config = sequential(
        recurrent("LSTM", "memory", 3, batch_input_shape=[None, 4, 2]), dense("out", 1, activation="hard_sigmoid")
    )
    kernel, inner, bias = numbers(2, 12) * 4 - 2, numbers(3, 12) * 4 - 2, numbers(12)
    out, shift = numbers(3, 1) * 4, numbers(1)
    weights = {
        "memory": {"memory/kernel": kernel, "memory/recurrent_kernel": inner, "memory/bias": bias},
        "out": {"out/kernel": out, "out/bias": shift},
    }
    model = opening.load(keras2_file(tmp_path / "net.h5", config, weights))
    x = numbers(5, 4, 2) * 4 - 2
    state = carry = np.zeros((5, 3), np.float32)
    for step in range(4):
        i, f, c, o = np.split(x[:, step] @ kernel + state @ inner + bias, 4, axis=1)
        carry = hard(f) * carry + hard(i) * np.tanh(c)
        state = hard(o) * np.tanh(carry)
    agrees(model, hard(state @ out + shift), x)


def test_a_gru_from_before_reset_after_and_an_activation_alone(tmp_path):
    config = sequential(
        recurrent("GRU", "memory", 2, batch_input_shape=[None, 3, 2]),
        layer("Activation", "act", activation="hard_sigmoid"),
    )
    kernel, inner, bias = numbers(2, 6) * 4 - 2, numbers(2, 6) * 4 - 2, numbers(6)
    weights = {"memory": {"memory/kernel": kernel, "memory/recurrent_kernel": inner, "memory/bias": bias}, "act": {}}
    model = opening.load(keras2_file(tmp_path / "net.h5", config, weights, "2.1.0"))
    x = numbers(4, 3, 2) * 4 - 2
    state = np.zeros((4, 2), np.float32)
    for step in range(3):
        given = x[:, step] @ kernel + bias
        z, r = np.split(hard(given[:, :4] + state @ inner[:, :4]), 2, axis=1)
        state = z * state + (1 - z) * np.tanh(given[:, 4:] + (r * state) @ inner[:, 4:])
    agrees(model, hard(state), x)


def test_a_hard_sigmoid_that_no_weights_can_make_up_for_is_refused(tmp_path):
    config = sequential(recurrent("LSTM", "memory", 1, activation="hard_sigmoid", batch_input_shape=[None, 2, 1]))
    values = {"memory/kernel": numbers(1, 4), "memory/recurrent_kernel": numbers(1, 4), "memory/bias": numbers(4)}
    path = keras2_file(tmp_path / "net.h5", config, {"memory": values})
    with pytest.raises(
        UnsupportedLayerError, match="hard_sigmoid of Keras 2 as its activation, which Keras 3 computes"
    ):
        opening.load(path)


def nested_parts():
    """A nested network that is applied twice and puts out last, another one, and an addition; names have slashes."""
    first = sequential(entry("inner_image", 3), dense("fc", 3), name="first")
    twice = functional(
        [
            entry("x", 3, node=[]),
            dense("fc", 3, [[["x", 0, 0, {}]]]),
            layer("BatchNormalization", "norm", [[["fc", 0, 0, {}]]], axis=[1]),
        ],
        ["x"],
        [("norm", 0)],
        "twice",
    )
    layers = [
        entry("in/x", 3, node=[]),
        {**first, "name": "first", "inbound_nodes": [[["in/x", 0, 0, {}]]]},
        {**twice, "name": "twice", "inbound_nodes": [[["first", 1, 0, {}]], [["twice", 1, 0, {}]]]},
        layer("Add", "sum", [[["twice", 1, 0, {}], ["twice", 2, 0, {}]]]),
        dense("a/fc", 2, [[["sum", 0, 0, {}]]]),
        dense("a_fc", 2, [[["sum", 0, 0, {}]]]),
    ]
    weights = {
        "first": {"fc/kernel": numbers(3, 3, seed=1), "fc/bias": numbers(3, seed=2)},
        "twice": {
            # Keras 2 listed weights that train before those that do not.
            "fc/kernel": numbers(3, 3, seed=3),
            "fc/bias": numbers(3, seed=4),
            "norm/gamma": numbers(3, seed=5),
            "norm/beta": numbers(3, seed=6),
            "norm/moving_mean": numbers(3, seed=7),
            "norm/moving_variance": numbers(3, seed=8),
        },
        "a/fc": {"a/fc/kernel": numbers(3, 2, seed=9), "a/fc/bias": numbers(2, seed=10)},
        "a_fc": {"a_fc/kernel": numbers(3, 2, seed=11), "a_fc/bias": numbers(2, seed=12)},
    }
    return layers, weights


def test_nested_networks_and_names_with_slashes(tmp_path):
    layers, weights = nested_parts()
    config = functional(layers, ["in/x"], [("a/fc", 0), ("twice", 2), ("a_fc", 0)], "deep/net", kind="Model")
    model = opening.load(keras2_file(tmp_path / "net.h5", config, weights))
    w = {name: [*values.values()] for name, values in weights.items()}
    x = numbers(4, 3, seed=20)

    def twice(x):
        kernel, bias, gamma, beta, mean, variance = w["twice"]
        return gamma * (x @ kernel + bias - mean) / np.sqrt(variance + 1e-3) + beta

    once = twice(x @ w["first"][0] + w["first"][1])
    again = twice(once)
    expected = [(once + again) @ kernel + bias for kernel, bias in (w["a/fc"], w["a_fc"])]
    found = model(x, training=False)
    for ours, theirs in zip(found, [expected[0], again, expected[1]], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    assert model.name == "deep_net"
    assert [one.name for one in model.layers][-2:] == ["a_fc_", "a_fc"]


def test_weights_are_told_apart_by_name_where_their_order_differs(tmp_path):
    config = sequential(entry("x", 2), layer("BatchNormalization", "norm", axis=[1]))
    values = {
        "norm/beta": [1.0, 2.0],
        "norm/gamma": [3.0, 4.0],
        "norm/moving_variance": [5.0, 6.0],
        "norm/moving_mean": [7, 8],
    }
    model = opening.load(keras2_file(tmp_path / "net.h5", config, {"norm": values}))
    assert [value.tolist() for value in model.get_weights()] == [[3, 4], [1, 2], [7, 8], [5, 6]]


def test_the_states_of_one_lstm_go_to_another(tmp_path):
    first = recurrent("LSTM", "first", 2, return_state=True, recurrent_activation="sigmoid")
    second = recurrent("LSTM", "second", 2, recurrent_activation="sigmoid")
    layers = [
        entry("x", 3, 2, node=[]),
        {**first, "name": "first", "inbound_nodes": [[["x", 0, 0, {}]]]},
        {**second, "name": "second", "inbound_nodes": [[["x", 0, 0, {}], ["first", 0, 1, {}], ["first", 0, 2, {}]]]},
    ]
    values = [numbers(2, 8), numbers(2, 8, seed=1), numbers(8, seed=2)]
    names = ("kernel", "recurrent_kernel", "bias")
    weights = {name: {f"{name}/{n}": v for n, v in zip(names, values, strict=True)} for name in ("first", "second")}
    model = opening.load(keras2_file(tmp_path / "net.h5", functional(layers, ["x"], [("second", 0)]), weights))
    x = numbers(2, 3, 2)
    lstm = keras.layers.LSTM(2, return_state=True)
    lstm.build((None, 3, 2))
    lstm.set_weights(values)
    _, *states = lstm(x)
    agrees(model, lstm(x, initial_state=states)[0], x)


def test_arithmetic_and_policies(tmp_path):
    half = {"class_name": "Policy", "config": {"name": "mixed_float16"}}
    layers = [
        entry("x", 2, node=[]),
        dense("fc", 2, [[["x", 0, 0, {}]]]),
        layer(
            "TFOpLambda",
            "tf.math.subtract",
            [["_CONSTANT_VALUE", -1, 3.0, {"y": ["fc", 0, 0], "name": None}]],
            function="math.subtract",
        ),
        layer("TFOpLambda", "tf.nn.relu6", [["tf.math.subtract", 0, 0, {"name": None}]], function="nn.relu6"),
        layer("Dropout", "drop", [[["tf.nn.relu6", 0, 0, {"training": False}]]], rate=0.5),
    ]
    layers[-1]["config"]["dtype"] = half
    weights = {"fc": {"fc/kernel": numbers(2, 2), "fc/bias": numbers(2)}}
    model = opening.load(keras2_file(tmp_path / "net.h5", functional(layers, ["x"], [("drop", 0)]), weights))
    x = 8 * numbers(3, 2) - 4
    np.testing.assert_allclose(model(x), np.clip(3 - x @ numbers(2, 2) - numbers(2), 0, 6), rtol=1e-3, atol=1e-3)
    assert model.get_layer("drop").dtype_policy.name == "mixed_float16"


SMALL = sequential(entry("x", 2), dense("fc", 3))
SMALL_WEIGHTS = {"fc": {"fc/kernel": numbers(2, 3), "fc/bias": numbers(3)}}


@pytest.mark.parametrize("name", ["net.keras", "net.hdf5", "net", "net.model"])
def test_the_content_of_a_file_counts_and_not_its_name(tmp_path, name):
    model = opening.load(keras2_file(tmp_path / name, SMALL, SMALL_WEIGHTS))
    agrees(model, numbers(4, 2) @ numbers(2, 3) + numbers(3), numbers(4, 2))
    model.save(tmp_path / "again.keras")
    (tmp_path / "again.keras").rename(tmp_path / f"again-{name}")
    agrees(opening.load(tmp_path / f"again-{name}"), model(numbers(4, 2)), numbers(4, 2))


def test_an_archive_that_keras_2_wrote(tmp_path):
    path = tmp_path / "net.keras"
    config = sequential(entry("x", 2), dense("fc", 3), layer("LeakyReLU", "leaky", alpha=0.5))
    with h5py.File(tmp_path / "weights.h5", "w") as file:
        file["_layer_checkpoint_dependencies/dense/vars/0"] = numbers(2, 3)
        file["_layer_checkpoint_dependencies/dense/vars/1"] = -numbers(3)
        for other in ("input_layer", "leaky_re_lu"):
            file.create_group(f"_layer_checkpoint_dependencies/{other}/vars")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": "2.13.1"}))
        archive.writestr("config.json", json.dumps({"module": "keras", "registered_name": None, **config}))
        archive.write(tmp_path / "weights.h5", "model.weights.h5")
    inner = 2 * (numbers(4, 2) - 0.5) @ numbers(2, 3) - numbers(3)
    agrees(opening.load(path), np.where(inner > 0, inner, inner / 2), 2 * (numbers(4, 2) - 0.5))


def test_loss_and_metrics_of_keras_2_come_back(tmp_path, recwarn):
    training = {
        "loss": {
            "class_name": "Huber",
            "config": {"reduction": "auto", "name": "huber_loss", "delta": 2.0, "fn": "huber"},
        },
        "metrics": [
            [{"class_name": "MeanMetricWrapper", "config": {"name": "accuracy", "fn": "categorical_accuracy"}}]
        ],
        "weighted_metrics": None,
        "loss_weights": None,
        "optimizer_config": {"class_name": "Custom>SGD", "config": {"name": "SGD", "lr": 0.25, "decay": 0.0}},
    }
    model = opening.load(keras2_file(tmp_path / "net.h5", SMALL, SMALL_WEIGHTS, training=training))
    assert model.compiled
    assert isinstance(model.optimizer, keras.optimizers.SGD)
    assert float(model.optimizer.learning_rate) == 0.25
    x, y = numbers(4, 2), numbers(4, 3, seed=1) * 9
    expected = keras.losses.Huber(2.0)(y, model(x))
    assert model.evaluate(x, y, verbose=0, return_dict=True)["loss"] == pytest.approx(float(expected))
    training["loss"] = "somebodys_own"
    assert not opening.load(keras2_file(tmp_path / "own.h5", SMALL, SMALL_WEIGHTS, training=training)).compiled
    training |= {"loss": "mse", "metrics": ["somebodys_own"], "optimizer_config": {"class_name": "Own", "config": {}}}
    assert opening.load(keras2_file(tmp_path / "metric.h5", SMALL, SMALL_WEIGHTS, training=training)).loss == "mse"
    assert not recwarn.list


@pytest.mark.parametrize("name", ["net.keras", "net.h5"])
def test_loss_and_metrics_of_keras_3_come_back(tmp_path, name, recwarn):
    network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    network.compile(
        "adam", keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.5), metrics=["mae"]
    )
    network.save(tmp_path / name)
    model = opening.load(tmp_path / name)
    x, y = numbers(4, 2), np.eye(3, dtype=np.float32)[[0, 1, 2, 0]]
    ours, theirs = (one.evaluate(x, y, verbose=0, return_dict=True) for one in (model, network))
    assert ours == pytest.approx(theirs)
    assert "mae" in ours
    network.compile("adam", lambda y, z: keras.ops.mean(y - z))
    network.save(tmp_path / name)
    recwarn.clear()
    assert not opening.load(tmp_path / name).compiled
    assert not [warning for warning in recwarn.list if "__array__" not in str(warning.message)]


def saved_model(path, config, weights, metadata_file=True):
    """What Keras 2 left of a SavedModel that matters here: its metadata and its checkpoint."""
    import tensorflow as tf
    from tensorflow.core.protobuf import saved_model_pb2
    from tensorflow.python.keras.protobuf import saved_metadata_pb2

    root = tf.Module()
    metadata = {"root": {**config, "model_config": config, "is_graph_network": True}}
    message, saved = saved_metadata_pb2.SavedMetadata(), saved_model_pb2.SavedModel()
    nodes = saved.meta_graphs.add().object_graph_def.nodes
    for number, (name, values) in enumerate(weights.items()):
        part = tf.Module()
        part.variables_list = [tf.Variable(value, name=inner) for inner, value in values.items()]
        part._trackable_children = lambda *_, own=part.variables_list, **__: {"variables": own}
        setattr(root, f"layer_with_weights-{number}", part)
        metadata[f"root.layer_with_weights-{number}"] = {"name": name}
    nodes.add()
    for number, (node_path, values) in enumerate(metadata.items()):
        node = nodes[0] if not number else nodes.add()
        node.user_object.identifier = "_tf_keras_layer"
        node.user_object.metadata = "" if metadata_file else json.dumps(values)
        message.nodes.add(node_id=number, node_path=node_path, metadata=json.dumps(values))
        if number:
            nodes[0].children.add(node_id=number, local_name=node_path.partition(".")[2])
    tf.train.Checkpoint(root).write(str(path / "variables" / "variables"))
    (path / "saved_model.pb").write_bytes(saved.SerializeToString())
    if metadata_file:
        (path / "keras_metadata.pb").write_bytes(message.SerializeToString())
    return path


@pytest.mark.parametrize("metadata_file", [True, False])
def test_a_saved_model_that_keras_2_wrote(tmp_path, metadata_file):
    tuples = json.loads(json.dumps(SMALL).replace("[null, 2]", '{"class_name": "__tuple__", "items": [null, 2]}'))
    model = opening.load(saved_model(tmp_path / "net", tuples, SMALL_WEIGHTS, metadata_file))
    agrees(model, numbers(4, 2) @ numbers(2, 3) + numbers(3), numbers(4, 2))


def test_a_saved_model_without_layers_is_named(tmp_path):
    network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    network.export(tmp_path / "net", verbose=False)
    with pytest.raises(FormatError) as raised:
        opening.load(tmp_path / "net")
    assert str(raised.value) == f"{tmp_path}/net holds a TensorFlow graph for inference, not the Keras layers: {USE}"


@pytest.mark.parametrize("odd", [False, True])
def test_weights_alone_are_named(tmp_path, odd):
    path = tmp_path / "net.h5"
    if odd:
        with h5py.File(path, "w") as file:
            write_weights(file, SMALL_WEIGHTS)
    else:
        keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)]).save_weights(tmp_path / "net.weights.h5")
        (tmp_path / "net.weights.h5").rename(path)
    with pytest.raises(FormatError) as raised:
        opening.load(path)
    assert str(raised.value) == (
        f"{path} holds weights alone, not the network: build it in Python, call load_weights and save it as .keras."
    )


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("net.keras", b"", "is empty."),
        ("net.keras", b"\0" * 99, f"is damaged or no Keras network: {USE}"),
        ("net.bin", b"\x1c\0\0\0TFL3" + b"\0" * 99, f"is a TensorFlow Lite network, which cannot be trained: {USE}"),
        ("net.onnx", b"\x08\x07", f"is an ONNX network, which cannot be trained in Keras: {USE}"),
        (
            "net.h5",
            b"version https://git-lfs.github.com/spec/v1\n",
            "is a pointer of Git LFS, not the network: run `git lfs pull`.",
        ),
        ("net.h5", b"\n<!DOCTYPE html>", "is a web page, not a network: download the file itself."),
    ],
)
def test_files_of_other_kinds_are_named(tmp_path, name, content, says):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(FormatError) as raised:
        opening.load(path)
    assert str(raised.value) == f"{path} {says}"


def test_what_is_missing_or_no_network_is_named(tmp_path):
    with pytest.raises(FormatError, match=r"No model file .*absent\.keras\."):
        opening.load(tmp_path / "absent.keras")
    with pytest.raises(FormatError, match=r"is a folder without a saved_model\.pb"):
        opening.load(tmp_path)
    with zipfile.ZipFile(tmp_path / "other.keras", "w") as archive:
        archive.writestr("data.pkl", "")
    with pytest.raises(FormatError, match=r"holds a zip archive, but no Keras network \(config\.json is not in it\)\."):
        opening.load(tmp_path / "other.keras")
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["x"] = 1.0
    with pytest.raises(FormatError, match="holds data, but no Keras network: give"):
        opening.load(tmp_path / "data.h5")
    with pytest.raises(FormatError, match=r"holds a network of Keras 1: open it with Keras 2\.0 and save it again\."):
        opening.load(keras2_file(tmp_path / "old.h5", SMALL, SMALL_WEIGHTS, "1.2.2"))


@pytest.mark.parametrize("name", ["net.keras", "net.h5"])
def test_a_file_comes_back_and_a_damaged_one_is_refused_in_one_line(tmp_path, network, name):
    path = tmp_path / name
    network.save(path)
    back = opening.load(path)
    assert all(np.array_equal(a, b) for a, b in zip(network.get_weights(), back.get_weights(), strict=True))
    whole = path.read_bytes()
    damaged = [whole[: len(whole) // 2], whole[:900]]
    if name == "net.keras":
        damaged += [whole[:-1], whole[:900] + b"\xff" * 50 + whole[950:]]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(FormatError, match="damaged") as raised:
            opening.load(path)
        assert "\n" not in str(raised.value)


def test_weights_that_do_not_fit_are_refused(tmp_path):
    wrong = {"fc": {"fc/kernel": numbers(3, 3), "fc/bias": numbers(3)}}
    with pytest.raises(FormatError, match=r"holds weights of the shapes .* for the layer 'fc', which takes"):
        opening.load(keras2_file(tmp_path / "net.h5", SMALL, wrong))
    with pytest.raises(FormatError, match="holds weights of 0 layers for a network that has them in 1"):
        opening.load(keras2_file(tmp_path / "none.h5", SMALL, {"fc": {}}))


REGISTER = "register it with @keras.saving.register_keras_serializable and call deepcomp from Python."
LAMBDA = (
    "a Lambda layer whose Python code is not run from a file: open it yourself with "
    "keras.saving.load_model(..., safe_mode=False) and call deepcomp from Python."
)


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (layer("Odd", "it"), f"the layer 'it' of the class Odd, which is not Keras's own: {REGISTER}"),
        (
            layer("CuDNNLSTM", "it", units=3),
            "the layer 'it' of the class CuDNNLSTM, which only Keras 2 has: rebuild the network with layers of Keras 3 "
            "and load its weights there.",
        ),
        (
            layer("TFOpLambda", "tf.concat", function="concat"),
            "the layer 'tf.concat' of the class TFOpLambda, which only Keras 2 has: rebuild the network with layers of "
            "Keras 3 and load its weights there.",
        ),
        (layer("Lambda", "it", function=["4wEA", None, None], function_type="lambda"), LAMBDA),
        (
            layer("Lambda", "it", function="halve", function_type="function"),
            f"a Lambda layer of the function 'halve', which is not Keras's own: {REGISTER}",
        ),
        (
            dense("it", 2, activation="odd"),
            f"the activation 'odd' of the layer 'it', which is not Keras's own: {REGISTER}",
        ),
        (
            layer("GRU", "it", units=2, time_major=True),
            "the layer 'it', a GRU with time_major=True, which Keras 3 does not have: rebuild the network in Keras 3 "
            "without it.",
        ),
    ],
)
def test_what_cannot_be_made_is_named_with_the_true_cause(tmp_path, made, says):
    path = keras2_file(tmp_path / "net.h5", sequential(entry("x", 3, 2), made), {})
    with pytest.raises(UnsupportedLayerError) as raised:
        opening.load(path)
    assert str(raised.value) == f"{path} holds {says}"


@pytest.mark.parametrize("name", ["net.keras", "net.h5"])
def test_a_file_of_keras_3_with_somebodys_own_layer_or_a_lambda_is_refused(tmp_path, name):
    class Odd(keras.layers.Dense):
        pass

    path = tmp_path / name
    keras.Sequential([keras.Input((3,)), Odd(2, name="it")]).save(path)
    with pytest.raises(UnsupportedLayerError) as raised:
        opening.load(path)
    assert str(raised.value) == f"{path} holds the layer 'it' of the class Odd, which is not Keras's own: {REGISTER}"
    with keras.saving.custom_object_scope({"Odd": Odd}):
        assert type(opening.load(path).layers[0]) is Odd
    keras.Sequential([keras.Input((3,)), keras.layers.Lambda(lambda x: x * 2)]).save(path)
    with pytest.raises(UnsupportedLayerError) as raised:
        opening.load(path)
    assert str(raised.value) == f"{path} holds {LAMBDA}"


def test_code_in_a_file_of_keras_2_is_not_run(tmp_path):
    """The function of the Lambda would write a file."""
    code = compile(f"open({str(tmp_path / 'ran')!r}, 'w')", "x", "eval")
    text = base64.b64encode(marshal.dumps(code)).decode()
    made = layer("Lambda", "it", function=[text, None, None], function_type="lambda")
    with pytest.raises(UnsupportedLayerError):
        opening.load(keras2_file(tmp_path / "net.h5", sequential(entry("x", 2), made), {}))
    assert not (tmp_path / "ran").exists()


def replace_kernel(path, attack):
    with h5py.File(path, "r+") as file:
        group = file["model_weights/fc/fc"]
        del group["kernel:0"]
        attack(group)


@pytest.mark.parametrize(
    ("attack", "says"),
    [
        (
            lambda group: group.__setitem__("kernel:0", h5py.ExternalLink("other.h5", "/x")),
            "a link from 'kernel:0' to elsewhere",
        ),
        (
            lambda group: group.__setitem__("kernel:0", h5py.SoftLink("/model_weights")),
            "a link from 'kernel:0' to elsewhere",
        ),
        (
            lambda group: group.create_dataset("kernel:0", (2, 3), "f4", external=[("/etc/hostname", 0, 24)]),
            "an array 'kernel:0' whose values lie in another file",
        ),
        (
            lambda group: group.create_dataset("kernel:0", (1 << 20, 1 << 20), "f4", chunks=(64, 64)),
            "an array 'kernel:0' of 4,398,046,511,104 bytes in a file of",
        ),
    ],
)
def test_storage_outside_the_file_and_arrays_larger_than_it_are_refused(tmp_path, attack, says):
    path = keras2_file(tmp_path / "net.h5", SMALL, SMALL_WEIGHTS)
    replace_kernel(path, attack)
    with pytest.raises(FormatError, match=says):
        opening.load(path)


@pytest.mark.parametrize("name", ["a.keras", "a.h5", "b/c", "d.tflite", "saved"])
def test_the_names_of_model_files_are_told_from_those_of_networks(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "saved_model.pb").touch()
    (tmp_path / "reference").mkdir()
    assert opening.is_model_file(name)
    assert not opening.is_model_file("reference")
    assert not opening.is_model_file("lenet-300-100")


def test_importing_it_imports_no_framework():
    program = "import sys, deepcomp.opening; sys.exit(bool({'keras', 'tensorflow', 'h5py'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
