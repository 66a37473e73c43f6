"""Microseconds a batch, deepcomp and every peer side by side: `make bench`, or, where the extra `bench` is installed,

    python benchmarks/speed.py [NETWORK ...] [--batches 1 64 1024] [--threads 1 2] [--quick]

A NETWORK is one of those below or the folder of a run that is deployed. Peers run the dense network, pruned zeros
included; deepcomp runs the `.dcz` file of the same weights. Each engine is a process of its own, on as many cores as it
may use threads; they take turns in many short rounds, never two at once. What is timed is a call that takes a NumPy
array and returns one, `int8` both for LiteRT's full int8: its images are quantized before the clock starts. All peers
are told the size of the batch. Where a peer has several ways to run, such as OpenVINO's two hints, its fastest counts.

"+-" is half of the distance between the quartiles of the rounds, in percent of their median. "ours is" is the peer's
median over ours. The networks are trained, those of `models/` whose recipes prune for speed, and run on digits; a layer
of the size of VGG-16's fc6 has as many weights as the paper left there, at random places. Known architectures have
random weights too, of which the part in the name is pruned. An engine that cannot run is a line with the reason.
"""

import argparse
import json
import os
import platform
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from itertools import chain
from math import prod
from multiprocessing import get_context
from pathlib import Path
from statistics import median, quantiles
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np

try:  # as a module, or run by its path
    from benchmarks import onnx_files
except ImportError:
    import onnx_files

from deepcomp import tables

OURS, AS_C = "deepcomp", "deepcomp as C"
PACKAGES = ("numpy", "numba", "tensorflow", "ai-edge-litert", "onnxruntime", "openvino", "scipy")
WARM_UP = 0.1  # seconds, and at least three calls
PAUSE = 0.03  # seconds in which the threads of the engine before stop to wait for more work
PATIENCE = 300  # seconds for an answer
TOLERANCE = 1e-3  # of engines in float32 to Keras, relative to the largest output
ANY, FLOAT32, IN_INT8 = "all", "float32", "int8"  # the peers that a goal is about


@dataclass(frozen=True)
class Network:
    """A network to run: its file, the batches, and goals by batch and peers: the fastest one's time over ours.

    Goals are for all threads. Without a file, `build` makes the network with random weights, of which `sparsity` is the
    part that is pruned. `layer`: a layer without pruned weights alone: shape of its inputs, class and options.
    """

    file: Path | None = None
    batches: tuple[int, ...] = (1, 64, 1024)
    goals: dict[int, dict[str, float]] = field(default_factory=dict)
    sparsity: float = 0.0
    layer: tuple[tuple[int, ...], str, dict] | None = None


def _goals(float32: float, int8: float) -> dict[str, float]:
    return {FLOAT32: float32, IN_INT8: int8}


def _unpruned(shape: tuple[int, ...], kind: str, **options) -> Network:
    goals = {1: {FLOAT32: 0.6}, 16: {FLOAT32: 0.6}}
    return Network(batches=(1, 16), goals=goals, layer=(shape, kind, {"activation": "relu", **options}))


MODELS = Path(__file__).resolve().parent.parent / "models"
NETWORKS = {
    "lenet-5": Network(MODELS / "lenet-5-fast.dcz", goals={1: {ANY: 3}, 64: {ANY: 4}, 1024: {ANY: 4}}),
    "reference": Network(MODELS / "reference-fast.dcz", goals={1: {ANY: 3}, 64: {ANY: 3}, 1024: {ANY: 3}}),
    "lenet-300-100": Network(MODELS / "lenet-300-100-fast.dcz", goals={1: {ANY: 1.5}, 1024: {ANY: 5}}),
    "vgg-fc6": Network(batches=(1, 64), goals={1: {ANY: 10}, 64: {ANY: 3}}),
    "resnet-8-80": Network(batches=(1, 16), goals={1: _goals(2.5, 0.8)}, sparsity=0.8),
    "resnet-8-90": Network(batches=(1, 16), goals={1: _goals(3.5, 1.1), 16: _goals(7, 2)}, sparsity=0.9),
    "mobilenet-90": Network(batches=(1, 16), goals={1: _goals(3.5, 1.2), 16: _goals(3.5, 1.2)}, sparsity=0.9),
    "mobilenetv2-85": Network(batches=(1, 16), goals={1: _goals(2.5, 1.0)}, sparsity=0.85),
    "resnet-50-80": Network(batches=(1, 16), goals={1: _goals(2, 0.6)}, sparsity=0.8),
    "resnet-50-90": Network(batches=(1, 16), goals={1: _goals(3.5, 1.1), 16: _goals(4, 1.2)}, sparsity=0.9),
    "resnet-50-95": Network(batches=(1, 16), goals={1: _goals(5.5, 1.6)}, sparsity=0.95),
    "unpruned-conv-7x7": _unpruned((224, 224, 3), "Conv2D", filters=64, kernel_size=7, strides=2, padding="same"),
    "unpruned-conv-3x3": _unpruned((56, 56, 64), "Conv2D", filters=64, kernel_size=3, padding="same"),
    "unpruned-conv-1x1": _unpruned((14, 14, 512), "Conv2D", filters=512, kernel_size=1),
    "unpruned-depthwise": _unpruned((28, 28, 256), "DepthwiseConv2D", kernel_size=3, padding="same"),
    "unpruned-dense": _unpruned((2048,), "Dense", units=1000),
}
VALUES = 16  # of each kernel of a network with random weights
FC6 = (25_088, 4_096), 4_110_418, 32  # shape, weights left and values of VGG-16's fc6 in the paper (table 5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=f"default: {', '.join(NETWORKS)}")
    parser.add_argument("--batches", type=int, nargs="+", help="default: 1 64 1024, for vgg-fc6 1 64")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    engines = [engine for engine in ENGINES if engine != AS_C]
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=engines, metavar="ENGINE")
    parser.add_argument("--seconds", type=float, default=0.75, help="measured for each engine, batch and threads")
    parser.add_argument("--rounds", type=int, default=15, help="in which those seconds are divided")
    parser.add_argument("--quick", action="store_true", help="LeNet-5 alone, in fewer and shorter rounds")
    parser.add_argument("--work", type=Path, default=Path("runs/speed"), help="for the networks in every format")
    parser.add_argument("--out", type=Path, default=Path("runs/speed.json"))
    options = parser.parse_args()
    if options.quick:
        options.networks, options.rounds, options.seconds = options.networks or ["lenet-5"], 5, 0.1
    cores, host = available_cores(), machine()
    threads = [number for number in options.threads if number <= len(cores)]
    for number in set(options.threads) - set(threads):
        print(f"{number} threads are left out: there are {len(cores)} cores.")
    cells, networks = [], []
    for source in options.networks or NETWORKS:
        network = in_process(prepare, options.work / "prepare.log", source, options.work, options.batches)
        networks.append(network)
        for number in threads:
            with processes(options.engines, network, number) as running:
                found = [measure(running, network, number, batch, options) for batch in network["batches"]]
            cells += chain(*found)
            print(f"\n{title(network, number)}\n{speed_table(list(chain(*found)))}", flush=True)
    goals = goal_rows(cells, networks, max(threads))
    if goals:
        columns = {
            "network": "network",
            "batch": "batch",
            "peers": "peers",
            "fastest": "fastest peer",
            "ratio": "ours is",
            "goal": "goal",
        }
        print(f"\nGoals, {max(threads)} threads\n{tables.table(goals, columns, left=('peers', 'fastest'))}")
    facts = measure_facts(options.work / "parts", networks)
    print(f"\nOn one core\n{tables.table(facts, {'what': 'what', 'value': 'measured', 'goal': 'goal'})}")
    result = {"machine": host, "settings": {"rounds": options.rounds, "seconds": options.seconds}}
    result |= {"networks": networks, "cells": cells, "goals": goals, "facts": facts}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1, default=str) + "\n")


# The networks, in every engine's format


def prepare(source: str, work: Path, batches: Sequence[int] | None) -> dict:
    """Write a network, images and Keras's outputs to `work/NAME`; returns what there is to know about it.

    `missing` has the reason for each format that could not be written. What a run before wrote is taken if nothing has
    changed.
    """
    from deepcomp import models
    from deepcomp.experiment.run_folder import Run

    known = NETWORKS.get(source, Network())
    batches = list(batches or known.batches)
    folder = work / Path(source).name
    record = folder / "network.json"
    sources = [Path(__file__), *([known.file] if known.file else [])]
    made_by = {"sources": [path.stat().st_mtime for path in sources], "versions": machine()["versions"]}
    if source in NETWORKS and record.exists():
        network = json.loads(record.read_text())
        if network["made_by"] == made_by and network["batches"] == batches and not network["missing"]:
            return network
    model = build(source) if source in NETWORKS else Run(source).stage("quantized").load_model()
    folder.mkdir(parents=True, exist_ok=True)
    shape = models.input_shape(model)
    images = pictures(max(batches), shape)
    np.save(folder / "images.npy", images)
    np.save(folder / "outputs.npy", model.predict(images, batch_size=64, verbose=0))
    missing = {}
    for name, write in WRITERS.items():
        try:
            write(model, folder, batches, images)
        except Exception as error:  # Whatever a converter raises, the others go on.
            missing[name] = reason(error)
    kernels = models.kernel_values(model)
    network = {
        "network": folder.name,
        "folder": str(folder),
        "batches": batches,
        "goals": [[batch, peers, goal] for batch, goals in known.goals.items() for peers, goal in goals.items()],
        "made_by": made_by,
        "weights": sum(kernel.size for kernel in kernels.values()),
        "left": sum(int(np.count_nonzero(kernel)) for kernel in kernels.values()),
        "values": max(len(np.unique(kernel[kernel != 0])) for kernel in kernels.values()),
        "dense_bytes": 4 * model.count_params(),
        "missing": missing,
    }
    record.write_text(json.dumps(network))
    return network


def build(name: str):
    """A network of `NETWORKS` as a Keras model."""
    import keras

    from deepcomp.dcz import conversion as exchange

    if NETWORKS[name].file:
        return exchange.to_keras(NETWORKS[name].file)
    if NETWORKS[name].layer:
        return unpruned_layer(*NETWORKS[name].layer)
    if NETWORKS[name].sparsity:
        return pruned(name.rpartition("-")[0], NETWORKS[name].sparsity)
    (inputs, units), left, values = FC6
    layer = keras.layers.Dense(units, activation="relu", name="fc6")
    model, rng = keras.Sequential([keras.Input((inputs,)), layer]), np.random.default_rng(0)
    layer.set_weights([sparse_kernel(rng, (inputs, units), left, values), rng.normal(0, 0.1, units)])
    return model


def pruned(name: str, sparsity: float):
    """A known architecture with random weights: all kernels but depthwise ones are pruned and share `VALUES` values."""
    import keras

    from deepcomp import models

    make = {
        "resnet-8": lambda weights: models.build("resnet-8", (32, 32, 3)),
        "mobilenet": keras.applications.MobileNet,
        "mobilenetv2": keras.applications.MobileNetV2,
        "resnet-50": keras.applications.ResNet50,
    }[name]
    model, rng = make(weights=None), np.random.default_rng(0)
    for layer in model.layers:
        weights = layer.get_weights()
        if type(layer).__name__ == "BatchNormalization":  # outputs of residual sums stay about as large as inputs
            low, high = (0.3, -0.1, -0.1, 0.8), (0.7, 0.1, 0.1, 1.2)
            weights = [rng.uniform(*ends, one.shape) for one, *ends in zip(weights, low, high, strict=True)]
        elif weights and type(layer).__name__ != "DepthwiseConv2D":
            left = round((1 - sparsity) * weights[0].size)
            weights[0] = sparse_kernel(rng, weights[0].shape, left, VALUES)
        layer.set_weights(weights)
    return model


def unpruned_layer(shape: tuple[int, ...], kind: str, options: dict):
    """A layer with random weights alone."""
    import keras

    model = keras.Sequential([keras.Input(shape), getattr(keras.layers, kind)(**options)])
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(0, 0.1, weight.shape) for weight in model.get_weights()])
    return model


def pictures(count: int, shape: tuple[int, ...]) -> np.ndarray:
    """Test images of the 5,000 digits as often as it takes, or noise of any other shape: float32 from 0 to 1."""
    from deepcomp import data

    if shape == (28, 28, 1):
        return data.to_float(np.resize(data.load_test("mnist-5k")[1], (count, *shape)))
    return np.random.default_rng(0).random((count, *shape), np.float32)


def sparse_kernel(rng: np.random.Generator, shape: tuple[int, ...], left: int, values: int) -> np.ndarray:
    """A `float32` kernel with `left` weights at random places that share `values` values, half of them negative."""
    kernel = np.zeros(prod(shape), np.float32)
    # Of a size that keeps the sums over the inputs that are left about as large as the inputs.
    codebook = np.linspace(0.5, 1.5, values // 2) * np.sqrt(2 * shape[-1] / left)
    kernel[rng.choice(kernel.size, left, replace=False)] = rng.choice([*-codebook, *codebook], left)
    return kernel.reshape(shape)


def write_keras(model, folder: Path, batches, images) -> None:
    model.save(folder / "model.keras")


def write_dcz(model, folder: Path, batches, images) -> None:
    import deepcomp

    deepcomp.save(model, folder / "model.dcz", coder="huffman")


def write_onnx(model, folder: Path, batches, images) -> None:
    onnx_files.write(model, folder / "model.onnx")


def chain_of(model) -> list:
    """The layers of a chain that SciPy's products can run. Raises `NotImplementedError` for other models."""
    import keras

    layers = [layer for layer in model.layers if not isinstance(layer, keras.layers.InputLayer)]
    for layer in layers:
        options = layer.get_config()
        plain = options.get("dilation_rate", 1) in (1, (1, 1)) and options.get("groups", 1) == 1
        plain &= options.get("activation", "linear") in ("relu", "linear")
        plain &= not isinstance(layer, keras.layers.MaxPooling2D) or layer.pool_size == layer.strides == (2, 2)
        if type(layer).__name__ not in ("Dense", "Conv2D", "MaxPooling2D", "Flatten") or not plain:
            raise NotImplementedError(f"The layer {layer.name} is none that the benchmark can hand to this engine.")
    return layers


def write_litert(kind: str) -> Callable:
    def write(model, folder: Path, batches, images) -> None:
        """A file for each batch, or one for all where the network keeps no other size: it takes its inputs flat."""
        import keras
        import tensorflow as tf

        for batch in batches if images.ndim > 2 else [None]:
            signature = [keras.InputSpec(shape=(batch, *images.shape[1:]), dtype="float32")]
            model.export(folder / "saved", verbose=False, input_signature=signature)
            converter = tf.lite.TFLiteConverter.from_saved_model(str(folder / "saved"))
            if kind != "float32":
                converter.optimizations = [tf.lite.Optimize.DEFAULT]
            if kind == "int8":
                size = batch or 1
                samples = [images[start : start + size] for start in range(0, min(64, len(images)), size)]
                converter.representative_dataset = lambda samples=samples: ([sample] for sample in samples)
                converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
                converter.inference_input_type = converter.inference_output_type = tf.int8
            (folder / f"{kind}-{batch}.tflite").write_bytes(converter.convert())
        shutil.rmtree(folder / "saved")

    return write


WRITERS = {"keras": write_keras, "dcz": write_dcz, "onnx": write_onnx}
WRITERS |= {kind: write_litert(kind) for kind in ("float32", "dynamic", "int8")}


# The engines: each gives its ways to run a batch, by name, as functions without arguments


Ways = dict[str, Callable[[], np.ndarray]]


def run_ours(folder: Path, images: np.ndarray, threads: int) -> Ways:
    import deepcomp

    engine = deepcomp.load(folder / "model.dcz", threads=threads)
    return {"": lambda: engine(images)}


def run_c(folder: Path, images: np.ndarray, threads: int) -> Ways:
    """The exported C, built for this machine, one image after the other on one thread."""
    import ctypes
    import tempfile

    from deepcomp.export import export_c

    with tempfile.TemporaryDirectory() as place:
        made = export_c(folder / "model.dcz", place)
        sizes = dict(re.findall(r"#define NET_(\w+) (\d+)", made.header.read_text()))
        library = Path(place) / "net.so"
        flags = ("-std=c99", "-O3", "-march=native", "-shared", "-fPIC")
        subprocess.run(["gcc", *flags, "-o", library, made.source, "-lm"], check=True)
        run = ctypes.CDLL(str(library)).net_run
    outputs = np.empty((len(images), int(sizes["OUTPUT"])), np.float32)
    scratch, inputs = np.empty(int(sizes["SCRATCH"]), np.float32), np.ascontiguousarray(images)
    # Objects of ctypes keep the arrays whose memory they are.
    pointers = [
        [one.ctypes.data_as(ctypes.c_void_p) for one in (a, b, scratch)] for a, b in zip(inputs, outputs, strict=True)
    ]

    def call() -> np.ndarray:
        for own in pointers:
            run(*own)
        return outputs

    return {"": call}


def run_tensorflow(folder: Path, images: np.ndarray, threads: int, jit_compile: bool = False) -> Ways:
    import tensorflow as tf

    from deepcomp import opening

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    model = opening.load(folder / "model.keras")
    signature = [tf.TensorSpec(images.shape, tf.float32)]
    function = tf.function(model, autograph=False, jit_compile=jit_compile, input_signature=signature)
    return {"": lambda: function(images).numpy()}


def run_xla(folder: Path, images: np.ndarray, threads: int) -> Ways:
    return run_tensorflow(folder, images, threads, jit_compile=True)


def run_litert(kind: str) -> Callable[..., Ways]:
    def run(folder: Path, images: np.ndarray, threads: int) -> Ways:
        from ai_edge_litert.interpreter import Interpreter

        batch = len(images) if images.ndim > 2 else None
        interpreter = Interpreter(str(folder / f"{kind}-{batch}.tflite"), num_threads=threads)
        (source,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
        interpreter.resize_tensor_input(source["index"], images.shape)
        interpreter.allocate_tensors()
        if source["dtype"] == np.int8:
            scale, zero = source["quantization"]
            images = np.clip(np.round(images / scale + zero), -128, 127).astype(np.int8)

        def call():
            interpreter.set_tensor(source["index"], images)
            interpreter.invoke()
            return interpreter.get_tensor(result["index"])

        return {"": call}

    return run


def run_onnx(folder: Path, images: np.ndarray, threads: int) -> Ways:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_free_dimension_override_by_name("batch", len(images))
    session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: images}
    return {"": lambda: session.run(None, feed)[0]}


def run_openvino(folder: Path, images: np.ndarray, threads: int) -> Ways:
    """The whole batch at once by the hint for latency; the batch in parts, one a stream, by that for throughput."""
    import openvino

    core = openvino.Core()
    ways = {}
    for hint, streams in (("LATENCY", 1), ("THROUGHPUT", threads)):
        if hint == "THROUGHPUT" and (streams == 1 or len(images) % streams):
            continue
        model = core.read_model(folder / "model.onnx")
        parts = np.split(images, streams)
        model.reshape(parts[0].shape)
        settings = {"PERFORMANCE_HINT": hint, "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": streams}
        compiled = core.compile_model(model, "CPU", {**settings, "INFERENCE_PRECISION_HINT": "f32"})
        requests = [compiled.create_infer_request() for _ in parts]
        ways[hint.lower()] = openvino_call(requests, parts)
    return ways


def openvino_call(requests: list, parts: list[np.ndarray]) -> Callable[[], np.ndarray]:
    if len(requests) == 1:
        (request,), (images,) = requests, parts
        return lambda: request.infer([images], share_inputs=True, share_outputs=True)[0]

    def call():
        for request, images in zip(requests, parts, strict=True):
            request.start_async([images], share_inputs=True)
        for request in requests:
            request.wait()
        return np.concatenate([request.get_output_tensor().data for request in requests])

    return call


def run_scipy(folder: Path, images: np.ndarray, threads: int) -> Ways:
    """Every layer as a product with a CSR matrix, images in columns; with several threads the batch in parts."""
    from deepcomp import opening

    model = opening.load(folder / "model.keras")
    layers, shape = chain_of(model), (-1, *model.output_shape[1:])
    steps = [step for layer in layers for step in scipy_steps(layer)]

    def call(images):
        columns = np.ascontiguousarray(images.reshape(len(images), -1).T)
        for step in steps:
            columns = step(columns)
        return columns.T.reshape(shape)

    ways = {"whole batch": lambda: call(images)}
    if 1 < threads <= len(images):
        pool, parts = ThreadPoolExecutor(threads), np.array_split(images, threads)
        ways["batch in parts"] = lambda: np.concatenate(list(pool.map(call, parts)))
    return ways


def scipy_steps(layer) -> Iterator[Callable[[np.ndarray], np.ndarray]]:
    """Functions of `(features, images)` that together do what a layer does."""
    from scipy.sparse import csr_array

    from deepcomp import sparse

    if type(layer).__name__ == "MaxPooling2D":
        rows, pixels, channels = layer.input.shape[1:]

        def pool(columns):
            image = columns.reshape(rows, pixels, channels, -1)[: rows // 2 * 2, : pixels // 2 * 2]
            blocks = image.reshape(rows // 2, 2, pixels // 2, 2, channels, -1)
            return blocks.max(axis=(1, 3)).reshape(-1, columns.shape[1])

        yield pool
    elif type(layer).__name__ != "Flatten":
        kernel = layer.kernel.numpy()
        if type(layer).__name__ == "Dense":
            matrix = sparse.dense_matrix(kernel)
        else:
            geometry = {"strides": layer.strides, "padding": layer.padding}
            matrix = sparse.convolution_matrix(kernel, layer.input.shape[1:], **geometry)
        transposed = csr_array((matrix.values, (matrix.columns, matrix.rows)), shape=matrix.shape[::-1])
        yield lambda columns: transposed @ columns
        if layer.use_bias:
            bias = np.tile(layer.bias.numpy(), matrix.shape[1] // kernel.shape[-1])[:, None]
            yield lambda columns: np.add(columns, bias, out=columns)
        if layer.activation.__name__ == "relu":
            yield lambda columns: np.maximum(columns, 0, out=columns)


INT8 = ("LiteRT dynamic int8", "LiteRT full int8")
# What runs each engine, and the format that it needs.
ENGINES = {
    OURS: (run_ours, "dcz"),
    AS_C: (run_c, "dcz"),
    "TensorFlow": (run_tensorflow, "keras"),
    "TensorFlow XLA": (run_xla, "keras"),
    "LiteRT float32": (run_litert("float32"), "float32"),
    "LiteRT dynamic int8": (run_litert("dynamic"), "dynamic"),
    "LiteRT full int8": (run_litert("int8"), "int8"),
    "ONNX Runtime": (run_onnx, "onnx"),
    "OpenVINO": (run_openvino, "onnx"),
    "SciPy CSR": (run_scipy, "keras"),
}


# A process for each engine


def serve(engine: str, folder: Path, threads: int, connection) -> None:
    """Answer the requests of the benchmark: to load the network for a batch, and to run it some times."""
    be_quiet(folder / f"{engine.replace(' ', '-')}.log")
    use_cores(threads)
    call = None
    for request, number in iter(connection.recv, None):
        try:
            if request == "load":
                call = None  # What is loaded gives its memory back first.
                call, answer = load(engine, folder, threads, number)
            else:
                call()  # The engines before have taken the caches.
                began = time.perf_counter()
                for _ in range(number):
                    call()
                answer = (time.perf_counter() - began) / number
        except Exception as error:  # Whatever it is, it is the reason why the engine is missing.
            answer = {"reason": reason(error)}
        connection.send(answer)


def load(engine: str, folder: Path, threads: int, batch: int) -> tuple[Callable[[], Any], dict]:
    """The engine's fastest way to run a batch, and what is known of it."""
    images = np.load(folder / "images.npy", mmap_mode="r")[:batch]
    expected = np.load(folder / "outputs.npy")[:batch]
    ways = ENGINES[engine][0](folder, np.array(images), threads)
    seconds = {way: warm_up(call) for way, call in ways.items()}
    way = min(seconds, key=seconds.get)
    outputs = ways[way]()
    same = float(np.mean(outputs.argmax(axis=1) == expected.argmax(axis=1)))
    known = {"way": way, "seconds": seconds[way], "agreement": same, "difference": None}
    if engine not in INT8:
        known["difference"] = float(np.abs(outputs - expected).max() / np.abs(expected).max())
    return ways[way], known


def warm_up(call: Callable[[], Any]) -> float:
    """Run it for a while; returns the seconds of the fastest call."""
    began, seen = time.perf_counter(), []
    while len(seen) < 3 or time.perf_counter() - began < WARM_UP:
        seen.append(seconds_of(call))
    return min(seen)


class Engine:
    """An engine in its process; `reason` says why it cannot go on."""

    def __init__(self, name: str, folder: Path, threads: int):
        context = get_context("spawn")
        self.reason = ""
        self.connection, other = context.Pipe()
        self.process = context.Process(target=serve, args=(name, folder, threads, other), daemon=True)
        self.process.start()
        other.close()

    def ask(self, request: str, number: int) -> Any:
        """The answer to a request, or None."""
        if self.reason:
            return None
        try:
            self.connection.send((request, number))
            if not self.connection.poll(PATIENCE):
                self.reason = f"No answer in {PATIENCE} s."
                self.process.kill()
                return None
            answer = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            self.reason = f"The process ended with exit status {self.process.exitcode}."
            return None
        if isinstance(answer, dict) and "reason" in answer:
            self.reason = answer["reason"]
            return None
        return answer

    def stop(self) -> None:
        if self.process.is_alive():
            self.process.kill()
        self.process.join()


@contextmanager
def processes(names: Sequence[str], network: dict, threads: int) -> Iterator[dict[str, Engine]]:
    """The engines, each in its process; they end with the block."""
    running = {name: Engine(name, Path(network["folder"]), threads) for name in names}
    for name, engine in running.items():
        engine.reason = network["missing"].get(ENGINES[name][1], "")
    try:
        yield running
    finally:
        for engine in running.values():
            engine.stop()


def in_process(work: Callable, log: Path, *arguments):
    """What `work` returns, in a process of its own, so that no framework stays in this one."""
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=be_quiet, initargs=(log,)) as pool:
        return pool.submit(work, *arguments).result()


def be_quiet(log: Path) -> None:
    """Send to a file what the frameworks of this process say on standard error."""
    log.parent.mkdir(parents=True, exist_ok=True)
    os.dup2(os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644), 2)


def available_cores() -> list[int]:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def use_cores(count: int) -> None:
    """Keep this process to the last `count` cores, so that no engine has more threads than it says."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, available_cores()[-count:])


def reason(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"


# Measuring


def measure(running: dict[str, Engine], network: dict, threads: int, batch: int, options) -> list[dict]:
    """Time every engine at one batch, in turns; returns a cell for each."""
    cells = {}
    for name, engine in running.items():
        known = engine.ask("load", batch) or {}
        cells[name] = {"network": network["network"], "threads": threads, "batch": batch, "engine": name, **known}
        if (known.get("difference") or 0) > TOLERANCE:
            cells[name]["wrong"] = f"Its outputs differ from Keras's by {known['difference']:.2g} of the largest."
    turns = [name for name, cell in cells.items() if "seconds" in cell and "wrong" not in cell]
    calls = {name: max(1, round(options.seconds / options.rounds / cells[name]["seconds"])) for name in turns}
    rounds = {name: [] for name in turns}
    order = random.Random(0)
    for _ in range(options.rounds):
        for name in order.sample(turns, len(turns)):
            if threads > 1:
                time.sleep(PAUSE)
            seconds = running[name].ask("run", calls[name])
            if seconds is not None:
                rounds[name].append(1e6 * seconds)
    for name, cell in cells.items():
        missing = cell.pop("wrong", running[name].reason)
        cell |= summary([] if missing else rounds[name], missing)
    return with_ratios(list(cells.values()))


def summary(rounds: Sequence[float], missing: str = "") -> dict:
    """Median of the rounds in microseconds, half of the distance of their quartiles in percent of it, all of them."""
    if not rounds:
        return {"microseconds": None, "spread": None, "rounds": [], "reason": missing or "Not measured."}
    middle = median(rounds)
    low, _, high = quantiles(rounds, n=4, method="inclusive") if len(rounds) > 1 else (middle,) * 3
    return {"microseconds": middle, "spread": 50 * (high - low) / middle, "rounds": list(rounds), "reason": ""}


def with_ratios(cells: list[dict]) -> list[dict]:
    """The cells of one network, batch and number of threads, each with its time over ours, or None."""
    ours = next((cell["microseconds"] for cell in cells if cell["engine"] == OURS), None)
    return [{**cell, "ratio": cell["microseconds"] / ours if ours and cell["microseconds"] else None} for cell in cells]


# What is measured of this machine and of deepcomp alone


def measure_facts(folder: Path, networks: Sequence[dict]) -> list[dict]:
    """Rows of what the goals name beside the comparison, measured on one core."""
    in_process(prepare_parts, folder / "prepare.log", folder)
    rows = in_process(own_facts, folder / "facts.log", folder, networks)
    first = [first_inference(folder / "lenet-5.dcz") for _ in range(5)]
    if all(first):
        rows.append(fact("first inference of a fresh process, with imports", f"{median(first):.2f} s", "< 1 s"))
    return rows


def prepare_parts(folder: Path) -> None:
    """LeNet-5, its convolutions and a tiny layer as files."""
    import keras

    import deepcomp

    folder.mkdir(parents=True, exist_ok=True)
    whole = build("lenet-5")

    def part(first: str, last: str) -> keras.Model:
        names = [layer.name for layer in whole.layers]
        layers = whole.layers[names.index(first) : names.index(last) + 1]
        copies = [type(layer).from_config(layer.get_config()) for layer in layers]
        model = keras.Sequential([keras.Input(layers[0].input.shape[1:]), *copies])
        for layer, copy in zip(layers, copies, strict=True):
            copy.set_weights(layer.get_weights())
        return model

    parts = {"lenet-5": whole, "conv1": part("conv1", "conv1"), "conv2": part("conv2", "conv2")}
    parts["conv1 to pool2"] = part("conv1", "pool2")
    parts["tiny"] = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)])
    for name, model in parts.items():
        deepcomp.save(model, folder / f"{name}.dcz", coder="huffman")


def own_facts(folder: Path, networks: Sequence[dict]) -> list[dict]:
    """The machine's rate, and deepcomp's rates, overhead and time to load, on one core."""
    use_cores(1)
    peak = {lanes: multiply_adds(lanes) for lanes in vector_lanes()}
    rates = {lanes: multiply_add_rate(run, lanes) for lanes, run in peak.items()}
    lanes = max(rates, key=rates.get)
    rows = [fact(f"multiply-adds in registers, {lanes} lanes", f"{rates[lanes] / 1e9:.1f} G/s")]
    try:
        import deepcomp
        from deepcomp.dcz import container, neurons

        fed = cached_multiply_add_rate()
        rows.append(fact(f"multiply-adds of inputs in {CACHED // 1024} KiB of cache", f"{fed / 1e9:.1f} G/s"))

        path = folder / "lenet-5.dcz"
        engine = deepcomp.load(path, threads=1)
        engine(np.zeros((1, 28, 28, 1), np.float32))
    except Exception as error:  # Without an engine there is nothing more to measure.
        return [*rows, fact(OURS, reason(error))]
    read = neurons.remove_unused(container.load(path))  # what the engine runs
    left = {layer.name: layer.weights["kernel"].indices for layer in read.layers if layer.weights}
    positions = {name: np.count_nonzero(left[name]) * size for name, size in (("conv1", 24 * 24), ("conv2", 8 * 8))}
    positions["conv1 to pool2"] = sum(positions.values())
    for name, count in positions.items():
        engine = deepcomp.load(folder / f"{name}.dcz", threads=1)
        images = np.zeros((1024, *((12, 12, 20) if name == "conv2" else (28, 28, 1))), np.float32)
        images += np.random.default_rng(0).random(images.shape, np.float32)
        engine(images)
        parts = []
        for _ in range(15):
            rate = multiply_add_rate(peak[lanes], lanes)
            parts.append(1024 * count / seconds_of(lambda: engine(images)) / rate)  # noqa: B023
        rows.append(fact(f"of which LeNet-5's {name} at batch 1024", f"{100 * median(parts):.0f}%", "50%"))
    loading = median(seconds_of(lambda: deepcomp.load(path, threads=1)) for _ in range(15))
    rows.append(fact("loading a LeNet-5 file, without imports", f"{1e3 * loading:.1f} ms", "< 20 ms"))
    tiny, image = deepcomp.load(folder / "tiny.dcz", threads=1), np.ones((1, 4), np.float32)
    warm_up(lambda: tiny(image))
    calls = [seconds_of(lambda: [tiny(image) for _ in range(1000)]) / 1000 for _ in range(15)]
    rows.append(fact("a call of a 4 x 4 layer at batch 1", f"{1e6 * median(calls):.2f} us", "< 5 us"))
    for network in networks:
        if network["network"] in NETWORKS and NETWORKS[network["network"]].sparsity:
            layers = deepcomp.load(Path(network["folder"]) / "model.dcz", threads=1).profile(1, seconds=3).layers
            layers = [layer for layer in layers if "convolution" in layer.steps]
            rate = 1e6 * sum(layer.multiply_adds for layer in layers) / sum(layer.microseconds for layer in layers)
            share = f"{rate / 1e9:.1f} G/s, {100 * rate / min(fed, rates[lanes]):.0f}% of the lesser rate"
            goal = "50%" if network["network"] == "resnet-50-90" else ""
            rows.append(fact(f"convolutions of {network['network']} at batch 1", share, goal))
        resident = deepcomp.load(Path(network["folder"]) / "model.dcz", threads=1).weight_bytes
        text = f"{resident:,} bytes, 1/{network['dense_bytes'] / resident:.1f} of float32"
        rows.append(
            fact(f"resident weights of {network['network']}", text, "1/25" if "vgg-fc6" in network["folder"] else "")
        )
    return rows


def fact(what: str, value: str, goal: str = "") -> dict:
    return {"what": what, "value": value, "goal": goal}


def seconds_of(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


FIRST = "import sys, numpy as np, deepcomp; deepcomp.load(sys.argv[1])(np.zeros((1, 28, 28, 1), np.float32))"


def first_inference(path: Path) -> float | None:
    """Seconds of a process that imports, loads and runs LeNet-5 once; None if it cannot."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", FIRST, path], stderr=subprocess.DEVNULL)
    return None if done.returncode else time.perf_counter() - began


ACCUMULATORS, REPEATS = 12, 10_000_000
CACHED = 2**18  # bytes, more than the first level of a cache holds, less than the second


def cached_multiply_add_rate() -> float:
    """Multiply-adds a second of deepcomp's innermost loop alone, on inputs at random places of `CACHED` bytes."""
    from numba import njit

    from deepcomp.runtime import vectors

    columns, count, low, high = 2 * vectors.TILE_COLUMNS, 1000, np.float32(-np.inf), np.float32(np.inf)

    @njit
    def run(repeats, places, weights, source, target):
        for _ in range(repeats):
            vectors.convolve_positions(
                columns, places, weights, count, source, target, np.float32(1), np.float32(0), low, high
            )

    rng, width = np.random.default_rng(0), columns * vectors.WIDTH
    inputs, sums = np.zeros(CACHED // 4 + width, np.float32), np.zeros(width, np.float32)
    places, weights = 4 * rng.integers(0, CACHED // 4, count, np.int32), rng.random(count, np.float32)
    addresses = [array.ctypes.data for array in (places, weights, inputs, sums)]
    run(1, *addresses)
    repeats = REPEATS // (columns * count)
    seconds = min(seconds_of(lambda: run(repeats, *addresses)) for _ in range(5))
    return repeats * count * width / seconds


def multiply_add_rate(run: Callable[[int], float], lanes: int) -> float:
    """Multiply-adds a second of a loop of `multiply_adds`."""
    run(REPEATS // 10)
    return lanes * ACCUMULATORS * REPEATS / seconds_of(lambda: run(REPEATS))


def vector_lanes() -> list[int]:
    """Numbers of float32 in the vectors that this machine has."""
    import llvmlite.binding as llvm

    features = llvm.get_host_cpu_features()
    return [4, *([8] if features.get("avx") else []), *([16] if features.get("avx512f") else [])]


def multiply_adds(lanes: int) -> Callable[[int], float]:
    """A compiled function that repeats a multiply-add on each of `ACCUMULATORS` vectors, all kept in registers."""
    from llvmlite import ir
    from numba import njit, types
    from numba.core import cgutils
    from numba.extending import intrinsic

    vector = ir.VectorType(ir.FloatType(), lanes)

    @intrinsic
    def loop(typing, repeats):
        def generate(context, builder, signature, arguments):
            (repeats,) = arguments
            kind = ir.FunctionType(vector, [vector] * 3)
            fma = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{lanes}f32")
            # No sum starts where it stays, at 200: it would be a constant.
            factor, term = (ir.Constant(vector, [value] * lanes) for value in (0.5, 100.0))
            before, body, after = builder.block, *map(builder.append_basic_block, ("body", "after"))
            builder.branch(body)
            builder.position_at_end(body)
            count = builder.phi(repeats.type)
            sums = [builder.phi(vector) for _ in range(ACCUMULATORS)]
            count.add_incoming(repeats, before)
            raised = [builder.call(fma, [total, factor, term]) for total in sums]
            for number, (total, result) in enumerate(zip(sums, raised, strict=True)):
                total.add_incoming(ir.Constant(vector, [float(number)] * lanes), before)
                total.add_incoming(result, body)
            left = builder.sub(count, count.type(1))
            count.add_incoming(left, body)
            builder.cbranch(builder.icmp_signed(">", left, left.type(0)), body, after)
            builder.position_at_end(after)
            added = raised[0]
            for result in raised[1:]:
                added = builder.fadd(added, result)
            return builder.extract_element(added, ir.IntType(32)(0))

        return types.float32(types.int64), generate

    @njit
    def run(repeats):
        return loop(repeats)

    return run


# What is shown


def title(network: dict, threads: int) -> str:
    left = f"{network['left']:,} of {network['weights']:,} weights left, {network['values']} values"
    return f"{network['network']}: {left}; {threads} thread{'s' if threads > 1 else ''}, microseconds a batch"


def speed_table(cells: Sequence[dict]) -> str:
    """The cells of one network and number of threads: a line an engine, three columns a batch; then the reasons."""
    batches = list(dict.fromkeys(cell["batch"] for cell in cells))
    rows = {name: {"engine": name} for name in dict.fromkeys(cell["engine"] for cell in cells)}
    rows["fastest peer"] = {"engine": "fastest peer"}
    for batch in batches:
        here = [cell for cell in cells if cell["batch"] == batch]
        for name, cell in [(cell["engine"], cell) for cell in here] + [("fastest peer", fastest(here))]:
            rows[name] |= texts(cell, batch) if cell else texts({"microseconds": None, "engine": ""}, batch)
    columns = {"engine": "engine"}
    for batch in batches:
        columns |= {f"time {batch}": f"batch {batch}", f"spread {batch}": "+-", f"ratio {batch}": "ours is"}
    reasons = {cell["engine"]: cell["reason"] for cell in cells if cell["reason"]}
    lines = [f"missing: {name}: {text}" for name, text in reasons.items()]
    alike = {
        cell["engine"]: f"{100 * cell['agreement']:.1f}%"
        for cell in cells
        if cell.get("agreement") is not None and cell.get("difference") is None
    }
    if alike:
        lines.append(f"same class as Keras: {', '.join(f'{name} {text}' for name, text in alike.items())}")
    return "\n".join([tables.table(list(rows.values()), columns), *lines])


def texts(cell: dict, batch: int) -> dict:
    """The three columns of a cell; a lost one says so."""
    shown = dict.fromkeys((f"time {batch}", f"spread {batch}", f"ratio {batch}"))
    if cell["microseconds"] is not None:
        shown[f"time {batch}"] = f"{cell['microseconds']:,.{1 if cell['microseconds'] < 1000 else 0}f}"
        shown[f"spread {batch}"] = f"{cell['spread']:.0f}%"
    if cell.get("ratio") and cell["engine"] != OURS:
        shown[f"ratio {batch}"] = f"{cell['ratio']:.2f}x" + (" LOST" if cell["ratio"] < 1 else "")
    return shown


def fastest(cells: Sequence[dict], peers: str = ANY) -> dict | None:
    """The cell of the fastest of these peers, or None where there is none."""
    known = [cell for cell in cells if cell["engine"] != OURS and cell["microseconds"] is not None]
    if peers != ANY:
        known = [cell for cell in known if (cell["engine"] in INT8) == (peers == IN_INT8)]
    return min(known, key=lambda cell: cell["microseconds"], default=None)


def goal_rows(cells: Sequence[dict], networks: Sequence[dict], threads: int) -> list[dict]:
    """A row for each goal: the fastest peer, its time over ours, what it should be at the least."""
    rows = []
    for network in networks:
        for batch, peers, goal in network["goals"]:
            where = {"network": network["network"], "batch": batch, "threads": threads}
            here = [cell for cell in cells if all(cell[key] == value for key, value in where.items())]
            peer = fastest(here, peers)
            if peer:
                ratio = peer["ratio"]
                verdict = "-" if ratio is None else f"{ratio:.2f}x {'met' if ratio >= goal else 'missed'}"
                rows.append(
                    {**where, "peers": peers, "fastest": peer["engine"], "ratio": verdict, "goal": f"{goal:g}x"}
                )
    return rows


def machine() -> dict:
    """What the figures were measured on and with."""
    import llvmlite.binding as llvm

    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "processor": llvm.get_host_cpu_name(),
        "cores": len(available_cores()),
        "lanes": vector_lanes()[-1],
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "versions": versions,
    }


if __name__ == "__main__":
    main()
