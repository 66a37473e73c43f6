"""Small models of every kind of layer since version 3 of the file; the name of each begins with the kinds in it."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from deepcomp import keras_private
from deepcomp.dcz.kinds import KINDS


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


def both_ways(x):
    own = layers.GRU(3, activation="relu", go_backwards=True, return_sequences=True, name="mine")
    x = layers.Bidirectional(layers.LSTM(4, return_sequences=True), name="both")(x)
    x = layers.Bidirectional(layers.GRU(3, return_sequences=True), backward_layer=own, merge_mode="sum")(x)
    x = layers.Bidirectional(layers.SimpleRNN(4, return_sequences=True), merge_mode="mul")(x)
    return layers.Bidirectional(layers.LSTM(4, use_bias=False), merge_mode="ave")(x)


def crossed(x):
    y = layers.Dense(5)(x[:, :3])
    x = layers.MultiHeadAttention(2, 3, value_dim=4, output_shape=7)(x, y)
    x = layers.MultiHeadAttention(1, 3, use_bias=False, sliding_window=2)(value=x, query=x, use_causal_mask=True)
    return layers.MultiHeadAttention(2, 2, use_gate=True)(x, x, layers.Dense(3)(x), use_causal_mask=True)


def grouped(x):
    make = keras.layers.GroupQueryAttention
    x = layers.Dense(5)(make(3, 4, 2)(x, x, use_causal_mask=True))
    return make(2, 4, 1, use_bias=False, use_gate=True, sliding_window=3)(x, x[:, 2:], x[:, 2:])


def scored(x):
    y = layers.Dense(4)(x[:, :5])
    some = [layers.Attention()([x, y]), layers.Attention(use_scale=True, score_mode="concat")([x, y, y])]
    some += [layers.Attention(score_mode="concat")([x, y]), layers.Attention(use_scale=True)([x, x, x])]
    some.append(layers.Attention()([x, x], use_causal_mask=True))
    return layers.Add()(some)


def added(x):
    y = layers.Dense(4)(x[:, :5])
    own = layers.AdditiveAttention(use_scale=False)([x, y], use_causal_mask=True)
    return layers.Add()([own, layers.AdditiveAttention()([x, y, y])])


ZOO |= {
    "MultiHeadAttention": functional(ROWS, lambda x: layers.MultiHeadAttention(2, 3)(x, x)),
    "MultiHeadAttention of two": functional(ROWS, crossed),
    "MultiHeadAttention of images": functional((3, 4, 5), lambda x: layers.MultiHeadAttention(2, 3)(x, x)),
    "GroupedQueryAttention": functional(ROWS, grouped),
    "Attention": functional(ROWS, scored),
    "AdditiveAttention": functional(ROWS, added),
    "TimeDistributed": row(
        VOLUME,
        of("TimeDistributed", layers.Conv2D(3, 2, activation="relu")),
        of("TimeDistributed", layers.MaxPooling2D()),
        of("TimeDistributed", layers.BatchNormalization()),
        of("TimeDistributed", layers.Flatten()),
        of("TimeDistributed", layers.Dense(4, activation="relu", name="mine")),
        of("TimeDistributed", layers.LayerNormalization()),
    ),
    "TimeDistributed of sequences": row(
        (3, 6, 4),
        of("TimeDistributed", layers.Bidirectional(layers.LSTM(3, return_sequences=True))),
        of("TimeDistributed", layers.TimeDistributed(layers.Dense(4))),
        of("TimeDistributed", layers.GRU(5, reset_after=False)),
        of("TimeDistributed", layers.EinsumDense("ab,bc->ac", 3)),
    ),
    "TimeDistributed of words": row(
        (3, 6), of("TimeDistributed", layers.Embedding(11, 4)), of("TimeDistributed", layers.Conv1D(3, 2))
    ),
    "ConvLSTM1D": row((4, 8, 3), of("ConvLSTM1D", 3, 3, padding="same", return_sequences=True), of("ConvLSTM1D", 2, 2)),
    "ConvLSTM2D": row(
        (3, 6, 5, 2),
        of("ConvLSTM2D", 3, (3, 2), strides=2, return_sequences=True, go_backwards=True, activation="relu"),
        of("ConvLSTM2D", 2, 2, use_bias=False, padding="same"),
        of("Flatten"),
        of("Dense", 3),
    ),
    "ConvLSTM3D": row(
        (3, 4, 5, 3, 2),
        of("ConvLSTM3D", 3, (2, 3, 1), strides=(1, 2, 1), return_sequences=True),
        of("ConvLSTM3D", 2, 2, padding="same", use_bias=False, go_backwards=True),
    ),
    "SimpleRNN": row(ROWS, of("SimpleRNN", 5, return_sequences=True), of("SimpleRNN", 3, activation="relu")),
    "SimpleRNN of one step": row((1, 4), of("SimpleRNN", 5, use_bias=False, go_backwards=True)),
    "LSTM": row(
        ROWS,
        of("LSTM", 5, return_sequences=True, go_backwards=True),
        of("LSTM", 20, activation="softsign", recurrent_activation="hard_sigmoid", unroll=True, use_bias=False),
        of("Dense", 3),
    ),
    "GRU": row(ROWS, of("GRU", 5, return_sequences=True, go_backwards=True), of("GRU", 18), of("Dense", 3)),
    "GRU that resets before": row(
        ROWS,
        of("GRU", 5, reset_after=False, return_sequences=True),
        of("GRU", 18, reset_after=False, use_bias=False, activation="relu6", recurrent_activation="linear"),
    ),
    "Bidirectional": functional(ROWS, both_ways),
    "EinsumDense": row(ROWS, of("EinsumDense", "abc,cd->abd", (None, 5), bias_axes="d", activation="relu")),
    "EinsumDense of any rank": row(IMAGE, of("EinsumDense", "...x,xy->...y", 5, bias_axes="y")),
    "EinsumDense of heads": row(
        ROWS,
        of("EinsumDense", "abc,cde->abde", (None, 2, 3), bias_axes="de"),
        of("EinsumDense", "abde,def->abf", (None, 5), bias_axes="f"),
    ),
    "EinsumDense along the first axis": row(
        ROWS, of("EinsumDense", "abc,bd->acd", (4, 3), bias_axes="cd"), of("EinsumDense", "ab...,bc->ac...", 7)
    ),
    "EinsumDense whose bias is of positions": row(
        ROWS,
        of("EinsumDense", "abc,xb->acx", (4, 3), bias_axes="c"),
        of("EinsumDense", "abc,cx->abx", (4, 5), bias_axes="b"),
    ),
    "Masking of vectors": row((5,), of("Masking"), of("Masking", 1.0), of("Dense", 3)),
    "EinsumDense that permutes": row(IMAGE, of("EinsumDense", "ahwc,cnh->anw", (2, None), bias_axes="n")),
}


def rare_curves(x):
    names = ("celu", "hard_tanh", "hard_shrink", "soft_shrink", "tanh_shrink", "log_sigmoid", "squareplus")
    some = [layers.Activation(name)(x) for name in (*names, "sparse_plus", "sparse_sigmoid")]
    some += [
        ops.gelu(x),
        ops.hard_tanh(x),
        ops.celu(x),
        layers.SimpleRNN(4, activation="hard_shrink", return_sequences=True)(x),
    ]
    return layers.Concatenate(axis=1)(some)


ZOO["Masking"] = row(ROWS, of("Masking", 0.5), of("LSTM", 3))
ZOO["Activation of rare curves"] = functional(ROWS, rare_curves)
ZOO["TimeDistributed of a model"] = row(
    (3, 7, 2),
    lambda: layers.TimeDistributed(
        keras.Sequential(
            [keras.Input((7, 2)), layers.Conv1D(3, 2, activation="relu"), layers.Flatten(), layers.Dense(2)]
        )
    ),
)


# Networks of texts and of other sequences; words are numbers, and 0 is none where a mask is made


def classifier(*made, masked=False, length=7):
    """A classifier of texts: an embedding, then these layers."""

    def make():
        words = keras.Input((length,), dtype="int32", name="words")
        x = layers.Embedding(11, 6, mask_zero=masked)(words)
        for one in made:
            x = one()(x)
        return keras.Model(words, layers.Dense(3, activation="softmax")(x), name="classifier")

    return make


def transformer(masked=False, blocks=2, length=7):
    """A Transformer encoder: embeddings of words and of positions, attention, residual additions, normalizations."""

    def make():
        words = keras.Input((length,), dtype="int32", name="words")
        positions = keras.Input((length,), dtype="int32", name="positions")
        x = layers.Embedding(11, 6, mask_zero=masked)(words)
        x = layers.Add()([x, layers.Embedding(length + 5, 6, mask_zero=masked)(positions)])
        for _ in range(blocks):
            y = layers.Dropout(0.1)(layers.MultiHeadAttention(2, 3, dropout=0.1)(x, x))
            x = layers.LayerNormalization()(layers.Add()([x, y]))
            y = layers.Dense(6)(layers.Dense(9, activation="gelu")(x))
            x = layers.LayerNormalization()(layers.Add()([x, layers.Dropout(0.1)(y)]))
        x = layers.GlobalAveragePooling1D()(x)
        return keras.Model([words, positions], layers.Dense(3, activation="softmax")(x), name="transformer")

    return make


def attended(words):
    x = layers.Embedding(11, 6, mask_zero=True)(words)
    y = layers.Dropout(0.5)(layers.GRU(6, return_sequences=True, go_backwards=True)(x))
    x = layers.Add()([layers.AdditiveAttention()([x, y]), layers.Attention()([y, x], use_causal_mask=True)])
    x = layers.Concatenate(axis=1)([x, layers.Embedding(11, 6)(words), layers.Activation("relu")(x)])
    grouped = keras.layers.GroupQueryAttention(2, 2, 1, use_gate=True)
    x = layers.TimeDistributed(layers.Dense(5))(layers.LayerNormalization()(x))
    x = layers.Concatenate()([x, layers.Bidirectional(layers.GRU(2, return_sequences=True), "sum")(x)])
    x = layers.MultiHeadAttention(2, 3)(x, x, x, use_causal_mask=True)
    return layers.GlobalAveragePooling1D(keepdims=True)(grouped(x, layers.Dense(7)(x)))


def read_attended():
    words = keras.Input((5,), dtype="int32", name="words")
    return keras.Model(words, attended(words), name="attended")


def measured():
    """Numbers, of which steps of 0.5 alone do not count."""
    numbers = keras.Input((6, 2))
    y = layers.Masking(0.5)(numbers)
    seen = [layers.LSTM(3, return_sequences=True, zero_output_for_mask=True, go_backwards=True)(y)]
    seen.append(layers.Bidirectional(layers.SimpleRNN(3, return_sequences=True))(y))
    seen.append(layers.GRU(3, return_sequences=True, reset_after=False)(y))
    x = layers.Concatenate()(seen)
    last = [layers.LSTM(3, zero_output_for_mask=True)(x), layers.GRU(3)(x), layers.GlobalMaxPooling1D()(x)]
    return keras.Model(numbers, [x, *last], name="measured")


TEXTS = {
    "LSTM": classifier(of("LSTM", 8, return_sequences=True), of("LSTM", 20)),
    "LSTM with a mask": classifier(
        of("LSTM", 8, return_sequences=True), of("Dropout", 0.5), of("LSTM", 20), masked=True
    ),
    "GRU with a mask": classifier(
        of("GRU", 8, return_sequences=True), of("BatchNormalization"), of("GRU", 5), masked=True
    ),
    "Bidirectional with a mask": classifier(
        lambda: layers.Bidirectional(layers.LSTM(4, return_sequences=True)),
        lambda: layers.Bidirectional(layers.GRU(4)),
        masked=True,
    ),
    "averages with a mask": classifier(of("Dense", 5), of("GlobalAveragePooling1D"), masked=True),
    "attention with masks": read_attended,
    "Transformer": transformer(),
    "Transformer with masks": transformer(masked=True),
    "Masking": measured,
}


def texts_for(model, count, seed=0):
    """Inputs of which many steps are masked, of the first example all."""
    generator = np.random.default_rng(seed)

    def draw(tensor):
        shape = (count, *tensor.shape[1:])
        kept = (generator.random(shape[:2]) < 0.6) & (np.arange(count) > 0)[:, None]
        if "int" in tensor.dtype:
            return (generator.integers(0, 11, shape) * kept).astype(tensor.dtype)
        return np.where(kept[..., None], generator.normal(size=shape), 0.5).astype(np.float32)

    return keras.tree.map_structure(draw, keras_private.inputs_structure(model))


def kinds_of(name):
    """The kinds that the name of a model begins with."""
    words = name.split()
    known = [word in KINDS for word in words]
    return words[: [*known, False].index(False)]


def inputs_for(model, count, seed=0):
    """Inputs for a model: whole numbers where it begins with an Embedding."""
    generator = np.random.default_rng(seed)
    shape = (count, *model.input_shape[1:])
    if any(isinstance(layer, layers.Embedding) for layer in keras_private.all_layers(model)):
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


# Layers in whose place a network holds others.
STAND_INS = {
    "layers given as activations": row(
        IMAGE,
        lambda: layers.Conv2D(3, 3, activation=layers.LeakyReLU(0.1)),
        lambda: layers.Conv2D(2, 3, activation=layers.PReLU(shared_axes=(1, 2))),
        of("Flatten"),
        lambda: layers.Dense(4, activation=layers.Softmax()),
        lambda: layers.Dense(3, activation=layers.ReLU(max_value=2)),
    ),
    "functions given as activations": row(
        IMAGE,
        of("Conv2D", 3, 3, activation=tf.nn.relu),
        of("Conv2D", 3, 3, activation=ops.silu),
        of("Dense", 4, activation=tf.nn.gelu),
        of("LayerNormalization"),
        of("Dense", 3, activation=tf.nn.softmax),
    ),
    "CenterCrop": row((8, 9, 3), of("CenterCrop", 5, 4), of("Conv2D", 2, 3)),
    "RNN": row(
        ROWS,
        lambda: layers.RNN(layers.LSTMCell(4), return_sequences=True, go_backwards=True),
        lambda: layers.RNN(layers.GRUCell(3, reset_after=False), return_sequences=True),
        lambda: layers.RNN(layers.SimpleRNNCell(3, activation="relu", use_bias=False)),
    ),
    "ReversibleEmbedding": row((7,), of("ReversibleEmbedding", 11, 5), of("Conv1D", 3, 2)),
    "SpectralNormalization": row(
        IMAGE,
        lambda: layers.SpectralNormalization(layers.Conv2D(3, 3)),
        of("Flatten"),
        lambda: layers.SpectralNormalization(layers.Dense(4)),
        of("Dense", 3),
    ),
}


# Whole networks of images and volumes


def u_net():
    """Down twice and up twice, with what was before beside what comes back; two ways to go up."""
    image = keras.Input((16, 12, 3), name="image")

    def block(x, filters):
        for _ in range(2):
            x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
            x = layers.ReLU()(layers.BatchNormalization()(x))
        return x

    first = block(image, 4)
    second = block(layers.MaxPooling2D()(first), 6)
    x = block(layers.MaxPooling2D()(second), 8)
    x = layers.Conv2DTranspose(6, 2, strides=2)(layers.Dropout(0.2)(x))
    x = block(layers.Concatenate()([second, x]), 6)
    x = layers.UpSampling2D(2, interpolation="bilinear")(x)
    x = block(layers.Concatenate()([first, x]), 4)
    return keras.Model(image, layers.Conv2D(2, 1, activation="sigmoid")(x), name="u_net")


def volumes():
    """A classifier of volumes."""
    return keras.Sequential(
        [
            keras.Input((6, 8, 8, 2)),
            layers.Conv3D(5, 3, padding="same", activation="relu"),
            layers.MaxPooling3D(2),
            layers.Conv3D(7, (3, 2, 2), activation="relu"),
            layers.BatchNormalization(),
            layers.GlobalAveragePooling3D(),
            layers.Dense(3, activation="softmax"),
        ],
        name="volumes",
    )


def autoencoder():
    """Images through a few numbers, and back."""
    return keras.Sequential(
        [
            keras.Input((12, 8, 1)),
            layers.Conv2D(4, 3, strides=2, padding="same", activation="elu"),
            layers.Flatten(),
            layers.Dense(5, name="code"),
            layers.Dense(6 * 4 * 4, activation="elu"),
            layers.Reshape((6, 4, 4)),
            layers.Conv2DTranspose(3, 3, strides=2, padding="same", activation="elu"),
            layers.Conv2D(1, 3, padding="same", activation="sigmoid"),
        ],
        name="autoencoder",
    )


WHOLE = {make.__name__: make for make in (u_net, volumes, autoencoder)}
