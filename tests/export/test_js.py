"""A network in JavaScript computes what it does in Keras; a damaged file is refused in one line, and nothing hangs."""

import json
import math
import random
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from benchmarks import fuzz, js, minify, structures
from benchmarks.interpreter import interpret
from deepcomp.dcz import container, conversion
from deepcomp.dcz.network import values
from tests.export.test_c import ALL, flat
from tests.zoo import SEVERAL, fill

NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(not NODE, reason="there is no Node")

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = sorted((ROOT / "tests/dcz/golden").glob("*.dcz"))
# Files that are read and not run: weights alone, and a mask that the engine refuses too.
NOT_RUN = {"variables": "holds the weights of a model alone", "texts": "gets a mask of a sequence"}
COMMON = """
import { readFileSync } from "node:fs";
import { FormatError, parse } from "./deepcomp.mjs";

const numbersOf = ({ shape }) => shape.reduce((a, b) => a * b, 1);
const split = (numbers, inputs) => {
  let first = 0;
  return inputs.map((input) => numbers.subarray(first, (first += numbersOf(input))));
};
const listed = (found) => (found instanceof Float32Array ? [found] : Object.values(found));
const text = (number) => (Number.isNaN(number) ? "NaN" : String(number));
"""
RUN = """
const found = JSON.parse(readFileSync("cases.json")).map(([name, examples]) => {
  const network = parse(readFileSync(`${name}.dcz`));
  const inputs = new Float32Array(new Uint8Array(readFileSync(`${name}.in`)).buffer);
  const size = inputs.length / examples;
  const outputs = [];
  for (let i = 0; i < examples; i++) {
    const one = split(inputs.subarray(i * size, (i + 1) * size), network.inputs);
    outputs.push(listed(network.run(...one)).flatMap((output) => [...output].map(text)));
  }
  return outputs;
});
console.log(JSON.stringify(found));
"""
# Outcomes: refused, or run. Anything else ends the process.
FUZZ = """
const data = readFileSync("cases.bin");
const limits = { memory: 2 ** 27, work: 2 ** 27 };
let at = 0;
const found = JSON.parse(readFileSync("cases.json")).map((size, number) => {
  const begin = performance.now();
  const bytes = data.subarray(at, (at += size));
  let outcome = "run";
  try {
    const network = parse(bytes, limits);
    const outputs = listed(network.run(...network.inputs.map((input) => new Float32Array(numbersOf(input)))));
    if (outputs.some((output, i) => output.length !== numbersOf(network.outputs[i]))) outcome = "wrong size";
  } catch (error) {
    outcome = error instanceof FormatError && !error.message.includes("\\n") ? "refused" : error.stack;
  }
  return [outcome, performance.now() - begin];
});
console.log(JSON.stringify(found));
"""
# What users see of networks, by name.
DESCRIBE = """
const networks = JSON.parse(readFileSync("cases.json")).map((name) => parse(readFileSync(`${name}.dcz`)));
const shown = (key, value) => (ArrayBuffer.isView(value) ? [value.constructor.name, ...value] : value);
console.log(JSON.stringify(networks.map((network) => [JSON.stringify(network, shown), typeof network.run])));
"""
PATIENCE = 20.0  # seconds until a file counts as hung
FEW = ["Activation of rare curves", "GroupNormalization", "u_net", "attention with masks of texts", "table_and_image"]
SIZE = 41_500  # bytes


def node(folder, script, timeout=600):
    """What a script that begins with `COMMON` writes as JSON."""
    (folder / "script.mjs").write_text(COMMON + script)
    if not (folder / "deepcomp.mjs").exists():
        shutil.copy(js.MODULE, folder / "deepcomp.mjs")
    done = subprocess.run([NODE, "script.mjs"], cwd=folder, capture_output=True, text=True, timeout=timeout)
    assert not done.returncode, done.stderr
    return json.loads(done.stdout)


def outputs_of(folder, cases):
    """The outputs of files, `float64 (N, numbers)` each, for inputs `(N, numbers)`."""
    for name, (data, inputs) in cases.items():
        (folder / f"{name}.dcz").write_bytes(data)
        (folder / f"{name}.in").write_bytes(np.ascontiguousarray(inputs, np.float32).tobytes())
    (folder / "cases.json").write_text(json.dumps([(name, len(inputs)) for name, (_, inputs) in cases.items()]))
    return dict(zip(cases, [np.array(one, np.float64) for one in node(folder, RUN)], strict=True))


def assert_close(found, expected):
    size = np.nanmax(np.abs(expected), initial=0)
    np.testing.assert_allclose(found, expected.reshape(len(expected), -1), rtol=1e-4, atol=1e-5 * size)


def inputs_of(network, count=2):
    generator = np.random.default_rng(0)
    is_whole = any(layer.kind == "Embedding" for layer in network.layers)
    numbers = sum(map(math.prod, network.input_shapes))
    return generator.integers(0, 3, (count, numbers)) if is_whole else generator.normal(size=(count, numbers))


def reason_not_to_run(path):
    return next((reason for name, reason in NOT_RUN.items() if path.stem.startswith(name)), None)


def test_the_golden_files_give_what_the_interpreter_says(tmp_path):
    networks = {path: container.load(path) for path in GOLDEN if not reason_not_to_run(path)}
    inputs = {path: inputs_of(network).astype(np.float32) for path, network in networks.items()}
    found = outputs_of(tmp_path, {path.stem: (path.read_bytes(), inputs[path]) for path in networks})
    for path, network in networks.items():
        assert_close(found[path.stem], interpret(network, inputs[path]))


def test_files_that_cannot_run_are_read(tmp_path):
    paths = {path.stem: path for path in GOLDEN if reason_not_to_run(path)}
    for name, path in paths.items():
        shutil.copy(path, tmp_path / f"{name}.dcz")
    (tmp_path / "cases.json").write_text(json.dumps([*paths]))
    script = """
    console.log(JSON.stringify(JSON.parse(readFileSync("cases.json")).map((name) => {
      const network = parse(readFileSync(`${name}.dcz`));
      let said = "";
      try { network.run(); } catch (error) { said = error instanceof FormatError && error.message; }
      const weights = network.layers.flatMap((layer) => Object.values(layer.weights));
      return [said, weights.map((weight) => [...weight.values])];
    })));
    """
    for path, (said, weights) in zip(paths.values(), node(tmp_path, script), strict=True):
        assert reason_not_to_run(path) in said
        network = container.load(path)
        expected = [values(weight) for layer in network.layers for weight in layer.weights.values()]
        assert len(weights) == len(expected) > 0
        for found, wanted in zip(weights, expected, strict=True):
            np.testing.assert_array_equal(found, wanted.ravel())


def test_the_files_of_the_records_classify_digits(digits, tmp_path):
    images = (digits.x_test[::25].reshape(-1, 784) / 255).astype(np.float32)
    paths = {path.stem: path for path in sorted((ROOT / "models").glob("*.dcz"))}
    found = outputs_of(tmp_path, {name: (path.read_bytes(), images) for name, path in paths.items()})
    for name, path in paths.items():
        expected = interpret(container.load(path), images)
        assert_close(found[name], expected)
        assert (found[name].argmax(axis=1) == digits.y_test[::25]).mean() > 0.9


def zoo_case(name):
    """The file of a model, inputs, and what Keras says."""
    make, draw = ALL[name]
    model = fill(make())
    inputs = draw(model, 3)
    return container.dumps(conversion.from_keras(model)), flat(inputs), flat(model(inputs))


def assert_zoo(folder, names):
    cases = [zoo_case(name) for name in names]
    found = outputs_of(folder, {f"case_{number}": case[:2] for number, case in enumerate(cases)})
    for outputs, (_, _, expected) in zip(found.values(), cases, strict=True):
        assert_close(outputs, expected)


@pytest.mark.filterwarnings("ignore:Layer .* was passed an input with a mask")
def test_a_few_networks_put_out_what_they_do_in_keras(tmp_path):
    assert_zoo(tmp_path, FEW)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Layer .* was passed an input with a mask")
@pytest.mark.parametrize("first", range(0, len(ALL), 20))
def test_every_kind_of_layer_in_javascript(first, tmp_path):
    assert_zoo(tmp_path, [*ALL][first : first + 20])


def test_inputs_and_outputs_have_the_form_of_the_model(tmp_path):
    cases = {name: fill(SEVERAL[name]()) for name in ("siamese", "several_outputs", "words")}
    for name, model in cases.items():
        (tmp_path / f"{name}.dcz").write_bytes(container.dumps(conversion.from_keras(model)))
    script = """
    const read = (name) => parse(readFileSync(`${name}.dcz`));
    const [pair, outputs, words] = ["siamese", "several_outputs", "words"].map(read);
    const [left, right] = [0, 1].map((n) => Float32Array.from({ length: 64 }, (_, i) => Math.sin(i + n)));
    const found = [pair.run(left, right), pair.run([left, right]), pair.run({ right, left })];
    let said = "";
    try { pair.run(left); } catch (error) { said = error.message; }
    console.log(JSON.stringify({
      same: found.map(([one]) => one),
      said,
      keys: Object.keys(outputs.run(new Float32Array(128))),
      names: outputs.outputs.map((output) => output.name),
      sizes: words.run(new Uint8Array(6), [1, 2, 3, 4]).map((output) => output.length),
      values: words.values.map((value) => value.length).slice(0, 2),
    }));
    """
    found = node(tmp_path, script)
    assert len({*found["same"]}) == 1
    assert found["said"] == "The network takes 2 inputs: left,right."
    assert found["keys"] == found["names"] == ["features", "label", "mask"]
    assert found["sizes"] == [2, 40]
    assert found["values"] == [6, 4]


def test_a_layer_tells_its_weights_and_bytes(tmp_path):
    shutil.copy(ROOT / "models/lenet-5.dcz", tmp_path / "net.dcz")
    script = """
    const { layers, bytes } = parse(readFileSync("net.dcz"));
    const { kernel } = layers[1].weights;
    const { shape, left, total, codebook, positions, indices } = kernel;
    const values = positions.every((place, i) => kernel.values[place] === codebook[indices[i]]);
    console.log(JSON.stringify({ shape, left, total, values, bytes, own: layers.map((layer) => layer.bytes) }));
    """
    found = node(tmp_path, script)
    assert (found["shape"], found["left"], found["total"], found["values"]) == ([5, 5, 1, 18], 255, 450, True)
    assert sum(found["own"]) == found["bytes"]["weights"]
    assert sum(found["bytes"].values()) == 2 * found["bytes"]["total"] == 2 * 2_432


def test_a_file_is_loaded_from_an_address(tmp_path):
    shutil.copy(ROOT / "models/lenet-5.dcz", tmp_path / "net.dcz")
    script = """
    import { createServer } from "node:http";
    import { load } from "./deepcomp.mjs";

    const server = createServer(({ url }, answer) => {
      answer.statusCode = url === "/net.dcz" ? 200 : 404;
      answer.end(url === "/net.dcz" ? readFileSync("net.dcz") : "");
    });
    await new Promise((done) => server.listen(0, "127.0.0.1", done));
    const address = `http://127.0.0.1:${server.address().port}`;
    const { name } = await load(`${address}/net.dcz`);
    const said = await load(`${address}/other.dcz`).catch((error) => error.message);
    server.close();
    console.log(JSON.stringify([name, said.replace(address, "")]));
    process.exit();
    """
    assert node(tmp_path, script) == ["lenet_5", "/other.dcz cannot be read: 404 Not Found"]


def test_a_file_beyond_the_limits_is_refused(tmp_path):
    shutil.copy(ROOT / "models/lenet-5.dcz", tmp_path / "net.dcz")
    script = """
    console.log(JSON.stringify([{ memory: 1e5 }, { work: 1e6 }, { weights: 100000 }].map((limits) => {
      try { parse(readFileSync("net.dcz"), limits); } catch (error) { return [error.name, error.message]; }
    })));
    """
    for (name, message), wanted in zip(node(tmp_path, script), ("memory", "work", "100000"), strict=True):
        assert name == "FormatError"
        assert wanted in message


def test_the_minified_module_is_small_and_does_the_same(tmp_path):
    text = minify.minified(js.MODULE.read_text(encoding="utf-8"))
    assert len(text.encode()) < SIZE
    names = [path.stem for path in GOLDEN]
    (tmp_path / "cases.json").write_text(json.dumps(names))
    for path in GOLDEN:
        shutil.copy(path, tmp_path)
    described = node(tmp_path, DESCRIBE)
    (tmp_path / "deepcomp.mjs").write_text(text)
    assert node(tmp_path, DESCRIBE) == described
    test_the_golden_files_give_what_the_interpreter_says(tmp_path)


def damaged(count, seed=0):
    """Files with some bytes changed and a checksum that fits: of `fuzz`, of `structures`, and golden ones."""
    originals, golden = fuzz.originals(), [path.read_bytes() for path in GOLDEN]
    draw = random.Random(seed)
    for number in range(count):
        if number % 3 == 0:
            yield fuzz.make(originals, seed, True, number).data
        elif number % 3 == 1:
            yield structures.file(seed, 4 * number)
        else:
            data = bytearray(draw.choice(golden)[:-4])
            for _ in range(draw.choice((1, 1, 2, 8))):
                data[draw.randrange(4, len(data))] = draw.randrange(256)
            yield fuzz.seal(bytes(data))


def assert_sound(folder, cases):
    """Each file is refused in one line or runs, soon."""
    (folder / "cases.bin").write_bytes(b"".join(cases))
    (folder / "cases.json").write_text(json.dumps([len(case) for case in cases]))
    found = node(folder, FUZZ, timeout=PATIENCE + len(cases))
    wrong = [(number, outcome) for number, (outcome, _) in enumerate(found) if outcome not in ("run", "refused")]
    assert not wrong
    assert max(milliseconds for _, milliseconds in found) < 1000 * PATIENCE
    outcomes = {outcome for outcome, _ in found}
    assert outcomes == {"run", "refused"}


def test_damaged_files_are_refused_or_run(tmp_path):
    assert_sound(tmp_path, [*damaged(300)])


@pytest.mark.slow
def test_many_damaged_files_are_refused_or_run(tmp_path):
    cases = [*damaged(10_000, seed=1)]
    for first in range(0, len(cases), 1000):
        assert_sound(tmp_path, cases[first : first + 1000])
