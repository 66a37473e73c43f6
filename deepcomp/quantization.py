"""Weight sharing: cluster the weights of a layer by 1-D k-means, store them as indices into a codebook.

Source: Han, Mao and Dally, Deep Compression, ICLR 2016, section 3. In one dimension a cluster is a run of
the sorted values, so everything here works on one sort: a mean is a difference of prefix sums, and the
nearest centroid is found by bisection among the midpoints.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deepcomp.compiled import compiled
from deepcomp.errors import RecipeError

INITS = ("linear", "density", "random", "optimal")
MAX_CLUSTERS = 65_536
MAX_OPTIMAL_CLUSTERS = 1_024
_FEW_VALUES = 65_535  # up to so many, values are found in a table, which is faster than sorting
_KMEANS_CLUSTERS = 1_024  # scikit-learn measures every point against every centroid: more takes minutes
_LLOYD_CLUSTERS = 64  # above, the bounds of Elkan's algorithm save more distances than they cost
_KMEANS_BINS = 8_192
_OPTIMAL_BINS = 32_768  # positions fit uint16
_ITERATIONS = 3_000
# What part of the bits goes, about, where a known price becomes larger by the factor e; the most that its logarithm
# changes at once; and how often.
_BITS_OVER_PRICE, _MOST_CHANGE, _CHANGES = 0.15, 0.7, 4
_FIRST_BITS, _STEP = 8, 4.0  # a median weight is worth so many at the first price; from one price to the next
_RIDGE = 1e-6  # of the mean curvature of a cluster
_SMALL = 1e-30  # a variance that rounding could have made 0 or less
_TINY = np.finfo(np.float32).tiny


def cluster(values: np.ndarray, clusters: int, *, init: str = "linear", seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Cluster the surviving weights of one layer by k-means.

    values: `float32, any shape`, finite; clusters: the most centroids to return, 1 to 65,536.
    init: `"linear"`, evenly spaced from minimum to maximum (the paper's choice: it keeps the large weights);
    `"density"`, evenly spaced in the cumulative distribution; `"random"`, distinct values drawn with `seed`;
    `"optimal"`, the least sum of squares there is: exact up to 32,768 distinct values, above that on as many
    bins; at most 1,024 clusters.

    Returns centroids, `float32 (k,)`, ascending and distinct, each the nearest one of some value, and indices,
    `uint8` or `uint16`, `shape of values`, of the nearest centroid (of two equally near, the lower). k is less
    than clusters where clusters emptied; up to `clusters` distinct values come back as they are. 0.0 means
    pruned, so a centroid that would be 0.0 becomes the smallest normal float of the sign of its mean. The
    same input gives the same bits, whatever the number of cores.

    Raises RecipeError for a value that is not finite, or an init or a number of clusters out of range.
    Source: section 3; 3.2 for linear, density and random.
    """
    if not isinstance(clusters, int | np.integer) or not 1 <= clusters <= MAX_CLUSTERS:
        raise RecipeError(f"clusters is {clusters!r}: give a whole number from 1 to {MAX_CLUSTERS}.")
    if init not in INITS:
        raise RecipeError(f"init is {init!r}: give one of {', '.join(INITS)}.")
    with np.errstate(over="ignore"):
        values = np.asarray(values, np.float32)
    if not values.size:
        return np.empty(0, np.float32), np.empty(values.shape, np.uint8)
    ordered = np.sort(values, axis=None)
    if not np.isfinite(ordered[[0, -1]]).all():  # NaN sorts last
        found = values[~np.isfinite(values)][0]
        raise RecipeError(f"A weight is {found}: give finite weights; has the network diverged?")

    centroids = ordered[_firsts(ordered)]
    if centroids.size <= clusters:
        centroids = _storable(centroids)
    else:
        centroids = initial_centroids(ordered, clusters, init=init, seed=seed)
        if init != "optimal":
            centroids = _kmeans(ordered, centroids)
        centroids = _lloyd(ordered, centroids)
    # A centroid that is nobody's nearest can go without changing anybody's.
    centroids = centroids[np.diff(_edges(ordered, centroids)) > 0]
    indices = np.searchsorted(_cuts(centroids), values)
    return centroids, indices.astype(np.min_scalar_type(centroids.size - 1))


def initial_centroids(ordered: np.ndarray, clusters: int, *, init: str = "linear", seed: int = 0) -> np.ndarray:
    """Place the centroids that k-means starts from.

    ordered: `float32 (n,)`, ascending, with more distinct values than clusters; init, seed: as in `cluster`.
    Returns `float64 (clusters,)`, ascending. Raises RecipeError for "optimal" with more than 1,024 clusters.
    Source: section 3.2.
    """
    if init == "linear":
        return np.linspace(float(ordered[0]), float(ordered[-1]), clusters)
    if init == "density":
        ranks = (np.arange(clusters) + 0.5) / clusters * ordered.size
        return ordered[ranks.astype(np.int64)].astype(np.float64)
    if init == "random":
        chosen = np.random.default_rng(seed).choice(_firsts(ordered), clusters, replace=False)
        return ordered[np.sort(chosen)].astype(np.float64)
    if clusters > MAX_OPTIMAL_CLUSTERS:
        most = f"init 'optimal' takes at most {MAX_OPTIMAL_CLUSTERS} clusters"
        raise RecipeError(f"clusters is {clusters}: {most}, give fewer or linear, density or random.")
    return _optimal(ordered, clusters)


def codebook(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Read the codebook off a quantized kernel.

    kernel: `float32, any shape`. Returns centroids, `float32 (k,)`, its distinct non-zero values, ascending,
    and indices, the smallest of `uint8`, `uint16`, `uint32` that holds k, `shape of kernel`: 0 for a pruned
    weight (0.0 or -0.0), i + 1 for centroids[i]. Source: section 3.
    """
    kernel = np.asarray(kernel)
    found = codebook_up_to(kernel, _FEW_VALUES)
    if found is not None:
        return found
    survives = kernel != 0
    centroids = np.unique(kernel[survives])
    indices = (np.searchsorted(centroids, kernel) + 1) * survives
    return centroids, indices.astype(np.min_scalar_type(centroids.size))


def codebook_up_to(kernel: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray] | None:
    """As `codebook`, without sorting; None if there are more than `most` values, or another type than float32.

    Reading stops at the first value too many, which is soon where nothing is shared.
    """
    if kernel.dtype != np.float32:
        return None
    bits = np.ascontiguousarray(kernel).view(np.uint32).ravel()
    keys = np.zeros(1 << (2 * most).bit_length(), np.uint32)
    if _distinct(bits, keys) > most:
        return None
    values = keys[keys != 0].view(np.float32)
    centroids = np.unique(values)
    if not np.isfinite(centroids).all():
        return None
    ranks = np.zeros(keys.size, np.min_scalar_type(centroids.size))
    ranks[keys != 0] = np.searchsorted(centroids, values) + 1
    indices = np.empty(kernel.shape, ranks.dtype)
    _rank(bits, keys, ranks, indices.reshape(-1))
    return centroids, indices


@compiled(inline="always")
def _slot(word, keys):
    """Where a hash table of as many places as `keys`, a power of 2, has a word, or the free place for it."""
    mask = np.int64(keys.size - 1)
    place = np.int64(word) * 2654435761 >> 7 & mask
    while keys[place] != 0 and keys[place] != word:
        place = place + 1 & mask
    return place


@compiled()
def _distinct(bits, keys):
    """Put the words of values other than 0.0 and -0.0 into a table of free places; returns how many, half at most."""
    count = 0
    for word in bits:
        if word & 0x7FFFFFFF:
            place = _slot(word, keys)
            if keys[place] == 0:
                count += 1
                if 2 * count > keys.size:
                    break
                keys[place] = word
    return count


@compiled()
def _rank(bits, keys, ranks, indices):
    for i in range(bits.size):
        word = bits[i]
        indices[i] = ranks[_slot(word, keys)] if word & 0x7FFFFFFF else 0


def from_codebook(centroids: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Make the kernel that a codebook describes: the inverse of `codebook` to the bit, -0.0 become 0.0.

    centroids: `float32 (k,)`; indices: `unsigned, any shape`, 0 to k. Returns `float32, shape of indices`.
    """
    return np.concatenate((np.zeros(1, centroids.dtype), centroids))[indices]


def share(kernel: np.ndarray, clusters: int, *, init: str = "linear", seed: int = 0) -> np.ndarray:
    """Replace each surviving weight of a kernel by its cluster's centroid: `float32, shape of kernel`.

    Zeros are pruned weights; they are in no cluster and stay zeros. Arguments and errors as for `cluster`.
    """
    survivors = kernel != 0
    centroids, indices = cluster(kernel[survivors], clusters, init=init, seed=seed)
    shared = np.zeros(kernel.shape, np.float32)
    shared[survivors] = centroids[indices]
    return shared


def code_lengths(indices: np.ndarray, clusters: int, positions: np.ndarray) -> np.ndarray:
    """Estimate the bits that each choice takes in a file, at flat `positions` of a kernel: `float64 (n, clusters + 1)`.

    indices: as from `codebook`. Column 0 is for a pruned weight, column i + 1 for centroids[i]. A survivor's chance is
    the kernel's density, times what its row and its column have more of it, rows being all axes but the last; that of
    a value is the share of its cluster. Counts begin at a half, so that nothing is impossible (Krichevsky and
    Trofimov, 1981).
    """
    chance, members = _chances(indices, clusters, positions)
    return -np.log2(np.hstack([1 - chance[:, None], chance[:, None] * members / members.sum()]))


def _chances(indices: np.ndarray, clusters: int, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The chance that a weight survives, `float64 (n,)`, and how often each value comes, `float64 (clusters,)`."""
    survives = (indices != 0).reshape(-1, indices.shape[-1])
    density = (survives.sum() + 0.5) / (survives.size + 1)
    chance = np.full(len(positions), density)
    for axis, own in enumerate(np.unravel_index(positions, survives.shape)):
        others = survives.shape[1 - axis]
        if survives.shape[axis] > 1 and others > 1:
            chance *= (survives.sum(1 - axis)[own] + 0.5) / (others + 1) / density
    chance = np.minimum(chance, 0.98)
    return chance, np.bincount(indices.ravel(), minlength=clusters + 1)[1:] + 0.5


def cheapest_within(
    layers: Sequence["PricedWeights"], bits: float, *, near: float = 0.0, tolerance: float = 0.002
) -> tuple[list[np.ndarray], float]:
    """Choose as `cheapest`, in all layers at the one price of a bit that makes their bits add up to `bits`.

    Returns the choices of each layer, `int32 (n,)`, and the price, which is 0 where the choices of least error take no
    more than `bits`. They take no more where that can be, and less by a part of at most `tolerance` where some price
    makes it so. It takes a fraction of the time where a price that was right a moment ago is given as `near`.
    """

    def chosen(price: float) -> tuple[list[np.ndarray], float]:
        found = [layer.choices(price) for layer in layers]
        return [choices for choices, _ in found], sum(own for _, own in found)

    price = near
    for _ in range(_CHANGES if near else 0):
        found, needed = chosen(price)
        if (1 - tolerance) * bits <= needed <= bits:
            return found, price
        change = (needed / ((1 - tolerance / 2) * bits) - 1) / _BITS_OVER_PRICE
        price *= math.exp(min(max(change, -_MOST_CHANGE), _MOST_CHANGE))
    best, most = chosen(0.0)
    if most <= bits:
        return best, 0.0
    worth = np.concatenate([one.importance.astype(np.float64) * one.values**2 for one in layers])
    first, largest = float(np.median(worth)), max(float(worth.max()), 1e-30) * 2.0**30
    low, high = max(float(worth.max()) * 2.0**-60, 1e-300), math.inf
    needed, least, price = math.inf, 0.0, min(max(first / _FIRST_BITS, low), largest)
    while high / low > 1 + 1e-9 and not (1 - tolerance) * bits <= needed <= bits:
        found, needed = chosen(price)
        if needed > bits:
            low, most = price, needed
            if price >= largest:
                return found, price
        else:
            best, high, least = found, price, needed
        if high < math.inf:
            # Between both, bits are about a linear function of the price's logarithm.
            part = min(max((most - (1 - tolerance / 2) * bits) / max(most - least, 1e-9), 0.1), 0.9)
            price = low * (high / low) ** part
        else:
            price = min(price * _STEP, largest)
    return best, high


@dataclass(frozen=True)
class PricedWeights:
    """The weights of a layer with what each choice of a value costs.

    values and importance: `float (n,)`, and centroids: `float (k,)`, as for `cheapest`; none and some: `float64 (n,)`,
    the bits of a pruned weight and of a survivor; of_values: `float64 (k,)`, the bits of each value besides.
    """

    values: np.ndarray
    importance: np.ndarray
    centroids: np.ndarray
    none: np.ndarray
    some: np.ndarray
    of_values: np.ndarray

    @classmethod
    def of(
        cls,
        values: np.ndarray,
        importance: np.ndarray,
        centroids: np.ndarray,
        indices: np.ndarray,
        positions: np.ndarray,
    ) -> "PricedWeights":
        """With bits as of `code_lengths`."""
        chance, members = _chances(indices, len(centroids), positions)
        lengths = -np.log2(1 - chance), -np.log2(chance), -np.log2(members / members.sum())
        return cls(values, importance, np.asarray(centroids, np.float64), *lengths)

    def bits(self, choices: np.ndarray) -> float:
        """The bits that these choices, `int32 (n,)`, take."""
        own = np.concatenate(([0.0], self.of_values))[choices]
        return float(np.where(choices == 0, self.none, self.some + own).sum())

    def choices(self, price: float) -> tuple[np.ndarray, float]:
        """The choices of least cost where a bit costs `price`, `int32 (n,)`, and the bits that they take."""
        choices = np.zeros(len(self.values), np.int32)
        lengths = self.none, self.some, self.of_values
        return choices, _choose(self.values, self.importance, self.centroids, *lengths, price, choices)


def cheapest(values: np.ndarray, importance: np.ndarray, centroids: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """Choose for each value the centroid, or none, of least cost and error: `int32 (n,)`, numbered as in `codebook`.

    values: `float (n,)`; importance: `float (n,)`, what the squared error counts times; centroids: `float (k,)`; costs:
    `float (n, k + 1)`, column 0 for none, which stands at 0. With costs made of code lengths this is
    entropy-constrained quantization (Chou, Lookabaugh and Gray, 1989).
    """
    errors = (values[:, None] - np.concatenate(([0.0], centroids))) ** 2
    return np.argmin(errors * importance[:, None] + costs, axis=1).astype(np.int32)


def descend(
    choices: np.ndarray,
    options: np.ndarray,
    costs: np.ndarray,
    gradient: np.ndarray,
    curvature: np.ndarray,
    order: np.ndarray,
) -> int:
    """Give each weight, one after the other, the option of least loss and cost; returns how many changed.

    choices: `int32 (n,)`, the options chosen, changed in place; options: `float64 (n, k)`, the values each weight may
    take; costs: `float64 (n, k)`, infinite where there is no such option; gradient: `float64 (n,)`, of the loss where
    weights are now, kept up to date in place; curvature: `float64 (n, n)`, symmetric; order: `int (n,)`. The loss
    is gradient x move + move x curvature x move / 2: what one weight makes worse, those after it can make up for.
    """
    return _descend(choices, options, costs, gradient, curvature, order)


def commit(
    values: np.ndarray, inverse: np.ndarray, first: np.ndarray, last: np.ndarray, costs: np.ndarray, count: int
) -> np.ndarray:
    """Have `count` weights take the value of a centroid, or 0, one after the other, the least rise of the loss first.

    values: `float64 (m + k,)`, m weights and after them k centroids, changed in place; inverse: `float64 (m + k, m +
    k)`, that of the curvature of the loss, which is least at values; it is used up. first and last: `int (m,)`,
    the numbers in values of the first centroid that each weight may take and of the one after the last; costs:
    `float64 (m, 1 + most centroids)`, what each choice costs besides the loss. After each choice all weights that have
    none, and all centroids, with the weights that took them, go to where the loss is least then. Returns `int64
    (m,)`: 0 for none, i for the i-th centroid that the weight may take, -1 where nothing is chosen yet. Source: Optimal
    Brain Surgeon (Hassibi and Stork, NIPS 1992), with values to go to instead of 0.
    """
    return _commit(values, inverse, first, last, costs, count)


def refit(members: np.ndarray, clusters: int, gradient: np.ndarray, curvature: np.ndarray) -> np.ndarray:
    """How far each of so many clusters must move for the least loss, no weight leaving its own: `float64 (clusters,)`.

    members: `int (n,)`, the cluster of each weight, -1 for one that stays where it is; gradient and curvature as for
    `descend`. A cluster without members stays.
    """
    belongs = (members[:, None] == np.arange(clusters)).astype(np.float64)
    inner = belongs.T @ curvature @ belongs
    ridge = _RIDGE * np.trace(inner) / max(1, clusters) * np.eye(clusters)
    return np.linalg.lstsq(inner + ridge, -belongs.T @ gradient, rcond=None)[0]


@compiled()
def _choose(values, importance, centroids, none, some, of_values, price, choices):
    total = 0.0
    for i in range(values.size):
        value, weight = np.float64(values[i]), np.float64(importance[i])
        best, bits = 0, none[i]
        least = weight * value * value + price * bits
        for k in range(centroids.size):
            own = some[i] + of_values[k]
            cost = weight * (value - centroids[k]) ** 2 + price * own
            if cost < least:
                best, least, bits = k + 1, cost, own
        choices[i] = best
        total += bits
    return total


@compiled()
def _commit(values, inverse, first, last, costs, count):
    choices = np.full(first.size, -1)
    column = np.zeros(values.size)
    for _ in range(min(count, first.size)):
        best, choice, least = -1, 0, np.inf
        for weight in range(first.size):
            if choices[weight] >= 0:
                continue
            own = inverse[weight, weight]
            option, rise = 0, values[weight] ** 2 / (2 * max(own, _SMALL)) + costs[weight, 0]
            cheapest = costs[weight, 0]
            for centroid in range(first[weight], last[weight]):
                number = centroid - first[weight] + 1
                room = own + inverse[centroid, centroid] - 2 * inverse[weight, centroid]
                loss = (values[weight] - values[centroid]) ** 2 / (2 * max(room, _SMALL)) + costs[weight, number]
                cheapest = min(cheapest, costs[weight, number])
                if loss < rise:
                    option, rise = number, loss
            if rise - cheapest < least:
                best, choice, least = weight, option, rise - cheapest
        if best < 0:  # what is not a number costs neither more nor less
            break
        # The weight less its centroid, or the weight itself, becomes 0 and stays so.
        column[:] = inverse[best]
        error = values[best]
        room = inverse[best, best]
        if choice:
            centroid = first[best] + choice - 1
            column -= inverse[centroid]
            error -= values[centroid]
            room = column[best] - column[centroid]
        room = max(room, _SMALL)
        for i in range(values.size):
            values[i] -= column[i] * error / room
        for i in range(values.size):
            factor = column[i] / room
            for j in range(values.size):
                inverse[i, j] -= factor * column[j]
        choices[best] = choice
    return choices


@compiled()
def _descend(choices, options, costs, gradient, curvature, order):
    changed = 0
    for weight in order:
        now, own, bend = choices[weight], gradient[weight], curvature[weight, weight]
        best, least = now, costs[weight, now]
        for option in range(options.shape[1]):
            move = options[weight, option] - options[weight, now]
            loss = move * own + 0.5 * move * move * bend + costs[weight, option]
            if loss < least:
                best, least = option, loss
        if best != now:
            move = options[weight, best] - options[weight, now]
            for other in range(gradient.size):
                gradient[other] += move * curvature[weight, other]
            choices[weight] = best
            changed += 1
    return changed


def _firsts(ordered: np.ndarray) -> np.ndarray:
    """Where each distinct one of the sorted values first stands: `int64`."""
    return np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))


def _storable(means: np.ndarray) -> np.ndarray:
    """Round means to the centroids they are stored as: `float32`, ascending, distinct, none 0.0."""
    centroids = means.astype(np.float32)
    return np.unique(np.where(centroids == 0, np.copysign(_TINY, centroids), centroids))


def _cuts(centroids: np.ndarray) -> np.ndarray:
    """Between two neighbours, the largest float32 that is not nearer to the upper one: `float32 (k - 1,)`."""
    middle = (centroids[1:].astype(np.float64) + centroids[:-1]) / 2
    cuts = middle.astype(np.float32)
    return np.where(cuts > middle, np.nextafter(cuts, np.float32(-np.inf)), cuts)


def _edges(ordered: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Where the run of each centroid's members starts in the sorted values, and their end: `int64 (k + 1,)`."""
    return np.concatenate(([0], np.searchsorted(ordered, _cuts(centroids), side="right"), [ordered.size]))


def _means(ordered: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Means of the runs of the sorted values that start at `starts`: `float64`."""
    return np.add.reduceat(ordered, starts, dtype=np.float64) / np.diff(starts, append=ordered.size)


def _lloyd(ordered: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Move centroids to the means of their members until none moves; those without members are dropped."""
    sums = np.concatenate(([0.0], np.cumsum(ordered, dtype=np.float64)))
    centroids, edges = _storable(centroids), np.empty(0, np.int64)
    for _ in range(_ITERATIONS):
        before, edges = edges, np.unique(_edges(ordered, centroids))
        if np.array_equal(edges, before):
            break
        centroids = _storable(np.diff(sums[edges]) / np.diff(edges))
    return _storable(_means(ordered, edges[:-1]))  # prefix sums of millions of weights lost the last bits


def _kmeans(ordered: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Run scikit-learn's KMeans on weighted bins; a cluster that empties there is given a new place."""
    if centroids.size > _KMEANS_CLUSTERS:
        return centroids
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    starts = _bins(ordered, _KMEANS_BINS)
    algorithm = "elkan" if centroids.size > _LLOYD_CLUSTERS else "lloyd"  # the same clusters, faster
    kmeans = KMeans(centroids.size, algorithm=algorithm, init=centroids[:, None], n_init=1, tol=0, random_state=0)
    with warnings.catch_warnings(), threadpool_limits(1):  # several threads add up in no fixed order
        warnings.simplefilter("ignore", ConvergenceWarning)
        kmeans.fit(_means(ordered, starts)[:, None], sample_weight=np.diff(starts, append=ordered.size))
    return kmeans.cluster_centers_[:, 0]


def _bins(ordered: np.ndarray, limit: int) -> np.ndarray:
    """Group the sorted values into at most `limit` bins; returns where each bin starts, `int64`.

    Up to `limit` distinct values have a bin each. More share bins that lie where the centroids of the best
    quantizer of many levels lie, with the cube root of the density of the values: `count^(1/3) width^(2/3)`
    of them in a stretch (Panter and Dite 1951), at most one a value, so that an outlier takes few of them.
    """
    first = _firsts(ordered)
    if first.size <= limit:
        return first
    stretches = np.append(np.arange(0, first.size, 1 + first.size // 2**20), first.size - 1)
    room = np.diff(stretches)
    width = np.diff(ordered[first[stretches]].astype(np.float64))
    share = np.cbrt(np.diff(first[stretches]) * width**2)
    for _ in range(16):
        share = np.minimum(share * (limit / share.sum()), room)
    ranks = np.interp(np.arange(limit), np.concatenate(([0.0], np.cumsum(share))), stretches)
    return first[np.unique(np.ceil(ranks).astype(np.int64))]


def _optimal(ordered: np.ndarray, clusters: int) -> np.ndarray:
    """Means of the best clustering of the bins of the sorted values, by dynamic programming: `float64`."""
    starts = _bins(ordered, _OPTIMAL_BINS)
    counts = np.diff(starts, append=ordered.size)
    points = _means(ordered, starts)
    points -= points @ counts / ordered.size  # prefix sums of centred values keep more bits
    weight = np.concatenate(([0.0], np.cumsum(counts, dtype=np.float64)))
    total = np.concatenate(([0.0], np.cumsum(counts * points)))
    chain = [starts.size]
    for row in _best_splits(weight, total, clusters)[::-1]:
        chain.append(int(row[chain[-1]]))
    return _means(ordered, starts[np.unique(chain)[:-1]])


@compiled()
def _best_splits(weight, total, clusters):
    """Where the last cluster starts in the best clustering of the first i points, for every i.

    weight, total: `float64 (n + 1,)`, prefix sums of the points' weights and weighted values. Returns
    `uint16 (clusters, n + 1)`, row j for up to j + 1 clusters. The sum of squares is least where the sum over
    the clusters of total^2 / weight is greatest. As points are added the best split never moves left, so it
    is sought between those of two points already done, at half the distance each time: O(k n log n).
    """
    n = weight.size - 1
    splits = np.zeros((clusters, n + 1), np.uint16)
    before = np.zeros(n + 1)
    before[1:] = total[1:] ** 2 / weight[1:]
    for j in range(1, clusters):
        after = np.zeros(n + 1)
        step = 1
        while step * 2 <= n:
            step *= 2
        while step:
            for i in range(step, n + 1, 2 * step):
                low = splits[j, i - step]
                high = min(i - 1, splits[j, i + step]) if i + step <= n else i - 1
                for t in range(low, high + 1):
                    gain = before[t] + (total[i] - total[t]) ** 2 / (weight[i] - weight[t])
                    if t == low or gain > after[i]:
                        after[i] = gain
                        splits[j, i] = t
            step //= 2
        before = after
    return splits
