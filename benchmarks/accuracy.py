"""The four stages for several seeds of a recipe: errors, what is left, minutes; every seed and the median.

    python benchmarks/accuracy.py [--recipe reference] [--data auto] [--seeds 0 1 2] [--runs runs/accuracy]

What is done is skipped, so an interrupted benchmark goes on.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from statistics import median

from deepcomp import report
from deepcomp.checkpoint import STAGES, Run

ROOT = Path(__file__).resolve().parent.parent


def run_stages(recipe: str, data: str, seed: int, folder: Path) -> Run:
    first = ["train_full.py", "--recipe", recipe, "--data", data, "--seed", str(seed)]
    for command in (first, ["prune.py"], ["quantize.py"], ["deploy.py"]):
        subprocess.run([sys.executable, ROOT / command[0], *command[1:], "--run", folder], check=True)
    return Run(folder)


def row_of(run: Run) -> dict:
    full, pruned, quantized, deployed = (run.stage(name).load_record() for name in STAGES)
    left = sum(layer["nonzero"] for layer in quantized["layers"])
    return {
        "seed": full["seed"],
        "full": full["test_error"],
        "pruned": pruned["test_error"],
        "quantized": quantized["test_error"],
        "deployed": deployed["test_error"],
        "left": 100 * left / sum(layer["weights"] for layer in quantized["layers"]),
        "values": max(layer["centroids"] for layer in quantized["layers"]),
        "ratio": deployed["ratio"],
        "minutes": sum(record["seconds"] for record in (full, pruned, quantized, deployed)) / 60,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="reference")
    parser.add_argument("--data", default="auto")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/accuracy"))
    options = parser.parse_args()
    folders = {seed: options.runs / f"{options.recipe}-{seed}" for seed in options.seeds}
    rows = [row_of(run_stages(options.recipe, options.data, seed, folder)) for seed, folder in folders.items()]
    middle = {key: median(row[key] for row in rows) for key in rows[0]}
    stages = {name: f"{name} %:.2f" for name in ("full", "pruned", "quantized", "deployed")}
    rest = {
        "left": "weights left %:.2f",
        "values": "values a layer:.0f",
        "ratio": "ratio:.0f",
        "minutes": "minutes:.1f",
    }
    print("Test errors and weights left in percent; the most values in a layer; dense bytes over the file's.")
    print(report.table([*rows, {**middle, "seed": "median"}], {"seed": "seed", **stages, **rest}))


if __name__ == "__main__":
    main()
