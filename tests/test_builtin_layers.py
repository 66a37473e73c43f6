"""How many of Keras's own layers a file holds, and that every other one is refused by name."""

import inspect

import keras
import pytest
from keras import layers

import deepcomp
from deepcomp.dcz.kinds import KINDS
from tests.zoo import row

BUILT_IN = {
    found.__name__ for found in vars(layers).values() if inspect.isclass(found) and issubclass(found, layers.Layer)
}
# They act in training alone: a file leaves them out.
IN_TRAINING = {name for name in BUILT_IN if name.startswith(("Random", "SpatialDropout"))} | {
    *("ActivityRegularization", "AlphaDropout", "AugMix", "CutMix", "GaussianDropout", "GaussianNoise", "Identity"),
    *("MixUp", "RandAugment", "MaxNumBoundingBoxes"),
}
# Bases of layers, and layers that run code of others.
OTHERS_CODE = {"Layer", "Wrapper", "Lambda", "JaxLayer", "FlaxLayer", "TorchModuleWrapper", "TFSMLayer"}
# Parts of an RNN.
CELLS = {"GRUCell", "LSTMCell", "SimpleRNNCell", "StackedRNNCells"}

IMAGE, WAVE, NUMBERS = (8, 9, 3), (512,), (4,)


def of(kind, shape, *arguments, dtype="float32", **options):
    """A model of one layer, in a function: some layers are slow to make."""

    def model():
        taken = keras.Input(shape, dtype=dtype)
        return keras.Model(taken, getattr(layers, kind)(*arguments, **options)(taken))

    return model


def crossing():
    a, b = keras.Input((1,), dtype="int32"), keras.Input((1,), dtype="int32")
    return keras.Model([a, b], layers.HashedCrossing(5)((a, b)))


# Other layers stand in for these.
STAND_INS = {"CenterCrop", "RNN", "ReversibleEmbedding", "SpectralNormalization"}
REFUSED = {
    "AutoContrast": of("AutoContrast", IMAGE),
    "CategoryEncoding": of("CategoryEncoding", NUMBERS, 5, dtype="int32"),
    "ContrastLimitedAdaptiveHistogramEqualization": of("ContrastLimitedAdaptiveHistogramEqualization", IMAGE),
    "Discretization": of("Discretization", NUMBERS, [0.0, 1.0]),
    "HashedCrossing": crossing,
    "Hashing": of("Hashing", NUMBERS, 3, dtype="int32"),
    "IntegerLookup": of("IntegerLookup", NUMBERS, vocabulary=[3, 4], dtype="int32"),
    "MelSpectrogram": of("MelSpectrogram", WAVE, fft_length=256, num_mel_bins=8),
    "Pipeline": lambda: row(IMAGE, lambda: layers.Pipeline([layers.Rescaling(2.0)]))(),
    "STFTSpectrogram": of("STFTSpectrogram", (*WAVE, 1), frame_length=64, frame_step=32, fft_length=64),
    "Solarization": of("Solarization", IMAGE),
    "StringLookup": of("StringLookup", NUMBERS, vocabulary=["a"], dtype="string"),
    "TextVectorization": of("TextVectorization", (1,), vocabulary=["a"], dtype="string"),
    "Lambda": of("Lambda", NUMBERS, lambda x: x),
    "RNN": of("RNN", (5, 4), layers.StackedRNNCells([layers.LSTMCell(3), layers.GRUCell(2)])),
}


def test_of_a_hundred_layers_85_are_held():
    held = BUILT_IN & (KINDS.keys() | STAND_INS)
    makes_sense = BUILT_IN - IN_TRAINING - OTHERS_CODE - CELLS
    refused = makes_sense - held
    print(f"\nheld ({len(held)}):", *sorted(held))
    print(f"left out, in training alone ({len(IN_TRAINING & BUILT_IN)}):", *sorted(IN_TRAINING & BUILT_IN))
    print(f"refused ({len(refused)}):", *sorted(refused))
    assert refused - {"Equalization"} <= REFUSED.keys()  # Keras cannot put that into a model
    assert len(held) >= 0.85 * len(makes_sense)


@pytest.mark.parametrize("kind", REFUSED)
def test_a_layer_that_no_file_holds_is_refused_by_name_before_training(kind, tmp_path):
    model = REFUSED[kind]()
    obstacles = [str(one) for one in deepcomp.check(model)]
    assert any(f"of class {kind}" in one and ": " in one for one in obstacles), obstacles
    with pytest.raises(deepcomp.errors.UnsupportedLayerError):
        deepcomp.save(model, tmp_path / "a.dcz")
    assert not [*tmp_path.iterdir()]
