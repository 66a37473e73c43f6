"""What tests of training share: the loop and the rounds by curvature, called with option fields by name."""

from deepcomp import options
from deepcomp.options import SecondOrderPruning, Sharing, Training
from deepcomp.second_order.pruning import prune
from deepcomp.second_order.sharing import share
from deepcomp.training import loop, losses
from deepcomp.training.record import Record


def prepared(model, dataset, **fields):
    """Training options, task and data set for a model."""
    training = options.build(Training, {"verbose": False, **fields})
    task, fitted = losses.task_of(model, model, dataset, training)
    return training, task, fitted


def learn(network, dataset, *, checkpoint=None, tensorboard=None, **fields):
    """Train a parametrized model; returns the history."""
    own = {name: fields.pop(name) for name in ("update", "update_steps", "centroid_learning_rate") if name in fields}
    training, task, fitted = prepared(network.model, dataset, **fields)
    record = Record(checkpoint, tensorboard)
    return loop.train(network, fitted, training, task=task, record=record, **{"centroid_learning_rate": 1e-4, **own})


def prune_rounds(model, dataset, *, history=None, rounds=0, sparsity=0.0, **fields):
    """Prune a model by curvature; returns the history."""
    training, task, fitted = prepared(model, dataset, **fields)
    rounds = SecondOrderPruning(rounds=rounds, sparsity=sparsity)
    return prune(model, fitted, rounds, task=task, training=training, history=history)


def share_rounds(network, dataset, *, history=None, rounds=0, price=0.0, **fields):
    """Share a parametrized model's weights by curvature; returns the history."""
    training, task, fitted = prepared(network.model, dataset, **fields)
    table = {"second_order_rounds": rounds, "rate_distortion_lambda": price if rounds else 0.0}
    sharing = options.build(Sharing, table)
    return share(network, fitted, sharing, task=task, training=training, history=history)
