"""The benchmark of coding runs on a small network."""

import subprocess
import sys

import pytest

from benchmarks import vgg


@pytest.mark.parametrize(("flags", "said"), [((), "7.6"), (("--unshared",), "100.00")])
def test_a_small_network_is_encoded_and_decoded(flags, said):
    command = [sys.executable, vgg.__file__, "--coder", "huffman", "--scale", "0.02", *flags]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout.splitlines()
    assert f"{said}" in printed[0]
    assert printed[0].endswith("% left, one core")
    assert [line.split()[1] for line in printed[3:]] == ["encode", "decode"]
