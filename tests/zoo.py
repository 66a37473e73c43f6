"""Small models of every kind of layer since version 3 of the file; the name of each begins with the kinds in it."""

import keras
import numpy as np
from keras import layers, ops

from deepcomp import keras_private


def fill(model, seed=3):
    """Random weights: kernels and embeddings pruned and shared; the rest at random, and positive."""
    generator = np.random.default_rng(seed)
    for variable in model.weights:
        if variable.dtype != "float32":
            continue
        if variable.name.endswith(("kernel", "embeddings")):
            values = generator.choice(np.float32([0, 0, 0.1, -0.25, 0.5]), variable.shape)
        else:
            values = generator.random(variable.shape, np.float32) + np.float32(0.1)
        variable.assign(values)
    for layer in keras_private.all_layers(model):
        if isinstance(layer, layers.Normalization) and layer.input_mean is None:
            layer.finalize_state()
    return model


def row(shape, *made):
    return lambda: keras.Sequential([keras.Input(shape), *(one() for one in made)])


def functional(shape, function):
    def make():
        inputs = keras.Input(shape)
        return keras.Model(inputs, function(inputs))

    return make


def of(name, *arguments, **options):
    """A layer that is made anew for each model."""
    return lambda: (getattr(layers, name, None) or keras_private.application_layer(name))(*arguments, **options)


def merging(x):
    a, b, c, d = (layers.Dense(4)(x) for _ in range(4))
    return layers.Subtract()([layers.Maximum()([a, b]), layers.Average()([layers.Minimum()([c, d]), a, b])])


def added_to_itself(x):
    own = keras_private.application_layer("CustomScaleLayer")(0.3)
    return own([x, layers.Conv2D(3, 3, padding="same")(x)])


def pooled(x):
    made = layers.GlobalMaxPooling3D()(x), layers.GlobalAveragePooling3D()(x)
    return layers.Concatenate()([*made, layers.Flatten()(layers.GlobalMaxPooling3D(keepdims=True)(x))])


def arithmetic(x):
    return -(x * 2.0 + x / 255 - ops.relu(3 - x) + (1 + x) * x - (x - 0.5))


def reductions(x):
    return ops.mean(x, axis=(1, 2)) + ops.max(x, axis=[1, 2]) - ops.sum(x, axis=(1, 2))


def shapes(x):
    turned = ops.transpose(x, (0, 2, 1))[:, :, 0]
    return ops.concatenate([ops.reshape(x, (-1, 24)), turned, ops.mean(x, axis=-1), ops.squeeze(x[:, 1:2], 1)], axis=1)


def matrices(x):
    columns = ops.stack([x[:, :, number] for number in range(4)], axis=2)
    return ops.matmul(x, ops.swapaxes(x, 1, 2)) @ x + x[:, 2:3, :] + columns


def curves(x):
    some = ops.sigmoid(x) + ops.tanh(x) * ops.gelu(x, approximate=False) + abs(x) + x**2 + ops.square(x)
    return ops.softmax(some + ops.expand_dims(x[..., 1], -1) + ops.silu(ops.elu(x)) + ops.maximum(x, some))


def pictures(x):
    large = ops.image.resize(ops.pad(x, ((0, 0), (1, 1), (2, 0), (0, 0))), (8, 8))
    small = ops.average_pool(ops.pad(x, ((0, 0), (4, 5), (3, 4), (0, 0))), 2)
    return large + ops.clip(ops.leaky_relu(small), 0, 1) * ops.max_pool(ops.image.resize(x, (16, 16)), 2)


IMAGE, VOLUME, ROWS = (7, 9, 3), (5, 6, 7, 2), (6, 4)

ZOO = {
    "Subtract Maximum Average Minimum": functional((6,), merging),
    "Dot of matrices": functional(
        ROWS, lambda x: layers.Dot((2, 2), normalize=True)([layers.Conv1D(5, 2)(x), layers.Dense(5)(x)])
    ),
    "Dot of vectors": functional((6,), lambda x: layers.Dot(1)([layers.Dense(5)(x), layers.Dense(5)(x)])),
    "Conv3D": row(
        VOLUME,
        of("Conv3D", 4, (3, 2, 3), strides=(2, 1, 2), padding="same", activation="relu"),
        of("Conv3D", 4, 2, groups=2, dilation_rate=(1, 2, 1)),
    ),
    "Conv3D MaxPooling3D and more": row(
        VOLUME,
        of("Conv3D", 4, 3, padding="same"),
        of("BatchNormalization"),
        of("ReLU"),
        of("MaxPooling3D", 2),
        of("Flatten"),
        of("Dense", 3),
    ),
    "Conv1DTranspose": row(
        ROWS,
        of("Conv1DTranspose", 4, 3, strides=2, padding="same"),
        of("Conv1DTranspose", 2, 4, strides=3, activation="relu"),
    ),
    "Conv1DTranspose with gaps": row(ROWS, of("Conv1DTranspose", 4, 2, strides=3)),
    "Conv1DTranspose with padding of the output": row(
        ROWS,
        of("Conv1DTranspose", 4, 3, strides=2, padding="same", output_padding=1),
        of("Conv1DTranspose", 4, 3, strides=3, output_padding=2),
    ),
    "Conv2DTranspose": row(
        IMAGE,
        of("Conv2DTranspose", 4, 3, strides=2, padding="same", activation="relu"),
        of("BatchNormalization"),
        of("Conv2DTranspose", 2, (2, 4), strides=(1, 3)),
    ),
    "Conv2DTranspose of stride 1": row(
        IMAGE, of("Conv2DTranspose", 4, 5, padding="same", use_bias=False), of("Conv2D", 2, 3)
    ),
    "Conv3DTranspose": row(
        (3, 4, 5, 2), of("Conv3DTranspose", 3, (3, 2, 3), strides=2, padding="same"), of("Conv3DTranspose", 2, 2)
    ),
    "MaxPooling3D AveragePooling3D": row(
        VOLUME,
        of("MaxPooling3D", (2, 2, 3), strides=(2, 1, 2), padding="same"),
        of("AveragePooling3D", 2, padding="same"),
    ),
    "AveragePooling3D that overlaps": row(VOLUME, of("AveragePooling3D", (3, 2, 2), strides=(1, 2, 2))),
    "GlobalMaxPooling3D GlobalAveragePooling3D": functional(VOLUME, pooled),
    "AdaptiveAveragePooling1D": row((7, 3), of("AdaptiveAveragePooling1D", 3)),
    "AdaptiveMaxPooling1D": row((7, 3), of("AdaptiveMaxPooling1D", 4)),
    "AdaptiveAveragePooling2D": row(IMAGE, of("AdaptiveAveragePooling2D", (3, 4))),
    "AdaptiveMaxPooling2D": row(IMAGE, of("AdaptiveMaxPooling2D", 5)),
    "AdaptiveAveragePooling3D": row(VOLUME, of("AdaptiveAveragePooling3D", (2, 3, 4))),
    "AdaptiveMaxPooling3D": row(VOLUME, of("AdaptiveMaxPooling3D", 3)),
    "ZeroPadding3D": row(VOLUME, of("ZeroPadding3D", ((1, 0), (2, 1), (0, 3))), of("Conv3D", 2, 2)),
    "Cropping1D": row((8, 3), of("Cropping1D", (1, 2)), of("Conv1D", 2, 3, padding="same")),
    "Cropping2D": row(IMAGE, of("Cropping2D", ((1, 2), (0, 3))), of("Conv2D", 2, 3, padding="same")),
    "Cropping3D": row(VOLUME, of("Cropping3D", ((1, 2), (0, 1), (2, 0)))),
    "UpSampling1D": row(ROWS, of("UpSampling1D", 3)),
    "UpSampling2D": row(IMAGE, of("UpSampling2D", (2, 3)), of("Conv2D", 2, 3)),
    "UpSampling2D bilinear": row(IMAGE, of("UpSampling2D", (2, 3), interpolation="bilinear")),
    "UpSampling3D": row(VOLUME, of("UpSampling3D", (2, 1, 3))),
    "Resizing": row(IMAGE, of("Resizing", 12, 5)),
    "Resizing to the nearest": row(IMAGE, of("Resizing", 5, 13, interpolation="nearest")),
    "RepeatVector": row((6,), of("Dense", 4), of("RepeatVector", 3), of("Conv1D", 2, 2)),
    "Normalization": row(IMAGE, of("Normalization"), of("Conv2D", 2, 3)),
    "Normalization by given numbers": row(IMAGE, of("Normalization", mean=[1, 2, 3], variance=[4, 5, 0.5])),
    "Normalization by one number": row(IMAGE, of("Normalization", axis=None, mean=1.5, variance=2.0)),
    "Normalization inverted": row(ROWS, of("Normalization", axis=(1, 2), invert=True)),
    "LayerNormalization": row(IMAGE, of("Conv2D", 4, 3), of("LayerNormalization", epsilon=1e-6), of("Conv2D", 2, 2)),
    "LayerNormalization of images": row(IMAGE, of("LayerNormalization", axis=(1, 2, 3), center=False)),
    "LayerNormalization of rows": row(IMAGE, of("LayerNormalization", axis=2)),
    "LayerNormalization of a vector": row((6,), of("Dense", 5), of("LayerNormalization", scale=False)),
    "GroupNormalization": row(IMAGE, of("Conv2D", 6, 3), of("GroupNormalization", 3)),
    "GroupNormalization of channels": row(IMAGE, of("Conv2D", 6, 3), of("GroupNormalization", -1)),
    "RMSNormalization": row(ROWS, of("Dense", 4), of("RMSNormalization")),
    "UnitNormalization": row(ROWS, of("Dense", 4), of("UnitNormalization", axis=(1, 2))),
    "PReLU": row(IMAGE, of("Conv2D", 4, 3), of("PReLU", shared_axes=[1, 2]), of("PReLU")),
    "PReLU of a vector": row((6,), of("Dense", 4), of("PReLU")),
    "LayerScale": row(ROWS, of("LayerScale", 0.5, 4), of("Dense", 3)),
    "CustomScaleLayer": functional(IMAGE, added_to_itself),
    "Embedding": row((6,), of("Embedding", 11, 4), of("Conv1D", 3, 2), of("GlobalAveragePooling1D"), of("Dense", 2)),
    "Rescaling of arithmetic": functional(ROWS, arithmetic),
    "Permute of reductions": functional(IMAGE, reductions),
    "Reshape of shapes": functional(ROWS, shapes),
    "Dot of operators": functional(ROWS, matrices),
    "Activation of curves": functional(ROWS, curves),
    "Resizing of pictures": functional(IMAGE, pictures),
}


def kinds_of(name):
    """The kinds that the name of a model begins with."""
    words = name.split()
    known = [hasattr(layers, word) or keras_private.application_layer(word) is not None for word in words]
    return words[: [*known, False].index(False)]


def inputs_for(model, count, seed=0):
    """Inputs for a model: whole numbers where it begins with an Embedding."""
    generator = np.random.default_rng(seed)
    shape = (count, *model.input_shape[1:])
    if any(isinstance(layer, layers.Embedding) for layer in model.layers):
        return generator.integers(0, 11, shape).astype(np.float32)
    return generator.normal(size=shape).astype(np.float32)


# Several inputs and outputs, whole numbers, and layers that are called again


def table_and_image():
    table, image = keras.Input((5,), name="table"), keras.Input((8, 8, 1), name="image")
    seen = layers.Flatten()(layers.MaxPooling2D()(layers.Conv2D(4, 3, activation="relu")(image)))
    joined = layers.Concatenate()([layers.Dense(6, activation="relu")(table), seen])
    return keras.Model([table, image], layers.Dense(3, activation="softmax")(joined), name="both")


def siamese():
    encoder = keras.Sequential([keras.Input((8, 8, 1)), layers.Conv2D(3, 3), layers.ReLU(), layers.Flatten(),
                                layers.Dense(4)], name="encoder")  # fmt: skip
    left, right = keras.Input((8, 8, 1), name="left"), keras.Input((8, 8, 1), name="right")
    distance = layers.Dot(1, normalize=True)([encoder(left), encoder(right)])
    return keras.Model({"left": left, "right": right}, distance, name="siamese")


def several_outputs():
    image = keras.Input((8, 8, 2))
    shared = layers.Conv2D(4, 3, padding="same", activation="relu")(image)
    mask = layers.Conv2D(1, 1, activation="sigmoid", name="mask")(shared)
    label = layers.Dense(3, name="label")(layers.GlobalAveragePooling2D()(shared))
    return keras.Model(image, {"label": label, "mask": mask, "features": shared}, name="several")


def words():
    first = keras.Input((6,), dtype="int32", name="first")
    second = keras.Input((4,), dtype="uint8", name="second")
    table = layers.Embedding(11, 4)
    both = layers.Concatenate(axis=1)([table(first), table(second)])
    return keras.Model([first, second], [layers.Dense(2)(layers.GlobalMaxPooling1D()(both)), both], name="words")


def nested_pairs():
    a, b = keras.Input((4,)), keras.Input((4,))
    dense = layers.Dense(4, name="again")
    inner = keras.Model([a, b], [dense(dense(a)) + b, layers.Dense(3)(b)], name="inner")
    x = keras.Input((4,))
    one, two = inner([x, layers.Dense(4)(x)])
    three, four = inner([one, x])
    return keras.Model(x, layers.Concatenate()([two, three, four]), name="pairs")


SEVERAL = {make.__name__: make for make in (table_and_image, siamese, several_outputs, words, nested_pairs)}


def several_inputs_for(model, count, seed=0):
    """Inputs in the form in which a model takes them, whole numbers up to 10 where it says so."""
    generator = np.random.default_rng(seed)

    def draw(tensor):
        shape = (count, *tensor.shape[1:])
        if "int" in tensor.dtype:
            return generator.integers(0, 11, shape).astype(tensor.dtype)
        return generator.normal(size=shape).astype(np.float32)

    return keras.tree.map_structure(draw, keras_private.inputs_structure(model))
