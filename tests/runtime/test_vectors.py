"""The width of vectors, and kernels compiled for narrower ones than the host has."""

import os
import subprocess
import sys
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np
import pytest
from numba import njit

from deepcomp.runtime import vectors

FEATURES = llvm.get_host_cpu_features()


@njit
def _convolve(columns, places, weights, count, source, target, scale, shift, low, high):
    vectors.convolve_positions(columns, places, weights, count, source, target, scale, shift, low, high)


@njit
def _loads(address):
    return vectors.load_i32(address), vectors.load_f32(address)


def test_width_is_that_of_the_host() -> None:
    expected = 16 if FEATURES.get("avx512f") else 8 if FEATURES.get("avx") else 4
    assert expected == vectors.WIDTH


def test_scalars_are_loaded_from_any_address() -> None:
    data = np.array([9, 0xFE, 0xFF, 0xFF, 0xFF, 9], np.uint8)
    i32, f32 = _loads(data.ctypes.data + 1)
    assert i32 == -2
    assert np.isnan(f32)


@pytest.mark.parametrize("columns", range(1, 2 * vectors.TILE_COLUMNS + 1))
@pytest.mark.parametrize("count", [0, 1, 5])
def test_sums_of_every_number_of_vectors(columns: int, count: int) -> None:
    rng = np.random.default_rng(columns)
    source = rng.integers(-9, 9, columns * vectors.WIDTH + 7).astype(np.float32)
    places = (4 * rng.integers(0, 7, count)).astype(np.int32)
    weights = rng.integers(-9, 9, count).astype(np.float32)
    target = np.full(columns * vectors.WIDTH + 1, 0.5, np.float32)
    _convolve(columns, places.ctypes.data, weights.ctypes.data, count, source.ctypes.data, target.ctypes.data,
              2.0, 3.0, -100.0, 100.0)  # fmt: skip
    expected = sum((w * source[p // 4 :][: target.size - 1] for p, w in zip(places, weights, strict=True)), np.zeros(1))
    np.testing.assert_array_equal(target[:-1], np.broadcast_to((2 * expected + 3).clip(-100, 100), target.size - 1))
    assert target[-1] == 0.5


def test_hot_loops_keep_their_sums_in_registers() -> None:
    if vectors.WIDTH != 16:
        pytest.skip("reads AVX-512 code")
    _convolve(1, 0, 0, 0, 0, np.zeros(16, np.float32).ctypes.data, 1.0, 0.0, 0.0, 0.0)
    (code,) = _convolve.inspect_asm().values()
    loops = [block for block in code.split("\n.LBB") if block.count("vfmadd231ps") >= 2 * vectors.TILE_COLUMNS]
    assert loops
    for loop in loops:
        products = [line for line in loop.splitlines() if "vfmadd231ps" in line]
        assert all("zmm" in line and "(" in line for line in products)  # one operand comes straight from memory
        assert not any("zmm" in line and "rsp" in line for line in loop.splitlines())


@pytest.mark.parametrize(
    ("width", "name", "features"),
    [pytest.param(8, "haswell", "+avx,+avx2,+fma", marks=pytest.mark.slow), (4, "x86-64", "+sse2")],
)
def test_narrower_vectors_give_the_same(width: int, name: str, features: str, tmp_path: Path) -> None:
    if not FEATURES.get("avx2"):
        pytest.skip("no x86 processor with AVX2")
    settings = {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": features, "NUMBA_CACHE_DIR": str(tmp_path)}
    kernels = Path(__file__).with_name("test_kernels.py")
    script = f"""
import sys, pytest
from deepcomp.runtime import vectors
if vectors.WIDTH != {width}:
    sys.exit(f"vectors of {{vectors.WIDTH}}")
chosen = "equals or kind or nan or width or spans or rows"
sys.exit(pytest.main(["-n", "0", "-q", "-p", "no:cacheprovider", "-k", chosen, {str(kernels)!r}]))
"""
    run = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | settings, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
