"""The table of kinds: its orders are part of the format, and shapes come out as in Keras."""

import pytest

from deepcomp.dcz.kinds import ACTIVATIONS, KINDS


def test_the_order_of_the_tables_is_part_of_the_format():
    assert " ".join(KINDS) == (
        "InputLayer Dense Conv1D Conv2D DepthwiseConv1D DepthwiseConv2D SeparableConv1D SeparableConv2D "
        "BatchNormalization MaxPooling1D MaxPooling2D AveragePooling1D AveragePooling2D GlobalMaxPooling1D "
        "GlobalMaxPooling2D GlobalAveragePooling1D GlobalAveragePooling2D Flatten Reshape Permute ZeroPadding1D "
        "ZeroPadding2D Add Multiply Concatenate Dropout Rescaling Activation ReLU LeakyReLU ELU Softmax "
        "Subtract Average Maximum Minimum Dot Conv3D Conv1DTranspose Conv2DTranspose Conv3DTranspose MaxPooling3D "
        "AveragePooling3D GlobalMaxPooling3D GlobalAveragePooling3D AdaptiveMaxPooling1D AdaptiveMaxPooling2D "
        "AdaptiveMaxPooling3D AdaptiveAveragePooling1D AdaptiveAveragePooling2D AdaptiveAveragePooling3D "
        "ZeroPadding3D Cropping1D Cropping2D Cropping3D UpSampling1D UpSampling2D UpSampling3D Resizing RepeatVector "
        "Normalization LayerNormalization GroupNormalization RMSNormalization UnitNormalization LayerScale "
        "CustomScaleLayer PReLU Embedding SimpleRNN LSTM GRU Bidirectional TimeDistributed ConvLSTM1D ConvLSTM2D "
        "MultiHeadAttention GroupedQueryAttention Attention AdditiveAttention EinsumDense Masking ConvLSTM3D Variable"
    )
    assert " ".join(ACTIVATIONS) == (
        "linear relu relu6 leaky_relu elu selu sigmoid hard_sigmoid tanh softmax softplus softsign silu hard_silu "
        "gelu exponential mish celu hard_tanh hard_shrink soft_shrink tanh_shrink log_sigmoid squareplus sparse_plus "
        "sparse_sigmoid"
    )
    options = {kind: " ".join(entry.options) for kind, entry in KINDS.items() if entry.options}
    window = "kernel_size strides padding dilation_rate"
    sequences = "return_sequences go_backwards zero_output_for_mask"
    attention = "use_bias use_gate sliding_window dropout use_causal_mask"
    assert options == {
        "InputLayer": "shape dtype open_axes",
        "Dense": "units activation use_bias",
        "Conv1D": f"filters {window} groups activation use_bias",
        "Conv2D": f"filters {window} groups activation use_bias",
        "DepthwiseConv1D": f"{window} depth_multiplier activation use_bias",
        "DepthwiseConv2D": f"{window} depth_multiplier activation use_bias",
        "SeparableConv1D": f"filters {window} depth_multiplier activation use_bias",
        "SeparableConv2D": f"filters {window} depth_multiplier activation use_bias",
        "BatchNormalization": "momentum epsilon center scale",
        **dict.fromkeys(
            [f"{what}Pooling{rank}D" for what in ("Max", "Average") for rank in (1, 2, 3)], "pool_size strides padding"
        ),
        **{f"Global{what}Pooling{rank}D": "keepdims" for what in ("Max", "Average") for rank in (1, 2, 3)},
        "Reshape": "target_shape open_axis",
        "Permute": "dims",
        "ZeroPadding1D": "padding",
        "ZeroPadding2D": "padding",
        "Concatenate": "axis",
        "Dropout": "rate",
        "Rescaling": "scale offset",
        "Activation": "activation",
        "ReLU": "max_value negative_slope threshold",
        "LeakyReLU": "negative_slope",
        "ELU": "alpha",
        "Dot": "axes normalize",
        "Conv3D": f"filters {window} groups activation use_bias",
        **{f"Conv{rank}DTranspose": f"filters {window} output_padding activation use_bias" for rank in (1, 2, 3)},
        **{f"Adaptive{what}Pooling{rank}D": "output_size" for what in ("Max", "Average") for rank in (1, 2, 3)},
        "ZeroPadding3D": "padding",
        **{f"Cropping{rank}D": "cropping" for rank in (1, 2, 3)},
        "UpSampling1D": "size",
        "UpSampling2D": "size interpolation",
        "UpSampling3D": "size",
        "Resizing": "height width interpolation",
        "RepeatVector": "n",
        "Normalization": "axis invert",
        "LayerNormalization": "axis epsilon center scale",
        "GroupNormalization": "groups epsilon center scale",
        "RMSNormalization": "epsilon",
        "UnitNormalization": "axis",
        "CustomScaleLayer": "scale",
        "PReLU": "shared_axes",
        "Embedding": "input_dim output_dim mask_zero",
        "SimpleRNN": f"units activation use_bias {sequences}",
        "LSTM": f"units activation use_bias recurrent_activation {sequences}",
        "GRU": f"units activation use_bias recurrent_activation reset_after {sequences}",
        "Bidirectional": "layer merge_mode backward_layer",
        "TimeDistributed": "layer",
        **{
            f"ConvLSTM{rank}D": f"filters {window} activation use_bias recurrent_activation {sequences}"
            for rank in (1, 2, 3)
        },
        "MultiHeadAttention": f"num_heads key_dim value_dim output_shape {attention}",
        "GroupedQueryAttention": f"head_dim num_query_heads num_key_value_heads {attention}",
        "Attention": "use_scale score_mode use_causal_mask",
        "AdditiveAttention": "use_scale use_causal_mask",
        "EinsumDense": "equation output_shape bias_axes activation",
        "Masking": "mask_value",
        "Variable": "path shape dtype",
    }


@pytest.mark.parametrize(
    ("kind", "options", "inputs", "output", "weights"),
    [
        ("Dense", {"units": 7, "use_bias": True}, [(5, 3)], (5, 7), {"kernel": (3, 7), "bias": (7,)}),
        (
            "Conv2D",
            {"filters": 6, "kernel_size": (3, 2), "strides": (2, 2), "padding": "same", "dilation_rate": (1, 1)}
            | {"groups": 2, "use_bias": False},
            [(9, 8, 4)],
            (5, 4, 6),
            {"kernel": (3, 2, 2, 6)},
        ),
        (
            "GRU",
            {"units": 3, "use_bias": True, "reset_after": True, "return_sequences": True},
            [(5, 2)],
            (5, 3),
            {"kernel": (2, 9), "recurrent_kernel": (3, 9), "bias": (2, 9)},
        ),
        (
            "MultiHeadAttention",
            {"num_heads": 2, "key_dim": 3, "value_dim": 4, "output_shape": (), "use_bias": False, "use_gate": False}
            | {"sliding_window": None, "use_causal_mask": True},
            [(5, 6), (7, 8)],
            (5, 6),
            {"query_kernel": (6, 2, 3), "key_kernel": (8, 2, 3), "value_kernel": (8, 2, 4), "output_kernel": (2, 4, 6)},
        ),
        (
            "EinsumDense",
            {"equation": "...xy,xyz->...z", "output_shape": (5,), "bias_axes": "z"},
            [(7, 2, 3)],
            (7, 5),
            {"kernel": (2, 3, 5), "bias": (5,)},
        ),
        ("Add", {}, [(4, 1, 3), (4, 5, 1)], (4, 5, 3), {}),
        ("Concatenate", {"axis": 1}, [(2, 3), (4, 3)], (6, 3), {}),
    ],
)
def test_what_comes_out_of_a_kind(kind, options, inputs, output, weights):
    assert KINDS[kind].plan(options, *inputs) == (output, weights)
