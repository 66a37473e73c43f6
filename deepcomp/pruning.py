"""Which weights to remove: thresholds, scores and schedules -> masks (NumPy only; paper section 2)."""

from collections.abc import Mapping, Sequence

import numpy as np

from deepcomp.errors import RecipeError
from deepcomp.options import Pruning

# Where a sensitivity scan measures.
SPARSITIES = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995)


def masks(
    kernels: Mapping[str, np.ndarray],
    options: Pruning,
    goals: Mapping[str, float] | None = None,
    *,
    fraction: float = 1.0,
    squares: Mapping[str, np.ndarray] | None = None,
    costs: Mapping[str, float] | None = None,
) -> dict[str, np.ndarray]:
    """Decide which weights stay: a bool mask of each kernel's shape, `True` where the weight survives.

    The criterion of `options` says what the goal is: a threshold, a magnitude below which weights go; a quality, the
    same in units of the standard deviation of the layer's weights, zeros included (Han et al., NIPS 2015); a sparsity,
    the fraction of weights to remove, of each layer or, with the scope "global", of all together, ranked by scores:
    "magnitude"; "lamp", which weighs a weight against the larger ones of its layer (Lee et al., ICLR 2021); or
    "saliency", which estimates by how much the loss would rise and needs `squares`, the mean squared gradients, by
    name. The scores are then divided by the layer's `costs`, numbers above 0 by name. `goals` are those of some layers,
    by name. `fraction`, 0 to 1, goes part of the way, for a schedule. A weight that is zero already never survives.
    Raises `RecipeError` for a kernel that is not finite, and for saliency without squares.
    """
    own, by, scores = dict(goals or {}), options.criterion, options.scores
    squares = squares or {}
    for name, kernel in kernels.items():
        if not np.isfinite(kernel).all():
            raise RecipeError(f"The kernel of {name!r} has values that are not finite: has the network diverged?")
    unknown = not any(np.any(one) for one in squares.values())
    if by == "sparsity" and scores == "saliency" and fraction > 0 and unknown:
        raise RecipeError(
            "scores='saliency' needs squared gradients, which come with training: give an end, so that pruning is "
            "gradual."
        )
    values = {name: own.get(name, options.goal) for name in kernels}

    def score(name: str) -> np.ndarray:
        if scores == "saliency":
            return saliency(kernels[name], squares[name])
        return lamp(kernels[name]) if scores == "lamp" else np.abs(kernels[name])

    if by == "sparsity" and options.scope == "global":
        pool = [name for name in kernels if name not in own]
        prices = dict.fromkeys(kernels, 1.0) | dict(costs or {})
        kept = _largest_of_all({name: score(name) / prices[name] for name in pool}, options.goal * fraction)
        kept |= {name: _largest(score(name), values[name] * fraction) for name in kernels if name in own}
    elif by == "sparsity":
        kept = {name: _largest(score(name), values[name] * fraction) for name in kernels}
    else:
        unit = {name: kernel.std() if by == "quality" else 1.0 for name, kernel in kernels.items()}
        kept = {name: np.abs(kernel) >= values[name] * fraction * unit[name] for name, kernel in kernels.items()}
    return {name: kept[name] & (kernel != 0) for name, kernel in kernels.items()}


def lamp(kernel: np.ndarray) -> np.ndarray:
    """Layer-adaptive magnitude scores (Lee et al., ICLR 2021), float64 of the kernel's shape.

    A weight's square over the sum of the squares of the weights of its layer that are not smaller.
    """
    squares = kernel.astype(np.float64).ravel() ** 2
    order = np.argsort(squares, kind="stable")
    remaining = np.cumsum(squares[order][::-1])[::-1]
    scores = np.zeros_like(squares)
    scores[order] = np.divide(squares[order], remaining, out=np.zeros_like(squares), where=remaining > 0)
    return scores.reshape(kernel.shape)


def saliency(kernel: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """How much the loss would rise without each weight, up to a factor: float64 of the kernel's shape.

    The weight's square times the mean of its squared gradients, which stands for the second derivative of optimal
    brain damage (LeCun, Denker and Solla, 1990), as in Fisher pruning (Theis et al., 2018).
    """
    return kernel.astype(np.float64) ** 2 * squares


def surgery(
    values: np.ndarray, gradient: np.ndarray, curvature: np.ndarray, removable: np.ndarray, count: int
) -> np.ndarray:
    """Remove `count` weights, each the one whose loss the others can best make up for: their new values `float64 (n,)`.

    The loss is gradient x move + move x curvature x move / 2 from where the weights are: values and gradient `float64
    (n,)`, curvature `float64 (n, n)`, symmetric and positive definite; only weights that are `removable`, `bool (n,)`,
    go. All others move to where the loss is least without those removed, which are exactly 0. They are chosen one by
    one among the likeliest, 4 times as many as go. Source: Optimal Brain Surgeon (Hassibi and Stork, NIPS 1992).
    """
    inverse = np.linalg.inv(curvature)
    settled = values - inverse @ gradient
    rises = np.where(removable, settled**2 / np.diag(inverse), np.inf)
    likely = np.argsort(rises, kind="stable")[: min(4 * count + 50, np.count_nonzero(removable))]
    left, own = settled[likely], inverse[np.ix_(likely, likely)]
    gone = []
    for _ in range(min(count, likely.size)):
        spread = np.diag(own)
        rises = np.full(likely.size, np.inf)
        np.divide(left**2, spread, out=rises, where=spread > 0)
        rises[gone] = np.inf
        chosen = int(np.argmin(rises))
        column = own[chosen] / own[chosen, chosen]
        left = left - column * left[chosen]
        own = own - np.outer(column, own[chosen])
        gone.append(chosen)
    if gone:
        places = likely[gone]
        settled -= inverse[:, places] @ np.linalg.solve(inverse[np.ix_(places, places)], settled[places])
        settled[places] = 0.0
    return settled


def tolerated(
    accuracies: Mapping[str, Sequence[float]], tolerance: float, sparsities: Sequence[float] = SPARSITIES
) -> dict[str, float]:
    """The sparsity of each layer up to which pruning it alone costs at most `tolerance` percentage points of accuracy.

    `accuracies`, fractions by name, are those of `compression.sensitivity` at the rising `sparsities`, of which the
    first is 0; between two of them accuracy is taken as linear. What is returned is rounded down to four decimals.
    """
    chosen = {}
    for name, own in accuracies.items():
        room = np.asarray(own) - own[0] + tolerance / 100
        crossed = np.flatnonzero(room < -1e-9)
        sparsity = sparsities[-1]
        if crossed.size:
            around = [crossed[0], crossed[0] - 1]
            sparsity = np.interp(0, room[around], np.take(sparsities, around))
        chosen[name] = int(sparsity * 1e4 + 1e-6) / 1e4
    return chosen


def _largest(scores: np.ndarray, sparsity: float) -> np.ndarray:
    """A mask of the largest scores that leaves out exactly floor(size x sparsity); of equals the first stay."""
    flat = scores.ravel()
    # 0.95 x 100 must be 95 in spite of binary rounding.
    keep = max(1, flat.size - int(flat.size * sparsity + 1e-9))
    if keep >= flat.size:
        return np.ones(scores.shape, bool)
    least = np.partition(flat, flat.size - keep)[flat.size - keep]
    mask = flat > least
    mask[np.flatnonzero(flat == least)[: keep - np.count_nonzero(mask)]] = True
    return mask.reshape(scores.shape)


def _largest_of_all(scores: Mapping[str, np.ndarray], sparsity: float) -> dict[str, np.ndarray]:
    """`_largest` over all layers together, cut up again by layer."""
    if not scores:
        return {}
    together = _largest(np.concatenate([own.ravel() for own in scores.values()]), sparsity)
    pieces = np.split(together, np.cumsum([own.size for own in scores.values()])[:-1])
    return {name: piece.reshape(scores[name].shape) for name, piece in zip(scores, pieces, strict=True)}
