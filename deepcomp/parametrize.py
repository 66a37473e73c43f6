"""How a network's kernels are made while it is fine-tuned: free, masked, or shared.

| kind | trained | kernel |
|---|---|---|
| free | `w` | `w` |
| masked | `w` | `w * mask` |
| shared | `centroids` | `half(centroids)[indices]`, 0 where pruned |
| rounded | `w` | `half(w)`: biases and the like beside shared kernels |

`half` rounds to float16, so that a file needs 16 bits for what the network computes with; its gradient is passed on as
it is, and training makes up for the rounding.
"""

from collections.abc import Iterable, Mapping

import keras
import numpy as np
import tensorflow as tf

from deepcomp import models, quantization


class Masked:
    """A kernel whose pruned weights stay zero; the mask acts on the weights and, by the chain rule, on gradients."""

    def __init__(self, variable: keras.Variable):
        self.trained = variable
        self.mask = keras.Variable(_values(variable) != 0, dtype=variable.dtype, trainable=False, name="mask")

    @property
    def state(self) -> list[keras.Variable]:
        """What a checkpoint must hold, the trained variable apart."""
        return [self.mask]

    def kernel(self) -> tf.Tensor:
        """The made kernel."""
        return self.trained.value * self.mask.value


class Shared:
    """A kernel of few distinct values: trained are the centroids, each with the sum of its members' gradients."""

    state = ()

    def __init__(self, variable: keras.Variable):
        centroids, indices = quantization.codebook(_values(variable))
        self.trained = keras.Variable(centroids, dtype=variable.dtype, name="centroids")
        self._rounds = _halves_well(centroids)
        flat = indices.ravel().astype(np.int32)
        positions = np.flatnonzero(flat)
        by_cluster = positions[np.argsort(flat[positions], kind="stable")]
        self._indices = tf.constant(indices.astype(np.int32))
        self._members = tf.constant(by_cluster)
        self._clusters = tf.constant(flat[by_cluster] - 1)

    def kernel(self) -> tf.Tensor:
        """The made kernel."""
        centroids = tf.convert_to_tensor(self.trained.value)
        return self._spread(_half(centroids) if self._rounds else centroids)

    def _spread(self, centroids) -> tf.Tensor:
        """`[0, *centroids][indices]`.

        Automatic differentiation would sum over all weights, pruned ones too, with an op that is slow and in no fixed
        order; this sum takes the survivors, cluster by cluster, and so has the same bits in every run.
        """

        @tf.custom_gradient
        def spread(values):
            def gradient(upstream):
                return tf.math.segment_sum(tf.gather(tf.reshape(upstream, [-1]), self._members), self._clusters)

            return tf.gather(tf.concat([tf.zeros([1], values.dtype), values], 0), self._indices), gradient

        return spread(centroids)


class Rounded:
    """A bias, scale or shift whose values are float16 numbers."""

    state = ()

    def __init__(self, variable: keras.Variable):
        self.trained = variable

    def kernel(self) -> tf.Tensor:
        """The made weights."""
        return _half(tf.convert_to_tensor(self.trained.value))


class Network:
    """A Keras model that runs with made kernels, itself unmodified until `write_back`.

    `parametrizations` maps names of `models.kernels` to `Masked` or `Shared`; every other trainable weight is free,
    or with `rounds` kept to float16 numbers, where these can hold it.
    """

    def __init__(self, model: keras.Model, parametrizations: Mapping[str, Masked | Shared], *, rounds: bool = False):
        self.model = model
        self.parametrizations = dict(parametrizations)
        self._kernels = models.kernels(model)
        by_variable = {id(self._kernels[name]): made for name, made in self.parametrizations.items()}
        if rounds:
            others = [v for v in model.trainable_variables if id(v) not in by_variable and _halves_well(_values(v))]
            by_variable |= {id(variable): Rounded(variable) for variable in others}
        self._makers = [by_variable.get(id(variable)) for variable in model.trainable_variables]

    @property
    def weights(self) -> list[keras.Variable]:
        """What the optimizer trains weight by weight: free weights and masked kernels."""
        pairs = zip(self._makers, self.model.trainable_variables, strict=True)
        return [variable for made, variable in pairs if not isinstance(made, Shared)]

    @property
    def centroids(self) -> list[keras.Variable]:
        """What the optimizer trains cluster by cluster."""
        return [made.trained for made in self._makers if isinstance(made, Shared)]

    @property
    def variables(self) -> list[keras.Variable]:
        """All state that a checkpoint must hold: trained variables, masks, statistics, random seeds."""
        masks = [variable for made in self.parametrizations.values() for variable in made.state]
        return [*self.weights, *self.centroids, *masks, *self.model.non_trainable_variables]

    def __call__(self, images: tf.Tensor, training: bool = False) -> tuple[tf.Tensor, dict[int, tf.Tensor], tf.Tensor]:
        """Outputs, new values of those of the model's non-trainable variables that changed, and its own losses summed.

        The new values are by position in `model.non_trainable_variables`.
        """
        trainable = [
            variable.value if made is None else made.kernel()
            for made, variable in zip(self._makers, self.model.trainable_variables, strict=True)
        ]
        still = [variable.value for variable in self.model.non_trainable_variables]
        outputs, after, losses = self.model.stateless_call(
            trainable, still, images, training=training, return_losses=True
        )
        changed = {index: new for index, (old, new) in enumerate(zip(still, after, strict=True)) if new is not old}
        penalty = tf.add_n([tf.cast(loss, outputs.dtype) for loss in losses]) if losses else tf.zeros([])
        return outputs, changed, penalty

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

    def write_back(self) -> keras.Model:
        """Write the made kernels into the model, which is then complete in itself; returns it."""
        for name, kernel in self.kernels().items():
            self._kernels[name].assign(kernel)
        for made in self._makers:
            if isinstance(made, Rounded):
                made.trained.assign(made.kernel())
        return self.model


def free(model: keras.Model) -> Network:
    """Every weight trains by itself."""
    return Network(model, {})


def masked(model: keras.Model) -> Network:
    """Every kernel keeps its zeros: the masks are read off the weights."""
    return Network(model, {name: Masked(variable) for name, variable in models.kernels(model).items()})


def shared(model: keras.Model, names: Iterable[str] | None = None) -> Network:
    """The kernels of these `names`, or all, keep their zeros and their few distinct values; the others are masked.

    The codebooks are read off the weights. Codebooks, biases and the like are kept to float16 numbers.
    """
    kernels = models.kernels(model)
    chosen = set(kernels if names is None else names)
    return Network(model, {n: Shared(v) if n in chosen else Masked(v) for n, v in kernels.items()}, rounds=True)


@tf.custom_gradient
def _half(values):
    """The nearest float16 numbers, as float32; gradients pass as if nothing had been rounded."""
    return tf.cast(tf.cast(values, tf.float16), values.dtype), lambda upstream: upstream


def _halves_well(values: np.ndarray) -> bool:
    """Whether float16's precision, of 2^-24 for small values, suits these, and leaves them room to grow."""
    largest = np.abs(values).max(initial=0)
    return largest == 0 or 2.0**-13 <= largest < 2.0**15


def _values(variable: keras.Variable) -> np.ndarray:
    return np.asarray(variable.numpy())
