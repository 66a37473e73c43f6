"""Which weights to remove: thresholds, scores and schedules -> masks (NumPy only; paper section 2)."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from deepcomp.errors import RecipeError

CRITERIA = ("threshold", "quality", "sparsity")
SCOPES = ("layer", "global")
SCORES = ("magnitude", "lamp")


def masks(
    kernels: Mapping[str, np.ndarray],
    *,
    by: str,
    value: float,
    layers: Mapping[str, float] | None = None,
    scope: str = "layer",
    scores: str = "magnitude",
    fraction: float = 1.0,
) -> dict[str, np.ndarray]:
    """Decide which weights stay: a bool mask of each kernel's shape, `True` where the weight survives.

    `by` says what `value` is: "threshold", a magnitude below which weights go; "quality", the same in units of the
    standard deviation of the layer's weights, zeros included (Han et al., NIPS 2015); "sparsity", the fraction of
    weights to remove, of each layer or, with `scope="global"`, of all together, ranked by `scores`: "magnitude", or
    "lamp", which weighs a weight against the larger ones of its layer (Lee et al., ICLR 2021). `layers` overrides
    `value` by name. `fraction`, 0 to 1, goes part of the way, for a schedule. A weight that is zero already never
    survives.
    Raises `RecipeError` for a value out of range.
    """
    _check(by, scope, scores)
    own = dict(layers or {})
    values = {name: own.get(name, value) for name in kernels}
    for name, v in values.items():
        if not 0 <= v < (1 if by == "sparsity" else np.inf):
            limits = "from 0 to less than 1" if by == "sparsity" else "0 or more"
            raise RecipeError(f"{by}={v} for {name}: it must be {limits}.")
    if by == "sparsity" and scope == "global":
        pool = {name: kernel for name, kernel in kernels.items() if name not in own}
        kept = _largest_of_all(pool, value * fraction, scores)
        kept |= {name: _largest(np.abs(kernels[name]), values[name] * fraction) for name in kernels if name in own}
    elif by == "sparsity":
        kept = {name: _largest(np.abs(kernel), values[name] * fraction) for name, kernel in kernels.items()}
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


@dataclass(frozen=True)
class Schedule:
    """When to prune and how far: in one shot, or once in a while on the way to `ramp` steps.

    With `ramp=0` everything happens at step 0. Otherwise masks are made anew at every `every`-th step and at step
    `ramp`, and the fraction of the goal rises as 1 - (1 - t)^3 (Zhu and Gupta, 2017).
    """

    ramp: int = 0
    every: int = 100

    def __post_init__(self) -> None:
        if self.ramp < 0 or self.every < 1:
            raise RecipeError(f"A pruning schedule needs ramp >= 0 and every >= 1, not {self.ramp} and {self.every}.")

    @property
    def steps(self) -> list[int]:
        """The steps at which masks are made."""
        return [*range(0, self.ramp, self.every), self.ramp]

    def fraction(self, step: int) -> float:
        """How far towards the goal the masks are at `step`, 0 to 1."""
        return 1.0 if step >= self.ramp else 1 - (1 - step / self.ramp) ** 3


def _check(by: str, scope: str, scores: str) -> None:
    for name, value, allowed in (("by", by, CRITERIA), ("scope", scope, SCOPES), ("scores", scores, SCORES)):
        if value not in allowed:
            raise RecipeError(f"Pruning cannot have {name}={value!r}: use {' or '.join(allowed)}.")


def _largest(scores: np.ndarray, sparsity: float) -> np.ndarray:
    """A mask of the largest scores that leaves out exactly floor(size x sparsity); of equals the first stay."""
    flat = scores.ravel()
    # 0.95 x 100 must be 95 in spite of binary rounding.
    keep = max(1, flat.size - int(flat.size * sparsity + 1e-9))
    if keep >= flat.size:
        return np.ones(scores.shape, bool)
    bar = np.partition(flat, flat.size - keep)[flat.size - keep]
    mask = flat > bar
    mask[np.flatnonzero(flat == bar)[: keep - np.count_nonzero(mask)]] = True
    return mask.reshape(scores.shape)


def _largest_of_all(kernels: Mapping[str, np.ndarray], sparsity: float, scores: str) -> dict[str, np.ndarray]:
    """`_largest` over all kernels together, cut up again by layer."""
    if not kernels:
        return {}
    score = lamp if scores == "lamp" else np.abs
    together = _largest(np.concatenate([score(kernel).ravel() for kernel in kernels.values()]), sparsity)
    ends = np.cumsum([kernel.size for kernel in kernels.values()])[:-1]
    pieces = np.split(together, ends)
    return {name: piece.reshape(kernels[name].shape) for name, piece in zip(kernels, pieces, strict=True)}
