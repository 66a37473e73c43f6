"""The fuzzer of structures: a small run of it, and that it would notice what it looks for."""

import ctypes
import sys

import numpy as np
import pytest

from benchmarks import children, interpreter, structures
from benchmarks.interpreter_sequences import SEQUENCES
from deepcomp.dcz import container
from deepcomp.dcz.kinds import ACTIVATIONS, KINDS
from deepcomp.dcz.network import Layer, Network, SharedWeight
from deepcomp.errors import FormatError
from deepcomp.runtime import bounds, engine


def test_every_kind_of_layer_has_a_generator_and_an_interpreter():
    kinds = KINDS.keys() - {"InputLayer", "Variable"}
    assert structures.GENERATE.keys() == kinds
    assert interpreter.INTERPRET.keys() | SEQUENCES.keys() == kinds
    assert not interpreter.INTERPRET.keys() & SEQUENCES.keys()
    assert interpreter.ACTIVATIONS.keys() == set(ACTIVATIONS)


def test_networks_of_random_structure_run_as_the_interpreter_says():
    """`make fuzz` does it for 50,000."""
    found = dict(structures.run(500, seed=0, workers=2))
    assert found.keys() == set(range(500))
    bad = {number: verdict for number, verdict in found.items() if verdict.outcome in structures.BAD}
    assert not bad
    seen = {kind for verdict in found.values() if verdict.outcome == "right" for kind in verdict.kinds}
    assert seen == structures.GENERATE.keys()
    assert {verdict.outcome for verdict in found.values() if verdict.changed} == set(structures.GOOD)


def test_a_number_always_has_the_same_file():
    for number in range(12):
        assert structures.file(3, number) == structures.file(3, number) != structures.file(4, number)
        if number % 4:
            container.loads(structures.file(3, number))


def test_every_verdict(monkeypatch):
    data = next(
        data
        for data in (structures.file(0, n) for n in range(1, 99, 4))
        if structures.judge(data, 1).outcome == "right"
    )
    assert structures.judge(data[:-1], 1).outcome == "refused"
    with monkeypatch.context() as patch:
        patch.setattr(structures, "interpret", lambda *a, **o: interpreter.interpret(*a, **o) + 1)
        assert structures.judge(data, 1).outcome == "wrong"
    for error, outcome in (
        (IndexError("a"), "exception"),
        (FormatError("of two\nlines"), "exception"),
        (bounds._unsafe("a step"), "exception"),  # the planner made a plan that is not safe
        (FormatError("of one"), "refused"),
    ):

        def fail(*arguments, error=error, **options):
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(structures.container, "loads", fail)
            assert structures.judge(b"", 1).outcome == outcome
    assert engine.np is np


@pytest.mark.parametrize("at_end", [False, True])
def test_arrays_in_guarded_memory_are_plain_arrays(at_end):
    guarded = structures.Guarded(at_end)
    array = guarded.copy(np.arange(3000, dtype=np.int32).reshape(3, 1000))
    assert np.array_equal(array, np.arange(3000).reshape(3, 1000))
    assert array.flags.carray
    assert guarded.empty((0, 3), np.float32).shape == (0, 3)
    aligned = guarded.empty(10, np.float32, align=64)
    assert aligned.ctypes.data % 64 == 0
    assert not aligned.any()


def beyond():
    """A judge for `children.run`: it reads one byte beyond an array, behind it or before it."""

    def judge(at_end):
        array = structures.Guarded(at_end).empty(1000, np.uint8)
        return ctypes.string_at(array.ctypes.data + (1000 if at_end else -1), 1)

    return judge


def test_who_leaves_guarded_memory_crashes():
    judged = [*children.run(beyond, (), [True, False], workers=1, patience=60, chunk=2)]
    assert sorted((one.case, one.end) for one in judged) == [(False, "crash"), (True, "crash")]


def test_a_bad_file_is_kept_and_judged_again(tmp_path, monkeypatch, capsys):
    verdict = structures.Verdict("wrong", "off by 1", ("Dense",), False, 0.5)
    monkeypatch.setattr(structures, "run", lambda networks, seed, workers, first, device: [(first + 1, verdict)])
    arguments = ["structures", "--networks", "1", "--checked", "0", "--first", "4", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    assert structures.main() == 1
    kept = tmp_path / "wrong-0-5.dcz"
    assert kept.read_bytes() == structures.file(0, 5)
    output = capsys.readouterr().out
    assert f"{kept}: wrong, off by 1" in output
    assert "1 networks of seed 0" in output
    monkeypatch.setattr(structures, "prepare", lambda seed, device: None)
    monkeypatch.setattr(sys, "argv", ["structures", "--again", str(kept)])
    assert structures.main() == 0
    assert capsys.readouterr().out == f"{kept}: right \n"


def test_without_a_gpu_one_line_says_so(monkeypatch, capsys):
    monkeypatch.setattr("numba.cuda.is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["structures", "--device", "cuda"])
    with pytest.raises(SystemExit, match="2"):
        structures.main()
    assert "device='cuda' needs" in capsys.readouterr().err


# The interpreter


def interpreted(shape, kind, options, image, **weights):
    layer = Layer(kind, "a", (0,), options, weights)
    return interpreter.interpret(Network("n", shape, (Layer("InputLayer", "i"), layer)), np.array([image]))[0].tolist()


def test_the_interpreter_by_hand():
    ones = SharedWeight(np.array([2], np.float32), np.array([1, 1, 0], np.uint8).reshape(3, 1, 1))
    image = [[1], [2], [3], [4]]
    options = {"filters": 1, "kernel_size": (3,), "use_bias": False}
    for padding, strides, expected in (
        ("valid", 1, [6, 10]),
        ("same", 1, [2, 6, 10, 14]),
        ("same", 2, [6, 14]),
        ("causal", 1, [0, 2, 6, 10]),
    ):
        found = interpreted(
            (4, 1), "Conv1D", {**options, "padding": padding, "strides": (strides,)}, image, kernel=ones
        )
        assert np.ravel(found).tolist() == expected
    pool = {"pool_size": (3,), "strides": (2,), "padding": "same"}
    assert interpreted((4, 1), "MaxPooling1D", pool, image) == [[3], [4]]
    assert interpreted((4, 1), "AveragePooling1D", pool, image) == [[2], [3.5]]
    relu = {"max_value": 3.0, "negative_slope": 0.5, "threshold": 1.0}
    assert interpreted((4,), "ReLU", relu, [-1.0, 1.0, 2.0, 5.0]) == [-1, 0, 2, 3]
    kernel = np.array([[[1, 10], [2, 20]]], np.float32)
    assert interpreted(
        (1, 2), "DepthwiseConv1D", {"kernel_size": (1,), "depth_multiplier": 2}, [[1, 3]], kernel=kernel
    )[0] == [1, 10, 6, 60]
    assert interpreted((2, 2), "Permute", {"dims": (2, 1)}, [[1, 2], [3, 4]]) == [[1, 3], [2, 4]]


def test_noise_reaches_what_a_recurrent_layer_computes_inside():
    """x - tanh(x) of 1e-4 is 3e-13, but float32 rounds tanh(x) by up to 7e-12."""
    weights = {"kernel": np.ones((1, 1), np.float32), "recurrent_kernel": np.zeros((1, 1), np.float32)}
    options = {"units": 1, "activation": "tanh_shrink", "use_bias": False, "return_sequences": False}
    layers = (Layer("InputLayer", "i"), Layer("SimpleRNN", "a", (0,), options, weights))
    exact, rough = (
        interpreter.interpret(Network("n", (1, 1), layers), np.full((1, 1, 1), 1e-4, np.float32), noise)[0, 0]
        for noise in (0.0, 2e-7)
    )
    assert exact == pytest.approx(1e-12 / 3, rel=1e-3)
    assert 1e-12 < abs(rough - exact) < 1e-9
