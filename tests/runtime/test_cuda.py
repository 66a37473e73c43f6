"""The CUDA kernels in the simulator of Numba, which must be asked for before Numba is imported: in another process."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import deepcomp
from deepcomp.dcz import container
from deepcomp.dcz.network import Layer, Network, SharedWeight
from deepcomp.errors import RecipeError

FUNCTIONS = (
    *("leaky_relu", "elu", "selu", "sigmoid", "hard_sigmoid", "tanh", "softplus", "softsign", "silu", "hard_silu"),
    *("gelu", "exponential", "mish", "celu", "hard_tanh", "hard_shrink", "soft_shrink", "tanh_shrink", "log_sigmoid"),
    *("squareplus", "sparse_plus", "sparse_sigmoid"),
)


class Builder:
    """Puts layers one after the other, with weights drawn anew, and keeps count of them."""

    def __init__(self, *shape):
        self.rng = np.random.default_rng(3)
        self.shape = shape
        self.layers = [Layer("InputLayer", "input")]

    def add(self, kind, *inputs, weights=None, **options):
        """The number of a new layer, which takes the last one if no other is named."""
        inputs = inputs or (len(self.layers) - 1,)
        self.layers.append(Layer(kind, f"layer_{len(self.layers)}", inputs, options, weights or {}))
        return len(self.layers) - 1

    def kernel(self, *shape, density=0.4, centroids=5):
        """A pruned kernel of so many values, or of as many as it has weights."""
        kept = self.rng.random(shape) < density
        if centroids is None:
            return (self.rng.normal(size=shape) * kept).astype(np.float32)
        codebook = np.sort(self.rng.normal(size=centroids).astype(np.float32))
        indices = self.rng.integers(1, centroids + 1, shape) * kept
        return SharedWeight(codebook, indices.astype(np.min_scalar_type(centroids)))

    def vector(self, size, low=-1.0):
        return self.rng.uniform(low, 1, size).astype(np.float32)

    def convolve(self, kind, *shape, source=(), **options):
        *window, _, units = shape
        weights = {"kernel": self.kernel(*shape), "bias": self.vector(units)}
        return self.add(kind, *source, weights=weights, filters=units, kernel_size=tuple(window), **options)

    def dense(self, inputs, units, density=0.4, centroids=5, **options):
        weights = {
            "kernel": self.kernel(inputs, units, density=density, centroids=centroids),
            "bias": self.vector(units),
        }
        return self.add("Dense", weights=weights, units=units, **options)

    def normalize(self, size, *source):
        names = ("gamma", "beta", "moving_mean", "moving_variance")
        weights = {name: self.vector(size, 0.1 if name == names[-1] else -1.0) for name in names}
        return self.add("BatchNormalization", *source, weights=weights)

    @property
    def network(self):
        return Network("zoo", self.shape, tuple(self.layers))


def lenet():
    """Pooling in the convolution, of the maximum and of the average, with a row and a column left over."""
    builder = Builder(13, 12, 1)
    builder.convolve("Conv2D", 4, 3, 1, 3, activation="relu")
    builder.add("MaxPooling2D")
    builder.convolve("Conv2D", 3, 3, 3, 4)
    builder.add("AveragePooling2D")
    builder.add("Flatten")
    builder.dense(4, 9, activation="relu6")
    builder.dense(9, 5, activation="softmax")
    return builder.network


def windows():
    """Strides, dilation, padding, groups, depthwise and separable convolutions, channels without a weight."""
    builder = Builder(7, 6, 2)
    builder.convolve("Conv2D", 3, 3, 2, 4, strides=(2, 2), padding="same", activation="relu")
    builder.convolve("Conv2D", 2, 2, 2, 6, groups=2, dilation_rate=(2, 1), padding="same")
    kernel = builder.kernel(3, 3, 6, 2, density=0.15)
    weights = {"depthwise_kernel": kernel, "pointwise_kernel": builder.kernel(1, 1, 12, 3), "bias": builder.vector(3)}
    builder.add("SeparableConv2D", weights=weights, filters=3, kernel_size=(3, 3), depth_multiplier=2, padding="same")
    weights = {"kernel": builder.kernel(2, 2, 3, 1), "bias": builder.vector(3)}
    builder.add("DepthwiseConv2D", weights=weights, kernel_size=(2, 2), strides=(1, 1), activation="relu")
    return builder.network


def line():
    """One dimension."""
    builder = Builder(11, 2)
    builder.convolve("Conv1D", 3, 2, 5, padding="causal", activation="tanh")
    builder.add("MaxPooling1D", pool_size=(3,), strides=(2,), padding="same")
    builder.dense(5, 3)
    builder.add("ZeroPadding1D", padding=(2, 1))
    builder.convolve("Conv1D", 2, 3, 4, strides=(2,))
    builder.add("GlobalAveragePooling1D")
    return builder.network


def branches():
    """A residual block, squeeze and excitation, scales apart, padding, permuting, concatenating."""
    builder = Builder(5, 4, 3)
    scaled = builder.add("Rescaling", scale=0.5, offset=-0.25)
    builder.add("ZeroPadding2D", padding=((1, 1), (1, 1)))
    builder.convolve("Conv2D", 3, 3, 3, 3)
    added = builder.add("Add", scaled, len(builder.layers) - 1)
    normal = builder.normalize(3)
    builder.add("GlobalAveragePooling2D", keepdims=True)
    gate = builder.convolve("Conv2D", 1, 1, 3, 3, activation="sigmoid")
    gated = builder.add("Multiply", normal, gate)
    builder.add("Permute", gated, dims=(2, 1, 3))
    builder.add("Reshape", target_shape=(5, 4, 3))
    joined = builder.add("Concatenate", added, len(builder.layers) - 1)
    builder.add("ReLU", joined, max_value=1.5, negative_slope=0.1, threshold=0.25)
    builder.add("MaxPooling2D", pool_size=(3, 3), strides=(2, 2), padding="same")
    builder.add("AveragePooling2D", pool_size=(2, 2), strides=(1, 1), padding="same")
    shared = builder.add("Dropout")
    largest = builder.add("GlobalMaxPooling2D", shared)
    flat = builder.add("Flatten", shared)
    builder.add("Concatenate", largest, flat)
    return builder.network


def functions():
    """Each activation by itself."""
    builder = Builder(5)
    first = builder.dense(5, 6)
    last = [builder.add("Activation", first, activation=name) for name in FUNCTIONS]
    builder.add("Concatenate", *last)
    return builder.network


def rows():
    """Softmax of rows whose elements lie apart, and a dense layer."""
    builder = Builder(3, 4, 2)
    builder.convolve("Conv2D", 1, 1, 2, 3)
    builder.add("Permute", dims=(3, 1, 2))
    builder.add("Softmax")
    builder.add("Flatten")
    builder.dense(36, 2)
    return builder.network


def many_values():
    """Codebooks of over 255 values, and weights without one."""
    builder = Builder(30)
    builder.dense(30, 31, density=0.9, centroids=300)
    builder.dense(31, 7, density=1.0, centroids=None)
    builder.add("Reshape", target_shape=(1, 7, 1))
    kernel = builder.kernel(1, 3, 1, 2, centroids=None)
    builder.add("Conv2D", weights={"kernel": kernel, "bias": builder.vector(2)}, filters=2, kernel_size=(1, 3))
    return builder.network


def nothing_left():
    """Every weight pruned."""
    builder = Builder(4, 4, 1)
    weights = {"kernel": builder.kernel(2, 2, 1, 3, density=0.0), "bias": builder.vector(3)}
    builder.add("Conv2D", weights=weights, filters=3, kernel_size=(2, 2), activation="relu")
    builder.add("Flatten")
    builder.dense(27, 2, density=0.0)
    return builder.network


def pairs():
    """Elementwise operations on two values, matrix products, and a table."""
    builder = Builder(3, 4)
    other = builder.dense(4, 4)
    merged = [builder.add(kind, 0, other) for kind in ("Subtract", "Maximum", "Minimum", "Average")]
    builder.add("Concatenate", *merged)
    product = builder.add("Dot", 0, len(builder.layers) - 1, axes=(1, 1))
    flat = builder.add("Flatten", product)
    builder.add("Rescaling", scale=0.0, offset=2.0)
    builder.add("Embedding", weights={"embeddings": builder.kernel(3, 2)}, input_dim=3, output_dim=2)
    builder.add("Flatten")
    builder.add("Concatenate", flat, len(builder.layers) - 1)
    return builder.network


def normalizations():
    """Rows by mean and deviation, by root mean square, and by length."""
    builder = Builder(3, 4, 2)
    weights = {"gamma": builder.vector(2), "beta": builder.vector(2)}
    builder.add("LayerNormalization", weights=weights, axis=(3,))
    builder.add("RMSNormalization", weights={"scale": builder.vector(2)})
    builder.add("UnitNormalization", axis=(1, 2))
    builder.add("GroupNormalization", weights=weights, groups=2)
    builder.add("PReLU", weights={"alpha": builder.vector((1, 1, 2))}, shared_axes=(1, 2))
    return builder.network


def sequences():
    """A mask, every recurrent layer, and attention."""
    builder = Builder(4, 3)
    builder.add("Masking", mask_value=0.5)

    def recur(kind, inputs, units, gates, *bias, **options):
        weights = {
            "kernel": builder.kernel(inputs, gates * units),
            "recurrent_kernel": builder.kernel(units, gates * units),
        }
        weights["bias"] = builder.vector((*bias, gates * units))
        return builder.add(kind, weights=weights, units=units, **options)

    recur("SimpleRNN", 3, 3, 1, return_sequences=True, activation="relu")
    recur("LSTM", 3, 5, 4, return_sequences=True, go_backwards=True)
    recur("GRU", 5, 3, 3, 2, return_sequences=True)
    recur("GRU", 3, 4, 3, return_sequences=True, reset_after=False)
    names = ("query_kernel", "key_kernel", "value_kernel", "output_kernel")
    weights = {name: builder.kernel(*((4, 2, 3) if name != names[-1] else (2, 3, 4))) for name in names}
    last = len(builder.layers) - 1
    options = {"num_heads": 2, "key_dim": 3, "use_bias": False, "use_causal_mask": True}
    builder.add("MultiHeadAttention", last, last, weights=weights, **options)
    builder.add("GlobalAveragePooling1D")
    return builder.network


ZOO = (lenet, windows, line, branches, functions, rows, many_values, nothing_left, pairs, normalizations, sequences)
# Threads of a block, side of a square, inputs of a tile, room for activations, places of maps whose margins are not
# cleared anew, and the numbers of images.
SETTINGS = {
    "blocks": (4, 4, 65536, 2**26, 2**14, (1, 5, 0)),
    "tiles of inputs": (4, 4, 7, 2**26, 2**14, (3,)),
    "several parts": (4, 4, 65536, 600, 2**14, (5,)),
    "whole blocks": (128, 32, 65536, 2**26, 2**14, (2,)),
    "cleared margins": (4, 4, 65536, 2**26, 0, (3,)),
}
ONLY = {"whole blocks": (rows,), "cleared margins": (windows, line, branches)}
RUNS = [(make.__name__, setting) for make in ZOO for setting in SETTINGS if make in ONLY.get(setting, ZOO)]


def shared_array(self, shape, dtype):
    """`cuda.shared.array` in one step: the simulator's own looks and then stores, so two threads may get two arrays."""
    caller = sys._getframe(1)
    return self._allocations.setdefault((caller.f_code.co_filename, caller.f_lineno), np.empty(shape, dtype))


def simulate(folder):
    """Write down what the engine in the simulator puts out, and what the one on the CPU does."""
    from numba.cuda.simulator.kernelapi import FakeCUDAShared

    from deepcomp.runtime import cuda, plan

    FakeCUDAShared.array = shared_array
    sys.setswitchinterval(1e-4)  # the simulator looks after its threads in a loop that never waits
    rng = np.random.default_rng(5)
    for make in ZOO:
        path = folder / f"{make.__name__}.dcz"
        container.save(make(), path)
        cpu = deepcomp.load(path, threads=1)
        images = rng.normal(size=(5, *cpu.input_shape)).astype(np.float32)
        if make is not lenet:  # pooling in a convolution differs in what it makes of NaN
            images[2].flat[1] = np.nan
        arrays = {"expected": cpu(images)}
        for setting, (*constants, counts) in SETTINGS.items():
            if (make.__name__, setting) in RUNS:
                cuda.THREADS, cuda.SIDE, cuda.TILE, cuda._MAX_FLOATS, plan._MAX_KEPT = constants
                engine = deepcomp.load(path, device="cuda")
                cleared = (step for step, _ in engine._steps if step.op == plan.CLEAR and step.rows > 0)
                assert any(cleared) == (setting == "cleared margins")
                arrays |= {f"{setting}, {count} images": engine(images[:count]) for count in counts}
                assert engine.weight_bytes > 0
        np.savez(path.with_suffix(".npz"), **arrays)
    together(folder)


def together(folder):
    """Calls from several threads at once: the simulator refuses kernels that run at the same time."""
    engine = deepcomp.load(folder / "functions.dcz", device="cuda")
    images = np.random.default_rng(6).normal(size=(6, *engine.input_shape)).astype(np.float32)
    with ThreadPoolExecutor(3) as pool:
        outputs = [*pool.map(engine, np.split(images, 3))]
    np.savez(folder / "together.npz", outputs=np.concatenate(outputs), expected=engine(images))


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simulated")
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, __file__, str(folder)], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return folder


@pytest.mark.parametrize(("network", "setting"), RUNS)
def test_a_gpu_gives_what_the_cpu_gives(simulated, network, setting):
    arrays = np.load(simulated / f"{network}.npz")
    expected = arrays["expected"]
    largest = np.abs(np.delete(expected, 2, axis=0)).max()  # what a NaN leads to may be infinite
    for count in SETTINGS[setting][-1]:
        output = arrays[f"{setting}, {count} images"]
        assert output.dtype == np.float32
        assert output.shape == (count, *expected.shape[1:])
        np.testing.assert_allclose(output, expected[:count], rtol=1e-4, atol=1e-4 * largest)


def test_threads_may_call_at_once(simulated):
    arrays = np.load(simulated / "together.npz")
    np.testing.assert_array_equal(arrays["outputs"], arrays["expected"])


def test_without_a_gpu_an_error_says_what_is_missing(tmp_path, monkeypatch):
    from deepcomp.runtime import cuda

    path = tmp_path / "model.dcz"
    container.save(nothing_left(), path)
    monkeypatch.setattr(cuda.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"pip install 'deepcomp\[cuda\]'"):
        deepcomp.load(path, device="cuda")
    monkeypatch.setattr(cuda.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(cuda.cuda, "is_available", lambda: False)
    with pytest.raises(RecipeError, match="finds none: use device='cpu'"):
        deepcomp.load(path, device="cuda")


def test_a_numba_cuda_that_does_not_work_with_numpy_is_told(tmp_path):
    container.save(nothing_left(), tmp_path / "model.dcz")
    code = f"""
import sys

class Broken:
    def find_spec(self, name, path, target=None):
        if name == "numba.cuda":
            raise AttributeError("module 'numpy' has no attribute 'row_stack'")

sys.meta_path.insert(0, Broken())
import deepcomp

try:
    deepcomp.load({str(tmp_path / "model.dcz")!r}, device="cuda")
except deepcomp.DeepcompError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == (
        f"numba-cuda does not work with NumPy {np.__version__}: module 'numpy' has no attribute 'row_stack'. "
        "Install an older NumPy.\n"
    )


def test_the_cpu_needs_no_cuda(tmp_path):
    path = tmp_path / "model.dcz"
    container.save(nothing_left(), path)
    code = f"import sys, deepcomp; deepcomp.load({str(path)!r}); print('numba.cuda' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"


if __name__ == "__main__":
    simulate(Path(sys.argv[1]))
