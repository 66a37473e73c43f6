"""What layers of sequences compute, in NumPy and float64: recurrent layers, attention, products by an equation, masks.

Each takes options, weights, inputs, their masks (bool, or None), and `call`, which computes a layer inside another.
They raise `OverflowError` where values inside are so large that float32 cannot hold what follows, or that rounding
decides it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

_LARGE = 1e15  # a value beyond it may not fit into float32 when it is multiplied
_STEEP = 1e4  # a score beyond it has errors in float32 that decide who is seen

Mask = np.ndarray | None
Call = Callable[[str, Mapping[str, Any], Mapping[str, np.ndarray], Sequence[np.ndarray]], np.ndarray]


def _function(options, call: Call, name: str):
    def run(x):
        found = call("Activation", {"activation": options[name]}, {}, [x])
        if not max(np.abs(x).max(), np.abs(found).max()) < _LARGE:
            raise OverflowError(f"There are values over {_LARGE:g} inside of a layer.")
        return found

    return run


def _recurrent(step, count: int):
    """A layer that runs `step(gates of the input, states, weights, functions) -> states` through time."""

    def run(options, weights, inputs, masks, call):
        x, mask = inputs[0], masks[0]
        units, order = weights["recurrent_kernel"].shape[0], slice(None, None, -1 if options["go_backwards"] else 1)
        functions = [
            _function(options, call, name) for name in ("activation", "recurrent_activation") if name in options
        ]
        x, mask = x[:, order], None if mask is None else mask[:, order]
        states, outputs = [np.zeros((len(x), units)) for _ in range(count)], []
        for time in range(x.shape[1]):
            new = step(options, x[:, time], states, weights, *functions)
            here = np.ones((len(x), 1), bool) if mask is None else mask[:, time, None]
            states = [np.where(here, after, before) for after, before in zip(new, states, strict=True)]
            outputs.append(np.where(here, states[0], 0) if options["zero_output_for_mask"] else states[0])
        return np.stack(outputs, 1) if options["return_sequences"] else outputs[-1]

    return run


def _simple_step(options, x, states, weights, activation):
    product = x @ weights["kernel"] + states[0] @ weights["recurrent_kernel"]
    return [activation(product + weights.get("bias", 0.0))]


def _lstm_step(options, x, states, weights, activation, gate):
    product = x @ weights["kernel"] + states[0] @ weights["recurrent_kernel"] + weights.get("bias", 0.0)
    taken, kept, new, shown = np.split(product, 4, axis=1)
    carry = gate(kept) * states[1] + gate(taken) * activation(new)
    return [gate(shown) * activation(carry), carry]


def _gru_step(options, x, states, weights, activation, gate):
    (state,), own = states, weights["recurrent_kernel"]
    bias = weights.get("bias", np.zeros(own.shape[1]))
    outer, inner = np.broadcast_to(bias, (2, own.shape[1])) if options["reset_after"] else (bias, 0.0)
    kept, reset, new = np.split(x @ weights["kernel"] + outer, 3, axis=1)
    kept_too, reset_too, new_too = np.split(state @ own + inner, 3, axis=1)
    kept, reset = gate(kept + kept_too), gate(reset + reset_too)
    # float32 is 1 where a gate is nearly so, and then nothing new is let in, however large it is.
    kept = kept.astype(np.float32).astype(np.float64)
    units = state.shape[1]
    new_too = reset * new_too if options["reset_after"] else (reset * state) @ own[:, 2 * units :]
    return [kept * state + (1 - kept) * activation(new + new_too)]


RECURRENT = {
    "SimpleRNN": _recurrent(_simple_step, 1),
    "LSTM": _recurrent(_lstm_step, 2),
    "GRU": _recurrent(_gru_step, 1),
}


def _bidirectional(options, weights, inputs, masks, call):
    outputs = []
    for name, prefix in (("layer", "forward_"), ("backward_layer", "backward_")):
        inner = options[name]
        own = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
        sequences = inner.options["return_sequences"]
        found = RECURRENT[inner.kind]({**inner.options, "zero_output_for_mask": sequences}, own, inputs, masks, call)
        outputs.append(found[:, ::-1] if sequences and name == "backward_layer" else found)
    forward, backward = outputs
    joined = {
        "concat": lambda: np.concatenate(outputs, -1),
        "sum": lambda: forward + backward,
        "mul": lambda: forward * backward,
        "ave": lambda: (forward + backward) / 2,
    }
    return joined[options["merge_mode"]]()


def _time_distributed(options, weights, inputs, masks, call):
    x, inner = inputs[0], options["layer"]
    each = call(inner.kind, inner.options, weights, [x.reshape(-1, *x.shape[2:])])
    return each.reshape(*x.shape[:2], *each.shape[1:])


def _convolutional_lstm(options, weights, inputs, masks, call):
    x, rank = inputs[0], len(options["kernel_size"])
    kind, plain = f"Conv{rank}D", {"groups": 1, "activation": "linear"}
    ones = (1,) * rank
    same = {"kernel_size": options["kernel_size"], "strides": ones, "dilation_rate": ones, "padding": "same"}
    outer = {"kernel": weights["kernel"]} | ({"bias": weights["bias"]} if "bias" in weights else {})
    activation, gate = (_function(options, call, name) for name in ("activation", "recurrent_activation"))
    state, carry, outputs = None, 0.0, []
    for time in range(x.shape[1])[:: -1 if options["go_backwards"] else 1]:
        total = call(kind, options | plain, outer, [x[:, time]])
        if state is not None:
            total = total + call(kind, same | plain, {"kernel": weights["recurrent_kernel"]}, [state])
        taken, kept, new, shown = np.split(total, 4, axis=-1)
        carry = gate(kept) * carry + gate(taken) * activation(new)
        state = gate(shown) * activation(carry)
        outputs.append(state)
    return np.stack(outputs, 1) if options["return_sequences"] else outputs[-1]


# Attention


def _weights_of(scores, options, queries: Mask, keys: Sequence[Mask]):
    """The softmax of scores, (N, ..., queries, keys), over what a query sees; one that sees nothing sees all alike."""
    count, size = scores.shape[-2:]
    distance = np.arange(count)[:, None] - np.arange(size)
    seen = np.ones((len(scores), count, size), bool)
    if options["use_causal_mask"]:
        seen &= distance >= 0
    if options.get("sliding_window") is not None:
        seen &= np.abs(distance) < options["sliding_window"]
    if queries is not None:
        seen &= queries.reshape(len(scores), count, 1)
    for mask in keys:
        if mask is not None:
            seen &= mask.reshape(len(scores), 1, size)
    seen = seen.reshape(len(scores), *(1,) * (scores.ndim - 3), count, size)
    blind = ~seen.any(axis=-1, keepdims=True)
    if np.abs(scores).max() > _STEEP:
        raise OverflowError(f"There are scores over {_STEEP:g}.")
    scores = np.where(blind, 0.0, np.where(seen, scores, -np.inf))
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    found = powers / powers.sum(axis=-1, keepdims=True)
    has_masks = queries is not None or any(mask is not None for mask in keys)
    return np.where(seen, found, 0.0) if has_masks and options.get("dropout") else found


def _attention_by_heads(options, weights, inputs, masks, call):
    query, value, key = inputs[0], inputs[1], inputs[-1]

    def heads(name, x):
        flat = x.reshape(len(x), -1, x.shape[-1])
        return np.einsum("npf,fhs->nhps", flat, weights[f"{name}_kernel"]) + (
            weights[f"{name}_bias"][:, None] if options["use_bias"] else 0.0
        )

    queries, keys, values = heads("query", query), heads("key", key), heads("value", value)
    keys, values = (np.repeat(one, queries.shape[1] // keys.shape[1], axis=1) for one in (keys, values))
    scores = queries @ keys.swapaxes(-1, -2) / np.sqrt(queries.shape[-1])
    mixed = _weights_of(scores, options, masks[0], masks[1:]) @ values
    if options["use_gate"]:
        gate = heads("gate", query)
        mixed = mixed * call("Activation", {"activation": "sigmoid"}, {}, [gate])
    made = np.tensordot(mixed.swapaxes(1, 2), weights["output_kernel"], 2)
    made = made.reshape(*query.shape[:-1], *weights["output_kernel"].shape[2:])
    return made + weights["output_bias"] if options["use_bias"] else made


def _attention(options, weights, inputs, masks, call):
    query, value, key = inputs[0], inputs[1], inputs[-1]
    sums = query[:, :, None] + key[:, None]
    scale = weights.get("scale", 1.0)
    if "score_mode" not in options:
        scores = (scale * np.tanh(sums)).sum(axis=-1)
    elif options["score_mode"] == "concat":
        scores = weights["concat_score_weight"] * np.tanh(scale * sums).sum(axis=-1)
    else:
        scores = scale * (query @ key.swapaxes(-1, -2))
    mixed = _weights_of(scores, options, None, [masks[1]]) @ value
    return mixed if masks[0] is None else mixed * masks[0][..., None]


# The other kinds


def _einsum(options, weights, inputs, masks, call):
    return np.einsum(options["equation"], inputs[0], weights["kernel"]) + weights.get("bias", 0.0)


def _masked_average(options, weights, inputs, masks, call):
    x, mask = inputs[0], masks[0]
    if mask is None:
        return x.mean(axis=1, keepdims=options["keepdims"])
    total = (x * mask[..., None]).sum(axis=1, keepdims=options["keepdims"])
    return total / mask.sum(axis=1).reshape(len(x), *(1,) * (total.ndim - 1))


SEQUENCES: dict[str, Callable[..., np.ndarray]] = {
    **RECURRENT,
    "Bidirectional": _bidirectional,
    "TimeDistributed": _time_distributed,
    **dict.fromkeys(("ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D"), _convolutional_lstm),
    **dict.fromkeys(("MultiHeadAttention", "GroupedQueryAttention"), _attention_by_heads),
    **dict.fromkeys(("Attention", "AdditiveAttention"), _attention),
    "EinsumDense": _einsum,
    "GlobalAveragePooling1D": _masked_average,
    "Masking": lambda options, weights, inputs, masks, call: (
        inputs[0] * mask_of("Masking", options, inputs[0]).reshape(*inputs[0].shape[:-1], 1)
    ),
}


def mask_of(kind: str, options: Mapping[str, Any], x: np.ndarray) -> np.ndarray:
    """The mask that an Embedding or a Masking makes of its input: true for a step that counts.

    One vector alone is one step.
    """
    if kind == "Embedding":
        return x != 0
    return (x != np.float32(options["mask_value"])).any(axis=-1).reshape(len(x), *(x.shape[1:-1] or (1,)))
