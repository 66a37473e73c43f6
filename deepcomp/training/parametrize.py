"""How a network's kernels are made while it is fine-tuned: free, masked, or shared.

| kind | trained | kernel |
|---|---|---|
| free | `w` | `w` |
| masked | `w` | `w * mask` |
| shared | `centroids`, perhaps latent `w` | `half(centroids)[indices]`, 0 where pruned |
| rounded | `w` | `half(w)`: biases and the like beside shared kernels |

`half` rounds to float16, so that a file needs 16 bits for what the network computes with; its gradient is passed on as
it is, and training makes up for the rounding.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from deepcomp import keras_private, models, quantization
from deepcomp.errors import RecipeError

_ABOUT = 0.01  # part of some bits


class MaskedKernel:
    """A kernel whose pruned weights stay zero; the mask acts on the weights and, by the chain rule, on gradients."""

    centroids = ()

    def __init__(self, variable: keras.Variable):
        self.weights = [variable]
        self.mask = keras.Variable(_values(variable) != 0, dtype=variable.dtype, trainable=False, name="mask")
        self.state = [self.mask]

    def kernel(self) -> tf.Tensor:
        """The made kernel."""
        return self.weights[0].value * self.mask.value

    def constrain(self) -> None:
        """Have the layer's own constraint hold for the kernel with its zeros; the optimizer applied it without them."""
        variable = self.weights[0]
        if variable.constraint is not None:
            variable.assign(variable.constraint(self.kernel()))


class SharedKernel:
    """A kernel of few distinct values: trained are the centroids, each with the sum of its members' gradients.

    With `latent`, the kernel before it was shared, each weight that was not zero there keeps a weight of its own
    besides, which learns with the gradient at its place; by that weight, `reassign` gives it to another cluster, or to
    none.
    """

    def __init__(self, variable: keras.Variable, latent: np.ndarray | None = None):
        centroids, indices = quantization.codebook(_values(variable))
        positions = np.flatnonzero(indices if latent is None else latent)
        clusters = indices.ravel()[positions].astype(np.int32)
        self.positions, self._shape = positions, indices.shape
        self.trained = keras.Variable(centroids, dtype=variable.dtype, name="centroids")
        self.centroids = [self.trained]
        self.clusters = keras.Variable(clusters, dtype="int32", trainable=False, name="clusters")
        self.state = [self.clusters]
        self.weights = []
        if latent is not None:
            self.weights.append(keras.Variable(latent.ravel()[positions], dtype=variable.dtype, name="latent"))
        self._constraint = variable.constraint
        self._shrinks = self._constraint is not None and _holds_for_less(self._constraint, variable)
        self._rounds = _halves_well(centroids)
        self._places = tf.constant(positions)

    def kernel(self) -> tf.Tensor:
        """The made kernel."""
        return self._spread(self._values(), *(latent.value for latent in self.weights))

    def constrain(self) -> None:
        """Move each centroid to the mean of what the layer's own constraint makes of its members."""
        if self._constraint is None:
            return
        made = tf.gather(tf.reshape(self._constraint(self.kernel()), [-1]), self._places)
        clusters, count = tf.convert_to_tensor(self.clusters.value), self.trained.shape[0]
        sums = tf.math.unsorted_segment_sum(made, clusters, count + 1)[1:]
        sizes = tf.math.unsorted_segment_sum(tf.ones_like(made), clusters, count + 1)[1:]
        self.trained.assign(tf.where(sizes > 0, sums / tf.maximum(sizes, 1), self.trained.value))
        if self._shrinks:  # The means of a limited norm may be above it: all of them become smaller.
            kernel = self.kernel()
            ratios = tf.where(
                kernel != 0, tf.math.divide_no_nan(self._constraint(kernel), kernel), tf.ones_like(kernel)
            )
            self.trained.assign(self.trained.value * tf.clip_by_value(tf.reduce_min(ratios), 0.0, 1.0))

    def reassign(self, importance: np.ndarray, price: float) -> None:
        """Give each survivor the cluster, or none, of least squared error times `importance` plus `price` x bits."""
        costs = price * self.code_lengths(_values(self.clusters))
        latent = _values(self.weights[0]).astype(np.float64)
        self.clusters.assign(quantization.cheapest(latent, importance, self.codebook(), costs))

    def latent_kernel(self) -> np.ndarray:
        """The weights of their own that survivors keep, at their places in the kernel, 0 elsewhere."""
        kernel = np.zeros(self._shape, self.trained.dtype)
        np.put(kernel, self.positions, _values(self.weights[0]))
        return kernel

    def priced(self, importance: np.ndarray) -> quantization.PricedWeights:
        """The latent weights with what each choice of a value costs, where their errors count `importance` times."""
        indices = self._indices(_values(self.clusters))
        latent = _values(self.weights[0])
        return quantization.PricedWeights.of(latent, importance, self.codebook(), indices, self.positions)

    def codebook(self) -> np.ndarray:
        """The centroids as the kernel has them: `float64 (k,)`."""
        return np.asarray(self._values(), np.float64)

    def storable(self, centroids: np.ndarray) -> np.ndarray:
        """The nearest centroids that the kernel can have: `float64 (k,)`."""
        return centroids.astype(np.float16 if self._rounds else np.float32).astype(np.float64)

    def assign(self, clusters: np.ndarray, centroids: np.ndarray) -> None:
        """Give the survivors these clusters, 0 for none, and these centroids."""
        self.clusters.assign(clusters)
        self.trained.assign(centroids)

    def code_lengths(self, clusters: np.ndarray) -> np.ndarray:
        """The bits that each choice takes, as of `quantization.code_lengths`, where survivors have these `clusters`."""
        return quantization.code_lengths(self._indices(clusters), self.trained.shape[0], self.positions)

    def _indices(self, clusters: np.ndarray) -> np.ndarray:
        """The clusters at the places of the kernel's weights, 0 where there is none: `int32, shape of the kernel`."""
        indices = np.zeros(self._shape, np.int32)
        np.put(indices, self.positions, clusters)
        return indices

    def _values(self) -> tf.Tensor:
        centroids = tf.convert_to_tensor(self.trained.value)
        return _half(centroids) if self._rounds else centroids

    def _spread(self, values, *latent) -> tf.Tensor:
        """`[0, *values][clusters]` at the survivors' places, 0 elsewhere.

        Automatic differentiation would sum over all weights, pruned ones too; this takes the survivors alone.
        """
        clusters = tf.convert_to_tensor(self.clusters.value)

        @tf.custom_gradient
        def spread(values, *latent):
            def gradient(upstream):
                own = tf.gather(tf.reshape(upstream, [-1]), self._places)
                sums = tf.math.unsorted_segment_sum(own, clusters, values.shape[0] + 1)[1:]
                return (sums, own) if latent else sums

            chosen = tf.gather(tf.concat([tf.zeros([1], values.dtype), values], 0), clusters)
            flat = tf.scatter_nd(self._places[:, None], chosen, [math.prod(self._shape)])
            return tf.reshape(flat, self._shape), gradient

        return spread(values, *latent)


class RoundedWeight:
    """A bias, scale or shift whose values are float16 numbers."""

    state = centroids = ()

    def __init__(self, variable: keras.Variable):
        self.weights = [variable]

    def kernel(self) -> tf.Tensor:
        """The made weights."""
        return _half(tf.convert_to_tensor(self.weights[0].value))

    def constrain(self) -> None:
        """The optimizer has applied the variable's own constraint."""


class FreeWeight:
    """A weight that is what the optimizer makes of it."""

    state = centroids = ()

    def __init__(self, variable: keras.Variable):
        self.weights = [variable]

    def kernel(self) -> tf.Tensor:
        """The weight."""
        return self.weights[0].value

    def constrain(self) -> None:
        """The optimizer has applied the variable's own constraint."""


Parametrization = MaskedKernel | SharedKernel


class ParametrizedModel:
    """A Keras model that runs with made kernels, itself unmodified until `write_back`.

    `parametrizations` maps names of `shareable` to `MaskedKernel` or `SharedKernel`; every other trainable weight is
    free, or with `rounds` kept to float16 numbers, where these can hold it.
    """

    def __init__(
        self, model: keras.Model, parametrizations: Mapping[str, MaskedKernel | SharedKernel], *, rounds: bool = False
    ):
        self.model = model
        self.parametrizations = dict(parametrizations)
        self._kernels = models.kernels(model)
        self._moments: dict[int, keras.Variable] = {}
        self._price = keras.Variable(0.0, dtype="float32", trainable=False, name="price")  # of a bit
        named = {**self._kernels, **biases(model)}
        by_variable = {id(named[name]): made for name, made in self.parametrizations.items()}
        self._makers = []
        for variable in model.trainable_variables:
            other = RoundedWeight if rounds and _halves_well(_values(variable)) else FreeWeight
            self._makers.append(by_variable.get(id(variable)) or other(variable))

    @property
    def weights(self) -> list[keras.Variable]:
        """What the optimizer trains weight by weight: free weights, masked kernels, latent weights of shared ones."""
        return [variable for made in self._makers for variable in made.weights]

    @property
    def centroids(self) -> list[keras.Variable]:
        """What the optimizer trains cluster by cluster."""
        return [variable for made in self._makers for variable in made.centroids]

    @property
    def variables(self) -> list[keras.Variable]:
        """All state that a checkpoint must hold: trained variables, masks, clusters, statistics, random seeds."""
        others = [variable for made in self._makers for variable in made.state]
        others += [self._price] if any(made.weights for made in self.shared.values()) else []
        return [*self.weights, *self.centroids, *others, *self.model.non_trainable_variables]

    def __call__(
        self, inputs: Any, training: bool = False, loss: Callable[[Any], tf.Tensor] | None = None
    ) -> tuple[Any, dict[int, tf.Tensor], tf.Tensor | None]:
        """Outputs, new values of those of the model's non-trainable variables that changed, and `loss(outputs)`.

        The new values are by position in `model.non_trainable_variables`. The loss is computed where the model's
        variables have the made values, so that penalties of the model see them.
        """
        still = self.model.non_trainable_variables
        made = [(v, maker.kernel()) for v, maker in zip(self.model.trainable_variables, self._makers, strict=True)]
        mapping = [*made, *((variable, variable.value) for variable in still)]
        with keras.StatelessScope(state_mapping=mapping, collect_losses=True) as scope:
            before = [scope.get_current_value(variable) for variable in still]
            outputs = self.model(inputs, training=training)
            value = None if loss is None else loss(outputs)
            after = [scope.get_current_value(variable) for variable in still]
        changed = {index: new for index, (old, new) in enumerate(zip(before, after, strict=True)) if new is not old}
        return outputs, changed, value

    def constrain(self) -> None:
        """Have the constraints of the model's layers hold for the made kernels, after a step of the optimizer."""
        for maker in self._makers:
            maker.constrain()

    @property
    def shared(self) -> dict[str, SharedKernel]:
        """What is shared, by name."""
        return {name: made for name, made in self.parametrizations.items() if isinstance(made, SharedKernel)}

    def kernels(self) -> dict[str, np.ndarray]:
        """The kernels as they are now, by name; pruned weights are exactly +0.0."""
        made = self.parametrizations
        return {
            name: (np.asarray(made[name].kernel()) + 0.0 if name in made else _values(variable))
            for name, variable in self._kernels.items()
        }

    def set_masks(self, masks: Mapping[str, np.ndarray]) -> None:
        """Give masked kernels new masks, bool or 0 and 1, by name."""
        for name, mask in masks.items():
            self.parametrizations[name].mask.assign(mask)

    def watch(self, groups: Iterable[tuple[keras.Optimizer, list[keras.Variable]]]) -> None:
        """Know the optimizers, as from `loop.optimizers`, that train this network."""
        for optimizer, variables in groups:
            moments = keras_private.second_moments(optimizer, variables)
            if moments is not None:
                self._moments |= {id(v): moment for v, moment in zip(variables, moments, strict=True)}

    def squared_gradients(self) -> dict[str, np.ndarray]:
        """The running mean of the squared gradients of each kernel that trains weight by weight, by name.

        It is that of the optimizer, up to a factor that all share, and 0 before the first step. Raises `RecipeError`
        for an optimizer that keeps none.
        """
        return {name: self._squares(made.weights[0]) for name, made in self.parametrizations.items() if made.weights}

    def reassign(self, price: float) -> None:
        """Give each survivor that has a latent weight to the cluster, or to none, whose loss and bits cost least.

        The loss is the squared error of the weight times its mean squared gradient. A bit costs `price` times the
        mean loss of all those weights, were they removed. Raises as `squared_gradients`, whose first step must be past.
        """
        movable = [made for made in self.shared.values() if made.weights]
        importance = [self._squares(made.weights[0]).astype(np.float64) for made in movable]
        worth = [own * _values(made.weights[0]) ** 2 for own, made in zip(importance, movable, strict=True)]
        unit = sum(own.sum() for own in worth) / max(1, sum(own.size for own in worth))
        for made, own in zip(movable, importance, strict=True):
            made.reassign(own, price * unit)

    def reassign_within(self, bits: float, importance: Mapping[str, np.ndarray], *, exactly: bool = True) -> None:
        """Reassign as `reassign`, at the price of a bit that makes all of them together take so many `bits`.

        importance: by name, of the squared errors of the weights of shared kernels, of the kernels' shapes. Where it
        need not be `exactly` so many, the search begins at the price of the call before, and takes less time.
        """
        movable, priced = self._priced(importance)
        how = {} if exactly else {"near": float(_values(self._price)), "tolerance": _ABOUT}
        found, price = quantization.cheapest_within(priced, bits, **how)
        self._price.assign(price)
        for made, choices in zip(movable, found, strict=True):
            made.clusters.assign(choices)

    def anchor(self, importance: Mapping[str, np.ndarray]) -> None:
        """Move latent weights that `reassign_within` would give another value at the bits of now to the one they have.

        So a network whose values were chosen by another rule, such as one that has weights make up for each other,
        begins to train as it is.
        """
        movable, priced = self._priced(importance)
        for made, choices in zip(movable, quantization.cheapest_within(priced, self.bits())[0], strict=True):
            clusters, latent = _values(made.clusters), _values(made.weights[0])
            own = np.concatenate(([0.0], made.codebook()))[clusters]
            made.weights[0].assign(np.where(choices == clusters, latent, own))

    def bits(self) -> float:
        """What the choices of values of all weights that can be reassigned take now."""
        movable = [made for made in self.shared.values() if made.weights]
        return sum(made.priced(np.zeros(made.positions.size)).bits(_values(made.clusters)) for made in movable)

    def _priced(
        self, importance: Mapping[str, np.ndarray]
    ) -> tuple[list[SharedKernel], list[quantization.PricedWeights]]:
        """What can be reassigned, and its latent weights with what each choice costs."""
        movable = {name: made for name, made in self.shared.items() if made.weights}
        priced = [made.priced(importance[name].ravel()[made.positions]) for name, made in movable.items()]
        return [*movable.values()], priced

    def _squares(self, variable: keras.Variable) -> np.ndarray:
        if id(variable) not in self._moments:
            raise RecipeError(
                "The optimizer keeps no squared gradients, which saliency and a rate_distortion_lambda need: use adam, "
                "adamw, nadam or rmsprop."
            )
        return _values(self._moments[id(variable)])

    def write_back(self) -> keras.Model:
        """Write the made weights into the model, which is then complete in itself; returns it."""
        for made, variable in zip(self._makers, self.model.trainable_variables, strict=True):
            if not isinstance(made, FreeWeight):
                variable.assign(made.kernel() + 0.0)  # no -0.0
        return self.model


def free(model: keras.Model) -> ParametrizedModel:
    """Every weight trains by itself."""
    return ParametrizedModel(model, {})


def masked(model: keras.Model) -> ParametrizedModel:
    """Every kernel keeps its zeros: the masks are read off the weights."""
    return ParametrizedModel(model, {name: MaskedKernel(variable) for name, variable in models.kernels(model).items()})


def shared(
    model: keras.Model, names: Iterable[str] | None = None, *, latent: Mapping[str, np.ndarray] | None = None
) -> ParametrizedModel:
    """What bears these names of `shareable`, or every kernel, keeps its zeros and its few distinct values.

    The codebooks are read off the weights; other kernels are masked. Codebooks, biases and the like are kept to
    float16 numbers. `latent` has weights before they were shared, by name: those can be assigned anew.
    """
    kernels, shareable_ones = models.kernels(model), shareable(model)
    chosen = list(kernels if names is None else names)
    made: dict[str, Parametrization] = {name: MaskedKernel(kernels[name]) for name in kernels if name not in chosen}
    made |= {name: SharedKernel(shareable_ones[name], (latent or {}).get(name)) for name in chosen}
    return ParametrizedModel(model, made, rounds=True)


def biases(model: keras.Model) -> dict[str, keras.Variable]:
    """The trainable biases of a model, by name."""
    return models.named(model, (v for v in model.trainable_variables if v.name == "bias" and len(v.shape) == 1))


def shareable(model: keras.Model) -> dict[str, keras.Variable]:
    """What can be shared, by name: the kernels, as in `models.kernels`, and `biases`."""
    return {**models.kernels(model), **biases(model)}


@tf.custom_gradient
def _half(values):
    """The nearest float16 numbers, as float32; gradients pass as if nothing had been rounded."""
    return tf.cast(tf.cast(values, tf.float16), values.dtype), lambda upstream: upstream


def _halves_well(values: np.ndarray) -> bool:
    """Whether float16's precision, of 2^-24 for small values, suits these, and leaves them room to grow."""
    largest = np.abs(values).max(initial=0)
    return largest == 0 or 2.0**-13 <= largest < 2.0**15


def _holds_for_less(constraint: Callable, variable: keras.Variable) -> bool:
    """Whether a kernel that a constraint allows may also be smaller, as with a limit of its norm."""
    half = 0.5 * tf.convert_to_tensor(constraint(variable.value))
    return bool(np.allclose(constraint(half), half, rtol=1e-4, atol=1e-7))


def _values(variable: keras.Variable) -> np.ndarray:
    return np.asarray(variable.numpy())
