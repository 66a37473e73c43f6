"""The JavaScript module: its size, and the time it takes to read a file and to run it in Node.

    python -m benchmarks.js [FILE.dcz ...]

Prints the bytes of `deepcomp.mjs`: as it is, minified, and that as gzip sends it; and for each file, by default those
of `models/`, the milliseconds to read it, first in a new process, then the fastest of 10 times, and to run one image,
the fastest of 2,000. Node must be installed.
"""

import argparse
import gzip
import json
import subprocess
from pathlib import Path
from typing import NamedTuple

from benchmarks.minify import minified

ROOT = Path(__file__).resolve().parent.parent
MODULE = ROOT / "deepcomp/export/deepcomp.mjs"

_SCRIPT = """
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [module, ...paths] = process.argv.slice(2);
const { parse } = await import(pathToFileURL(module));
const timed = (call, count) => {
  const times = [];
  for (let i = 0; i < count; i++) {
    const begin = performance.now();
    call();
    times.push(performance.now() - begin);
  }
  return times;
};
for (const path of paths) {
  const bytes = readFileSync(path);
  const [first] = timed(() => parse(bytes), 1);
  const again = Math.min(...timed(() => parse(bytes), 10));
  const network = parse(bytes);
  const random = ({ shape }) => Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, Math.random);
  const inputs = network.inputs.map(random);
  console.log(JSON.stringify([first, again, Math.min(...timed(() => network.run(...inputs), 2000))]));
}
"""


class Times(NamedTuple):
    """Milliseconds to read a file, the first time and again, and to run one image."""

    first: float
    again: float
    run: float


def measure(path: Path, module: Path = MODULE) -> Times:
    """The times of a file in a process of its own."""
    command = ["node", "--input-type=module", "-", str(module), str(path)]
    done = subprocess.run(command, input=_SCRIPT, capture_output=True, text=True, check=True)
    return Times(*json.loads(done.stdout))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, default=sorted((ROOT / "models").glob("*.dcz")))
    flags = parser.parse_args()
    text = MODULE.read_text(encoding="utf-8")
    small = minified(text).encode()
    sizes = len(text.encode()), len(small), len(gzip.compress(small, 9))
    print("{}: {:,} bytes, {:,} minified, {:,} of these as gzip".format(MODULE.name, *sizes))
    print("| file | bytes | read, ms | again, ms | one image, ms |\n|---|---|---|---|---|")
    for path in flags.files:
        times = measure(path)
        print(f"| {path.name} | {path.stat().st_size:,} | {times.first:.0f} | {times.again:.0f} | {times.run:.3f} |")


if __name__ == "__main__":
    main()
