"""Time and quality of `deepcomp.quantization.cluster`: 10 million weights into 256 clusters, on one core.

    taskset -c 0 python benchmarks/clustering.py

Seconds are of processor time, the least of three runs. "to Lloyd" is the sum of squares over what plain Lloyd
reaches from the same start in 300 iterations on all the weights, clusters that empty dropped. "to optimum" is the
sum of squares of init="optimal" over the exact optimum (kmeans1d), on 100,000 of the weights. Under 1 is better
than the peer.
"""

import time

import kmeans1d
import numpy as np

from deepcomp.quantization import INITS, cluster, initial_centroids

WEIGHTS, SAMPLE, CLUSTERS, RUNS = 10_000_000, 100_000, 256, 3


def pruned_bell(rng: np.random.Generator) -> np.ndarray:
    """A bell with its middle gone: what pruning at one standard deviation leaves."""
    bell = rng.standard_normal(4 * WEIGHTS, dtype=np.float32)
    return bell[np.abs(bell) > 1][:WEIGHTS]


DISTRIBUTIONS = {
    "Gaussian": lambda rng: rng.standard_normal(WEIGHTS, dtype=np.float32),
    "Laplacian": lambda rng: rng.laplace(size=WEIGHTS).astype(np.float32),
    "pruned bell": pruned_bell,
}


def squares(values: np.ndarray, centroids: np.ndarray) -> float:
    """Sum of squares of the distances of values to their nearest centroids (ascending, float64)."""
    nearest = centroids[np.searchsorted((centroids[1:] + centroids[:-1]) / 2, values)]
    return float(np.sum(np.square(values - nearest)))


def plain_lloyd(ordered: np.ndarray, centroids: np.ndarray, iterations: int = 300) -> np.ndarray:
    """Lloyd's algorithm on all of the sorted values, float64 throughout; empty clusters are dropped."""
    sums = np.concatenate(([0.0], np.cumsum(ordered)))
    for _ in range(iterations):
        inner = np.searchsorted(ordered, (centroids[1:] + centroids[:-1]) / 2)
        edges = np.unique(np.concatenate(([0], inner, [ordered.size])))
        means = np.diff(sums[edges]) / np.diff(edges)
        if np.array_equal(means, centroids):
            break
        centroids = means
    return centroids


def main() -> None:
    cluster(np.arange(9, dtype=np.float32), 3)  # import scikit-learn and compile before the clock starts
    cluster(np.arange(9, dtype=np.float32), 3, init="optimal")
    print(f"{WEIGHTS:,} weights, {CLUSTERS} clusters")
    print(f"{'distribution':12} {'init':8} {'clusters':>8} {'seconds':>8} {'to Lloyd':>9} {'to optimum':>11}")
    for name, draw in DISTRIBUTIONS.items():
        values = draw(np.random.default_rng(0))
        ordered = np.sort(values)
        for init in INITS:
            seconds = []
            for _ in range(RUNS):
                begin = time.process_time()
                centroids, _ = cluster(values, CLUSTERS, init=init)
                seconds.append(time.process_time() - begin)
            to_lloyd = to_optimum = ""
            if init == "optimal":
                sample = values[:SAMPLE]
                ours, _ = cluster(sample, CLUSTERS, init=init)
                exact = np.sort(kmeans1d.cluster(sample.tolist(), CLUSTERS).centroids)
                to_optimum = f"{squares(sample, ours.astype(np.float64)) / squares(sample, exact):.6f}"
            else:
                plain = plain_lloyd(ordered.astype(np.float64), initial_centroids(ordered, CLUSTERS, init=init))
                to_lloyd = f"{squares(values, centroids.astype(np.float64)) / squares(values, plain):.4f}"
            print(f"{name:12} {init:8} {centroids.size:8} {min(seconds):8.2f} {to_lloyd:>9} {to_optimum:>11}")


if __name__ == "__main__":
    main()
