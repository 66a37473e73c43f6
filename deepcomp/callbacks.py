"""Pruning and weight sharing inside somebody's own `model.fit`, as Keras callbacks.

    model.fit(x, y, callbacks=[deepcomp.PruningCallback(sparsity=0.9, end=2000)])
    model.fit(x, y, callbacks=[deepcomp.SharingCallback(clusters=16)])

Keras calls `variable.constraint` after each update of a variable, inside the compiled step. Here that constraint sets
pruned weights to zero, or all weights of a cluster to their mean. So the zeros and the shared values are exact after
every batch, whatever the optimizer, and the model stays a plain Keras model. The constraint is put on when `fit` begins
and taken off when it ends.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar
from warnings import warn

import keras
import numpy as np
from keras import ops

from deepcomp import keras_private, models, options, pruning, quantization
from deepcomp.errors import DeepcompWarning, RecipeError, printable
from deepcomp.options import Options, Pruning, Schedule, Sharing


class Projection(keras.constraints.Constraint):
    """A constraint that holds after the one that the variable had before, `previous`."""

    previous: Callable | None = None

    def __call__(self, w):
        """The projected weights: a tensor of the shape and dtype of `w`."""
        return self.project(ops.convert_to_tensor(w) if self.previous is None else self.previous(w))

    def project(self, w):
        """The nearest weights that are allowed."""
        raise NotImplementedError

    def keep(self, mask: np.ndarray) -> None:
        """From now on weights where `mask`, `bool` of the variable's shape, is false are zero."""
        raise NotImplementedError


class Masked(Projection):
    """Zeros stay zeros."""

    def __init__(self, kernel: np.ndarray):
        self.mask = keras.Variable(kernel != 0, dtype="bool", trainable=False, name="mask")

    def project(self, w):
        # Not a product: it would keep infinite weights, and leave zeros with a sign.
        return ops.where(ops.convert_to_tensor(self.mask), w, ops.zeros_like(w))

    def keep(self, mask: np.ndarray) -> None:
        self.mask.assign(mask)


class Clustered(Projection):
    """All weights of a cluster have their mean; zeros, which are in no cluster, stay zeros."""

    def __init__(self, kernel: np.ndarray, clusters: int, init: str):
        found = np.zeros(kernel.size, np.int32)
        survivors = np.flatnonzero(kernel)
        centroids, own = quantization.cluster(kernel.ravel()[survivors], clusters, init=init)
        found[survivors] = own.astype(np.int32) + 1
        # Numbered as in `quantization.codebook`: 0 is for pruned weights.
        self.count = centroids.size + 1
        self.dtype = "float64" if kernel.dtype == np.float64 else "float32"  # sums of many weights need the bits
        own = {"trainable": False, "autocast": False}
        self.indices = keras.Variable(found, dtype="int32", name="indices", **own)
        self.firsts = keras.Variable(np.zeros(self.count), dtype="int32", name="firsts", **own)
        self.parts = keras.Variable(np.zeros(self.count), dtype=self.dtype, name="parts", **own)
        self._assign(found)

    def project(self, w):
        flat = ops.reshape(ops.cast(w, self.dtype), (-1,))
        indices = ops.convert_to_tensor(self.indices)
        parts = ops.convert_to_tensor(self.parts)
        # The mean is taken of the distances to one member: float32 sums of the weights themselves would drift.
        members = ops.take(flat, ops.convert_to_tensor(self.firsts))
        distances = ops.segment_sum(flat - ops.take(members, indices), indices, self.count)
        means = ops.where(parts > 0, members + distances * parts, ops.zeros_like(parts))
        return ops.cast(ops.reshape(ops.take(means, indices), w.shape), w.dtype)

    def keep(self, mask: np.ndarray) -> None:
        self._assign(ops.convert_to_numpy(self.indices) * mask.ravel())

    def _assign(self, indices: np.ndarray) -> None:
        members = np.bincount(indices, minlength=self.count)
        members[0] = 0
        present, first = np.unique(indices, return_index=True)
        firsts = np.zeros(self.count, np.int32)
        firsts[present] = first
        self.indices.assign(indices)
        self.firsts.assign(firsts)
        self.parts.assign(np.divide(1, members, out=np.zeros(self.count), where=members > 0))


class FitCallback(keras.callbacks.Callback):
    """What both callbacks have in common: when they act, and how constraints are put on and taken off.

    Steps are updates of `model.optimizer`, counted from the first epoch of the first `fit`. A fit that starts at a
    later epoch (`initial_epoch`, `BackupAndRestore`) counts the epochs before it; another fit with the same callback
    goes on counting. If an exception outside the training step ends `fit`, the constraints stay until `release` or the
    next fit with a callback of this module.
    """

    # Which fields of the option class a fit can follow.
    TAKES: ClassVar[tuple[str, ...]] = ()

    def __init__(self, given: Options):
        super().__init__()
        owner, self.options = type(self).__name__, given
        defaults = options.flat(type(given)())
        for name, value in options.flat(self.options).items():
            if name not in self.TAKES and value != defaults[name]:
                raise RecipeError(f"{owner} does not take {name}={value!r}: it takes {', '.join(self.TAKES)}.")
        self._kernels: dict[str, keras.Variable] = {}
        self._projections: list[Projection] = []
        self._pending: list[int] = []  # steps at which something is still to change
        self._installed = False
        self._emptied: set[str] = set()
        self._optimizer: Any = None
        self._first = 0  # the optimizer's number of updates at step 0
        self._done = 0  # steps, when they were last counted

    def prepare(self) -> None:
        """Check and resolve the options for the model. Raises `RecipeError`."""
        raise NotImplementedError

    def begin(self) -> None:
        """Put on the constraints that hold from the start of `fit`."""
        raise NotImplementedError

    def change(self, step: int) -> None:
        """Do what the schedule says for `step`."""
        raise NotImplementedError

    def release(self) -> None:
        """Take the constraints of this module off the model, as the end of `fit` does."""
        _release(self.model)

    def set_model(self, model: keras.Model | None) -> None:
        """Called by Keras before `fit` begins; takes off what an interrupted fit left on."""
        if model is not None:
            _release(model)
            if model is not self._model:
                self._optimizer, self._emptied = None, set()
        super().set_model(model)

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Called by Keras; raises `RecipeError` for a model that cannot be treated."""
        model, owner = self.model, type(self).__name__
        with _released_on_error(model):
            if not model.built:
                raise RecipeError(f"{owner}: the model {model.name!r} is not built: call it on a batch before fit.")
            if getattr(model, "optimizer", None) is None:
                raise RecipeError(f"{owner}: the model {model.name!r} has no optimizer: give compile one.")
            self._kernels = models.kernels(model)
            self.prepare()
        self._installed = False
        others = [variable.path for variable in model.non_trainable_variables if models.is_kernel(variable)]
        frozen = [path.removeprefix(f"{model.name}/").removesuffix("/kernel") for path in others]
        if frozen and self.params.get("verbose"):
            print(printable(f"{owner}: frozen kernels stay as they are: {', '.join(frozen)}."))

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Called by Keras. The first call begins: by then all callbacks have restored what they restore."""
        with _released_on_error(self.model):
            if not self._installed:
                self._count_from(epoch)
                self._pending = list(self.schedule.update_steps)
                self.begin()
                self._installed = True
                self._act()
        self._steps()

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Called by Keras after each batch, or after `steps_per_execution` of them."""
        # Updates are at most as many as batches; asking the optimizer for their number would cost more.
        if self._pending and self._epoch_began + batch + 1 >= self._pending[0]:
            with _released_on_error(self.model):
                self._act()

    def on_train_end(self, logs: dict | None = None) -> None:
        """Called by Keras; what is left is a plain model."""
        model, owner = self.model, type(self).__name__
        if not self._installed:
            return
        for variable in self._kernels.values():
            _project(variable)  # Averages of weights (`use_ema`) replace them after the last update.
            variable.constraint = _without(variable.constraint, self._projections)
        self._projections, self._installed = [], False
        _make_train_function(model)
        if self._pending:
            warn(
                f"{owner}: fit ended after step {self._steps()}, its goal is reached at step {self._pending[-1]}: "
                "train longer, or give a lower end or begin.",
                DeepcompWarning,
                stacklevel=2,
            )

    @property
    def schedule(self) -> Schedule:
        """When something changes."""
        return self.options

    def install(self, make: Callable[[str, np.ndarray], Projection | None]) -> None:
        """Put the constraint that `make` gives for each kernel's name and values in the place of this callback's."""
        strategy = getattr(self.model, "distribute_strategy", None)
        earlier, self._projections = self._projections, []
        with strategy.scope() if strategy is not None else nullcontext():
            for name, variable in self._kernels.items():
                variable.constraint = _without(variable.constraint, earlier)
                projection = make(name, _values(variable))
                if projection is not None:
                    projection.previous = variable.constraint
                    variable.constraint = projection
                    self._projections.append(projection)
        for variable in self._kernels.values():
            _project(variable)
        _make_train_function(self.model)

    def warn_of_empty(self) -> None:
        """Name the layers without a weight that is not zero, each once."""
        empty = [name for name, variable in self._kernels.items() if not np.any(_values(variable))]
        new = [name for name in empty if name not in self._emptied]
        self._emptied.update(new)
        if new:
            warn(
                f"{type(self).__name__}: no weight is left in {', '.join(new)}: the layer's inputs no longer count. "
                "Remove less there, with layers={name: number}.",
                DeepcompWarning,
                stacklevel=2,
            )

    def _count_from(self, epoch: int) -> None:
        """Where steps are counted from."""
        optimizer = self.model.optimizer
        now = _updates(optimizer)
        if self._optimizer is None:
            batches = (self.params or {}).get("steps")
            accumulated = getattr(optimizer, "gradient_accumulation_steps", None) or 1
            earlier = now if batches is None and epoch else epoch * (batches or 0) // accumulated
            self._first = now - earlier
        elif optimizer is not self._optimizer:
            self._first = now - self._done
        self._optimizer = optimizer

    def _steps(self) -> int:
        """The steps done."""
        self._done = _updates(self.model.optimizer) - self._first
        self._epoch_began = self._done
        return self._done

    def _act(self) -> None:
        """Do the last change that is due."""
        step = _updates(self.model.optimizer) - self._first
        due = [one for one in self._pending if one <= step]
        if due:
            self._pending = self._pending[len(due) :]
            self.change(due[-1])


class PruningCallback(FitCallback):
    """Prunes the kernels of a model during the user's own `fit`; pruned weights are exactly zero after every batch.

    Takes a `deepcomp.Pruning`, or its fields by name; steps are updates of the optimizer. Weights that are zero stay
    zero from the start. `scores="saliency"` reads the squared gradients that Adam, AdamW, Nadam and RMSprop keep. Each
    epoch's logs have `sparsity`, a fraction of all kernels' weights. Raises `RecipeError` for options that a fit cannot
    follow, and `UnsupportedLayerError` for a model without trainable kernels; warns with `DeepcompWarning` of a layer
    without weights, and of a fit that ends before its goal. Source: paper section 2.
    """

    TAKES = ("sparsity", "quality", "threshold", "layers", "scope", "scores", "flops_power", "begin", "end", "every")

    @options.by_name({"pruning": Pruning})
    def __init__(self, pruning: Pruning | None = None):
        super().__init__(pruning)

    def prepare(self) -> None:
        """See `FitCallback`."""
        what = self.options
        self._goals = models.per_layer(what.own_goals, self._kernels, what.criterion)
        self._costs = models.costs(self.model, what.flops_power)
        if what.scores == "saliency":
            self._squares()

    def begin(self) -> None:
        """See `FitCallback`."""
        self.install(lambda name, kernel: Masked(kernel))
        self.warn_of_empty()

    def change(self, step: int) -> None:
        """See `FitCallback`."""
        for name, mask in self._masks(self.options.fraction(step)).items():
            variable = self._kernels[name]
            for projection in _projections(variable.constraint):
                projection.keep(mask)
            _project(variable)
        if keras.backend.backend() == "jax":  # There a compiled step holds masks as constants.
            _make_train_function(self.model)
        self.warn_of_empty()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Called by Keras; adds `sparsity`."""
        if logs is not None:
            total = sum(math.prod(variable.shape) for variable in self._kernels.values())
            left = sum(np.count_nonzero(_values(variable)) for variable in self._kernels.values())
            logs["sparsity"] = float(1 - left / total)

    def _masks(self, fraction: float) -> dict[str, np.ndarray]:
        what = self.options
        return pruning.masks(
            {name: _values(variable) for name, variable in self._kernels.items()},
            what,
            self._goals,
            fraction=fraction,
            squares=self._squares() if what.scores == "saliency" else None,
            costs=self._costs,
        )

    def _squares(self) -> dict[str, np.ndarray]:
        variables = list(self._kernels.values())
        found = keras_private.second_moments(self.model.optimizer, variables)
        if found is None:
            raise RecipeError(
                f"scores='saliency' needs an optimizer that keeps mean squared gradients, such as Adam or RMSprop, not "
                f"{type(self.model.optimizer).__name__}: use magnitude or lamp."
            )
        return {name: _values(moment) for name, moment in zip(self._kernels, found, strict=True)}


class SharingCallback(FitCallback):
    """Has the weights of each kernel share a few values during the user's own `fit`, exactly so after every batch.

    Takes a `deepcomp.Sharing`, or its fields by name. At step `begin` k-means makes clusters; from then on each cluster
    moves as the mean of its weights. Pruned weights stay zero. Each epoch's logs have `values`, the largest number of
    distinct non-zero values of a shared kernel. Errors and warnings as in `PruningCallback`. The constraint that a
    kernel had, such as `NonNeg`, comes first; one that means do not keep, such as `UnitNorm`, holds nearly.
    Source: paper section 3.
    """

    TAKES = ("clusters", "layers", "init", "begin")

    @options.by_name({"sharing": Sharing})
    def __init__(self, sharing: Sharing | None = None):
        super().__init__(sharing)

    def prepare(self) -> None:
        """See `FitCallback`."""
        what = self.options
        every = what.clusters if isinstance(what.clusters, Mapping) else {".*": what.clusters}
        self._clusters = models.per_layer({**what.layers, **every}, self._kernels, "clusters")
        most = max(self._clusters.values())
        limit = quantization.MAX_OPTIMAL_CLUSTERS if what.init == "optimal" else quantization.MAX_CLUSTERS
        if most > limit:
            raise RecipeError(f"clusters={most}: init={what.init!r} makes at most {limit}.")

    def begin(self) -> None:
        """See `FitCallback`."""
        self.install(lambda name, kernel: Masked(kernel))

    def change(self, step: int) -> None:
        """See `FitCallback`."""
        self.install(self._cluster)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Called by Keras; adds `values`."""
        if logs is not None:
            logs["values"] = max(quantization.codebook(_values(self._kernels[name]))[0].size for name in self._clusters)

    def _cluster(self, name: str, kernel: np.ndarray) -> Projection:
        return Clustered(kernel, self._clusters[name], self.options.init) if name in self._clusters else Masked(kernel)


def _projections(constraint: Callable | None) -> Iterator[Projection]:
    """Those of this module, the outermost first."""
    while isinstance(constraint, Projection):
        yield constraint
        constraint = constraint.previous


def _without(constraint: Callable | None, gone: list[Projection]) -> Callable | None:
    """The same constraint without the projections in `gone`."""
    if not isinstance(constraint, Projection):
        return constraint
    rest = _without(constraint.previous, gone)
    if constraint in gone:
        return rest
    constraint.previous = rest
    return constraint


def _project(variable: keras.Variable) -> None:
    if variable.constraint is not None:
        variable.assign(variable.constraint(variable))


def _release(model: keras.Model) -> None:
    """Take all projections off a model."""
    held = [variable for variable in model.variables if isinstance(variable.constraint, Projection)]
    for variable in held:
        variable.constraint = _without(variable.constraint, list(_projections(variable.constraint)))
    if held:
        _make_train_function(model)


def _make_train_function(model: keras.Model) -> None:
    """Have Keras compile the training step anew, with the constraints of now; the optimizer's state stays."""
    model.make_train_function(force=True)
    train = model.train_function
    if any(isinstance(variable.constraint, Projection) for variable in model.variables):

        def released_on_error(*arguments):
            with _released_on_error(model):
                return train(*arguments)

        # Keras calls no callback when a step fails or is interrupted.
        model.train_function = released_on_error


@contextmanager
def _released_on_error(model: keras.Model) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        if type(error).__name__ not in ("StopIteration", "OutOfRangeError"):  # the end of the data
            _release(model)
        raise


def _updates(optimizer: keras.optimizers.Optimizer) -> int:
    return int(ops.convert_to_numpy(optimizer.iterations))


def _values(variable: keras.Variable) -> np.ndarray:
    """The values of a variable: float32, or float64 if it has these."""
    array = ops.convert_to_numpy(variable)
    return array if array.dtype == np.float64 else array.astype(np.float32)
