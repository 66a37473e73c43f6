"""Runs exported C on a Cortex-M4 in QEMU, and reads flash and RAM off the program: `make embedded`.

    python -m benchmarks.embedded [FILE.dcz | resnet-8-80 ...] [--images N]

It needs `arm-none-eabi-gcc` with newlib and `qemu-system-arm`: on Debian the packages gcc-arm-none-eabi,
libnewlib-arm-none-eabi and qemu-system-arm. Each network is built twice, with its weights `direct` and `coded`. Outputs
are compared with the engine's. Flash is all of the program: code, constants, and the C library's functions that it
uses. RAM is what the network needs: scratch memory, input, output and the stack.
"""

import argparse
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from deepcomp import runtime, tables
from deepcomp.dcz import container
from deepcomp.dcz.network import Network
from deepcomp.export import WEIGHTS, export_c
from deepcomp.export.tables import number, row

BOARD = Path(__file__).with_name("embedded")
FILES = ("models/lenet-5-small.dcz", "models/lenet-5.dcz", "models/lenet-300-100.dcz", "resnet-8-80")
FLAGS = ("-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16", "-std=gnu99", "-O2")
LINK = ("-ffunction-sections", "-fdata-sections", "-Wl,--gc-sections", "-nostartfiles", "--specs=nosys.specs")
TOOLS = ("arm-none-eabi-gcc", "arm-none-eabi-size", "qemu-system-arm")
COLUMNS = {"network": "network", "file": "file", "weights": "weights", "constants": "constants", "flash": "flash"}
COLUMNS |= {"ram": "RAM", "stack": "of it stack", "off": "off by"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", metavar="NETWORK", default=FILES, help=f"default: {' '.join(FILES)}")
    parser.add_argument("--images", type=int, default=3, help="that each network runs on (default: 3)")
    options = parser.parse_args()
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    if missing:
        parser.exit(2, f"embedded: {', '.join(missing)} not found: install gcc-arm-none-eabi and qemu-system-arm.\n")
    rows = [one for name in options.files for one in measured(name, options.images)]
    print(tables.table(rows, COLUMNS, left=("network", "weights")))


def measured(name: str, count: int) -> list[dict]:
    """Both ways to keep the weights of a network: its bytes of flash and RAM, and how far outputs are off."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        path = Path(name) if name.endswith(".dcz") else random_network(name, folder)
        network = container.loads(path.read_bytes())
        images = inputs_of(network, count)
        expected = runtime.prepare(network, threads=1)(images).reshape(count, -1)
        rows = []
        for weights in WEIGHTS:
            outputs, stack, found = built(path, folder, weights, images)
            off = float(np.abs(outputs - expected).max() / np.abs(expected).max())
            ram = found["ram"] + stack + 4 * images[0].size
            rows.append({"network": Path(name).stem, "file": f"{path.stat().st_size:,}", "weights": weights})
            rows[-1] |= {"constants": f"{found['constants']:,}", "flash": f"{found['flash']:,}", "ram": f"{ram:,}"}
            rows[-1] |= {"stack": f"{stack:,}", "off": f"{off:.1e}"}
    return rows


def random_network(name: str, folder: Path) -> Path:
    """A known architecture with random weights, such as ResNet-8 with 80% of them pruned, as a file."""
    import deepcomp
    from benchmarks import speed

    kind, _, percent = name.rpartition("-")
    deepcomp.save(speed.pruned(kind, int(percent) / 100), folder / f"{name}.dcz")
    return folder / f"{name}.dcz"


def inputs_of(network: Network, count: int) -> np.ndarray:
    """Real digits for a network that takes them, else noise: `float32 (count, *input_shape)`."""
    from deepcomp import data

    if network.input_shape == (28, 28, 1):
        return data.to_float(data.load_test("mnist-5k")[1][:count]).reshape(count, 28, 28, 1)
    return np.random.default_rng(0).random((count, *network.input_shape), np.float32)


def built(path: Path, folder: Path, weights: str, images: np.ndarray) -> tuple[np.ndarray, int, dict[str, int]]:
    """The outputs of a network on the board, the bytes of stack that it used, and the sizes of the program."""
    made = export_c(path, folder, weights=weights)
    numbers = row(row(map(number, image.ravel().tolist())) for image in images)
    text = f"#define INPUTS {len(images)}\nstatic const float inputs[INPUTS][{images[0].size}] = {numbers};\n"
    (folder / "inputs.h").write_text(text)
    sources = [made.source, BOARD / "main.c", BOARD / "start.c"]
    command = ["arm-none-eabi-gcc", *FLAGS, *LINK, "-Wall", "-Werror", f"-I{folder}", f"-T{BOARD / 'board.ld'}"]
    subprocess.run([*command, "-o", folder / "net.elf", *sources, "-lm"], check=True)
    run = ["qemu-system-arm", "-M", "mps2-an386", "-nographic", "-monitor", "none", "-serial", "none"]
    run += ["-semihosting-config", "enable=on,target=native", "-kernel", folder / "net.elf"]
    done = subprocess.run(run, capture_output=True, text=True, check=True, timeout=300)
    words = [int(word, 16) for word in (done.stdout + done.stderr).split()]
    sizes = subprocess.run(["arm-none-eabi-size", "-A", folder / "net.elf"], capture_output=True, text=True, check=True)
    own = {name: int(size) for name, size in re.findall(r"^\.(text|data|bss) +(\d+)", sizes.stdout, re.MULTILINE)}
    flash, ram = own["text"] + own["data"] - images.nbytes, own["data"] + own["bss"]
    found = {"constants": made.constants, "flash": flash, "ram": ram}
    outputs = np.array(words[:-1], np.uint32).view(np.float32).reshape(len(images), -1)
    return outputs, words[-1], found


if __name__ == "__main__":
    main()
